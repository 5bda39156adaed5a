"""Messages that nobody would send: by what ``proto/`` says of them, and by their bytes.

``hostile`` fills a message with the worst values of each of its fields; ``spoil`` changes one place
of a message that is in order, so that what is behind the first check is reached as well; ``mangle``
knows nothing but bytes. All of them are functions of ``rng`` alone.
"""

import random
import struct
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

KNOWN = ("arm-1", "arm-2", "host-1", "host-2", "ada", "p", "claim", "estop", "release", "float32")
"""Names that mean something to whoever reads them."""

WIDTHS = {
    Field.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    Field.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    Field.TYPE_UINT32: (0, (1 << 32) - 1),
    Field.TYPE_UINT64: (0, (1 << 64) - 1),
    Field.TYPE_FIXED32: (0, (1 << 32) - 1),
    Field.TYPE_FIXED64: (0, (1 << 64) - 1),
    Field.TYPE_SINT32: (-(1 << 31), (1 << 31) - 1),
    Field.TYPE_SINT64: (-(1 << 63), (1 << 63) - 1),
    Field.TYPE_SFIXED32: (-(1 << 31), (1 << 31) - 1),
    Field.TYPE_SFIXED64: (-(1 << 63), (1 << 63) - 1),
}
NUMBERS = (0.0, -0.0, 1.0, -1.0, 1e300, -1e300, 5e-324, float("nan"), float("inf"), -float("inf"))


def text(rng: random.Random) -> str:
    """Return a text of a kind that somebody may have forgotten."""
    odd = ("", "\0", "../../etc/passwd", "%s%n", "\u202e", "a" * 300, "é" * 5000, "{}", "-1", "🤖")
    return rng.choice(KNOWN + KNOWN + odd)


def blob(rng: random.Random) -> bytes:
    """Return bytes: none, few, many, or a beginning that promises more than there is."""
    promise = (
        b"\x28\xb5\x2f\xfd\xa0\xff\xff\xff\xff",  # a zstd frame of 4 GiB
        b"\xff\xd8\xff\xe0\x00\x10JFIF",
        b'{"meta":{},"arrays":[["a","float32",[1073741824,1073741824]]]}',
        b"\xff" * 8,
    )
    return rng.choice((b"", rng.randbytes(rng.randrange(1, 300)), bytes(20_000), *promise))


def value(field: Any, rng: random.Random, depth: int) -> Any:
    """Return a value of a field that is no message."""
    if field.type in WIDTHS:
        low, high = WIDTHS[field.type]
        return rng.choice((0, 1, 2, 255, 4096, low, high, rng.randint(low, high)))
    if field.type in (Field.TYPE_DOUBLE, Field.TYPE_FLOAT):
        number = rng.choice(NUMBERS)
        return number if field.type == Field.TYPE_DOUBLE or abs(number) < 1e38 else 3e38
    if field.type == Field.TYPE_BOOL:
        return rng.random() < 0.5
    if field.type == Field.TYPE_ENUM:
        return rng.choice((0, 1, 2, 99, -1, (1 << 31) - 1))
    return text(rng) if field.type == Field.TYPE_STRING else blob(rng)


def hostile(kind: type[Message], rng: random.Random, depth: int = 5) -> Message:
    """Return a message whose fields are set to whatever they can hold."""
    message = kind()
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.6:
            _fill(message, field, rng, depth)
    return message


def _fill(message: Message, field: Any, rng: random.Random, depth: int) -> None:
    many = rng.choice((0, 1, 2, 3, 40, 3000 if depth > 4 else 3)) if field.is_repeated else 1
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for number in range(many):
            key, item = field.message_type.fields
            name = f"{text(rng)[:50]}{number}" if key.type == Field.TYPE_STRING else number
            if item.message_type is None:
                getattr(message, field.name)[name] = value(item, rng, depth)
    elif field.message_type is not None:
        for _ in range(min(many, 50) if depth else 0):
            inner = getattr(message, field.name)
            part = inner.add() if field.is_repeated else inner
            part.SetInParent()
            part.MergeFrom(hostile(type(part), rng, depth - 1))
    elif field.is_repeated:
        getattr(message, field.name).extend(value(field, rng, depth) for _ in range(many))
    else:
        setattr(message, field.name, value(field, rng, depth))


def spoil(message: Message, rng: random.Random) -> Message:
    """Return a copy with one field, somewhere in it, set to something else."""
    copy = type(message)()
    copy.CopyFrom(message)
    at: Message = copy
    for _ in range(8):
        inner = [
            part
            for field, found in at.ListFields()
            if field.message_type is not None and not field.message_type.GetOptions().map_entry
            for part in (list(found)[:4] if field.is_repeated else [found])
        ]
        if not inner or rng.random() < 0.3:
            break
        at = rng.choice(inner)
    fields = at.DESCRIPTOR.fields
    if fields:
        field = rng.choice(fields)
        at.ClearField(field.name)
        _fill(at, field, rng, 4)
    return copy


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def _nested(rng: random.Random) -> bytes:
    data = b""
    for _ in range(rng.choice((50, 99, 101, 3000))):
        data = b"\x0a" + _varint(len(data)) + data
    return data


def mangle(data: bytes, rng: random.Random) -> bytes:
    """Return other bytes: flipped, cut, repeated, with lengths that lie, or deeply nested."""

    def flip() -> bytes:
        spoilt = bytearray(data or b"\0")
        for _ in range(rng.randint(1, 8)):
            spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
        return bytes(spoilt)

    def cut() -> bytes:
        return data[: rng.randint(0, len(data))]

    def double() -> bytes:
        start = rng.randint(0, len(data))
        return data[:start] + data[rng.randint(0, len(data)) :] * rng.choice((1, 2, 50))

    def lie() -> bytes:
        tag = bytes([rng.randrange(1, 20) << 3 | 2])
        return data + tag + _varint(rng.choice((1 << 31, 1 << 32, (1 << 64) - 1, 1 << 20)))

    def strange() -> bytes:
        number = rng.choice((99, 536870911, 19000))
        return data + _varint(number << 3 | rng.choice((0, 1, 2, 3, 4, 5, 6, 7))) + rng.randbytes(9)

    def splice() -> bytes:
        at = rng.randint(0, len(data))
        return data[:at] + rng.randbytes(rng.randint(1, 60)) + data[at:]

    ways: tuple[Callable[[], bytes], ...] = (
        flip, flip, cut, double, lie, strange, splice,
        lambda: _nested(rng),
        lambda: rng.randbytes(rng.randint(0, 400)),
        lambda: struct.pack("<I", rng.getrandbits(32)) * rng.randint(0, 500),
    )  # fmt: skip
    return rng.choice(ways)()
