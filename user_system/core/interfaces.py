"""Everything that people implement, and nothing else. Each is a Protocol: no base class to inherit.

Drivers implement ``Robot``, ``Camera``, ``Teleoperator``. Researchers implement ``Policy``,
``Learner``, ``Task``, ``Reward``, ``FailureDetector`` and register a ``LearnerPlugin``. The loop
that calls them reads:

    observation = robot.read()
    plan        = policy.act(observation)
    command     = arbitrate(plan, person)
    robot.apply(command)
    verdict     = task.judge(...)
    experience  -> learner.update() -> weights -> policy.load(weights)
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from user_system.core.draws import Draw as Draw
from user_system.core.errors import ConfigError
from user_system.core.specs import ActionSpec, Field, PolicySpec, RobotSpec
from user_system.core.types import (
    Array,
    Batch,
    Observation,
    Plan,
    Purpose,
    Reading,
    Segment,
    Stream,
    Weights,
)

ResetReason = Literal["episode", "task", "handback", "replan"]
ActMode = Literal["explore", "eval"]


# --- drivers -------------------------------------------------------------------------------------


@runtime_checkable
class Robot(Protocol):
    """A device that moves. One process per instance; constructors do no I/O and move nothing.

    Every set-point passes the command gate first, so a driver may trust it to be finite, inside
    the workspace and within velocity, acceleration and jerk limits from the last one. Example::

        with contextlib.closing(FrankaRobot(config)) as robot:
            robot.connect()
            reading = robot.read()
            robot.apply(reading.setpoint)
    """

    @property
    def spec(self) -> RobotSpec:
        """What this robot observes, obeys and is limited to."""

    def connect(self) -> None:
        """Open the device. Never moves it.

        Raises:
            LinkError: it cannot be reached; the message says where and what to check.
            MissingError: the vendor library is not installed; the message names the extra.
        """

    def read(self) -> Reading:
        """Return the newest state; never blocks longer than one tick.

        Raises:
            LinkError: the device stopped answering.
        """

    def apply(self, setpoint: Array) -> None:
        """Follow one gated set-point ``(Dc,)`` float64; called every tick, never blocks."""

    def stop(self) -> None:
        """Come to rest and stay there, powered (IEC 60204-1 category 2); may be repeated."""

    def recover(self) -> None:
        """Clear a fault. Called only when a person released the robot, never by itself."""

    def close(self) -> None:
        """Stop and let go of the device."""


@runtime_checkable
class Resettable(Protocol):
    """A simulated robot whose scene can be laid out again."""

    def reset_scene(self, seed: int, options: Mapping[str, float]) -> None:
        """Place the objects anew, reproducibly from ``seed``; the robot stays where it is."""


@runtime_checkable
class Sampled(Protocol):
    """A robot with sensors at their own rates, those of ``RobotSpec.streams``."""

    def samples(self) -> Mapping[str, Stream]:
        """Return what came since the last call, oldest first, each sample once; never blocks.

        Stamps are those of the sensor on the robot clock and increase from call to call. A stream
        that has nothing new may be left out. Called at every tick.
        """


@runtime_checkable
class Camera(Protocol):
    """A device that sees."""

    @property
    def field(self) -> Field:
        """Shape ``(H, W, C)``, dtype and frame of an image."""

    def connect(self) -> None:
        """Open the device."""

    def read(self) -> tuple[Array, int]:
        """Return the newest image and its capture time in wall ns."""

    def close(self) -> None:
        """Let go of the device."""


@runtime_checkable
class Teleoperator(Protocol):
    """A device that a person moves a robot with."""

    def connect(self) -> None:
        """Open the device."""

    def read(self, action: ActionSpec, dt: float) -> Array | None:
        """Return the action ``(Da,)`` of the last ``dt`` seconds; None: the clutch is open."""

    def close(self) -> None:
        """Let go of the device."""


# --- tasks, rewards, detectors --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResetPlan:
    """How to bring about the start of an episode."""

    waypoints: tuple[tuple[float, ...], ...]
    """Set-points ``(Dc,)`` to move through, in order."""
    scene: Mapping[str, float] | None = None
    """Options for a resettable scene; None where there is none or it must stay."""
    speed: float = 0.5
    """Share of the robot's velocity limits at which to move there.

    Raises:
        ConfigError: it is not in (0, 1].
    """

    def __post_init__(self) -> None:
        if not 0.0 < self.speed <= 1.0:
            raise ConfigError("speed of a reset", got=self.speed, allowed="above 0, at most 1")


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a task says about one step."""

    reward: float
    """NaN: will be labelled later."""
    terminated: bool = False
    """The task is over: nothing that follows has value."""
    timeout: bool = False
    """Time is up; the value of what would follow still counts."""
    success: bool | None = None
    """Known at the end of an episode, or None."""


@runtime_checkable
class Task(Protocol):
    """What is to be done: owns reset, reward, success and time limit."""

    def reset(self, *, seed: int, purpose: Purpose) -> ResetPlan:
        """Return how to begin the episode that ``seed`` names."""

    def judge(self, before: Observation, executed: Array, after: Observation, k: int) -> Judgement:
        """Judge step ``k``: ``executed`` ``(Da,)`` led from ``before`` to ``after``."""


@runtime_checkable
class Reward(Protocol):
    """A learned or computed reward, inline or late."""

    version: str
    window: int
    """Steps per clip."""
    late: bool
    """Whether it is scored after the episode and written back."""

    def score(self, clip: Mapping[str, Array], task: str) -> Mapping[str, Array]:
        """Return ``reward (T,)``, optionally ``progress (T,)`` and ``success ()``, of T steps."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a failure detector says about an action chunk."""

    score: float
    threshold: float
    fire: bool
    reason: str = ""


@runtime_checkable
class FailureDetector(Protocol):
    """Notices that an episode goes wrong; pinned to one policy version per run or round."""

    def fit(self, episodes: Iterable[Mapping[str, Array]], version: int) -> None:
        """Learn what success looks like under policy ``version``."""

    def start(self, first: Observation) -> None:
        """Begin an episode."""

    def push(self, chunk: Mapping[str, Array]) -> Verdict:
        """Judge the newest chunk."""

    def rewind_to(self, chunk: int) -> int:
        """Return the chunk to go back to from ``chunk``; changes nothing."""

    def outcome(self, *, success: bool | None, intervened: bool, fired: bool) -> None:
        """Learn how the episode really ended."""


# --- policies and learners ------------------------------------------------------------------------


@runtime_checkable
class Policy(Protocol):
    """What acts. Runs at the edge, in NumPy where it can; deterministic in (observation, noise)."""

    @property
    def spec(self) -> PolicySpec:
        """What it sees and answers."""

    def load(self, weights: Weights) -> None:
        """Take over new weights; called between chunks only, and atomically."""

    def reset(self, *, seed: int, reason: ResetReason) -> None:
        """Forget the past: an episode begins, or a person handed back."""

    def act(self, observation: Observation, *, mode: ActMode, noise: Array | None = None) -> Plan:
        """Answer one observation (``[To, …]`` where history > 1) with a plan."""

    def observe(self, executed: Array, segment: Segment) -> None:
        """Learn what was really executed, by whomever; recurrent policies need it."""


class NotReady(Exception):
    """A view has nothing to draw from yet, or nobody can say now what it holds; ask again later."""


@runtime_checkable
class Data(Protocol):
    """A learner's window on the replay buffer: on this host by mmap, elsewhere over the network."""

    def draw(self, request: Draw) -> Batch:
        """Return a batch drawn with replacement.

        Raises:
            NotReady: a view of the mix is empty.
        """

    def consume(self, request: Draw) -> Batch:
        """Return the oldest rows not consumed before, each exactly once.

        Raises:
            NotReady: fewer than ``n`` are there.
        """

    def count(self, view: str = "all") -> int:
        """Return how many steps a view holds, within seconds.

        On this host it is what the file says. Over the network it is what the reader says now,
        never an older number, which nobody could tell from today's.

        Raises:
            NotReady: the reader is away. In ``Learner.update`` let it pass: the runner goes on
                publishing, saving and reporting, and asks again. Draws wait, for minutes.
        """

    def state_dict(self) -> Mapping[str, Any]:
        """Random state, cursors and high-water mark: draws repeat exactly after loading them.

        Raises:
            NotReady: nothing was drawn yet, and nobody can say where draws begin.
        """

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``."""


@runtime_checkable
class Priorities(Protocol):
    """Data that remembers how much each step matters to this learner, as every window does.

    Draws with ``Weigh("priority")`` use it.
    """

    def prioritise(self, ids: Array, values: Array) -> None:
        """Say what steps ``ids`` ``[N]`` (``Batch.ids``) are worth ``[N]`` from now on.

        It lasts as long as this window, and is part of its ``state_dict``. Steps that have left the
        store since they were drawn are passed over.
        """


@runtime_checkable
class Encoder(Protocol):
    """A frozen network from images to features. Draws give its features instead of the images."""

    @property
    def hash(self) -> str:
        """Of its weights: features of another one are made anew."""

    def encode(self, images: Array) -> Array:
        """Return features ``[N, ...]`` of float16 or float32 of images ``[N, H, W, C]`` uint8.

        Each must depend on its own image alone, to the last bit where draws are to repeat exactly.
        """


@dataclass(frozen=True, slots=True)
class Report:
    """What a learner says after one unit of work."""

    metrics: Mapping[str, float]
    updates: int = 1
    """Gradient steps done by this call."""
    publish: bool = False
    """Whether its weights are worth sending now."""
    wants_steps: int = 0
    """Fresh steps it needs before the next update is worth doing."""
    behind_steps: int = 0
    """Fresh steps that it has not yet learned from as often as it means to."""


@runtime_checkable
class Learner(Protocol):
    """What learns. Pulls its own draws; the update-to-data ratio and phases are its business."""

    def update(self) -> Report:
        """Do one unit of work, at most about two seconds long.

        Raises:
            NotReady: there is not enough data yet; the runner waits and asks again.
        """

    def weights(self) -> tuple[Mapping[str, Mapping[str, Array]], Mapping[str, Array]]:
        """Return (modules, statistics) as an actor needs them, copied."""

    def state_dict(self) -> Mapping[str, Any]:
        """Return everything it takes to go on: nested mappings of arrays, numbers, strings."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``."""


@runtime_checkable
class LearnerPlugin(Protocol):
    """A kind of learner: what an entry point of ``user_system.learners`` names.

    Three functions. ``policy_spec`` derives what the policy sees from the robot; ``make_policy``
    runs at the edge and must not import torch unless its policy needs it; ``make_learner`` runs
    on the head.
    """

    config_type: type
    """A frozen dataclass; the manifest's ``config`` is parsed into it, strictly. If it has
    ``views``, names of views, these are looked up before anything runs."""

    def make_policy(self, spec: RobotSpec, config: Any) -> Policy:
        """Build the acting side for one kind of robot."""

    def make_learner(self, spec: RobotSpec, config: Any, *, data: Data, seed: int) -> Learner:
        """Build the learning side."""


def constant_plan(action: Array, horizon: int = 1) -> Plan:
    """Return a plan that repeats one action ``(Da,)``; handy in tests and scripted policies."""
    return Plan(actions=np.repeat(np.asarray(action, np.float32)[None], horizon, axis=0))
