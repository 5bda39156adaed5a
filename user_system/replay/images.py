"""Images on disk: several in one value, each with its checksum, each stored once.

One 128x128 image per value wastes 8 % in half-filled pages, a megabyte of them nearly nothing. The
key is (fragment, camera, group), big-endian; a value is::

    0   2   number of images
    2   1   codec: index into ``codec.images.CODECS``
    3   1   zero
    4   6   height, width, channels
    10  2   zero
    12  12n length and xxh3-64 of each image's bytes
        ... the images' bytes
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

_KEY = struct.Struct(">QHH")
_HEAD = struct.Struct("<HBxHHHxx")
_ENTRY = np.dtype([("length", "<u4"), ("checksum", "<u8")])


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
    table = np.array([(len(data), codecs.checksum(data)) for data in encoded], _ENTRY)
    head = _HEAD.pack(len(rows), codecs.CODECS.index(codec), *rows.shape[1:])
    return b"".join([head, table.tobytes(), *encoded])


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
        count, number, *shape = _HEAD.unpack_from(data)
        first = _HEAD.size + count * _ENTRY.itemsize
        if number >= len(codecs.CODECS) or len(data) < first:
            raise DamageError("image group has a damaged head", got=(count, number))
        table = np.frombuffer(data, _ENTRY, count, _HEAD.size)
        ends = first + np.cumsum(table["length"], dtype=np.int64)
        if count == 0 or ends[-1] != len(data):
            raise DamageError("image group has the wrong size", got=len(data))
        starts = ends - table["length"]
        codec = codecs.CODECS[number]
        return cls(data, codec, tuple(shape), table["length"], table["checksum"], starts)

    def bytes(self, i: int, *, check: bool) -> Any:
        """Return the encoded bytes of image ``i``.

        Raises:
            DamageError: they are not there, or not those written.
        """
        if not 0 <= i < len(self.starts):
            raise DamageError("image is missing from its group", got=i, allowed=len(self.starts))
        start = int(self.starts[i])
        data = self.data[start : start + int(self.lengths[i])]
        if check and codecs.checksum(data) != int(self.checksums[i]):
            raise DamageError("image checksum does not match its bytes")
        return data


def read_into(
    txn: Txn,
    table: Any,
    camera: int,
    places: tuple[Array, Array],
    checked: Array,
    out: Array,
) -> list[int]:
    """Fill ``out`` ``[N, H, W, C]`` with images; return the indices of those that are damaged.

    Args:
        txn: a read transaction.
        table: the image table.
        camera: number of the camera within its schema.
        places: fragment offset and row within the fragment ``[N]`` of each.
        checked: ``[N]`` bool; checksums of True ones were right before and are not made again.
        out: where to; rows of damaged ones are left as they are.
    """
    offsets, rows = places
    shape = out.shape[1:]
    groups, slots = np.divmod(rows.astype(np.int64), per_group(shape))
    damaged: list[int] = []
    last: tuple[int, int] | None = None
    group: Group | None = None
    # In key order, so that each page is touched once and neighbours share a parsed group.
    for i in np.lexsort((rows, offsets)).tolist():
        at = int(offsets[i]), int(groups[i])
        try:
            if at != last or group is None:
                last, group = at, _group(txn.get(key(at[0], camera, at[1]), db=table), shape)
            data = group.bytes(int(slots[i]), check=not checked[i])
            out[i] = codecs.decode(data, group.codec, shape)
        except DamageError:
            damaged.append(i)
    return damaged


def read_stack(txn: Txn, table: Any, offset: int, camera: int, count: int, shape: Shape) -> Array:
    """Return all ``count`` images of one camera in one fragment ``[count, H, W, C]``, checked.

    Raises:
        DamageError: one of them is not what was written.
    """
    out = np.empty((count, *shape), np.uint8)
    places = np.full(count, offset, np.uint64), np.arange(count)
    damaged = read_into(txn, table, camera, places, np.zeros(count, bool), out)
    if damaged:
        raise DamageError(f"images {damaged} of fragment {offset}, camera {camera}, are damaged")
    return out


def _group(data: Any, shape: Shape) -> Group:
    if data is None:
        raise DamageError("image group is missing")
    group = Group.parse(data)
    if group.shape != shape:
        raise DamageError("images have another shape", got=group.shape, allowed=shape)
    return group
