"""Keeps the agent's children running: drivers and policy workers.

A driver outlives its agent on purpose, so a new agent finds it alive and takes it over instead of
starting a second one. Whatever dies is started again, patiently. A child is ended by signal and by
its own id only, and only if it is ours.
"""

import logging
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from user_system.core.supervise import Backoff

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChildConfig:
    """A process to keep running."""

    name: str
    argv: tuple[str, ...]
    log: Path
    """Where its output goes, appended."""
    socket: Path | None = None
    """Where it listens: a living one from an earlier life of the agent is taken over."""
    env: Mapping[str, str] | None = None
    """Its whole environment; None: the agent's."""


@dataclass
class _Child:
    config: ChildConfig
    backoff: Backoff = field(default_factory=Backoff)
    pid: int = 0
    pidfd: int = -1
    process: subprocess.Popen[bytes] | None = None
    born: float = 0.0
    due: float = 0.0
    restarts: int = 0


class Supervisor:
    """Starts, watches and restarts children in a thread of its own.

    Args:
        children: what to keep running.
        on_death: called with (name, what it said last) after each death, from that thread.
    """

    def __init__(
        self,
        children: Sequence[ChildConfig],
        on_death: Callable[[str, str], None] = lambda _name, _why: None,
    ):
        self._children = {child.name: _Child(child) for child in children}
        self._on_death = on_death
        self._open = True
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Take over what lives, start the rest, and watch."""
        for child in self._children.values():
            if not self._adopt(child):
                self._spawn(child)
        self._thread.start()

    def _adopt(self, child: _Child) -> bool:
        pid = listener(child.config.socket) if child.config.socket else 0
        if not pid:
            return False
        try:
            child.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        child.pid, child.process, child.born = pid, None, time.monotonic()
        log.info("%s lives (%d) and is taken over", child.config.name, pid)
        return True

    def _spawn(self, child: _Child) -> None:
        config = child.config
        with open(config.log, "ab") as output:
            process = subprocess.Popen(
                config.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=dict(config.env) if config.env is not None else None,
            )
        child.process, child.pid, child.born = process, process.pid, time.monotonic()
        child.pidfd, child.due = os.pidfd_open(process.pid), 0.0
        log.info("%s started (%d)", config.name, child.pid)

    def _run(self) -> None:
        while self._open:
            with self._lock:
                fds = {c.pidfd: c for c in self._children.values() if c.pidfd >= 0}
            dead, _, _ = select.select(list(fds), [], [], 0.05)
            with self._lock:
                for fd in dead:
                    self._bury(fds[fd])
                for child in self._children.values():
                    if self._open and child.pidfd < 0 and time.monotonic() >= child.due:
                        self._spawn(child)
                        child.restarts += 1

    def _bury(self, child: _Child) -> None:
        lived = time.monotonic() - child.born
        code = child.process.wait() if child.process else None
        os.close(child.pidfd)
        child.pidfd, child.pid = -1, 0
        delay = child.backoff.died(lived)
        child.due = time.monotonic() + delay
        last = last_line(child.config.log)
        log.warning(
            "%s died after %.1f s (%s); again in %.1f s", child.config.name, lived, code, delay
        )
        if self._open:
            self._on_death(child.config.name, last)

    def kill(self, name: str) -> None:
        """End a child that hangs, at once; it is started again."""
        with self._lock:
            child = self._children[name]
            if child.pidfd >= 0:
                log.warning("%s (%d) is killed", name, child.pid)
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)

    def pid(self, name: str) -> int:
        """Return the process id of a child; 0 while it is dead."""
        return self._children[name].pid

    def close(self, patience_s: float = 5.0) -> None:
        """End all children: asked first, then killed."""
        self._open = False
        if self._thread.is_alive():
            self._thread.join(2.0)
        living = [child for child in self._children.values() if child.pidfd >= 0]
        for order, patience in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 2.0)):
            for child in living:
                signal.pidfd_send_signal(child.pidfd, order)
            deadline = time.monotonic() + patience
            living = [child for child in living if not _gone(child, deadline)]

    def stats(self) -> dict[str, float]:
        """Return restarts per child."""
        return {f"restarts_{name}": float(c.restarts) for name, c in self._children.items()}


def _gone(child: _Child, deadline: float) -> bool:
    """Wait until a child is dead; False where it lives on."""
    ready, _, _ = select.select([child.pidfd], [], [], max(0.0, deadline - time.monotonic()))
    if not ready:
        return False
    if child.process is not None:
        child.process.wait()
    os.close(child.pidfd)
    child.pidfd, child.pid = -1, 0
    return True


def listener(path: Path) -> int:
    """Return the process that listens at the unix socket ``path``; 0: none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return 0
        size = struct.calcsize("3i")
        pid, _, _ = struct.unpack(
            "3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        )
        return int(pid)


def last_line(path: Path) -> str:
    """Return the last line with something on it, for people who wonder why."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
