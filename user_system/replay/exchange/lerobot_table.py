"""The frames of one episode as arrays of ours, and its images some at a time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.types import Array
from user_system.replay.exchange import lerobot_form as form
from user_system.replay.exchange import picture
from user_system.replay.exchange.lerobot_form import Feature, Kind
from user_system.replay.exchange.lerobot_rows import Frames, Videos
from user_system.replay.exchange.parquet import IMAGE

MAX_STEPS = 50
"""Steps per fragment."""

MAX_PIXEL_BYTES = 64 << 20
"""Images per fragment; large ones make shorter fragments."""


def steps_per_fragment(features: Sequence[Feature]) -> int:
    """Return how many steps of such features make a fragment of sensible size."""
    size = sum(int(np.prod(f.tail)) for f in features if f.kind == "camera")
    return max(1, min(MAX_STEPS, MAX_PIXEL_BYTES // max(size, 1)))


class Table:
    """The frames of one episode."""

    def __init__(self, frames: Frames, features: Sequence[Feature], videos: Videos):
        self.row = frames.row
        self._values = frames.values
        self._features = {(f.kind, f.name): f for f in features}
        self._videos: Mapping[str, Iterator[Array]] = {
            f.key: videos.frames(frames.row, f.key) for f in features if f.dtype == form.VIDEO
        }

    def __len__(self) -> int:
        return self.row.length

    def has(self, kind: Kind, name: str = "") -> bool:
        """Return whether there is such a column."""
        return (kind, name) in self._features

    def names(self, kind: Kind) -> list[str]:
        """Return what we call the columns of a kind."""
        return [name for of, name in self._features if of == kind]

    def column(self, kind: Kind, name: str = "") -> Any:
        """Return a column ``[N, …]`` in our shape, or a list of texts.

        Raises:
            SpecError: there is none.
        """
        feature = self._features.get((kind, name))
        if feature is None:
            raise SpecError(f"the dataset lacks column {kind} {name}".rstrip())
        return self.shaped(feature)

    def shaped(self, feature: Feature) -> Any:
        """Return a feature's column; see ``column``."""
        if not feature.stored:
            return np.empty((len(self), *feature.tail), feature.dtype)
        values = self._values[feature.key]
        return values if isinstance(values, list) else values.reshape(len(self), *feature.tail)

    def observation(self, low: int, high: int) -> dict[str, Array]:
        """Return all fields and images of frames ``[low, high)``; call it in order."""
        found = {}
        for feature in self._features.values():
            if feature.kind == "field":
                found[feature.name] = self.shaped(feature)[low:high]
            elif feature.kind == "camera":
                found[feature.name] = self._images(feature, low, high)
        return found

    def _images(self, feature: Feature, low: int, high: int) -> Array:
        if feature.dtype == form.VIDEO:
            return np.stack([next(self._videos[feature.key]) for _ in range(low, high)])
        cells = self._values[feature.key]
        if feature.dtype != IMAGE:
            plain: Array = self.shaped(feature)[low:high]
            return plain
        return np.stack(
            [
                picture.decode(cells[k], shape_of(feature), self._at(feature, k))
                for k in range(low, high)
            ]
        )

    def _at(self, feature: Feature, frame: int) -> str:
        return f"{self.row.data}: {feature.key} of frame {frame} of episode {self.row.index}"


def shape_of(feature: Feature) -> tuple[int, int, int]:
    """Return ``(H, W, C)`` of a camera."""
    height, width, channels = feature.tail
    return height, width, channels
