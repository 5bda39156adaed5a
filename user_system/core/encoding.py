"""What frozen encoders answer, checked: they come from plugins."""

import numpy as np

from user_system.core.errors import PluginError
from user_system.core.interfaces import Encoder
from user_system.core.types import Array

AT_ONCE = 256
"""Images that an encoder is given at once: what they take is bounded, however many are wanted."""


def encode(encoder: Encoder, camera: str, images: Array) -> Array:
    """Return features ``[N, ...]`` of images ``[N, H, W, C]``.

    Raises:
        PluginError: the encoder raised, or answered with something else than it promised.
    """
    try:
        found = np.asarray(encoder.encode(images))
    except Exception as error:
        raise PluginError(f"the encoder of {camera!r} raised", got=repr(error)) from error
    allowed = f"[{len(images)}, ...] of float16 or float32, finite"
    if found.shape[:1] != (len(images),) or found.dtype not in (np.float16, np.float32):
        raise PluginError(
            f"features of {camera!r}", got=(found.dtype, found.shape), allowed=allowed
        )
    if not np.isfinite(found).all():
        raise PluginError(f"features of {camera!r}", got="NaN", allowed=allowed)
    return found


def same_form(camera: str, made: Array, kept: Array) -> None:
    """Check that features are as those before.

    Raises:
        PluginError: they are not.
    """
    got, allowed = (made.dtype, made.shape[1:]), (kept.dtype, kept.shape[1:])
    if got != allowed:
        raise PluginError(f"features of {camera!r}", got=got, allowed=allowed)
