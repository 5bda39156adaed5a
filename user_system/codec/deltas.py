r"""Tensors on a slow line, without loss: what changed against a tensor that the receiver has.

A tensor's bytes travel in one of these forms; what comes out is bit for bit what went in:

- ``raw``: as they are
- ``half``: the upper halves of 4-byte elements whose lower halves are all zero; float32 that was
  rounded to bfloat16 is of that kind, and takes 2 bytes a value
- ``zstd``: bytes grouped by their place in the element (of floats the first group is sign and
  exponent, which repeat), then zstd
- ``xor``: as ``zstd``, of the exclusive or with the same tensor of an older version: where a small
  step was made, the upper bytes are zero
- ``sparse``: places and values of the elements that changed since an older version

A sparse block is ``<II`` (number of elements, bytes per gap: 1, 2, 4 or 8), the gaps between their
places (the first counted from -1, less one each), and the values, raw; all of it in zstd where that
makes it smaller. The first byte of the block says which: 0 plain, 1 zstd.
"""

import struct
import threading
from collections.abc import Callable
from typing import Any, cast

import numpy as np

from user_system.codec.arrays import Buffer
from user_system.core.errors import DamageError
from user_system.core.types import Array

RAW, HALF, ZSTD, XOR, SPARSE = "raw", "half", "zstd", "xor", "sparse"
FORMS = (RAW, HALF, ZSTD, XOR, SPARSE)

NEEDS_BASE = frozenset({XOR, SPARSE})
"""Forms that can only be read beside the older tensor."""

_PAYS = 0.97
"""A form is taken where it has at most so many of the bytes of the one that is simpler to read."""
_SPARSE_SHARE = 0.125
"""Elements that may have changed for a sparse block to be tried."""
_SAMPLE = 1 << 16
"""Bytes of a tensor by which is judged whether compressing all of it is worth the time."""
_SMALL = 512
"""Bytes below which nothing is tried."""
_LEVEL = 1
_HEAD = struct.Struct("<II")
_GAPS: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class _Zstd(threading.local):
    """Compressors cannot be shared between threads."""

    def __init__(self) -> None:
        import zstandard

        self.compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=False)
        self.decompressor = zstandard.ZstdDecompressor()

    def compress(self, data: Buffer) -> bytes:
        return self.compressor.compress(data)


_zstd = _Zstd()


def encode(data: Buffer, width: int, base: Buffer | None, *, pack: bool) -> tuple[str, Buffer]:
    """Return (form, bytes) in which a tensor travels best; the same for the same arguments.

    Args:
        data: the tensor's bytes.
        width: bytes of an element.
        base: bytes of the tensor that the receiver has, of the same dtype and shape; None: none.
        pack: whether to take time for compressing; without it only forms that cost less than
            sending what they spare.
    """
    size = len(data)
    if size < _SMALL:
        return RAW, data
    fallback: tuple[str, Buffer] = (RAW, data)
    if base is not None and len(base) == size:
        changed = _sparse(data, width, base, pack=pack)
        if changed is not None and len(changed) <= _PAYS * size:
            return SPARSE, changed
    if (upper := _halved(data, width)) is not None:
        fallback = (HALF, upper)
    if not pack:
        return fallback
    tries: list[tuple[str, Callable[[Buffer], Buffer]]] = [(ZSTD, lambda part: part)]
    if base is not None and len(base) == size:
        old = base
        tries.append((XOR, lambda part: _xor(part, old)))
    for form, change in tries:
        fallback = _packed(form, change, data, width, fallback)
    return fallback


def decode(form: str, data: Buffer, size: int, width: int, base: Buffer | None) -> Buffer:
    """Return the ``size`` bytes of a tensor that ``encode`` made ``data`` of.

    Allocates no more than a few times ``size``; that the result is the right tensor only its hash
    can tell.

    Raises:
        DamageError: these are not bytes that ``encode`` makes, or the older tensor is not there.
    """
    if form in NEEDS_BASE and (base is None or len(base) != size):
        raise DamageError("a changed tensor came without the older one", got=form)
    if form == RAW:
        out = data
    elif form == HALF:
        out = _widened(data, size, width)
    elif form == ZSTD:
        out = _grouped(_unzstd(data, size), width, back=True)
    elif form == XOR:
        out = _xor(_grouped(_unzstd(data, size), width, back=True), cast(Buffer, base))
    elif form == SPARSE:
        out = _patched(data, width, cast(Buffer, base))
    else:
        raise DamageError("a tensor in an unknown form", got=form[:20], allowed=", ".join(FORMS))
    if len(out) != size:
        raise DamageError("a tensor of the wrong size", got=len(out), allowed=size)
    return out


# --- the forms -----------------------------------------------------------------------------------


def _packed(
    form: str,
    change: Callable[[Buffer], Buffer],
    data: Buffer,
    width: int,
    best: tuple[str, Buffer],
) -> tuple[str, Buffer]:
    """Return ``data`` in ``form`` where that is smaller than ``best``, judged by a sample first."""
    sample = memoryview(data)[: _SAMPLE // width * width]
    shrunk = len(_zstd.compress(_grouped(change(sample), width)))
    if shrunk * len(data) > _PAYS * len(best[1]) * len(sample):
        return best
    packed = _zstd.compress(_grouped(change(data), width))
    return (form, packed) if len(packed) <= _PAYS * len(best[1]) else best


def _words(data: Buffer, width: int) -> Array:
    """Return elements as they can be compared bit for bit: NaN equals itself."""
    return np.frombuffer(data, _GAPS[width])


def _grouped(data: Buffer, width: int, *, back: bool = False) -> Buffer:
    """Return first bytes of all elements, then second ones, and so on; or undo that."""
    if width == 1:
        return data
    block = np.frombuffer(data, np.uint8)
    if len(block) % width:
        raise DamageError("a tensor that is not made of elements", got=len(block), allowed=width)
    rows = block.reshape(width, -1) if back else block.reshape(-1, width)
    return np.ascontiguousarray(rows.T).reshape(-1).data


def _xor(data: Buffer, base: Buffer) -> Buffer:
    """Return the exclusive or with the beginning of ``base``."""
    old = np.frombuffer(base, np.uint8, count=len(data))
    return np.bitwise_xor(np.frombuffer(data, np.uint8), old).data


def _halved(data: Buffer, width: int) -> Buffer | None:
    if width != 4:
        return None
    halves = np.frombuffer(data, "<u2").reshape(-1, 2)
    # A look at a few spares the look at all where it is not so.
    if halves[:64, 0].any() or halves[:, 0].any():
        return None
    return np.ascontiguousarray(halves[:, 1]).view(np.uint8).data


def _widened(data: Buffer, size: int, width: int) -> Buffer:
    if width != 4 or 2 * len(data) != size or size % 4:
        raise DamageError("halves of elements that have none", got=len(data), allowed=size // 2)
    halves = np.zeros((size // 4, 2), np.dtype("<u2"))
    halves[:, 1] = np.frombuffer(data, "<u2")
    return halves.reshape(-1).view(np.uint8).data


def _sparse(data: Buffer, width: int, base: Buffer, *, pack: bool) -> bytes | None:
    new, old = _words(data, width), _words(base, width)
    places = np.flatnonzero(new != old)
    if len(places) > _SPARSE_SHARE * len(new):
        return None
    gaps = np.diff(places, prepend=-1) - 1
    most = int(gaps.max(initial=0))
    step = next(n for n in sorted(_GAPS) if most < 1 << (8 * n))
    values = np.ascontiguousarray(new[places]).view(np.uint8)
    block = b"".join(
        [_HEAD.pack(len(places), step), gaps.astype(_little(step)).tobytes(), values.tobytes()]
    )
    if pack and len(block) > _SMALL:
        packed = _zstd.compress(block)
        if len(packed) <= _PAYS * len(block):
            return b"\1" + packed
    return b"\0" + block


def _patched(data: Buffer, width: int, base: Buffer) -> Buffer:
    block = _sparse_block(data, len(base))
    if len(block) < _HEAD.size:
        raise DamageError("a changed tensor is cut", got=len(block))
    count, step = _HEAD.unpack_from(block)
    out = _words(base, width).copy()
    unit = out.dtype.itemsize
    if step not in _GAPS or len(block) != _HEAD.size + count * (step + unit):
        raise DamageError("a changed tensor is cut or padded", got=(count, step, len(block)))
    gaps = np.frombuffer(block, _little(step), count, _HEAD.size)
    if count > len(out) or (count and int(gaps.max()) >= len(out)):
        raise DamageError("a changed tensor points outside", got=count, allowed=len(out))
    places = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if count and places[-1] >= len(out):
        raise DamageError("a changed tensor points outside", got=int(places[-1]), allowed=len(out))
    values = np.frombuffer(block, np.uint8, count * unit, _HEAD.size + count * step)
    out[places] = values.view(out.dtype)
    return out.view(np.uint8).data


def _sparse_block(data: Buffer, size: int) -> Buffer:
    """Return the block itself; no more than what every element of ``size`` bytes could take."""
    if not len(data) or data[0] > 1:
        raise DamageError("a changed tensor is none", got=len(data))
    rest = memoryview(data)[1:]
    return _unzstd(rest, None, limit=_HEAD.size + 9 * size) if data[0] else rest


def _little(width: int) -> "np.dtype[Any]":
    dtype: np.dtype[Any] = np.dtype(_GAPS[width])
    return dtype.newbyteorder("<")


def _unzstd(data: Buffer, size: int | None, limit: int = 0) -> bytes:
    """Return what a frame holds: ``size`` bytes, or where that is not known up to ``limit``."""
    import zstandard

    try:
        # The decoder allocates what the frame states, whatever it is told: look first.
        stated = zstandard.get_frame_parameters(bytes(data[:32])).content_size
        if stated > limit if size is None else stated != size:
            raise DamageError("a tensor of the wrong size", got=stated, allowed=size or limit)
        return _zstd.decompressor.decompress(data, max_output_size=stated, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise DamageError("a tensor is not readable", got=error) from error
