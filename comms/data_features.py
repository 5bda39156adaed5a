"""Features of a frozen encoder in place of images that came over the network.

Over the network a batch has images, and no word of which frame is whose. What is equal to the last
byte has the same features: they are kept by the hash of the image.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import xxhash

from user_system.core.draws import Draw
from user_system.core.encoding import AT_ONCE, encode, same_form
from user_system.core.errors import ConfigError
from user_system.core.interfaces import Encoder
from user_system.core.types import Array, Batch, Observation

_BESIDE = 200
"""Bytes that keeping one image's features takes beside them."""

_IMAGES = 4
"""Dimensions of images, at least."""


class Features:
    """Puts features in the place of images. For one thread.

    Args:
        encoders: camera -> encoder.
        cache_bytes: memory for features, shared equally by the cameras.
    """

    def __init__(self, encoders: Mapping[str, Encoder], cache_bytes: int):
        share = cache_bytes // max(len(encoders), 1)
        self._cameras = {name: _Camera(name, e, share) for name, e in encoders.items()}

    def put(self, request: Draw, batch: Batch) -> Batch:
        """Return the batch that a window beside the store would have drawn.

        Raises:
            ConfigError: an encoder is of no camera.
            PluginError: an encoder failed.
        """
        if not self._cameras:
            return batch
        if request.observations is None:
            self._check(batch.observation)
        everywhere = np.ones(batch.reward.shape[:1], bool)
        now, then = everywhere, everywhere
        if request.history:
            now, then = batch.extras["history_valid"], batch.extras["next_history_valid"]
        elif request.unit in ("window", "episode"):
            now = batch.valid
        return replace(
            batch,
            observation=self._encoded(batch.observation, now),
            next_observation=self._encoded(batch.next_observation, then),
        )

    def stats(self) -> dict[str, float]:
        """Return how many features were made, how often they were there, and what they take."""
        cameras = self._cameras.values()
        asked = sum(camera.asked for camera in cameras)
        return {
            "features_made": float(sum(camera.made for camera in cameras)),
            "feature_cache_bytes": float(sum(camera.nbytes for camera in cameras)),
            "feature_hit_rate": sum(c.hits for c in cameras) / asked if asked else 0.0,
        }

    def _check(self, observation: Observation) -> None:
        if unknown := self._cameras.keys() - observation.keys():
            images = [
                n for n, v in observation.items() if v.ndim >= _IMAGES and v.dtype == np.uint8
            ]
            allowed = ", ".join(images) or "none: there are no cameras"
            raise ConfigError("encoder of no camera", got=sorted(unknown), allowed=allowed)

    def _encoded(self, observation: Observation, there: Array) -> Observation:
        return {
            name: self._cameras[name].features(values, there) if name in self._cameras else values
            for name, values in observation.items()
        }


class _Camera:
    """Features of one camera."""

    def __init__(self, name: str, encoder: Encoder, limit_bytes: int):
        self.asked = self.hits = self.made = self.nbytes = 0
        self._name, self._encoder, self._limit = name, encoder, limit_bytes
        self._kept: dict[bytes, Array] = {}
        self._hash = encoder.hash

    def features(self, images: Array, there: Array) -> Array:
        """Return features ``[..., F]`` of images ``[..., H, W, C]``; zeros where not ``there``."""
        if self._encoder.hash != self._hash:
            self._kept, self.nbytes, self._hash = {}, 0, self._encoder.hash
        wanted = np.ascontiguousarray(images[there])
        keys = [xxhash.xxh3_128_digest(image.data) for image in wanted]
        first: dict[bytes, int] = {}
        for i, key in enumerate(keys):
            first.setdefault(key, i)
        found = {key: self._kept[key] for key in first if key in self._kept}
        self.asked += len(first)
        self.hits += len(found)
        fresh = [key for key in first if key not in found]
        for start in range(0, len(fresh), AT_ONCE):
            some = fresh[start : start + AT_ONCE]
            made = encode(self._encoder, self._name, wanted[[first[key] for key in some]])
            same_form(self._name, made, next(iter(found.values()), made[0])[None])
            self.made += len(some)
            found |= zip(some, made, strict=True)
        example = found[keys[0]]
        out = np.zeros((*there.shape, *example.shape), example.dtype)
        out[there] = np.stack([found[key] for key in keys])
        self._keep({key: found[key] for key in fresh})
        return out

    def _keep(self, fresh: Mapping[bytes, Array]) -> None:
        """Keep features; the oldest make room: which are kept hardly matters, how many does."""
        for key, value in fresh.items():
            size = value.nbytes + _BESIDE
            while self._kept and self.nbytes + size > self._limit:
                self.nbytes -= self._kept.pop(next(iter(self._kept))).nbytes + _BESIDE
            if size <= self._limit:
                self._kept[key] = value.copy()
                self.nbytes += size
