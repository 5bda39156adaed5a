"""Readers that keep the writer from using pages again: who they are, since when, and what is done.

A snapshot keeps every page that it may still look at. Ours last milliseconds, so one that is a
minute old belongs to a process that hangs or was stopped. While it is there nothing that is removed
makes room, and the file grows without bound. A dead reader is cleared by LMDB; one that lives and
does not move is ended, as a database ends a session that holds everybody up. A backup is left
alone: it says so by a lock on ``backup.lock``.
"""

import contextlib
import fcntl
import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from user_system.replay.env import Env

log = logging.getLogger(__name__)

LIMIT_S = 60.0
"""Age of a snapshot at which its process is ended: a thousand times what the longest of ours needs,
and a good deal more than a debugger's first look."""

_MAPS = "/proc/{pid}/maps"


class Pin(NamedTuple):
    """One reader's snapshot."""

    pid: int
    thread: str
    transaction: int


class Pinning:
    """Watches the readers of one store. Thread-safe.

    Args:
        env: the writer's environment.
        limit_s: see ``LIMIT_S``.
    """

    def __init__(self, env: Env, limit_s: float = LIMIT_S):
        self._env = env
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._since: dict[Pin, float] = {}

    def look(self, now: float) -> tuple[Pin, float] | None:
        """Return the snapshot that was seen for longest, and for how many seconds.

        Args:
            now: monotonic seconds.
        """
        pins = set(self._pins())
        with self._lock:
            self._since = {pin: self._since.get(pin, now) for pin in pins}
            if not self._since:
                return None
            oldest, since = min(self._since.items(), key=lambda item: item[1])
            return oldest, now - since

    def clear(self, now: float) -> None:
        """End the processes whose snapshots are older than the limit."""
        self.look(now)
        spared = backing_up(self._env.path)
        with self._lock:
            seen = list(self._since.items())
        for pin, since in seen:
            if now - since >= self._limit_s and pin.pid not in (os.getpid(), spared):
                self._end(pin, now - since)

    def _pins(self) -> Iterator[Pin]:
        for line in self._env.readers().splitlines():
            fields = line.split()
            # A header line, or "(no active readers)", or a slot without a snapshot ("-").
            if len(fields) == 3 and fields[0].isdigit() and fields[2].isdigit():
                yield Pin(int(fields[0]), fields[1], int(fields[2]))

    def _end(self, pin: Pin, age_s: float) -> None:
        if not self._maps(pin.pid):
            return  # the number belongs to somebody else by now
        try:
            os.kill(pin.pid, signal.SIGKILL)
        except PermissionError:
            log.error(
                "process %d has held a snapshot of %s for %.0f s, and may not be ended from here: "
                "end it, or the disk fills",
                *(pin.pid, self._env.path, age_s),
            )
            return
        log.error(
            "process %d held a snapshot of %s for %.0f s and was ended: nothing that was removed "
            "could be used again",
            *(pin.pid, self._env.path, age_s),
        )

    def _maps(self, pid: int) -> bool:
        """Return whether a process has this store mapped."""
        try:
            return f"{self._env.path.resolve()}/" in Path(_MAPS.format(pid=pid)).read_text()
        except OSError:
            return False


@contextmanager
def backup_lock(path: Path) -> Iterator[None]:
    """Say that this process copies the store: a snapshot of its lasts as long as that takes."""
    handle = os.open(path / "backup.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
        yield
    finally:
        os.close(handle)


def backing_up(path: Path) -> int:
    """Return the process that copies the store now; 0: none does."""
    try:
        handle = os.open(path / "backup.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return 0
    try:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return 0
        with contextlib.suppress(ValueError):
            return int(os.read(handle, 32))
        return 0
    finally:
        os.close(handle)
