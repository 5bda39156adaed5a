"""What a batch has of a camera: its images, or what a frozen encoder makes of them.

Features are made once per frame and kept in bounded memory, with the hash of the encoder; they are
gone with the window on the store.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from user_system.core.encoding import AT_ONCE, encode, same_form
from user_system.core.errors import ConfigError
from user_system.core.interfaces import Encoder
from user_system.core.types import Array
from user_system.replay.arena import Arena
from user_system.replay.cache import Cache
from user_system.replay.env import Env, Txn
from user_system.replay.frames import Frames
from user_system.replay.rows import Rows

log = logging.getLogger(__name__)


class Pixels:
    """Reads cameras of one schema. For one thread.

    Args:
        env: the open store.
        rows: whose observations have images.
        encoders: camera -> what its images become.
        cache_bytes: of decoded images and features.
    """

    def __init__(self, env: Env, rows: Rows, encoders: Mapping[str, Encoder], cache_bytes: int):
        if unknown := encoders.keys() - rows.schema.images.keys():
            allowed = ", ".join(rows.schema.images) or "none: there are no cameras"
            raise ConfigError("encoder of no camera", got=sorted(unknown), allowed=allowed)
        share = cache_bytes // max(len(rows.schema.images), 1)
        self.frames = Frames(env, rows, {n: share for n in rows.schema.images if n not in encoders})
        self.arena = Arena()
        self._env = env
        self._rows = rows
        self._features = {n: _Features(n, e, share) for n, e in encoders.items()}

    def take(
        self, txn: Txn, cameras: Sequence[str], observations: Array
    ) -> Mapping[str, Array] | None:
        """Return images ``[N, H, W, C]``, or features ``[N, ...]``, of observation rows.

        Args:
            txn: a snapshot in which all of them are stored.
            cameras: the image fields.
            observations: ``[N]``, -1: zeros.

        Returns:
            By camera; None where some are damaged: steps with these are left out from now on.
        """
        raw = [name for name in cameras if name not in self._features]
        found = self._images(txn, raw, observations)
        if found is None:
            return None
        for name in cameras:
            if name in self._features:
                features = self._encoded(txn, self._features[name], observations)
                if features is None:
                    return None
                found[name] = features
        return found

    def stats(self) -> dict[str, float]:
        """Return what was read, and how often the caches had it."""
        features = [f.cache for f in self._features.values() if f.cache is not None]
        return {
            "images_read": float(self.frames.read),
            "images_checked": float(self.frames.checked),
            "arena_bytes": float(self.arena.nbytes),
            "frame_cache_bytes": float(sum(cache.nbytes for cache in self.frames.caches())),
            "frame_hit_rate": _hit_rate(self.frames.caches()),
            "feature_cache_bytes": float(sum(cache.nbytes for cache in features)),
            "feature_hit_rate": _hit_rate(features),
            "features_made": float(sum(f.made for f in self._features.values())),
        }

    def _images(
        self, txn: Txn, cameras: Sequence[str], observations: Array
    ) -> dict[str, Array] | None:
        n, shapes = len(observations), self._rows.schema.images
        found = {name: self.arena.take((n, *shapes[name]), np.uint8) for name in cameras}
        damaged = self.frames.fill(txn, observations, found)
        for name, rows in damaged.items():
            log.error(
                "%d images of %r in %s are damaged: %d steps are left out",
                *(len(rows), name, self._env.path, self._rows.exclude(rows)),
            )
        return None if damaged else found

    def _encoded(self, txn: Txn, features: "_Features", observations: Array) -> Array | None:
        slots = features.find(observations)
        fresh = np.unique(observations[(slots < 0) & (observations >= 0)])
        parts = []
        for start in range(0, len(fresh), AT_ONCE):
            images = self._images(txn, [features.camera], fresh[start : start + AT_ONCE])
            if images is None:
                return None
            parts.append(features.encode(images[features.camera]))
        return features.gather(observations, slots, fresh, parts)


class _Features:
    """Features of one camera."""

    def __init__(self, camera: str, encoder: Encoder, cache_bytes: int):
        self.camera = camera
        self.cache: Cache | None = None
        self.made = 0
        self._encoder = encoder
        self._limit = cache_bytes
        self._hash = ""

    def find(self, observations: Array) -> Array:
        """Return where the cache has the features of observation rows; -1: nowhere."""
        if self.cache is None or self._hash != self._encoder.hash:
            self.cache, self._hash = None, self._encoder.hash
            return np.full(len(observations), -1, np.int64)
        slots = np.full(len(observations), -1, np.int64)
        there = observations >= 0
        slots[there] = self.cache.find(observations[there])
        return slots

    def encode(self, images: Array) -> Array:
        """Return the features of images, checked: they come from a plugin."""
        found = encode(self._encoder, self.camera, images)
        self.made += len(images)
        return found

    def gather(self, observations: Array, slots: Array, fresh: Array, parts: list[Array]) -> Array:
        """Return features ``[N, ...]``, those that were just made included; keep these."""
        made = np.concatenate(parts) if parts else None
        if self.cache is None:
            if made is None:
                raise ValueError("no observation among those wanted")
            self.cache = Cache(made.shape[1:], made.dtype, self._limit)
            self.cache.asked += int((observations >= 0).sum())
        kept = self.cache.values
        out = np.zeros((len(observations), *kept.shape[1:]), kept.dtype)
        out[slots >= 0] = kept[slots[slots >= 0]]
        if made is not None:
            same_form(self.camera, made, kept)
            wanted = (slots < 0) & (observations >= 0)
            out[wanted] = made[np.searchsorted(fresh, observations[wanted])]
            self.cache.put(fresh, made)
        return out


def _hit_rate(caches: list[Cache]) -> float:
    asked = sum(cache.asked for cache in caches)
    return sum(cache.hits for cache in caches) / asked if asked else 0.0
