"""Images for the wire: compressed where that brings more than it costs, and left alone elsewhere.

A camera whose picture is noisy does not shrink. To try it costs its host a quarter of what encoding
a fragment of 30 KiB takes (59 us instead of 43), and the head the way back. So after an image that
did not shrink, the next ones of its camera go as they are, until it is time to try again: the light
may have changed.

What compression brings depends on the link. Where experience waits for it, each byte costs what
the link takes for it, and nearly any saving pays; a picture that takes a slow link milliseconds is
worth more effort. Where nothing waits, a byte costs what TLS and a few copies take, and only images
that shrink well are worth it. A camera that the replay buffer keeps as JPEG anyway goes as that
over a slow link; the others never do: what is learned from is what was seen.
"""

from collections.abc import Callable, Collection

from user_system.codec import images
from user_system.core.types import Array

COST_S = 1.8e-9
"""Time that compressing a byte and the way back take, s: 88 us for 48 KiB."""

FAST = 50e6
"""What a byte costs where no link is waited for, as a rate: 20 ns, for TLS and copies."""

SLOW_S = 0.005
"""An image that takes the link longer is worth effort."""

LEVELS = 1, 9
"""Levels of zstd, without effort and with. Level 9 makes half of level 1 of drawn pictures."""

PATIENCE = 31
"""Images that go as they are after one that did not shrink."""


class Packing:
    """Encodes the images of one host. For one thread.

    Args:
        codec: of the images; ``raw`` and ``zstd`` lose nothing. What ``zstd`` does not make smaller
            goes as ``raw``.
        tight: try each image, and take whatever saves: where there is only so much room.
        pressed: returns the rate of the link where images wait for it, bytes/s; 0: they do not.
        lossy: cameras whose images are kept as JPEG: over a slow link they go as that.
    """

    def __init__(
        self,
        codec: images.Codec = "zstd",
        *,
        tight: bool = False,
        pressed: Callable[[], float] = lambda: 0.0,
        lossy: Collection[str] = (),
    ):
        self._codec, self._tight = codec, tight
        self._pressed, self._lossy = pressed, frozenset(lossy)
        self._rest: dict[str, int] = {}
        """Camera -> images that go as they are before the next try."""

    def encode(self, camera: str, image: Array) -> tuple[images.Codec, bytes]:
        """Return an image ``(H, W, C)`` uint8 as bytes, and how it is encoded.

        Raises:
            SpecError: it is not such an image.
        """
        if self._codec != "zstd":
            return self._codec, images.encode(image, self._codec)
        rate = self._pressed() or FAST
        slow = image.nbytes / rate > SLOW_S
        if slow and camera in self._lossy:
            return "jpeg", images.encode(image, "jpeg")
        if rest := self._rest.get(camera, 0):
            self._rest[camera] = rest - 1
            return "raw", images.encode(image, "raw")
        data = images.encode(image, "zstd", level=LEVELS[slow or self._tight])
        worth = 1.0 if self._tight else 1.0 - min(COST_S * rate, 0.5)
        if len(data) <= worth * image.nbytes:
            return "zstd", data
        self._rest[camera] = 0 if self._tight else PATIENCE
        return "raw", images.encode(image, "raw")
