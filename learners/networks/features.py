"""From named observation fields to one normalised vector, the same at the edge and on the head.

Statistics travel with the weights that were trained under them, so an actor never sees the world
through another normaliser than its network did. An encoder for images joins here: it would turn its
field into columns of the same vector.
"""

import math
from collections.abc import Mapping

import numpy as np

from user_system.core.errors import ConfigError
from user_system.core.specs import Field
from user_system.core.types import Array, Observation

Statistics = Mapping[str, Array]
"""``mean`` and ``std``, each ``(D,)`` float32."""

CLIP = 5.0
"""Normalised values lie within; a sensor far out of its usual range must not saturate a network."""


class Features:
    """The low-dimensional fields of an observation, side by side in alphabetical order.

    Raises:
        ConfigError: a field is an image; these networks have no encoder for it.
    """

    def __init__(self, fields: Mapping[str, Field]):
        images = [name for name, field in fields.items() if len(field.shape) > 1]
        if images:
            raise ConfigError(
                "only flat fields can be learned from without an encoder",
                got=images,
                allowed=[name for name in fields if name not in images],
                todo="Leave the cameras out of this learner's observation.",
            )
        self._fields = dict(sorted(fields.items()))
        self.size = sum(math.prod(field.shape) for field in self._fields.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The fields it reads, in order."""
        return tuple(self._fields)

    def flatten(self, observation: Observation) -> Array:
        """Return ``(..., D)`` float32 of fields ``(..., *shape)``."""
        columns = []
        for name, field in self._fields.items():
            value = np.asarray(observation[name], np.float32)
            lead = value.shape[: value.ndim - len(field.shape)]
            columns.append(value.reshape(*lead, math.prod(field.shape)))
        return np.concatenate(columns, axis=-1)

    def declared(self) -> dict[str, Array]:
        """Return statistics from declared ranges: [low, high] becomes [-1, 1]; else unchanged."""
        mean, std = [], []
        for field in self._fields.values():
            centre, half = _range(field)
            size = math.prod(field.shape)
            mean.append(np.full(size, centre))
            std.append(np.full(size, half))
        return {
            "mean": np.concatenate(mean).astype(np.float32),
            "std": np.concatenate(std).astype(np.float32),
        }

    def measured(self, x: Array) -> dict[str, Array]:
        """Return statistics of data ``(N, D)``.

        A column that has hardly moved yet keeps at least a hundredth of its declared half range as
        its spread, lest the first real motion looks like an explosion.
        """
        floor = np.maximum(self.declared()["std"] * 1e-2, 1e-6)
        std = np.maximum(x.std(axis=0), floor)
        return {"mean": x.mean(axis=0).astype(np.float32), "std": std.astype(np.float32)}


def normalise(x: Array, statistics: Statistics) -> Array:
    """Return ``x`` ``(..., D)`` centred and scaled, within ``CLIP``."""
    return np.clip((x - statistics["mean"]) / statistics["std"], -CLIP, CLIP)


def _range(field: Field) -> tuple[float, float]:
    if field.low is None or field.high is None or field.high <= field.low:
        return 0.0, 1.0
    return (field.low + field.high) / 2, (field.high - field.low) / 2
