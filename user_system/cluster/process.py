"""What every process of ours does first and last: config, signals, ready file, one error line.

A composition root is ``def main(config, life)`` and ``run(main, ConfigType)``. Exit status: 0
stopped as asked, 2 a person must change something (configuration, machine), 1 anything else; a
supervisor restarts a 1 and gives up on a 2.
"""

import ctypes
import faulthandler
import json
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from user_system.cluster.parse import read_json
from user_system.core.clock import WallClock
from user_system.core.errors import ConfigError, MissingError, SecurityError, UserSystemError
from user_system.core.throttle import Throttle

C = TypeVar("C")

STATUS_CONFIG = 2
READY_VARIABLE = "USER_SYSTEM_READY"
"""Environment variable with the path of the ready file."""
PARENT_VARIABLE = "USER_SYSTEM_PARENT"
"""Pid of the launcher, with which the process ends."""
NICE_VARIABLE = "USER_SYSTEM_NICE"
"""Scheduling priority that the process gives itself."""
CORES_VARIABLE = "USER_SYSTEM_CORES"
"""CPUs that the process keeps to, by number; "": whichever the kernel chooses."""

END_S = 30.0
"""How long a process may take to end after it was asked to."""

FILES = 8192
"""Open files of a process, if the machine lets it: each connection is one, strangers' included, and
what is on the disk must be written whoever is connected."""

_PR_SET_PDEATHSIG = 1
log = logging.getLogger("user_system")


@dataclass
class Life:
    """A process's beginning and end, as its composition root sees them."""

    ready_file: str = ""
    """Where to say that it serves; "": nobody waits for that."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set once the process should end."""
    _calls: list[Callable[[], None]] = field(default_factory=list)
    _finish: list[Callable[[], None]] = field(default_factory=list)
    _wake: int | None = None
    """Where the signal handler says that there was a signal."""

    def ready(self, facts: Mapping[str, Any] | None = None) -> None:
        """Tell the launcher that this process serves; ``facts`` are for people."""
        if self.ready_file:
            text = json.dumps({"pid": os.getpid(), **(facts or {})})
            write_private(Path(self.ready_file), text)

    def on_end(self, call: Callable[[], None]) -> None:
        """Have ``call`` run, in a thread, when the process is asked to end."""
        self._calls.append(call)
        if self.stop.is_set():
            call()

    def on_finish(self, call: Callable[[], None]) -> None:
        """Have ``call`` run, in a thread, on SIGUSR1: the process is to end what it is at first."""
        self._finish.append(call)
        signal.signal(signal.SIGUSR1, self._signalled)

    def watch(self) -> None:
        """Take SIGTERM and SIGINT; again after a library took them (``ray.init`` does).

        A handler runs between any two instructions of the main thread, which may hold any lock just
        then: it only writes a byte, and a thread of its own does the rest.
        """
        if self._wake is None:
            heard, self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(heard, True)
            threading.Thread(target=self._obey, args=(heard,), name="end", daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)

    def end(self) -> None:
        """Ask the process to end."""
        self.stop.set()
        for call in self._calls:
            call()

    def _signalled(self, number: int, _: object) -> None:
        if self._wake is not None:
            with suppress(BlockingIOError):  # a full pipe says it already
                os.write(self._wake, bytes([number]))

    def _obey(self, heard: int) -> None:
        """End on the first signal; a process that cannot end says where it hangs and is ended."""
        while os.read(heard, 1)[0] == signal.SIGUSR1:
            for call in self._finish:
                call()
        self.end()
        time.sleep(END_S)
        log.error("still here %g s after it was asked to end; ended by force", END_S)
        faulthandler.dump_traceback(all_threads=True)
        os._exit(1)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner reads, atomically: a reader sees all of it or the old."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


class Plain(logging.Formatter):
    """Writes each record as one line, with what belongs to it indented below.

    What a peer says of itself is quoted in many lines: it must not look like a line of its own, nor
    tell a terminal what to do.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (the library's name)
        """Return the line of a record."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 (the library's name)
        """Return a traceback, indented."""
        lines = super().formatException(ei).splitlines()
        return "\n".join("  " + printable(line) for line in lines)


def printable(text: str) -> str:
    """Return a text with escapes for all that is no picture of its own."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


_KINDS = 1024
"""Kinds of lines whose left out ones are counted."""


class Quiet(logging.Filter):
    """Lets a line of one kind through fifty times at once, then once a second.

    What somebody outside can cause, they can cause thousands of times a second; no log may fill a
    disk by it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines = Throttle(WallClock(), 1.0, 50.0)
        self._left_out: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a line is written; one that follows some that were not says so."""
        kind = f"{record.name} {record.msg}"[:500]
        if not self._lines.take(kind):
            self._left_out[kind] += 1
            if len(self._left_out) > _KINDS:
                self._left_out.clear()
            return False
        if left_out := self._left_out.pop(kind, 0):
            record.msg = f"{record.msg} (and {left_out} more of this kind)"
        return True


def begin() -> Life:
    """Do what a launcher cannot safely do between fork and exec: fate and priority.

    The variables are for this process alone and are not handed on: what it starts in turn decides
    for itself whose end is its own.
    """
    parent, nice = os.environ.pop(PARENT_VARIABLE, ""), os.environ.pop(NICE_VARIABLE, "")
    if parent:
        _die_with(int(parent))
    if nice:
        _set_nice(int(nice))
    if cores := os.environ.pop(CORES_VARIABLE, ""):
        os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
    return Life(os.environ.pop(READY_VARIABLE, ""))


def _die_with(parent: int) -> None:
    """Have the kernel send SIGTERM when the launcher's main thread ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            raise SystemExit("the launcher ended before this process began")


def _set_nice(value: int) -> None:
    # Raising priority needs a permission that most machines do not give; robots then run at 0.
    try:
        os.setpriority(os.PRIO_PROCESS, 0, value)
    except PermissionError:
        if value > 0:
            raise


def _let_open(files: int) -> None:
    """Raise the limit of open files as far as the machine lets us; many begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files if hard == resource.RLIM_INFINITY else min(files, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def exit_status(error: UserSystemError) -> int:
    """Return the exit status of an error: 2 where only a person can help."""
    return STATUS_CONFIG if isinstance(error, ConfigError | MissingError | SecurityError) else 1


def run(main: Callable[[C, Life], None], config_type: type[C]) -> None:
    """Run a composition root: ``python -m user_system.cluster.<kind>_host CONFIG.json``."""
    logging.basicConfig(
        level=os.environ.get("USER_SYSTEM_LOG", "INFO"),
        stream=sys.stderr,
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(Quiet())
        handler.setFormatter(Plain("%(asctime)s %(levelname).1s %(name)s: %(message)s"))
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request
    life = begin()
    _let_open(FILES)
    life.watch()
    try:
        if len(sys.argv) != 2:
            raise ConfigError("this process takes one argument", allowed="the path of its config")
        main(read_json(sys.argv[1], config_type), life)
    except UserSystemError as error:
        log.info("ends with an error", exc_info=True)
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(exit_status(error)) from error
    except Exception as error:  # top of the process: say it, then let the supervisor decide
        log.exception("ends with a defect")
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from error
