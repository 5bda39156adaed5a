"""One image as PNG or JPEG bytes; the only door to Pillow.

PNG keeps 8-bit grey, RGB and RGBA exactly. What is read is looked at before it is decoded: an
image of another size or mode than declared is refused, however few bytes it takes.
"""

import io
import warnings
from typing import cast

import numpy as np
from PIL import Image

from user_system.core.errors import SpecError
from user_system.core.types import Array

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Channels -> Pillow's mode; others have no PNG."""

MAX_PIXELS = 1 << 27


def encode(image: Array) -> bytes:
    """Return an image ``(H, W, C)`` uint8, C one of ``MODES``, as PNG."""
    height, width, channels = image.shape
    made = Image.frombytes(MODES[channels], (width, height), image.tobytes())
    buffer = io.BytesIO()
    # Level 1: a third of the time of the default for a tenth more bytes.
    made.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode(data: bytes, shape: tuple[int, int, int], name: str) -> Array:
    """Return the image ``shape`` ``(H, W, C)`` uint8 that PNG or JPEG bytes hold.

    Raises:
        SpecError: they do not hold such an image; ``name`` says which one.
    """
    height, width, channels = shape
    if channels not in MODES or not 0 < height * width <= MAX_PIXELS:
        raise SpecError(f"{name} is no image", got=shape, allowed=f"(H, W, C), C of {list(MODES)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is too large is refused below
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                got = image.height, image.width, image.mode
                if got != (height, width, MODES[channels]):
                    raise SpecError(
                        f"{name} is another image",
                        got=got,
                        allowed=(height, width, MODES[channels]),
                    )
                pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SpecError(f"{name} is not a readable PNG or JPEG", got=error) from error
    return cast(Array, pixels.reshape(shape))
