"""Where the images of one fragment lie: written with them, so that readers need not look.

One value per fragment of the table ``places``::

    0   8   xxh3-64 of the rest
    8   8   identity of the fragment
    16  ..  per group of images: camera, group, codec, number of images, position of the first
            one in the file and in its value (0: as early as a cache line allows),
            then length and checksum of each image

A place is a hint that is checked: the checksum of an image is compared before it is served, and
where it does not match, the value itself is asked for.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import xxhash

from user_system.codec import images as codecs
from user_system.core.errors import DamageError
from user_system.core.types import Array
from user_system.replay import images

_SUM = struct.Struct("<Q")
_GROUP = struct.Struct("<HHHHQI")


class Place(NamedTuple):
    """Where one group of images lies."""

    camera: int
    group: int
    codec: codecs.Codec
    starts: Array
    """Position in the file of each image ``[n]`` int64."""
    lengths: Array
    checksums: Array
    position: int
    """Of the value in the file."""

    @property
    def size(self) -> int:
        """Bytes of the value."""
        end = int(self.starts[-1]) + int(self.lengths[-1]) - self.position
        return max(end, images.SMALLEST)


def of(group: images.Group, position: int) -> Place:
    """Return the place of a group whose value lies at ``position``."""
    starts = position + group.starts.astype(np.int64)
    of = group.camera, group.number, group.codec
    return Place(*of, starts, group.lengths, group.checksums, position)


def encode(identity: int, placed: Iterable[tuple[images.Value, int]]) -> bytes:
    """Return what ``decode`` reads, of values and the positions at which they lie."""
    parts = [_SUM.pack(identity)]
    for value, position in placed:
        codec, count = codecs.CODECS.index(value.codec), len(value.table)
        first = position + value.first
        parts.append(_GROUP.pack(value.camera, value.group, codec, count, first, value.first))
        parts.append(value.table.tobytes())
    body = b"".join(parts)
    return _SUM.pack(xxhash.xxh3_64_intdigest(body)) + body


def decode(data: memoryview, identity: int | None = None) -> Iterator[Place]:
    """Yield the places in ``data``.

    Args:
        data: the value.
        identity: of the fragment that it must belong to; None: of whichever.

    Raises:
        DamageError: this is not what ``encode`` wrote.
    """
    if len(data) < 2 * _SUM.size or xxhash.xxh3_64_intdigest(data[8:]) != _SUM.unpack_from(data)[0]:
        raise DamageError("places are damaged", got=len(data))
    if identity is not None and _SUM.unpack_from(data, _SUM.size)[0] != identity:
        raise DamageError("places belong to another fragment", allowed=identity)
    at = 2 * _SUM.size
    while at < len(data):
        camera, group, codec, count, first, lead = _GROUP.unpack_from(data, at)
        at += _GROUP.size
        table = np.frombuffer(data, images.ENTRY, count, at)
        at += count * images.ENTRY.itemsize
        ends = first + np.cumsum(table["length"], dtype=np.int64)
        starts = ends - table["length"]
        position = first - (lead or images.first_image(count))
        of = camera, group, codecs.CODECS[codec]
        yield Place(*of, starts, table["length"], table["checksum"], position)
