"""Any Gymnasium environment as a robot and a task, so that public benchmarks run through it all.

The environment's time is the robot's: it steps once per control period with the newest target. Its
reward and ends travel as observation fields, so that the task, which runs elsewhere and sees
observations only, can hand them on.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from user_system.core.clock import SECOND
from user_system.core.errors import ConfigError, LinkError, MissingError
from user_system.core.interfaces import Judgement, ResetPlan
from user_system.core.specs import ActionSpec, Field, Limits, RobotSpec
from user_system.core.types import Array, Observation, Purpose, Reading

OBSERVATION, REWARD, TERMINATED, TRUNCATED = "observation", "reward", "terminated", "truncated"
FAST = 1e3
"""Velocity limit in ranges per second; a benchmark's action may jump, so acceleration and jerk
limits grow with it until any target is reached within a tick."""


@dataclass(frozen=True)
class GymnasiumConfig:
    """Which environment, and how fast its clock runs."""

    env: str = ""
    """Environment id, e.g. ``Pendulum-v1``; ``module:Id-v0`` imports ``module`` first."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of ``gymnasium.make``."""
    control_hz: float = 20.0
    """Steps of the environment per robot second."""
    rate: float = 1.0
    """Robot seconds per wall second."""
    action_low: float = -1.0
    """Bound put in place of an infinite one."""
    action_high: float = 1.0

    def __post_init__(self) -> None:
        if not self.env:
            raise ConfigError("gymnasium: env is missing", allowed="an id such as Pendulum-v1")
        if not 4 <= self.control_hz <= 200 or self.rate <= 0:
            raise ConfigError(
                "gymnasium: clock out of range",
                got=(self.control_hz, self.rate),
                allowed="control_hz 4 … 200, rate > 0",
            )


class GymnasiumRobot:
    """A Gymnasium environment behind ``Robot`` and ``Resettable``.

    Actions must be a ``Box``; every dimension is absolute and passes the command gate, whose limits
    are so wide that a target is reached within one tick. An episode begins when somebody sees it:
    the first reading after ``reset_scene`` shows what the environment began with, however late it
    is, and the first step comes a whole period after that. One that has ended stands still until
    ``reset_scene``.

    Args:
        config: which environment.

    Raises:
        ConfigError: the environment does not exist or its spaces are not boxes.
        MissingError: gymnasium is not installed.
    """

    config_type = GymnasiumConfig

    def __init__(self, config: GymnasiumConfig):
        self._config = config
        self._env = _make(config)
        self._spec = _spec_of(self._env, config)
        self._period_ns = round(SECOND / config.control_hz)
        self._rate = config.rate
        self._start_wall = self._start_robot = 0
        self._steps = 0
        self._due_ns = 0
        """When the next step of the environment is due, robot ns."""
        self._connected = self._over = self._unseen = False
        self._target = np.zeros(len(self._spec.limits))
        self._fields: Observation = {}

    @property
    def spec(self) -> RobotSpec:
        """What the environment's spaces say."""
        return self._spec

    def connect(self) -> None:
        """Reset the environment and start its clock."""
        self._connected = True
        self._steps, self._start_robot, self._due_ns = 0, 0, 0
        self._start_wall = time.monotonic_ns()
        self._target = np.array(self._spec.home)
        self.reset_scene(0, {})

    def read(self) -> Reading:
        """Step the environment to now, if a control period has passed, and return what it shows.

        Raises:
            LinkError: not connected.
        """
        self._require()
        wall = time.monotonic_ns()
        now = self._clock(wall)
        late = now - self._due_ns >= self._period_ns
        if (late or self._unseen) and now > self._due_ns:
            # One step per read at most: a host that comes late slows the clock down.
            now = self._due_ns
            self._start_wall, self._start_robot = wall, now
        if self._unseen:
            self._unseen, self._due_ns = False, now + self._period_ns
        elif now >= self._due_ns:
            self._due_ns += self._period_ns
            self._step()
        return Reading(
            fields=self._fields,
            setpoint=self._target.copy(),
            robot_ns=now,
            wall_ns=wall,
            rate=self._rate,
        )

    def apply(self, setpoint: Array) -> None:
        """Take the newest target ``(Dc,)``; the next step of the environment acts by it."""
        self._require()
        self._target = np.array(setpoint, np.float64)

    def stop(self) -> None:
        """Act by the resting action from now on."""
        self._require()
        self._target = np.array(self._spec.home)

    def recover(self) -> None:
        """Do nothing: an environment has no faults."""
        self._require()

    def reset_scene(self, seed: int, options: Mapping[str, float]) -> None:
        """Begin an episode of the environment from ``seed``."""
        self._require()
        observation, _ = self._env.reset(seed=seed % 2**31, options=dict(options) or None)
        self._over, self._unseen = False, True
        self._show(observation, 0.0, terminated=False, truncated=False)

    def pace(self, rate: float) -> None:
        """Let the environment's clock run at ``rate`` robot seconds per wall second."""
        self._require()
        wall = time.monotonic_ns()
        self._start_wall, self._start_robot, self._rate = wall, self._clock(wall), rate

    def close(self) -> None:
        """Close the environment; may be repeated. ``connect`` opens it again."""
        if self._connected:
            self._connected = False
            self._env.close()

    def stats(self) -> Mapping[str, float]:
        """Return how many control periods went by."""
        return {"steps": float(self._steps)}

    def _clock(self, wall: int) -> int:
        """Return what the robot clock, ns, shows at a time of the wall's, ns."""
        return self._start_robot + int((wall - self._start_wall) * self._rate)

    def _step(self) -> None:
        self._steps += 1
        if self._over:
            return
        space = self._env.action_space
        action = np.clip(self._target, self._spec.limits.low, self._spec.limits.high)
        action = action.astype(space.dtype).reshape(space.shape)
        observation, reward, terminated, truncated, _ = self._env.step(action)
        self._over = bool(terminated or truncated)
        self._show(observation, float(reward), terminated=terminated, truncated=truncated)

    def _show(self, observation: Any, reward: float, *, terminated: bool, truncated: bool) -> None:
        self._fields = {
            OBSERVATION: np.ravel(observation).astype(np.float32),
            REWARD: np.array([reward], np.float32),
            TERMINATED: np.array([terminated], np.float32),
            TRUNCATED: np.array([truncated], np.float32),
        }

    def _require(self) -> None:
        if not self._connected:
            raise LinkError("gymnasium: not connected", todo="Call connect() first.")


@dataclass(frozen=True)
class GymnasiumTaskConfig:
    """How to judge an environment's episodes."""

    max_steps: int = 1000
    """Time limit, control periods, beside the environment's own."""
    success_return: float | None = None
    """An episode whose rewards sum to at least this succeeded; None: success is not known."""

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise ConfigError("gymnasium: max_steps", got=self.max_steps, allowed=">= 1")


class GymnasiumTask:
    """Hands on the environment's own reward and ends.

    Args:
        config: time limit and what counts as success.
    """

    config_type = GymnasiumTaskConfig

    def __init__(self, config: GymnasiumTaskConfig | None = None):
        self.config = config or GymnasiumTaskConfig()
        self._return = 0.0

    def reset(self, *, seed: int, purpose: Purpose) -> ResetPlan:
        """Reset the environment with ``seed``; there is nowhere to move first."""
        self._return = 0.0
        return ResetPlan(waypoints=(), scene={})

    def judge(self, before: Observation, executed: Array, after: Observation, k: int) -> Judgement:
        """Read reward and ends off the observation after the step."""
        reward = float(after[REWARD][0])
        self._return = reward if k == 0 else self._return + reward
        terminated = bool(after[TERMINATED][0])
        timeout = not terminated and (bool(after[TRUNCATED][0]) or k + 1 >= self.config.max_steps)
        return Judgement(
            reward=reward,
            terminated=terminated,
            timeout=timeout,
            success=self._success() if terminated or timeout else None,
        )

    def _success(self) -> bool | None:
        goal = self.config.success_return
        return None if goal is None else self._return >= goal


def _make(config: GymnasiumConfig) -> Any:
    try:
        gymnasium = import_module("gymnasium")
    except ImportError as error:
        raise MissingError(
            "gymnasium is not installed", todo="Run: pip install 'user-system[gymnasium]'"
        ) from error
    try:
        return gymnasium.make(config.env, **config.kwargs)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise ConfigError("gymnasium cannot make this environment", got=error) from error


def _spec_of(env: Any, config: GymnasiumConfig) -> RobotSpec:
    low, high = _bounds(env, config)
    n, observed = len(low), env.observation_space
    if not hasattr(observed, "low"):
        raise ConfigError("gymnasium: observations must be a Box", got=str(observed))
    reach = tuple(b - a for a, b in zip(low, high, strict=True))
    names, units = tuple(f"a{i}" for i in range(n)), ("1",) * n
    return RobotSpec(
        kind="gymnasium",
        observation={
            OBSERVATION: Field((math.prod(observed.shape),), unit="1", doc=config.env),
            REWARD: Field((1,), unit="1", doc="of the newest step"),
            TERMINATED: Field((1,), low=0.0, high=1.0, doc="1: the episode is over"),
            TRUNCATED: Field((1,), low=0.0, high=1.0, doc="1: time is up"),
        },
        action=ActionSpec(names, units, low, high, (False,) * n, tuple(range(n)), frame=""),
        limits=Limits(
            names=names,
            units=units,
            low=low,
            high=high,
            velocity=tuple(FAST * r for r in reach),
            acceleration=tuple(FAST**2 * r for r in reach),
            jerk=tuple(FAST**3 * r for r in reach),
            frame="",
        ),
        control_hz=config.control_hz,
        tick_hz=2 * config.control_hz,
        hold_after_ms=min(500.0, 4000.0 / config.control_hz),
        stop_after_ms=max(2000.0, 8000.0 / config.control_hz),
        home=tuple((a + b) / 2 for a, b in zip(low, high, strict=True)),
        resettable=True,
    )


def _bounds(env: Any, config: GymnasiumConfig) -> tuple[tuple[float, ...], tuple[float, ...]]:
    space = env.action_space
    if not hasattr(space, "low") or not np.issubdtype(space.dtype, np.floating):
        raise ConfigError("gymnasium: actions must be a Box of numbers", got=str(space))
    low, high = np.ravel(space.low).astype(float), np.ravel(space.high).astype(float)
    low = np.where(np.isfinite(low), low, config.action_low)
    high = np.where(np.isfinite(high), high, config.action_high)
    return tuple(low.tolist()), tuple(high.tolist())
