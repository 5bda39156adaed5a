"""The three losses of soft actor-critic, as functions of flat parameter vectors."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from learners.networks.mlp import Layout
from learners.networks.mlp_torch import forward
from learners.rlpd.config import RlpdConfig


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch as the losses need it: normalised, as tensors."""

    x: Tensor
    """``[B, D]`` features."""
    action: Tensor
    """``[B, Da]`` executed, in [-1, 1]."""
    reward: Tensor
    """``[B]``."""
    discount: Tensor
    """``[B]``; 0 where nothing follows."""
    following: Tensor
    """``[B, D]`` features of the next observation."""
    weight: Tensor
    """``[B]``: 1 / number of valid rows, 0 for the others; sums to one."""


@dataclass(frozen=True)
class Losses:
    """Actor, critics and temperature; holds layouts and settings, no parameters."""

    actor: Layout
    critic: Layout
    config: RlpdConfig
    target_entropy: float

    def sample(self, actor: Tensor, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return actions ``[B, Da]`` in [-1, 1] and their log-probability ``[B]``."""
        mean, log_std = forward(self.actor, actor, x).chunk(2, dim=-1)
        std = log_std.exp().clamp(self.config.std_min, self.config.std_max)
        raw = mean + std * noise
        normal = -0.5 * noise.square() - std.log() - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(u)^2), written so that it does not underflow.
        squash = 2.0 * (math.log(2.0) - raw - functional.softplus(-2.0 * raw))
        return raw.tanh(), (normal - squash).sum(-1)

    def values(self, critic: Tensor, x: Tensor, action: Tensor) -> Tensor:
        """Return ``[E, B]``: what each critic expects of ``action`` in ``x``."""
        return forward(self.critic, critic, torch.cat((x, action), -1)).squeeze(-1)

    @torch.no_grad()
    def target(
        self,
        rows: Rows,
        target: Tensor,
        actor: Tensor,
        alpha: Tensor,
        noise: Tensor,
        subset: Tensor,
    ) -> Tensor:
        """Return ``[B]``: reward plus the discounted value of what followed."""
        action, log_probability = self.sample(actor, rows.following, noise)
        value = self.values(target, rows.following, action)[subset].amin(0)
        if self.config.backup_entropy:
            value = value - alpha * log_probability
        return rows.reward + rows.discount * value

    def critic_loss(self, rows: Rows, critic: Tensor, target: Tensor) -> Tensor:
        """Return the squared error, averaged over valid rows and members."""
        error = self.values(critic, rows.x, rows.action) - target
        return (error.square() * rows.weight).sum(-1).mean()

    def actor_loss(
        self, rows: Rows, actor: Tensor, critic: Tensor, alpha: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the actor's loss against the mean critic, and its entropy."""
        action, log_probability = self.sample(actor, rows.x, noise)
        value = self.values(critic.detach(), rows.x, action).mean(0)
        loss = ((alpha * log_probability - value) * rows.weight).sum()
        return loss, -(log_probability.detach() * rows.weight).sum()

    def alpha_loss(self, raw_alpha: Tensor, entropy: Tensor) -> Tensor:
        """Return the loss that moves the temperature until entropy meets its target."""
        return functional.softplus(raw_alpha).sum() * (entropy - self.target_entropy)
