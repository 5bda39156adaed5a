"""LMDB's data file read page by page, without LMDB: what a damaged one still holds.

LMDB finds a value by walking its tree from the root, so one lost page near it takes thousands of
values along. Here every page is looked at by itself. A page says its own number, so one that does
not is not one; leaf pages hold keys with small values, and a large value follows the header of its
first page. Nothing says whether a page is still part of the tree, so older copies of a value, and
values that were deleted, turn up as well: whoever takes them must be able to tell.
"""

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from user_system.replay.mapped import PAGE

_CHUNK = 64 << 20
_HEADER = 16
_LEAF, _OVERFLOW = 0x02, 0x04
_BIG = 0x01
_NODE = struct.Struct("<HHHH")
_POINTER = struct.Struct("<H")


class Small(NamedTuple):
    """A key and a value that share a leaf page with others."""

    key: bytes
    value: bytes
    position: int
    """Of the value in the file."""


class Large(NamedTuple):
    """The beginning of a value that has pages of its own."""

    position: int
    head: bytes
    """What the first page holds of it."""


def walk(file: Path, done: Callable[[int], None] = lambda _: None) -> Iterator[Small | Large]:
    """Yield what every page holds, in the order of the file.

    Args:
        file: the data file; it is only read.
        done: called with the number of bytes looked at since the last call.
    """
    with file.open("rb") as source:
        first = 0
        while chunk := source.read(_CHUNK):
            whole = len(chunk) // PAGE
            pages = np.frombuffer(chunk, np.uint8, whole * PAGE).reshape(whole, PAGE)
            numbers = pages[:, :8].copy().view("<u8")[:, 0]
            flags = pages[:, 10:12].copy().view("<u2")[:, 0]
            real = numbers == np.arange(first, first + whole, dtype=np.uint64)
            for i in np.flatnonzero(real & ((flags & (_LEAF | _OVERFLOW)) != 0)).tolist():
                position = (first + i) * PAGE
                page = chunk[i * PAGE : (i + 1) * PAGE]
                if flags[i] & _OVERFLOW:
                    yield Large(position + _HEADER, page[_HEADER:])
                else:
                    yield from _nodes(page, position)
            first += whole
            done(len(chunk))


def read(handle: int, position: int, length: int) -> bytes:
    """Return ``length`` bytes of an open file from ``position``; fewer where it ends before."""
    return os.pread(handle, length, position)


def _nodes(page: bytes, position: int) -> Iterator[Small]:
    """Yield the small values of a leaf page; whatever does not fit into it is left out."""
    lower = _POINTER.unpack_from(page, 12)[0]
    if not _HEADER <= lower <= PAGE:
        return
    for at in range(_HEADER, lower - 1, 2):
        start = _POINTER.unpack_from(page, at)[0]
        if not lower <= start <= PAGE - _NODE.size:
            continue
        low, high, flags, key_size = _NODE.unpack_from(page, start)
        key = start + _NODE.size
        value = key + key_size
        end = value + (low | high << 16)
        if flags & _BIG or flags & ~_BIG or end > PAGE:
            continue
        yield Small(page[key:value], page[value:end], position + value)
