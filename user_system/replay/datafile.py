"""LMDB's data file, read by position beside LMDB."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np

from user_system.core.errors import DamageError, StoreError

_DONT_CACHE = 0x80
"""``RWF_DONTCACHE`` of Linux 6.14, which Python does not name."""


class DataFile:
    """One open file; what is read from it is only as valid as the snapshot that named the place.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self._path = path
        self._handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        self._once = _DONT_CACHE

    def close(self) -> None:
        """Let go of it; safe to repeat."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def ask(self, position: int, length: int) -> None:
        """Have the kernel read a part before it is needed; no more than a hint."""
        os.posix_fadvise(self._handle, position, length, os.POSIX_FADV_WILLNEED)

    def read_into(self, target: Any, position: int) -> bool:
        """Fill a buffer; return whether the file had that much.

        Raises:
            DamageError: the disk cannot read it.
            StoreError: the system does not let us.
        """
        try:
            return self._fill(target, position, 0)
        except OSError as error:
            raise self._explain(error, position) from error

    def read_once(self, target: Any, position: int) -> bool:
        """Do as ``read_into``; what was not in the page cache will not stay there.

        Where the kernel cannot do that, it stays.
        """
        flags = self._once  # of other threads one may be the first to find out
        try:
            return self._fill(target, position, flags)
        except OSError as error:
            if not flags or error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise self._explain(error, position) from error
            self._once = 0
        return self.read_into(target, position)

    def read(self, position: int, length: int) -> memoryview:
        """Return a part of the file.

        Raises:
            DamageError: it ends before.
        """
        target: memoryview = np.empty(length, np.uint8).data  # a bytearray would be zeroed first
        if not self.read_into(target, position):
            raise DamageError(f"{self._path} ends too early", got=position, allowed=length)
        return target

    def _explain(self, error: OSError, position: int) -> StoreError:
        what = f"{self._path} cannot be read at {position}: {error.strerror}"
        if error.errno == errno.EIO:  # the bytes are lost, as those of a damaged page are
            return DamageError(what, todo="Look at the kernel's log: its disk fails.")
        return StoreError(what, todo="Check the rights of the file, and its disk.")

    def _fill(self, target: Any, position: int, flags: int) -> bool:
        """Read until a buffer is full; return whether the file had that much."""
        rest = memoryview(target)
        while len(rest):
            count = os.preadv(self._handle, [rest], position, flags)
            if not count:
                return False
            rest, position = rest[count:], position + count
        return True
