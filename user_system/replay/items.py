r"""What a queue holds, as keys and values: items, and what was set aside.

::

    producer \0 epoch sequence -> xxh3-64, bytes                     in the table ``items``
    producer \0 epoch sequence -> length of reason, reason, bytes    in the table ``aside``
"""

import struct
from dataclasses import dataclass
from typing import Any

import xxhash

from user_system.core.errors import DamageError
from user_system.replay.tables import U64

_CHECKSUM = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")

Source = tuple[str, int]
"""(producer, epoch)."""


@dataclass(frozen=True, slots=True)
class Item:
    """One queued message."""

    sequence: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Aside:
    """One message that the other side will never take, and why."""

    producer: str
    epoch: int
    sequence: int
    reason: str
    data: bytes


def prefix(source: Source) -> bytes:
    """Return what all keys of a source begin with; it is the key of the source itself."""
    return source[0].encode() + b"\0" + U64.pack(source[1])


def key(source: Source, sequence: int) -> bytes:
    """Return the key of an item."""
    return prefix(source) + U64.pack(sequence)


def parse(key: bytes) -> tuple[str, int, int]:
    """Return producer, epoch and sequence of a key."""
    end = -2 * U64.size
    epoch, sequence = U64.unpack(key[end : -U64.size])[0], U64.unpack(key[-U64.size :])[0]
    return key[: end - 1].decode(), epoch, sequence


def pack(data: bytes) -> bytes:
    """Return the value of an item."""
    return _CHECKSUM.pack(xxhash.xxh3_64_intdigest(data)) + data


def size(value: Any) -> int:
    """Return how many bytes an item has."""
    return len(value) - _CHECKSUM.size


def unpack(value: Any) -> bytes:
    """Return the bytes of an item, whether or not they are sound."""
    return bytes(value[_CHECKSUM.size :])


def sound(value: memoryview) -> bool:
    """Return whether the checksum of a stored item is right."""
    if len(value) < _CHECKSUM.size:
        return False
    stored = _CHECKSUM.unpack_from(value)[0]
    return bool(xxhash.xxh3_64_intdigest(value[_CHECKSUM.size :]) == stored)


def damage(source: Source, sequence: int) -> DamageError:
    """Return the error that an item is not sound."""
    producer, epoch = source
    return DamageError(
        f"spooled item {sequence} of {producer} epoch {epoch} is not what was written",
        todo="Set it aside; the items behind it are sound.",
    )


def pack_aside(reason: str, data: bytes) -> bytes:
    """Return the value of what is set aside."""
    why = reason.encode()
    return _LENGTH.pack(len(why)) + why + data


def unpack_aside(value: Any) -> tuple[str, bytes]:
    """Return why something was set aside, and its bytes."""
    end = _LENGTH.size + _LENGTH.unpack_from(value)[0]
    return bytes(value[_LENGTH.size : end]).decode(), bytes(value[end:])


def size_aside(value: Any) -> int:
    """Return how many bytes something has that was set aside."""
    return int(len(value) - _LENGTH.size - _LENGTH.unpack_from(value)[0])
