"""Images for the wire: compressed where that makes them smaller, and left alone where it does not.

A camera whose picture is noisy does not shrink. To try it costs its host a quarter of what encoding
a fragment of 30 KiB takes (59 us instead of 43), and the head the way back. So after an image that
did not shrink, the next ones of its camera go as they are, until it is time to try again: the light
may have changed.
"""

from user_system.codec import images
from user_system.core.types import Array

WORTH = 0.95
"""Share of its size up to which a compressed image is worth it."""

PATIENCE = 31
"""Images that go as they are after one that did not shrink."""


class Packing:
    """Encodes the images of one host. For one thread.

    Args:
        codec: of the images; ``raw`` and ``zstd`` lose nothing. What ``zstd`` does not make smaller
            goes as ``raw``.
        tight: try each image, and take whatever saves: where there is only so much room.
    """

    def __init__(self, codec: images.Codec = "zstd", *, tight: bool = False):
        self._codec = codec
        self._worth, self._patience = (1.0, 0) if tight else (WORTH, PATIENCE)
        self._rest: dict[str, int] = {}
        """Camera -> images that go as they are before the next try."""

    def encode(self, camera: str, image: Array) -> tuple[images.Codec, bytes]:
        """Return an image ``(H, W, C)`` uint8 as bytes, and how it is encoded.

        Raises:
            SpecError: it is not such an image.
        """
        if self._codec != "zstd":
            return self._codec, images.encode(image, self._codec)
        if rest := self._rest.get(camera, 0):
            self._rest[camera] = rest - 1
            return "raw", images.encode(image, "raw")
        data = images.encode(image, "zstd")
        if len(data) <= self._worth * image.nbytes:
            return "zstd", data
        self._rest[camera] = self._patience
        return "raw", images.encode(image, "raw")
