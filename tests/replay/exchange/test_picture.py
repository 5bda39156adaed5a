"""PNG keeps every pixel; what is not the image that was declared is not decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from user_system.core.errors import SpecError
from user_system.replay.exchange import picture


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (5, 7, 1), (16, 24, 3), (3, 2, 4), (1, 300, 3)], ids=str
)
def test_png_keeps_every_pixel(rng, shape):
    image = rng.integers(0, 256, shape, np.uint8)
    data = picture.encode(image)
    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(picture.decode(data, shape, "x"), image)
    with Image.open(io.BytesIO(data)) as other:
        np.testing.assert_array_equal(np.asarray(other).reshape(shape), image)


def png(width, height, data=b""):
    """A PNG whose head claims any size."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "not a readable"),
        (b"GIF89a" + bytes(100), "not a readable"),
        (png(4, 4, zlib.compress(bytes(5))), "not a readable"),
        (png(8, 4, zlib.compress(bytes(100))), "another image"),
        (png(100_000, 100_000), "not a readable|another image"),
        (png(12_000, 9_000), "another image"),
    ],
    ids=["empty", "gif", "cut", "size", "bomb", "large"],
)
def test_anything_else_is_refused(data, match):
    with pytest.raises(SpecError, match=match):
        picture.decode(data, (4, 4, 3), "frame 3")


def test_another_mode_is_refused(rng):
    grey = picture.encode(rng.integers(0, 256, (4, 4, 1), np.uint8))
    with pytest.raises(SpecError, match=r"frame 3 is another image; got \(4, 4, 'L'\)"):
        picture.decode(grey, (4, 4, 3), "frame 3")


def test_shapes_that_are_none_are_refused():
    for shape in ((4, 4, 2), (0, 4, 3), (1 << 20, 1 << 20, 3)):
        with pytest.raises(SpecError, match="is no image"):
            picture.decode(b"", shape, "x")
