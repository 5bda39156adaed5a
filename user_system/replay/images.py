"""Images on disk: several in one value, each with its checksum, each stored once.

One 128x128 image per value wastes 8 % in half-filled pages, a megabyte of them nearly nothing. The
key is (fragment, camera, group), big-endian; a value is::

    0   8   xxh3-64 of everything up to the end of the table but these 8 bytes
    8   8   identity of the fragment
    16  4   camera, group
    20  2   number of images
    22  1   codec: index into ``codec.images.CODECS``
    23  1   zero
    24  6   height, width, channels
    30  2   where the first image begins
    32  12n length and xxh3-64 of each image's bytes
        ... zeros up to that place
        ... the images' bytes, one after the other
        ... zeros up to ``SMALLEST``

A value of ``SMALLEST`` bytes or more has pages of its own, which never move until it is deleted:
that is what makes it possible to remember where an image lies. They begin with LMDB's page header
of 16 bytes, which counts where images begin: at a cache line of the file, and those whose lengths
are all multiples of a larger power of two at a multiple of that, up to a page. So a batch of them
is gathered as pages (see ``copies``), and the zeros before them take no page that the header did
not take already.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import xxhash

from user_system.codec import images as codecs
from user_system.core.errors import DamageError
from user_system.core.types import Array, Fragment
from user_system.replay.env import Txn
from user_system.replay.mapped import HEADER, PAGE
from user_system.replay.schema import Schema, Shape

GROUP_BYTES = 1 << 20
"""Pixels' bytes that share a value."""

SMALLEST = 4096
"""Bytes; anything above half a page is kept out of LMDB's leaf pages."""

LINE = 64
"""A cache line, bytes: what an image begins with at least."""

_KEY = struct.Struct(">QHH")
_SUM = struct.Struct("<Q")
_HEAD = struct.Struct("<QHHHBxHHHH")
_TABLE = _SUM.size + _HEAD.size
ENTRY = np.dtype([("length", "<u4"), ("checksum", "<u8")])
"""What is kept of each image beside its bytes."""

_MOST = 5457
"""Images of one value: with more, the place where the first one begins would not fit its 2 bytes.
No fewer, since that is how the images of stores that are there are grouped."""


def per_group(shape: Shape) -> int:
    """Return how many images ``(H, W, C)`` share a value."""
    return min(max(1, GROUP_BYTES // math.prod(shape)), _MOST)


def key(offset: int, camera: int, group: int) -> bytes:
    """Return the key of one value."""
    return _KEY.pack(offset, camera, group)


def parse_key(data: bytes) -> tuple[int, int, int]:
    """Return (offset, camera, group)."""
    offset, camera, group = _KEY.unpack(data)
    return offset, camera, group


class Value(NamedTuple):
    """One value, as it was made."""

    camera: int
    group: int
    codec: codecs.Codec
    data: bytes
    table: Array
    """``[n]`` of ``ENTRY``: length and checksum of each image."""

    @classmethod
    def of(cls, group: "Group") -> "Value":
        """Return a value that was taken apart, copied."""
        table = np.empty(len(group), ENTRY)
        table["length"], table["checksum"] = group.lengths, group.checksums
        return cls(group.camera, group.number, group.codec, bytes(group.data), table)

    @property
    def first(self) -> int:
        """Where in ``data`` the first image begins: one that was copied may have it elsewhere."""
        return int(_HEAD.unpack_from(self.data, _SUM.size)[-1])


def values(
    fragment: Fragment, identity: int, schema: Schema, codec_of: Mapping[str, codecs.Codec]
) -> Iterator[Value]:
    """Yield the values of all images of a fragment."""
    for camera, (name, shape) in enumerate(schema.images.items()):
        rows, count, codec = fragment.observation[name], per_group(shape), codec_of.get(name, "raw")
        for group, start in enumerate(range(0, len(rows), count)):
            encoded = [codecs.encode(row, codec) for row in rows[start : start + count]]
            yield _value((identity, camera, group), codec, shape, encoded)


@dataclass(frozen=True, slots=True)
class Group:
    """One value, taken apart without copying."""

    data: Any
    identity: int
    """Of the fragment that it belongs to, see ``entries.identity``."""
    camera: int
    number: int
    codec: codecs.Codec
    shape: Shape
    lengths: Array
    checksums: Array
    starts: Array
    """Where in ``data`` each image begins."""

    @classmethod
    def parse(cls, data: Any) -> "Group":
        """Return the group in ``data``.

        Raises:
            DamageError: it is none.
        """
        if len(data) < _TABLE:
            raise DamageError("image group is cut", got=len(data))
        identity, camera, number, count, codec, *shape, first = _HEAD.unpack_from(data, _SUM.size)
        table_end = _TABLE + count * ENTRY.itemsize
        if len(data) < table_end or _digest(data[_SUM.size : table_end]) != _SUM.unpack_from(data):
            raise DamageError("image group has a damaged head", got=(count, codec, first))
        table = np.frombuffer(data, ENTRY, count, _TABLE)
        ends = first + np.cumsum(table["length"], dtype=np.int64)
        if count == 0 or max(int(ends[-1]), SMALLEST) != len(data):
            raise DamageError("image group has the wrong size", got=len(data))
        starts = ends - table["length"]
        return cls(
            data,
            identity,
            camera,
            number,
            codecs.CODECS[codec],
            tuple(shape),
            table["length"],
            table["checksum"],
            starts,
        )

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


def stated_size(head: Any) -> int:
    """Return the bytes of the value whose head this is; 0 where it is none.

    Args:
        head: its first bytes, as many as there are.
    """
    if len(head) < _TABLE:
        return 0
    count, codec, *_, first = _HEAD.unpack_from(head, _SUM.size)[3:]
    table_end = _TABLE + count * ENTRY.itemsize
    if not count or codec >= len(codecs.CODECS) or len(head) < table_end or first < table_end:
        return 0
    if _digest(head[_SUM.size : table_end]) != _SUM.unpack_from(head):
        return 0
    lengths = np.frombuffer(head, ENTRY, count, _TABLE)["length"]
    return max(SMALLEST, int(first) + int(lengths.sum(dtype=np.int64)))


def parse(data: Any, shape: Shape, of: tuple[int, int, int] | None = None) -> Group:
    """Return the group of images of ``shape`` in ``data``.

    Args:
        data: the value; None: there is none.
        shape: ``(H, W, C)``.
        of: identity, camera and group that it must belong to.

    Raises:
        DamageError: it is not there, or is another one.
    """
    if data is None:
        raise DamageError("image group is missing")
    found = Group.parse(data)
    if found.shape != shape:
        raise DamageError("images have another shape", got=found.shape, allowed=shape)
    if of is not None and (found.identity, found.camera, found.number) != of:
        raise DamageError("images belong to another fragment", got=found.identity, allowed=of[0])
    return found


def repack(group: Group, identity: int, camera: int, number: int) -> Value:
    """Return a value with the images of ``group`` as they are encoded.

    Raises:
        DamageError: one of them is not what was written, or there are more than a value holds.
    """
    if len(group) > _MOST:
        raise DamageError("image group has too many images", got=len(group), allowed=_MOST)
    encoded = [bytes(group.bytes(i)) for i in range(len(group))]
    return _value((identity, camera, number), group.codec, group.shape, encoded)


def read_stack(
    txn: Txn,
    table: Any,
    offset: int,
    camera: int,
    count: int,
    shape: Shape,
    identity: int | None = None,
) -> Array:
    """Return all ``count`` images of one camera in one fragment ``[count, H, W, C]``, checked.

    Args:
        txn: a snapshot.
        table: the image table.
        offset: of the fragment in the log.
        camera: number of the camera in its schema.
        count: observations of the fragment.
        shape: ``(H, W, C)``.
        identity: of the fragment, see ``entries.identity``; None leaves that unchecked.

    Raises:
        DamageError: one of them is not what was written.
    """
    out = np.empty((count, *shape), np.uint8)
    for group, start in enumerate(range(0, count, per_group(shape))):
        of = None if identity is None else (identity, camera, group)
        found = parse(txn.get(key(offset, camera, group), db=table), shape, of)
        for i in range(min(per_group(shape), count - start)):
            out[start + i] = codecs.decode(found.bytes(i), found.codec, shape)
    return out


def grain(lengths: Array) -> int:
    """Return the bytes of the file at a multiple of which images of ``lengths`` ``[n]`` begin."""
    shared = int(np.bitwise_or.reduce(lengths, initial=PAGE))
    return max(shared & -shared, LINE)


def first_image(count: int, grain: int = LINE) -> int:
    """Return where in a value of ``count`` images the first one begins, see ``grain``."""
    first = _TABLE + count * ENTRY.itemsize
    return first + -(first + HEADER.size) % grain


def _value(
    of: tuple[int, int, int], codec: codecs.Codec, shape: Shape, encoded: list[bytes]
) -> Value:
    table = np.array([(len(data), codecs.checksum(data)) for data in encoded], ENTRY)
    first = first_image(len(encoded), grain(table["length"]))
    identity, camera, group = of
    number = codecs.CODECS.index(codec)
    head = _HEAD.pack(identity, camera, group, len(encoded), number, *shape, first)
    head += table.tobytes()
    parts = [_SUM.pack(*_digest(head)), head, bytes(first - _SUM.size - len(head)), *encoded]
    parts.append(bytes(max(0, SMALLEST - sum(map(len, parts)))))
    return Value(camera, group, codec, b"".join(parts), table)


def _digest(data: Any) -> tuple[int]:
    return (int(xxhash.xxh3_64_intdigest(data)),)
