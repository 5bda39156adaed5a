"""One camera image as bytes, and back, with every size checked before anything is decoded.

Codecs, one per camera stream:

- ``raw``: the pixels, C order. Costs nothing; for tests and tiny images.
- ``zstd``: lossless; the frame must state its content size, which must be the image's.
- ``jpeg``: lossy baseline JPEG, 4:4:4 so that thin coloured edges survive; 1 or 3 channels.

Images are uint8 ``(H, W, C)``. ``checksum`` is made of the encoded bytes where the image was
captured, and travels with it to the disk.
"""

import math
import threading
from collections.abc import Sequence
from typing import Any, Literal, cast

import numpy as np
import xxhash

from user_system.codec.arrays import Buffer
from user_system.core.errors import DamageError, SpecError
from user_system.core.types import Array

Codec = Literal["raw", "zstd", "jpeg"]
CODECS: tuple[Codec, ...] = ("raw", "zstd", "jpeg")

MAX_SIDE = 16384
MAX_BYTES = 256 << 20
_COLOURS = {1: "GRAY", 3: "RGB"}


class _Zstd(threading.local):
    """This thread's compressor and decompressor: making one takes longer than using it."""

    def __init__(self) -> None:
        self._in: dict[int, Any] = {}
        self._out: Any = None

    def compressor(self, level: int) -> Any:
        if level not in self._in:
            import zstandard

            self._in[level] = zstandard.ZstdCompressor(level=level)
        return self._in[level]

    def decompressor(self) -> Any:
        if self._out is None:
            import zstandard

            self._out = zstandard.ZstdDecompressor()
        return self._out


_zstd = _Zstd()


def checksum(data: Buffer) -> int:
    """Return the xxh3-64 of ``data``."""
    return int(xxhash.xxh3_64_intdigest(data))


def encode(image: Array, codec: Codec, *, quality: int = 92, level: int = 1) -> bytes:
    """Return an image ``(H, W, C)`` uint8 as bytes.

    Args:
        image: what the camera saw.
        codec: one of ``CODECS``.
        quality: of ``jpeg`` only, 1 to 100.
        level: of ``zstd`` only, 1 to 22: effort.

    Raises:
        SpecError: not such an image, or not such a codec.
    """
    if image.dtype != np.uint8:
        raise SpecError("image has the wrong dtype", got=image.dtype, allowed="uint8")
    _check(codec, image.shape)
    pixels = np.ascontiguousarray(image)
    if codec == "raw":
        return pixels.tobytes()
    if codec == "zstd":
        return cast(bytes, _zstd.compressor(level).compress(pixels.data.cast("B")))
    import simplejpeg

    colour = _COLOURS[image.shape[2]]
    subsampling = "444" if colour == "RGB" else "Gray"
    return cast(bytes, simplejpeg.encode_jpeg(pixels, quality, colour, subsampling))


def decode(data: Buffer, codec: Codec, shape: Sequence[int]) -> Array:
    """Return the image ``shape`` ``(H, W, C)`` uint8 that ``data`` holds.

    Raises:
        SpecError: not such a codec, or not the shape of an image.
        DamageError: ``data`` is not an image of that shape.
    """
    _check(codec, shape)
    height, width, channels = shape
    if codec == "raw":
        pixels: Buffer = data
    elif codec == "zstd":
        pixels = _decode_zstd(data, height * width * channels)
    else:
        return _decode_jpeg(data, height, width, channels)
    if len(pixels) != height * width * channels:
        raise DamageError("image has the wrong size", got=len(pixels), allowed=list(shape))
    return np.frombuffer(pixels, np.uint8).reshape(shape)


def _check(codec: str, shape: Sequence[int]) -> None:
    if codec not in CODECS:
        raise SpecError("unknown image codec", got=codec, allowed=", ".join(CODECS))
    if len(shape) != 3 or not all(0 < int(n) <= MAX_SIDE for n in shape):
        raise SpecError("not the shape of an image", got=list(shape), allowed="(H, W, C)")
    if math.prod(int(n) for n in shape) > MAX_BYTES:
        raise SpecError("image is too large", got=list(shape), allowed=f"{MAX_BYTES} bytes")
    if codec == "jpeg" and shape[2] not in _COLOURS:
        raise SpecError("jpeg holds grey or RGB images", got=shape[2], allowed="1 or 3 channels")


def _decode_zstd(data: Buffer, size: int) -> bytes:
    import zstandard

    try:
        # The decoder allocates what the frame states, whatever it is told: look first.
        stated = zstandard.get_frame_parameters(bytes(data[:32])).content_size
        if stated != size:
            raise DamageError("zstd image has the wrong size", got=stated, allowed=size)
        decoder = _zstd.decompressor()
        found = decoder.decompress(data, max_output_size=size, allow_extra_data=False)
        return cast(bytes, found)
    except zstandard.ZstdError as error:
        raise DamageError("zstd image is damaged", got=error) from error


def _decode_jpeg(data: Buffer, height: int, width: int, channels: int) -> Array:
    import simplejpeg

    try:
        got = simplejpeg.decode_jpeg_header(data)
        colours = 1 if got[2] in ("Gray", "GRAY") else 3
        if (got[0], got[1], colours) != (height, width, channels):
            raise DamageError(
                "jpeg has the wrong shape", got=got, allowed=(height, width, channels)
            )
        return cast(Array, simplejpeg.decode_jpeg(data, _COLOURS[channels], strict=True))
    except ValueError as error:
        raise DamageError("jpeg is damaged", got=error) from error
