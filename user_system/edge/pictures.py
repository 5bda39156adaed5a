"""Pictures for people, as good as the link has room for.

Each camera stands on a rung: smaller and coarser the lower it is. A picture may take the link a
quarter of a second at what experience leaves; one that would take longer is made again on the next
rung, and ten in a row that take less than a third of that bring the camera one rung up. How often
pictures go follows by itself: of each camera one is under way (``comms.fresh_flow``), and the
newest takes the place of one that waits.
"""

from dataclasses import dataclass

import numpy as np

from user_system.codec import images
from user_system.core.types import Array

RUNGS = ((1, 80), (1, 60), (2, 60), (2, 40), (4, 40), (8, 30), (16, 30))
"""(every how many-th pixel of a side, quality of the JPEG), best first."""

PICTURE_S = 0.25
"""Time that a picture may take the link."""

_LEAST = 2 << 10
"""A picture of so many bytes may always go: it is one piece on any link."""

_PATIENCE = 10
"""Small pictures in a row after which a better one is tried."""


@dataclass
class _Camera:
    rung: int = 0
    small: int = 0


class Pictures:
    """Packs the pictures of one host. For one thread."""

    def __init__(self) -> None:
        self._cameras: dict[str, _Camera] = {}
        self._dropped = 0

    def pack(self, camera: str, image: Array, left: float) -> bytes | None:
        """Return a picture as JPEG; None: the link has no room for the least one.

        Args:
            camera: which, of all robots of the host.
            image: ``(H, W, 3)`` uint8.
            left: what the link has room for, bytes/s; 0: not known, and then the best is tried.
        """
        room = max(_LEAST, PICTURE_S * left) if left else float("inf")
        known = self._cameras.setdefault(camera, _Camera())
        data = _jpeg(image, known.rung)
        while len(data) > room and known.rung + 1 < len(RUNGS):
            known.rung, known.small = known.rung + 1, 0
            data = _jpeg(image, known.rung)
        if len(data) > room:
            self._dropped += 1
            return None
        known.small = known.small + 1 if known.rung and 3 * len(data) < room else 0
        if known.small >= _PATIENCE:
            known.rung, known.small = known.rung - 1, 0
        return data

    @property
    def degraded(self) -> bool:
        """Whether some camera shows less than it could."""
        return any(camera.rung for camera in self._cameras.values())

    def stats(self) -> dict[str, float]:
        """Return the lowest rung that a camera stands on (0: the best), and pictures left out."""
        rungs = [camera.rung for camera in self._cameras.values()]
        return {"rung": float(max(rungs, default=0)), "dropped": float(self._dropped)}


def _jpeg(image: Array, rung: int) -> bytes:
    every, quality = RUNGS[rung]
    pixels = np.ascontiguousarray(image[::every, ::every])
    return images.encode(pixels, "jpeg", quality=quality)
