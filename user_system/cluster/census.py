"""Which processes belong to a run, however they came to be, and how to end exactly those.

Each process that a run starts carries the run's mark in its environment, and so does everything it
starts in turn (Ray's workers, for example). Processes are found by that mark and ended by pid,
never by name, so that nothing of anybody else is ever touched.
"""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

from user_system.cluster.process import write_private
from user_system.core.errors import ConfigError

MARK = "USER_SYSTEM_RUN"
"""Environment variable that names the run a process belongs to."""

FILE = "pids.json"


@dataclass(frozen=True)
class Record:
    """What a run wrote about its processes; outlives a launcher that was killed."""

    mark: str
    launcher: int
    """Pid of the launcher."""
    created: float
    """When that process began, s since 1970: a pid alone may be somebody else's by now."""
    processes: dict[str, int] = field(default_factory=dict)
    """Name -> pid, as last started."""
    page: str = ""
    """Address of the page."""
    temporary: str = ""
    """Directory of sockets and Ray's files, removed at the end."""

    def write(self, run: Path) -> None:
        """Keep it in the run's directory."""
        write_private(run / FILE, json.dumps(asdict(self), indent=1))

    @property
    def launcher_alive(self) -> bool:
        """Whether the launcher still runs; a zombie, of which a parent must only hear, does not."""
        try:
            found = psutil.Process(self.launcher)
            same = abs(found.create_time() - self.created) < 1.0
            return same and found.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


def read_record(run: Path) -> Record | None:
    """Return what a run wrote, None where it wrote nothing."""
    try:
        return Record(**json.loads((run / FILE).read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{run / FILE} is damaged", got=error, todo="Remove it once no process is left."
        ) from error


def members(mark: str) -> list[psutil.Process]:
    """Return every living process that carries ``mark``, except the caller."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            marked = process.pid != os.getpid() and process.environ().get(MARK) == mark
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end(mark: str, grace_s: float = 5.0) -> list[int]:
    """End every process that carries ``mark``: SIGTERM, then SIGKILL; return their pids."""
    ended: dict[int, None] = {}
    deadline = time.monotonic() + grace_s
    for process in (first := members(mark)):
        _signal(process, signal.SIGTERM)
    psutil.wait_procs(first, timeout=max(0.0, deadline - time.monotonic()))
    ended.update(dict.fromkeys(p.pid for p in first))
    # Repeated, since a process may have started another one between the look and the kill.
    while left := members(mark):
        for process in left:
            _signal(process, signal.SIGKILL)
        ended.update(dict.fromkeys(p.pid for p in left))
        psutil.wait_procs(left, timeout=1.0)
    return list(ended)


def created(pid: int | None = None) -> float:
    """Return when a process (the caller) began, s since 1970."""
    return psutil.Process(pid).create_time()


def pss_bytes(processes: Iterable[psutil.Process]) -> int:
    """Return the proportional set size of processes together, bytes."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            total += process.memory_full_info().pss
    return total


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)  # psutil compares creation times, so a reused pid is safe
