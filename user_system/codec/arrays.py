"""A message: one JSON object and some named arrays, as bytes that can be read without copying.

Layout, little-endian throughout::

    0   4   magic "USAR"
    4   2   format version, 1
    6   2   zero
    8   4   length of the header in bytes
    12  4   zero
    16  8   length of the whole message in bytes
    24  8   xxh3-64 of bytes 0..24 followed by bytes 32..end
    32      header, UTF-8 JSON {"meta": {...}, "arrays": [[name, dtype, shape], ...]}
            zeros up to the next multiple of 64, then the first array's bytes in C order;
            each further array begins at the next multiple of 64 after the one before it

Offsets are not stored but follow from the sizes, so that no header can make arrays overlap or point
outside. 64 bytes is a cache line and the widest vector register: views stay aligned wherever the
buffer itself is. JSON because the header is small and a person can read it in a hex dump; the
numbers that are many are never in it. NaN and infinities in ``meta`` are written as Python does.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import xxhash

from user_system.core.errors import DamageError, SpecError
from user_system.core.types import Array

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
"""What ``meta`` may hold. Tuples come back as lists."""

Buffer: TypeAlias = bytes | bytearray | memoryview

DTYPES = frozenset(
    {"bool", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)
"""Names of the dtypes that may travel or be stored."""

MAX_BYTES = 256 << 20
"""Default bound of one message: a hundred times the largest fragment of four small cameras."""

MAX_DIMS = 16
MAGIC, VERSION, ALIGN = b"USAR", 1, 64
_PREFIX = struct.Struct("<4sHHIIQ")
_LITTLE = {name: np.dtype(name).newbyteorder("<") for name in sorted(DTYPES)}
# Looked up by dtype: NumPy computes ``dtype.name`` anew each time, which took half of ``pack``.
_NAMES = {dtype: name for name, dtype in _LITTLE.items()}
_NAMES |= {dtype.newbyteorder(">"): name for name, dtype in _LITTLE.items()}
_JSON = json.JSONEncoder(separators=(",", ":"))
_CHECKSUM = struct.Struct("<Q")
_HEAD = _PREFIX.size + _CHECKSUM.size
_ZEROS = bytes(ALIGN)
_BETWEEN = b',"arrays":'
"""What stands between ``meta`` and the arrays; within a string its quotes would be escaped."""
_KEPT_TEXT = 4096
"""Bytes of a table above which it is not remembered."""
_KEPT_ENTRIES = 64
"""Arrays of a message above which its table is not."""
_SMALL = 1 << 16
"""Bytes below which a copy is cheaper than a call per part."""
_TINY = 1 << 12
"""Bytes below which a copy is cheaper than a view."""


def pack(meta: Mapping[str, Json], arrays: Mapping[str, Array]) -> bytes:
    """Return ``meta`` and ``arrays`` as one message.

    Raises:
        SpecError: a dtype that may not travel, or a value that JSON cannot hold.
    """
    blocks = {name: little_endian(array, name) for name, array in arrays.items()}
    try:
        text = _table_text if len(blocks) <= _KEPT_ENTRIES else _table_text.__wrapped__
        table = text(tuple((name, b.dtype, b.shape) for name, b in blocks.items()))
        header = _JSON.encode({"meta": meta}).encode()[:-1] + _BETWEEN + table + b"}"
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError("meta cannot be written as JSON", got=error) from error
    parts: list[Any] = [header, bytes(-(_HEAD + len(header)) % ALIGN)]
    for block in blocks.values():
        # Most are a few numbers, for which a copy takes less than a view does.
        data = block.tobytes() if block.nbytes < _TINY else raw(block)
        parts += [data, _ZEROS[: -block.nbytes % ALIGN]]
    if blocks:
        parts.pop()
    else:
        parts = parts[:1]
    total = _HEAD + sum(len(part) for part in parts)
    prefix = _PREFIX.pack(MAGIC, VERSION, 0, len(header), 0, total)
    return b"".join([prefix, _CHECKSUM.pack(_digest(prefix, parts)), *parts])


@lru_cache(maxsize=256)
def _table_text(entries: tuple[tuple[str, "np.dtype[Any]", tuple[int, ...]], ...]) -> bytes:
    """Return the table of the arrays: messages of one kind have the same."""
    return _JSON.encode([[name, _NAMES[dtype], shape] for name, dtype, shape in entries]).encode()


def unpack(
    buffer: Buffer, *, max_bytes: int = MAX_BYTES, max_header: int = MAX_BYTES
) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return (meta, arrays) of a message; the arrays are read-only views into ``buffer``.

    Args:
        buffer: exactly one message.
        max_bytes: refuse longer ones, and arrays that claim more, before touching them.
        max_header: refuse longer headers before they are parsed.

    Raises:
        DamageError: these are not the bytes that ``pack`` wrote.
    """
    view = memoryview(buffer).toreadonly().cast("B")
    header_end = _check_prefix(view, max_bytes)
    if header_end - _HEAD > max_header:
        got = header_end - _HEAD
        raise DamageError("message header is too long", got=got, allowed=f"{max_header} bytes")
    meta, table = _parse_header(bytes(view[_HEAD:header_end]), max_bytes)
    begin = header_end + (-header_end % ALIGN if table.places else 0)
    if begin + table.size > len(view):
        end = begin + table.size
        raise DamageError("arrays end after their message", got=end, allowed=len(view))
    if begin + table.size < len(view):
        raise DamageError(
            "message is longer than its arrays", got=len(view), allowed=begin + table.size
        )
    arrays = {
        name: _view(view, begin + start, dtype, shape, name) if size else _empty(dtype, shape)
        for name, dtype, shape, start, size in table.places
    }
    return meta, arrays


def stated_size(head: Buffer) -> int:
    """Return the length that the message beginning with ``head`` states; 0 where it is none."""
    if len(head) < _HEAD:
        return 0
    magic, version, _, _, _, total = _PREFIX.unpack_from(head)
    return int(total) if magic == MAGIC and version == VERSION else 0


def stated_checksum(head: Buffer) -> int:
    """Return the checksum that the message beginning with ``head`` states; 0 where it is none."""
    return int(_CHECKSUM.unpack_from(head, _PREFIX.size)[0]) if stated_size(head) else 0


def little_endian(value: Array, name: str) -> Array:
    """Return ``value`` in C order and little-endian, copied only where it is not so already.

    Raises:
        SpecError: its dtype may not travel.
    """
    array = np.asarray(value)
    dtype = _NAMES.get(array.dtype)
    if dtype is None:
        raise SpecError(
            f"array {name!r} has a dtype that may not travel",
            got=array.dtype,
            allowed=", ".join(sorted(DTYPES)),
        )
    if array.ndim > MAX_DIMS:
        raise SpecError(f"array {name!r} has too many dimensions", got=array.ndim, allowed=MAX_DIMS)
    little = _LITTLE[dtype]
    if array.dtype == little and array.flags.c_contiguous:
        return array
    return np.asarray(array, dtype=little, order="C")


def checksum(data: Buffer) -> int:
    """Return the xxh3-64 of bytes: it tells damage, not malice."""
    return int(xxhash.xxh3_64_intdigest(data))


def raw(array: Array) -> memoryview:
    """Return the bytes of a C-order array, without copying."""
    return array.reshape(-1).view(np.uint8).data


def width(dtype: str) -> int:
    """Return the bytes of an element of a dtype that may travel, by its name."""
    return _LITTLE[dtype].itemsize


def checked_size(dtype: object, shape: object, max_bytes: int = MAX_BYTES) -> int:
    """Return the bytes that an array from outside claims, or refuse the claim.

    Zeros in the shape are counted as ones: an empty array with a huge other dimension is refused.

    Raises:
        DamageError: not a dtype that may travel, not a shape, or more than ``max_bytes``.
    """
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise DamageError("unknown array dtype", got=dtype, allowed=", ".join(sorted(DTYPES)))
    if not isinstance(shape, list | tuple) or len(shape) > MAX_DIMS:
        raise DamageError("array shape is not a short list", got=shape)
    size = claimed = _LITTLE[dtype].itemsize
    for n in shape:
        if type(n) is not int or n < 0:
            raise DamageError("array shape is not made of counts", got=shape)
        size *= n
        claimed *= n or 1
    if claimed > max_bytes:
        raise DamageError("array is too large", got=list(shape), allowed=f"{max_bytes} bytes")
    return size


def _digest(prefix: Buffer, parts: Sequence[Any]) -> int:
    if sum(map(len, parts)) < _SMALL:
        return int(xxhash.xxh3_64_intdigest(b"".join([prefix, *parts])))
    digest = xxhash.xxh3_64()
    digest.update(prefix)
    for part in parts:
        digest.update(part)
    return int(digest.intdigest())


def _check_prefix(view: memoryview, max_bytes: int) -> int:
    """Return where the header ends, after length and checksum proved right."""
    if not _HEAD <= len(view) <= max_bytes:
        raise DamageError("message length", got=len(view), allowed=f"{_HEAD}..{max_bytes} bytes")
    magic, version, _, header_bytes, _, total = _PREFIX.unpack_from(view)
    if magic != MAGIC or version != VERSION:
        raise DamageError("not a message of this format", got=(magic, version), allowed=VERSION)
    if total != len(view) or _HEAD + header_bytes > total:
        raise DamageError("message is cut or padded", got=len(view), allowed=total)
    (stored,) = _CHECKSUM.unpack_from(view, _PREFIX.size)
    if _digest(view[: _PREFIX.size], [view[_HEAD:]]) != stored:
        raise DamageError("message checksum does not match its bytes")
    return int(_HEAD + header_bytes)


class _Place(NamedTuple):
    """One array, and where it begins after the header and the zeros behind that."""

    name: str
    dtype: "np.dtype[Any]"
    shape: tuple[int, ...]
    start: int
    size: int


class _Table(NamedTuple):
    """All arrays of a message."""

    places: tuple[_Place, ...]
    size: int
    """Bytes from the first one to the end."""


def _parse_header(data: bytes, max_bytes: int) -> tuple[dict[str, Any], _Table]:
    """Return ``meta`` and the table of the arrays.

    Messages of one kind differ in ``meta``, seldom in the table: that is parsed once, by its text.
    """
    cut = data.rfind(_BETWEEN)
    if cut < 0 or not data.endswith(b"}"):
        raise DamageError("message header has the wrong form")
    header = _json(data[:cut] + b"}")
    if not isinstance(header, dict) or header.keys() != {"meta"}:
        raise DamageError("message header has the wrong form")
    if not isinstance(header["meta"], dict):
        raise DamageError("message header has the wrong form")
    text = data[cut + len(_BETWEEN) : -1]
    parse = _parse_table if len(text) <= _KEPT_TEXT else _parse_table.__wrapped__
    return header["meta"], parse(text, max_bytes)


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamageError("message header is not readable", got=error) from error


@lru_cache(maxsize=256)
def _parse_table(text: bytes, max_bytes: int) -> _Table:
    entries = _json(text)
    if not isinstance(entries, list):
        raise DamageError("message header has the wrong form")
    places: dict[str, _Place] = {}
    end = 0
    for entry in entries:
        if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str):
            raise DamageError("array entry has the wrong form", got=entry)
        name, dtype, shape = entry
        if name in places:
            raise DamageError("array is named twice", got=name)
        size = checked_size(dtype, shape, max_bytes)
        start = end + -end % ALIGN
        places[name] = _Place(name, _LITTLE[dtype], tuple(shape), start, size)
        end = start + size
    return _Table(tuple(places.values()), end)


def _view(
    view: memoryview, start: int, dtype: "np.dtype[Any]", shape: tuple[int, ...], name: str
) -> Array:
    array: Array = np.ndarray(shape, dtype, buffer=view, offset=start)
    # NumPy treats bool bytes other than 0 and 1 inconsistently; nobody writes them.
    if dtype.kind == "b" and (array.view(np.uint8) > 1).any():
        raise DamageError(f"array {name!r} holds bools that are neither 0 nor 1")
    return array


def _empty(dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> Array:
    array: Array = np.empty(shape, dtype)
    array.flags.writeable = False
    return array
