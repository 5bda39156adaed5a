"""A multi-layer perceptron: its layout, shared by torch and NumPy, and its NumPy forward pass.

Each hidden layer is ``activation(layer_norm(x @ w + b))``. All tensors of a network lie in one flat
vector in a fixed order: an optimiser step, a target average, a check for non-finite numbers and a
checkpoint are then one operation each, and for networks this small that is most of their cost.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from user_system.core.errors import ConfigError
from user_system.core.types import Array

EPSILON = 1e-6
"""Added to the variance in layer norms."""

ACTIVATIONS = ("tanh", "relu")


@dataclass(frozen=True)
class Layout:
    """Sizes of a network and the place of each tensor in its flat vector."""

    inputs: int
    hidden: tuple[int, ...]
    outputs: int
    activation: str = "tanh"
    ensemble: int = 0
    """Members that compute side by side; 0: a single network without the leading axis."""

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ConfigError("unknown activation", got=self.activation, allowed=ACTIVATIONS)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of every tensor, in order; layer ``i`` has w, b, gain, shift."""
        shapes: dict[str, tuple[int, ...]] = {}
        sizes = (self.inputs, *self.hidden, self.outputs)
        for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            shapes[f"{i}.w"], shapes[f"{i}.b"] = (fan_in, fan_out), (fan_out,)
            if i < len(self.hidden):
                shapes[f"{i}.gain"] = shapes[f"{i}.shift"] = (fan_out,)
        if not self.ensemble:
            return shapes
        # Row vectors keep their axis, so that they broadcast over the batch of each member.
        rows = {k: s if len(s) == 2 else (1, *s) for k, s in shapes.items()}
        return {name: (self.ensemble, *shape) for name, shape in rows.items()}

    @property
    def size(self) -> int:
        """Return the number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def initial(self, rng: np.random.Generator, last_gain: float = 1.0) -> Array:
        """Return Glorot-uniform weights, zero biases and neutral norms as a flat vector.

        Args:
            rng: source of randomness.
            last_gain: scales the output layer; a small one makes a new actor start near the middle
                of its range and a new critic near zero.
        """
        parts = []
        for name, shape in self.shapes.items():
            layer, kind = name.split(".")
            if kind == "w":
                bound = math.sqrt(6.0 / (shape[-2] + shape[-1]))
                bound *= last_gain if int(layer) == len(self.hidden) else 1.0
                parts.append(rng.uniform(-bound, bound, shape))
            else:
                parts.append(np.full(shape, 1.0 if kind == "gain" else 0.0))
        return np.concatenate([p.ravel() for p in parts]).astype(np.float32)

    def split(self, flat: Array) -> dict[str, Array]:
        """Return the named tensors of a flat vector ``(size,)``, as views."""
        tensors, start = {}, 0
        for name, shape in self.shapes.items():
            end = start + math.prod(shape)
            tensors[name] = flat[start:end].reshape(shape)
            start = end
        return tensors


def forward(tensors: Mapping[str, Array], x: Array, activation: str = "tanh") -> Array:
    """Return the output ``(..., outputs)`` of a single network for ``x`` ``(..., inputs)``."""
    layer = 0
    while f"{layer}.gain" in tensors:
        x = x @ tensors[f"{layer}.w"] + tensors[f"{layer}.b"]
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + EPSILON)
        x = x * tensors[f"{layer}.gain"] + tensors[f"{layer}.shift"]
        x = np.tanh(x) if activation == "tanh" else np.maximum(x, 0.0)
        layer += 1
    result: Array = x @ tensors[f"{layer}.w"] + tensors[f"{layer}.b"]
    return result
