"""RLPD's learning side. One unit of work: ``actor_every`` critic updates, then one of the actor.

The update-to-data ratio is kept here: a unit that would exceed ``updates_per_step`` critic updates
per online step is not done, and the report says how many fresh steps it waits for.
"""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from learners.networks import mlp
from learners.networks.features import Features, normalise
from learners.networks.flat import Flat
from learners.rlpd.config import RlpdConfig
from learners.rlpd.losses import Losses, Rows
from learners.rlpd.policy import actor_layout, make_policy
from user_system.core.errors import PluginError
from user_system.core.interfaces import Data, NotReady, Report
from user_system.core.specs import RobotSpec
from user_system.core.types import Array, Batch, Observation

ONLINE = "online"
"""The view whose steps the update-to-data ratio counts."""


class RlpdLearner:
    """Soft actor-critic with layer-normalised critics on an exact mix of views.

    Args:
        spec: of the robots it learns for.
        config: hyper-parameters.
        data: window on the replay buffer.
        seed: of initial critics and sampled actions.
    """

    def __init__(self, spec: RobotSpec, config: RlpdConfig, *, data: Data, seed: int):
        torch.set_num_threads(config.threads)
        self._config, self._data = config, data
        self._features = Features(spec.observation)
        self._centre, self._half = spec.action.scale
        self._statistics = self._features.declared()
        self._generator = torch.Generator().manual_seed(seed)
        self._updates = self._published = 0
        actions = len(spec.action)
        self._losses = Losses(
            actor=actor_layout(spec, config),
            critic=mlp.Layout(
                self._features.size + actions, config.hidden, 1, config.activation, config.critics
            ),
            config=config,
            target_entropy=-actions / 2 if config.target_entropy is None else config.target_entropy,
        )
        self._build(np.random.default_rng(seed), make_policy(spec, config).initial)

    def _build(self, rng: np.random.Generator, actor: Mapping[str, Array]) -> None:
        """Make the parameters; the actor starts as the one that every edge already has."""
        config = self._config
        self._actor = Flat(
            np.concatenate([v.ravel() for v in actor.values()]), config.learning_rate
        )
        self._critic = Flat(self._losses.critic.initial(rng), config.learning_rate)
        raw_alpha = math.log(math.expm1(config.alpha))
        self._raw_alpha = Flat(np.full(1, raw_alpha, np.float32), config.learning_rate)
        self._target = self._critic.tensor.detach().clone()
        self._average = self._actor.tensor.detach().clone()
        count = config.statistics_rows if config.normalise == "data" else 0
        self._measure_rows = count
        self._draw = replace(
            config.draw(config.batch),
            unit="nstep" if config.nstep > 1 else "step",
            length=config.nstep,
            gamma=config.gamma,
        )

    # --- learning ----------------------------------------------------------------------------

    def update(self) -> Report:
        """Do one unit of work.

        Raises:
            NotReady: too few online steps for another one at the configured ratio, or nobody can
                say how many there are.
            PluginError: a loss or a parameter is no longer finite.
        """
        online = self._data.count(ONLINE)
        if (lacking := self._lacking(online)) > 0:
            raise NotReady(f"{lacking} more online steps")
        if self._measure_rows:
            self._measure()
        for _ in range(self._config.actor_every):
            rows = self._rows(self._data.draw(self._draw))
            critic_loss, value = self._update_critic(rows)
        metrics = {"critic_loss": critic_loss, "value": value, **self._update_actor(rows)}
        self._updates += self._config.actor_every
        self._check(metrics)
        publish = self._updates - self._published >= self._config.publish_every
        self._published = self._updates if publish else self._published
        with suppress(NotReady):  # what was learned is reported, wherever the reader is by now
            online = self._data.count(ONLINE)
        lacking = self._lacking(online)
        return Report(
            metrics,
            self._config.actor_every,
            publish,
            wants_steps=max(0, lacking),
            behind_steps=max(0, -lacking),
        )

    def _lacking(self, online: int) -> int:
        """Return how many of ``online`` steps are lacking for the next unit; negative: to spare."""
        config = self._config
        needed = math.ceil((self._updates + config.actor_every) / config.updates_per_step)
        return max(needed, config.start_after) - online

    def _update_critic(self, rows: Rows) -> tuple[float, float]:
        config = self._config
        subset = torch.randperm(config.critics, generator=self._generator)[: config.critic_subset]
        target = self._losses.target(
            rows, self._target, self._actor.tensor, self._alpha, self._noise(rows), subset
        )
        loss = self._losses.critic_loss(rows, self._critic.tensor, target)
        self._critic.descend(loss)
        self._target.lerp_(self._critic.tensor.detach(), config.tau)
        return loss.item(), target.mean().item()

    def _update_actor(self, rows: Rows) -> dict[str, float]:
        alpha = self._alpha
        loss, entropy = self._losses.actor_loss(
            rows, self._actor.tensor, self._critic.tensor, alpha, self._noise(rows)
        )
        self._actor.descend(loss)
        self._average.lerp_(self._actor.tensor.detach(), self._config.actor_average)
        self._raw_alpha.descend(self._losses.alpha_loss(self._raw_alpha.tensor, entropy))
        return {"actor_loss": loss.item(), "entropy": entropy.item(), "alpha": alpha.item()}

    @property
    def _alpha(self) -> Tensor:
        return functional.softplus(self._raw_alpha.tensor.detach())

    def _noise(self, rows: Rows) -> Tensor:
        return torch.randn(rows.action.shape, generator=self._generator)

    def _check(self, metrics: Mapping[str, float]) -> None:
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        broken += [n for n, f in self._parameters.items() if not f.finite()]
        if broken:
            raise PluginError(
                f"rlpd: training diverged at update {self._updates}",
                got=f"not finite: {', '.join(broken)}",
                todo="Go on from the last checkpoint; lower learning_rate if it happens again.",
            )

    # --- data --------------------------------------------------------------------------------

    def _measure(self) -> None:
        """Fix the normaliser once: moving it later would change what the networks mean."""
        request = self._config.draw(self._measure_rows)
        x = self._features.flatten(self._data.draw(request).observation)
        self._statistics, self._measure_rows = self._features.measured(x), 0

    def _rows(self, batch: Batch) -> Rows:
        valid = batch.valid.astype(np.float32)
        action = np.clip((batch.action - self._centre) / self._half, -1.0, 1.0)
        return Rows(
            x=self._see(batch.observation),
            action=torch.from_numpy(action),
            reward=torch.from_numpy(batch.reward),
            discount=torch.from_numpy(batch.discount),
            following=self._see(batch.next_observation),
            weight=torch.from_numpy(valid / max(valid.sum(), 1.0)),
        )

    def _see(self, observation: Observation) -> Tensor:
        return torch.from_numpy(normalise(self._features.flatten(observation), self._statistics))

    # --- results -----------------------------------------------------------------------------

    @property
    def _parameters(self) -> dict[str, Flat]:
        return {"actor": self._actor, "critic": self._critic, "alpha": self._raw_alpha}

    def weights(self) -> tuple[Mapping[str, Mapping[str, Array]], Mapping[str, Array]]:
        """Return the averaged actor and the statistics it was trained under, copied."""
        actor = self._losses.actor.split(self._average.numpy().copy())
        return {"policy": actor}, {k: v.copy() for k, v in self._statistics.items()}

    def state_dict(self) -> Mapping[str, Any]:
        """Return parameters, moments, targets, statistics, counters and random state."""
        return {
            "parameters": {name: flat.state_dict() for name, flat in self._parameters.items()},
            "target": self._target.numpy().copy(),
            "average": self._average.numpy().copy(),
            "statistics": {k: v.copy() for k, v in self._statistics.items()},
            "generator": self._generator.get_state().numpy().copy(),
            "updates": self._updates,
            "published": self._published,
            "measure_rows": self._measure_rows,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``: the next updates are the same, given the same draws."""
        for name, flat in self._parameters.items():
            flat.load_state_dict(state["parameters"][name])
        self._target.copy_(torch.from_numpy(np.array(state["target"])))
        self._average.copy_(torch.from_numpy(np.array(state["average"])))
        self._statistics = {k: np.array(v) for k, v in state["statistics"].items()}
        self._generator.set_state(torch.from_numpy(np.array(state["generator"])))
        self._updates, self._published = int(state["updates"]), int(state["published"])
        self._measure_rows = int(state["measure_rows"])
