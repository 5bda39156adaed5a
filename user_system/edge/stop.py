"""The stop at the robot host: a socket file that needs neither link nor head, only this machine.

Whoever may write to the file stops all robots of the host at once, as the page's stop does: a
software stop, latched until a person releases it, and no safety function.
"""

import logging
import os
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

from user_system.core.errors import MissingError

log = logging.getLogger(__name__)

NAME = "stop"
"""Name of the socket file in the host's directory; its owner alone may write to it."""


class StopSocket:
    """Hears stops until closed.

    Args:
        directory: of the host.
        stop: called with who asked for it, in a thread of its own; must be quick.
    """

    def __init__(self, directory: Path, stop: Callable[[str], None]):
        self._directory, self._stop = directory, stop
        self._thread = threading.Thread(target=self._hear, name="stop", daemon=True)
        self._socket: socket.socket | None = None
        self._open = True

    def start(self) -> None:
        """Make the socket, in place of one that an earlier life left."""
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / NAME).unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        held = os.open(self._directory, os.O_RDONLY)
        try:
            # A path through the descriptor: one of the file system may be too long for a socket.
            self._socket.bind(f"/proc/self/fd/{held}/{NAME}")
        finally:
            os.close(held)
        (self._directory / NAME).chmod(0o600)
        self._thread.start()

    def _hear(self) -> None:
        if self._socket is None:
            return
        while True:
            said = self._socket.recv(64)
            if not self._open:
                return
            by = said.decode("utf-8", "replace") or "somebody at the robot host"
            log.warning("all robots are stopped by %s", by)
            try:
                self._stop(by)
            except Exception:  # top of a thread: the next stop must be heard whatever this one met
                log.exception("the stop of %s met an error", by)

    def close(self) -> None:
        """Hear no more; idempotent."""
        if self._socket is None:
            return
        self._open = False
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes who waits for it
        self._thread.join(2.0)
        self._socket.close()
        self._socket = None
        (self._directory / NAME).unlink(missing_ok=True)


def ring(directory: Path, by: str) -> None:
    """Stop all robots of the host whose directory this is.

    Raises:
        MissingError: no agent listens there.
    """
    try:
        held = os.open(directory, os.O_RDONLY)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
                one.settimeout(2.0)
                one.sendto(by.encode()[:64], f"/proc/self/fd/{held}/{NAME}")
        finally:
            os.close(held)
    except OSError as error:
        raise MissingError(
            f"no agent hears a stop in {directory}",
            got=error,
            todo="Is it this host's directory, and does its agent run? Use the robot's own stop.",
        ) from error


def found(directory: Path) -> list[Path]:
    """Return the directories of hosts at or below ``directory`` whose agents listen."""
    files = sorted({directory / NAME, *directory.glob(f"**/{NAME}")})
    return [file.parent for file in files if file.exists() and stat.S_ISSOCK(file.stat().st_mode)]
