"""A network's parameters as one torch vector with its optimiser, checked and checkpointed whole."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from user_system.core.types import Array


class Flat:
    """A trainable vector and its Adam state.

    Args:
        values: initial parameters ``(N,)`` float32, copied.
        learning_rate: of Adam.
    """

    def __init__(self, values: Array, learning_rate: float):
        self.tensor = torch.tensor(values, dtype=torch.float32, requires_grad=True)
        self._adam = torch.optim.Adam([self.tensor], lr=learning_rate, fused=True)
        self._adam.state[self.tensor] = self._moments(torch.zeros(()), None, None)

    def _moments(self, step: Tensor, first: Tensor | None, second: Tensor | None) -> dict[str, Any]:
        zeros = torch.zeros_like(self.tensor.detach())
        return {
            "step": step,
            "exp_avg": zeros if first is None else first,
            "exp_avg_sq": zeros.clone() if second is None else second,
        }

    def descend(self, loss: Tensor) -> None:
        """Take one step down ``loss``; only this vector moves."""
        (self.tensor.grad,) = torch.autograd.grad(loss, [self.tensor])
        self._adam.step()

    def numpy(self) -> Array:
        """Return a copy of the parameters ``(N,)`` float32."""
        return self.tensor.detach().numpy().copy()

    def finite(self) -> bool:
        """Whether every parameter is a finite number."""
        return bool(np.isfinite(self.tensor.detach().numpy()).all())

    def state_dict(self) -> dict[str, Any]:
        """Return parameters and moments as arrays."""
        moments = self._adam.state[self.tensor]
        return {
            "values": self.numpy(),
            **{k: np.array(moments[k].numpy()) for k in ("step", "exp_avg", "exp_avg_sq")},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        with torch.no_grad():
            self.tensor.copy_(torch.from_numpy(np.array(state["values"])))
        step, first, second = (
            torch.from_numpy(np.array(state[k])) for k in ("step", "exp_avg", "exp_avg_sq")
        )
        self._adam.state[self.tensor] = self._moments(step, first, second)
