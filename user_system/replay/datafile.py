"""LMDB's data file, read by position beside LMDB."""

import os
from pathlib import Path
from typing import Any

from user_system.core.errors import DamageError


class DataFile:
    """One open file; what is read from it is only as valid as the snapshot that named the place.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self._path = path
        self._handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of it; safe to repeat."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def ask(self, position: int, length: int) -> None:
        """Have the kernel read a part before it is needed; no more than a hint."""
        os.posix_fadvise(self._handle, position, length, os.POSIX_FADV_WILLNEED)

    def read_into(self, target: Any, position: int) -> bool:
        """Fill a buffer; return whether the file had that much."""
        return os.preadv(self._handle, [target], position) == len(target)

    def read(self, position: int, length: int) -> memoryview:
        """Return a part of the file.

        Raises:
            DamageError: it ends before.
        """
        target = memoryview(bytearray(length))
        if not self.read_into(target, position):
            raise DamageError(f"{self._path} ends too early", got=position, allowed=length)
        return target
