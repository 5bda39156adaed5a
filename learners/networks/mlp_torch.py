"""The torch forward pass of ``learners.networks.mlp``: a function of a flat vector.

Functional, because a loss often wants the same network under other parameters (targets, detached).
An ensemble computes as one batched matrix product instead of a loop over its members.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from learners.networks.mlp import EPSILON, Layout


def forward(layout: Layout, flat: Tensor, x: Tensor) -> Tensor:
    """Return ``(B, outputs)``, or ``(E, B, outputs)`` of an ensemble, for ``x`` ``(B, inputs)``."""
    shapes = layout.shapes
    # One split node: its backward pass is one concatenation, not a full-size zero per tensor.
    pieces = torch.split(flat, [math.prod(shape) for shape in shapes.values()])
    tensors = {
        name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }
    if layout.ensemble:
        x = x.expand(layout.ensemble, *x.shape[-2:])
    for i, width in enumerate(layout.hidden):
        x = _affine(tensors, i, x)
        x = functional.layer_norm(x, (width,), eps=EPSILON)
        x = torch.addcmul(tensors[f"{i}.shift"], x, tensors[f"{i}.gain"])
        x = torch.tanh(x) if layout.activation == "tanh" else torch.relu(x)
    return _affine(tensors, len(layout.hidden), x)


def _affine(tensors: dict[str, Tensor], layer: int, x: Tensor) -> Tensor:
    product = torch.baddbmm if x.dim() == 3 else torch.addmm
    return product(tensors[f"{layer}.b"], x, tensors[f"{layer}.w"])
