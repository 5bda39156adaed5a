"""Images on disk: several in one value, each with its checksum, each stored once.

One 128x128 image per value wastes 8 % in half-filled pages, a megabyte of them nearly nothing. The
key is (fragment, camera, group), big-endian; a value is::

    0   2   number of images
    2   1   codec: index into ``codec.images.CODECS``
    3   1   zero
    4   6   height, width, channels
    10  2   where the first image begins
    12  12n length and xxh3-64 of each image's bytes
        ... zeros up to that place
        ... the images' bytes, one after the other
        ... zeros up to ``SMALLEST``

A value of ``SMALLEST`` bytes or more has pages of its own, which never move until it is deleted:
that is what makes it possible to remember where an image lies. They begin with LMDB's page header,
so that images begin at ``LEAD`` modulo 64, a cache line of the file.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from user_system.codec import images as codecs
from user_system.core.errors import DamageError
from user_system.core.types import Array, Fragment
from user_system.replay.env import Txn
from user_system.replay.schema import Schema, Shape

GROUP_BYTES = 1 << 20
"""Pixels' bytes that share a value."""

SMALLEST = 4096
"""Bytes; anything above half a page is kept out of LMDB's leaf pages."""

LEAD = 64 - 16
"""The page header takes 16 bytes."""

_KEY = struct.Struct(">QHH")
_HEAD = struct.Struct("<HBxHHHH")
ENTRY = np.dtype([("length", "<u4"), ("checksum", "<u8")])
"""What is kept of each image beside its bytes."""


def per_group(shape: Shape) -> int:
    """Return how many images ``(H, W, C)`` share a value."""
    return max(1, GROUP_BYTES // int(np.prod(shape)))


def key(offset: int, camera: int, group: int) -> bytes:
    """Return the key of one value."""
    return _KEY.pack(offset, camera, group)


def values(
    fragment: Fragment, schema: Schema, codec_of: Mapping[str, codecs.Codec]
) -> Iterator[tuple[int, int, bytes]]:
    """Yield (camera, group, value) of all images of a fragment."""
    for camera, (name, shape) in enumerate(schema.images.items()):
        rows, count = fragment.observation[name], per_group(shape)
        for group, start in enumerate(range(0, len(rows), count)):
            yield camera, group, _value(rows[start : start + count], codec_of.get(name, "raw"))


def _value(rows: Array, codec: codecs.Codec) -> bytes:
    encoded = [codecs.encode(row, codec) for row in rows]
    table = np.array([(len(data), codecs.checksum(data)) for data in encoded], ENTRY).tobytes()
    first = _HEAD.size + len(table)
    first += (LEAD - first) % 64
    head = _HEAD.pack(len(rows), codecs.CODECS.index(codec), *rows.shape[1:], first)
    parts = [head, table, bytes(first - _HEAD.size - len(table)), *encoded]
    return b"".join([*parts, bytes(max(0, SMALLEST - sum(map(len, parts))))])


@dataclass(frozen=True, slots=True)
class Group:
    """One value, taken apart without copying."""

    data: Any
    codec: codecs.Codec
    shape: Shape
    lengths: Array
    checksums: Array
    starts: Array

    @classmethod
    def parse(cls, data: Any) -> "Group":
        """Return the group in ``data``.

        Raises:
            DamageError: it is none.
        """
        if len(data) < _HEAD.size:
            raise DamageError("image group is cut", got=len(data))
        count, number, *shape, first = _HEAD.unpack_from(data)
        table_end = _HEAD.size + count * ENTRY.itemsize
        if number >= len(codecs.CODECS) or not table_end <= first <= len(data):
            raise DamageError("image group has a damaged head", got=(count, number, first))
        table = np.frombuffer(data, ENTRY, count, _HEAD.size)
        ends = first + np.cumsum(table["length"], dtype=np.int64)
        if count == 0 or max(int(ends[-1]), SMALLEST) != len(data):
            raise DamageError("image group has the wrong size", got=len(data))
        starts = ends - table["length"]
        codec = codecs.CODECS[number]
        return cls(data, codec, tuple(shape), table["length"], table["checksum"], starts)

    def __len__(self) -> int:
        return len(self.starts)

    def entry(self, i: int) -> tuple[int, int, int]:
        """Return where in the value image ``i`` begins, its length and its checksum.

        Raises:
            DamageError: it is not there.
        """
        if not 0 <= i < len(self):
            raise DamageError("image is missing from its group", got=i, allowed=len(self))
        return int(self.starts[i]), int(self.lengths[i]), int(self.checksums[i])

    def bytes(self, i: int) -> Any:
        """Return the encoded bytes of image ``i``.

        Raises:
            DamageError: they are not there, or not those written.
        """
        start, length, checksum = self.entry(i)
        data = self.data[start : start + length]
        if codecs.checksum(data) != checksum:
            raise DamageError("image checksum does not match its bytes")
        return data


def parse(data: Any, shape: Shape) -> Group:
    """Return the group of images of ``shape`` in ``data``.

    Raises:
        DamageError: it is not there (None), or holds something else.
    """
    if data is None:
        raise DamageError("image group is missing")
    found = Group.parse(data)
    if found.shape != shape:
        raise DamageError("images have another shape", got=found.shape, allowed=shape)
    return found


def read_stack(txn: Txn, table: Any, offset: int, camera: int, count: int, shape: Shape) -> Array:
    """Return all ``count`` images of one camera in one fragment ``[count, H, W, C]``, checked.

    Raises:
        DamageError: one of them is not what was written.
    """
    out = np.empty((count, *shape), np.uint8)
    for group, start in enumerate(range(0, count, per_group(shape))):
        found = parse(txn.get(key(offset, camera, group), db=table), shape)
        for i in range(min(per_group(shape), count - start)):
            out[start + i] = codecs.decode(found.bytes(i), found.codec, shape)
    return out
