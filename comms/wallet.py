"""A process's credentials as they are now: certificates are renewed while it runs.

Whoever shows or dials with credentials asks a wallet for them at each new connection. Connections
that exist go on with what they began with.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from comms.credentials import Credentials
from user_system.core.errors import SecurityError

log = logging.getLogger(__name__)

Wallet = Callable[[], Credentials]
"""Returns the credentials to use now; the same object for as long as nothing changed."""


class DiskWallet:
    """Credentials in a directory, read again when their file is replaced. Thread-safe.

    Args:
        directory: see ``comms.credentials``.
        name: whose.

    Raises:
        SecurityError: they are missing, expired, or readable by others.
    """

    def __init__(self, directory: Path, name: str):
        self.directory, self.name = directory, name
        self._path = directory / f"{name}.pem"
        self._lock = threading.Lock()
        self._stamp = self._look()
        self._credentials = Credentials.load(directory, name)

    def __call__(self) -> Credentials:
        """Return the newest that could be read; looking is one ``stat``."""
        with self._lock:
            stamp = self._look()
            if stamp != self._stamp:
                self._stamp = stamp
                self._read()
            return self._credentials

    def _read(self) -> None:
        try:
            self._credentials = Credentials.load(self.directory, self.name)
        except SecurityError as error:
            # Revoked, or replaced by something wrong: those at hand go on being shown, and the
            # other side refuses them where it must.
            log.error("new credentials of %s cannot be used: %s", self.name, error)

    def _look(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino


def as_wallet(credentials: Credentials | Wallet) -> Wallet:
    """Return a wallet; of credentials as such, one that never changes."""
    return (lambda: credentials) if isinstance(credentials, Credentials) else credentials
