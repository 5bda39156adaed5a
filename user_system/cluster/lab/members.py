"""Which processes are in a namespace, and how to end exactly those."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MARK = "USER_SYSTEM_LAB"
"""Environment variable of what a lab runs: pid and start of the process that the lab belongs to."""

_AGAIN_S = 0.02
_LIMIT_S = 5.0


def began(pid: int) -> str:
    """Return when a process began, in ticks since boot; "" where there is none.

    A pid alone may be another process's by now.
    """
    try:
        # The name in parentheses may hold anything; the start is field 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def mark() -> str:
    """Return the mark of the calling process."""
    return f"{os.getpid()}:{began(os.getpid())}"


def inside(spaces: set[int]) -> list[int]:
    """Return the pids of the living processes in network namespaces, by inode."""
    found = []
    for pid in _pids():
        with suppress(OSError):  # gone meanwhile, or somebody else's
            if os.stat(f"/proc/{pid}/ns/net").st_ino in spaces and began(pid):
                found.append(pid)
    return found


def leftovers() -> list[int]:
    """Return the pids of processes of labs whose owner has died."""
    found = []
    for pid in _pids():
        with suppress(OSError):
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                name, _, value = entry.partition(b"=")
                if name == MARK.encode() and _dead(value.decode(errors="replace")) and began(pid):
                    found.append(pid)
    return found


def end(spaces: set[int]) -> list[int]:
    """Kill every process in namespaces; return their pids.

    Repeated, since a process may have started another one between the look and the kill.
    """
    ended: dict[int, None] = {}
    deadline = time.monotonic() + _LIMIT_S
    while (left := inside(spaces)) and time.monotonic() < deadline:
        kill(left)
        ended.update(dict.fromkeys(left))
        time.sleep(_AGAIN_S)
    return list(ended)


def kill(pids: list[int]) -> None:
    """Kill processes; one that is gone already is no matter."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _dead(value: str) -> bool:
    """Whether a mark is that of a process that has ended."""
    pid, colon, start = value.partition(":")
    return bool(colon) and pid.isdecimal() and began(int(pid)) != start


def _pids() -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) != os.getpid():
            yield int(entry)
