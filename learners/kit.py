"""Small parts that make a learner plugin short. None of them must be used, none is a base class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from learners.networks.features import Features, normalise
from user_system.core.errors import PluginError
from user_system.core.interfaces import ActMode, Data, Draw, Learner, Policy, Report, ResetReason
from user_system.core.specs import PolicySpec, RobotSpec
from user_system.core.types import Array, Batch, Observation, Plan, Segment, Weights

__all__ = [
    "Features",
    "FunctionLearner",
    "FunctionPolicy",
    "Plugin",
    "function_plugin",
    "policy_spec",
]

Tensors = Mapping[str, Array]
Act = Callable[[Tensors, Array, Array | None], Array]
"""(tensors, features ``(D,)``, noise ``(Da,)`` or None to act without) -> action ``(Da,)``, or an
action chunk ``(Tp, Da)``."""


@dataclass(frozen=True)
class Plugin:
    """What an entry point of ``user_system.learners`` names: a config type and two builders."""

    config_type: type
    build_policy: Callable[[RobotSpec, Any], Policy]
    build_learner: Callable[..., Learner]

    def make_policy(self, spec: RobotSpec, config: Any) -> Policy:
        """Build the acting side for one kind of robot."""
        return self.build_policy(spec, config)

    def make_learner(self, spec: RobotSpec, config: Any, *, data: Data, seed: int) -> Learner:
        """Build the learning side."""
        return self.build_learner(spec, config, data=data, seed=seed)


def policy_spec(spec: RobotSpec, horizon: int = 1) -> PolicySpec:
    """Return the specification of a policy that sees the low-dimensional fields of a robot.

    Args:
        spec: of the robot.
        horizon: actions per plan, all of which may be executed.
    """
    return PolicySpec(
        spec.observation, spec.action, spec.control_hz, horizon=horizon, execute=horizon
    )


class FunctionPolicy:
    """A policy without memory: a function of tensors, normalised features and noise, in NumPy.

    Args:
        spec: what it sees and answers.
        act: the function; its answer is clipped to the action's bounds.
        initial: tensors it acts with as version 0; later ones must have their names and shapes.
    """

    def __init__(self, spec: PolicySpec, act: Act, initial: Tensors):
        self._spec, self._act = spec, act
        self._features = Features(spec.observation)
        self.initial: Tensors = {name: np.asarray(value) for name, value in initial.items()}
        self._tensors: Tensors = self.initial
        self._statistics = self._features.declared()
        self._version = 0
        self._rng = np.random.default_rng(0)

    @property
    def spec(self) -> PolicySpec:
        """What it sees and answers."""
        return self._spec

    def load(self, weights: Weights) -> None:
        """Take over new weights, all or none.

        Raises:
            PluginError: they are of another architecture or not finite.
        """
        tensors = dict(weights.modules.get("policy", {}))
        statistics = {**self._features.declared(), **weights.statistics}
        _fit("policy", tensors, self._tensors)
        _fit("statistics", statistics, self._statistics)
        self._tensors, self._statistics = tensors, statistics
        self._version = weights.version

    def reset(self, *, seed: int, reason: ResetReason) -> None:
        """Begin anew: the noise of an episode depends on its seed only."""
        if reason in ("episode", "task"):
            self._rng = np.random.default_rng(seed)

    def act(self, observation: Observation, *, mode: ActMode, noise: Array | None = None) -> Plan:
        """Answer one observation with a plan; ``noise`` is ``(Da,)``, standard normal."""
        x = normalise(self._features.flatten(observation), self._statistics)
        if mode == "eval":
            noise = None
        elif noise is None:
            noise = self._rng.standard_normal(len(self._spec.action), np.float32)
        action = self._spec.action.clip(self._act(self._tensors, x, noise))
        return Plan(actions=np.atleast_2d(action), version=self._version)

    def observe(self, executed: Array, segment: Segment) -> None:
        """Nothing to remember."""


class FunctionLearner:
    """A learner whose state is what its policy acts with, moved by a function of state and batch.

    Args:
        spec: of the robots it learns for.
        data: window on the replay buffer.
        draw: what one update learns from.
        step: (tensors, features ``(B, D)`` as the policy sees them, batch) -> new tensors.
        initial: tensors to begin with.
    """

    def __init__(
        self,
        spec: RobotSpec,
        data: Data,
        draw: Draw,
        step: Callable[[Tensors, Array, Batch], Tensors],
        initial: Tensors,
    ):
        self._features = Features(spec.observation)
        self._data, self._draw, self._step = data, draw, step
        self._tensors: Tensors = initial

    def update(self) -> Report:
        """Learn from one batch; one fresh online step makes the next one worth doing.

        Raises:
            NotReady: there is nothing to draw from yet.
            PluginError: the new tensors do not fit or are not finite; the old ones are kept.
        """
        batch = self._data.draw(self._draw)
        x = normalise(self._features.flatten(batch.observation), self._features.declared())
        tensors = self._step(self._tensors, x, batch)
        _fit("policy", tensors, self._tensors)
        self._tensors = tensors
        return Report({"rows": float(len(batch))}, wants_steps=1)

    def weights(self) -> tuple[Mapping[str, Tensors], Tensors]:
        """Return the tensors, copied."""
        return {"policy": self.state_dict()}, {}

    def state_dict(self) -> dict[str, Array]:
        """Return the tensors, copied."""
        return {name: np.array(value) for name, value in self._tensors.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""
        _fit("policy", state, self._tensors)
        self._tensors = {name: np.array(value) for name, value in state.items()}


def function_plugin(
    config_type: type,
    start: Callable[[int, int, Any], Tensors],
    act: Act,
    step: Callable[[Tensors, Array, Batch, Any], Tensors],
    draw: Draw,
    horizon: int = 1,
) -> Plugin:
    """Return the plugin of a learner that is three functions.

    Args:
        config_type: a frozen dataclass.
        start: (number of features, number of actions, config) -> initial tensors.
        act: (tensors, features, noise or None) -> action.
        step: (tensors, features, batch, config) -> tensors after learning from a batch.
        draw: the batch that each step learns from.
        horizon: actions that ``act`` answers; more than one may come from the head.
    """

    def initial(spec: RobotSpec, config: Any) -> Tensors:
        return start(Features(spec.observation).size, len(spec.action), config)

    def make_policy(spec: RobotSpec, config: Any) -> FunctionPolicy:
        return FunctionPolicy(policy_spec(spec, horizon), act, initial(spec, config))

    def make_learner(spec: RobotSpec, config: Any, *, data: Data, seed: int) -> FunctionLearner:
        def move(tensors: Tensors, x: Array, batch: Batch) -> Tensors:
            return step(tensors, x, batch, config)

        return FunctionLearner(spec, data, draw, move, initial(spec, config))

    return Plugin(config_type, make_policy, make_learner)


def _fit(what: str, got: Tensors, wanted: Tensors) -> None:
    shapes = {name: tuple(value.shape) for name, value in got.items()}
    allowed = {name: tuple(value.shape) for name, value in wanted.items()}
    if shapes != allowed:
        raise PluginError(f"weights of another architecture: {what}", got=shapes, allowed=allowed)
    broken = [name for name, value in got.items() if not np.isfinite(value).all()]
    if broken:
        raise PluginError(f"weights are not finite: {what}", got=broken, allowed="finite numbers")
