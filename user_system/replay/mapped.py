"""Where values lie in LMDB's file, so that they can be read without asking LMDB for each.

A value larger than half a page has pages of its own, one after the other, which begin with a header
of 16 bytes and never move until the value is deleted. The header holds the number of the first
page, from the moment the value is put. So a writer can note where a value will lie in the
transaction that stores it, and a reader can copy from the file, or from LMDB's map of it, what
LMDB's own ``get`` would touch page by page.

All this is LMDB 0.9's file format, which ``layout`` pins. Whoever reads by position compares a
checksum before believing what is there.
"""

import ctypes
import struct
from pathlib import Path

import numpy as np

from user_system.core.errors import DamageError, StoreError
from user_system.replay.datafile import DataFile

PAGE = 4096
HEADER = struct.Struct("<QHHI")
"""Of a page: its number, padding, flags, and for a value with pages of its own how many."""

_META_MAGIC = 0xBEEFC0DE
_OVERFLOW = 0x04


class FileMap:
    """LMDB's map of its file in this process. Positions hold in every process that reads it.

    Args:
        file: LMDB's data file, for messages.
    """

    def __init__(self, file: Path):
        self._file = file
        self._whole: memoryview | None = None

    @property
    def known(self) -> bool:
        """Whether ``whole`` can be asked for."""
        return self._whole is not None

    def forget(self) -> None:
        """The map is about to move or to go."""
        self._whole = None

    def learn(self, value: memoryview, size: int) -> None:
        """Find the map from any committed value of it; ``size`` is the map's in bytes."""
        address = _address(value)
        page = address - address % PAGE
        base = page - PAGE * int(HEADER.unpack(ctypes.string_at(page, HEADER.size))[0])
        (magic,) = struct.unpack("<I", ctypes.string_at(base + HEADER.size, 4))
        if magic != _META_MAGIC:
            raise StoreError(f"{self._file} is not mapped as expected", got=hex(magic))
        # A ctypes array over the mapped range: from_address reads nothing by itself.
        self._whole = memoryview((ctypes.c_ubyte * size).from_address(base)).cast("B")

    def whole(self) -> memoryview:
        """Return the map as bytes; valid until the read transaction that it is used in ends.

        It may be longer than the file: touch only what lies inside a value.
        """
        if self._whole is None:
            raise StoreError(f"where {self._file} is mapped is not known yet")
        return self._whole


def position(value: memoryview) -> int:
    """Return where in the file a value lies, or will lie, that has pages of its own.

    Args:
        value: as a transaction returned it, in the middle of nothing else.

    Raises:
        StoreError: it shares a page with others, so that it may move at any time.
    """
    address = _address(value) - HEADER.size
    number, _, flags, _ = HEADER.unpack(ctypes.string_at(address, HEADER.size))
    if not flags & _OVERFLOW:
        raise StoreError("a value has no pages of its own", got=f"{len(value)} bytes")
    return int(number) * PAGE + HEADER.size


def require_header(file: DataFile, position: int, length: int) -> None:
    """Make sure that the pages of a value say what they are: LMDB frees what they say.

    Args:
        file: the data file.
        position: of the value.
        length: of the value in bytes.

    Raises:
        DamageError: they do not.
    """
    number, _, flags, pages = HEADER.unpack(file.read(position - HEADER.size, HEADER.size))
    wanted = -(-(length + HEADER.size) // PAGE)
    if number * PAGE + HEADER.size != position or not flags & _OVERFLOW or pages != wanted:
        raise DamageError("pages do not begin the value that they should", got=(number, pages))


def _address(value: memoryview) -> int:
    return int(np.frombuffer(value, np.uint8).__array_interface__["data"][0])
