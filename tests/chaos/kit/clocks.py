"""A robot host whose clock is off: what it says of that, and processes that live with it."""

import select
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kit import herd
from kit.zygote import Channel

from user_system.cluster import edge_doctor
from user_system.core.errors import UserSystemError

PLACES = ("/usr/lib", "/usr/lib64", "/usr/local/lib")
LIBRARY = "libfaketimeMT.so.1"


def library() -> str:
    """Return the library that fakes the wall clock, "" where it is not installed."""
    found = (path for place in PLACES for path in Path(place).glob(f"**/faketime/{LIBRARY}"))
    return str(next(found, ""))


class Skew:
    """How far the wall clock of processes is off; may change while they run.

    Args:
        directory: for what they read.
        seconds: ahead of the real one.
    """

    def __init__(self, directory: Path, seconds: float):
        self._file = directory / "skew"
        self.set(seconds)

    def set(self, seconds: float) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+.0f}s\n")
        new.replace(self._file)

    @property
    def under(self) -> list[str]:
        """The command under which a process has this clock; the monotonic one is as it is."""
        variables: Mapping[str, str] = {
            "LD_PRELOAD": library(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        return ["env", *(f"{name}={value}" for name, value in variables.items())]


def host(channel: Channel, **values: Any) -> None:
    """Be a robot host of ``kit.herd``."""
    _let_sleep()
    herd.be(channel, **values)


def _let_sleep() -> None:
    """Sleep by ``select``: the library refuses the absolute deadlines of Python's own sleep."""
    time.sleep = lambda seconds: select.select([], [], [], seconds) and None  # type: ignore[assignment]


def now(channel: Channel) -> None:
    """Say what time it is here."""
    channel.send(time.time())


def doctor(channel: Channel, home: str) -> None:
    """Say what ``doctor`` finds: name -> (found, ok, what to do)."""
    _let_sleep()
    found = edge_doctor.examine(Path(home))
    channel.send({f.what.partition(" 127")[0]: (f.found, f.ok, f.todo) for f in found})


def join(channel: Channel, line: str, pki: str) -> None:
    """Join; say "" or why not."""
    from comms import joining

    _let_sleep()
    try:
        joining.join(line, Path(pki))
    except UserSystemError as error:
        channel.send(str(error))
    else:
        channel.send("")
