"""The agent's end of a policy worker: questions out, advice in, and how long it has been silent.

Questions are never taken back: each period's observation is sent, so the worker judges every step,
and an answer that comes late still brings the judgement of its step. A plan comes with the answer,
or by itself (``Plans``) where the policy answers in its own time. One thread's business.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from user_system.core.interfaces import Judgement, ResetPlan
from user_system.core.specs import PolicySpec
from user_system.core.types import Array, Observation, Plan, Segment
from user_system.edge import wire
from user_system.edge.messages import Assignment
from user_system.edge.peer import Peer
from user_system.edge.rings import Duplex


@dataclass(frozen=True, slots=True)
class Advice:
    """What the worker said to the question of step ``step``."""

    step: int
    judgement: Judgement | None = None
    """Of the step before, ``step - 1``."""
    plan: Plan | None = None
    took_ms: float = 0.0
    """Wall time from question to plan."""
    compute_ms: float = 0.0
    """The part of it that passed where the policy is."""
    later: bool = False
    """The plan that was asked for comes by itself."""


@dataclass(frozen=True, slots=True)
class Plans:
    """The plan that was asked for in step ``step`` came, or will not come (None)."""

    step: int
    plan: Plan | None
    took_ms: float = 0.0
    compute_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Acting:
    """Version that acts from the next plan on, where the head chooses it."""

    version: int


@dataclass(frozen=True, slots=True)
class Away:
    """The policy acts elsewhere and cannot be reached, and why; empty: it can be again."""

    why: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A plugin failed; the text names it."""

    error: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """Weights were taken over, or refused with ``error``."""

    version: int
    error: str


News = Advice | Plans | Acting | Away | Failure | Loaded | ResetPlan


class WorkerClient:
    """One robot's seat in a worker, whichever life of the worker that is.

    Args:
        duplex: the connecting side.
        retry_s: wall seconds between attempts to reach a worker that is away.
    """

    def __init__(self, duplex: Duplex, retry_s: float = 0.05):
        self._peer = Peer(duplex, "worker", retry_s)
        self._episode = ""
        self._asked: dict[str, float] = {}
        self._thinking: dict[int, float] = {}
        """Steps whose plans are thought of in the worker, and since when."""
        self.spec: PolicySpec | None = None
        """Specification of the policy, once any worker greeted."""

    @property
    def alive(self) -> bool:
        """Whether a worker is there and has greeted."""
        return self._peer.alive

    @property
    def silent_s(self) -> float:
        """Wall seconds since the oldest question that is not answered yet."""
        return time.monotonic() - min(self._asked.values()) if self._asked else 0.0

    @property
    def thinking_s(self) -> float:
        """Wall seconds since the oldest question whose plan the worker still thinks of."""
        return time.monotonic() - min(self._thinking.values()) if self._thinking else 0.0

    def fileno(self) -> int | None:
        """File descriptor to wait on, or None while there is none."""
        return self._peer.fileno()

    def poll(self) -> list[News]:
        """Return everything said since the last call; dials where nobody is there."""
        return [item for said in self._peer.receive() if (item := self._read(*said)) is not None]

    def _read(self, meta: dict[str, Any], arrays: Mapping[str, Array]) -> News | None:
        if meta["k"] == "hello":
            self.spec = wire.policy_spec(wire.hello(meta).spec)
            self._forget()
            return None
        if meta["k"] == "away":  # it greets once it knows the policy
            return Away(meta["why"])
        if self._peer.hello is None:
            return None
        match meta["k"]:
            case "loaded":
                return Loaded(meta["version"], meta["error"])
            case "acts":
                return Acting(meta["version"])
        return self._of_episode(meta, arrays) if meta.get("episode") == self._episode else None

    def _of_episode(self, meta: dict[str, Any], arrays: Mapping[str, Array]) -> News | None:
        match meta["k"]:
            case "begun":
                self._asked.pop("begin", None)
                waypoints = tuple(tuple(point) for point in meta["waypoints"])
                return ResetPlan(waypoints, meta["scene"], meta["speed"])
            case "answer":
                self._asked.pop(f"step {meta['step']}", None)
                if meta.get("later") == "here":  # at the head others watch over it
                    self._thinking[meta["step"]] = time.monotonic()
                return _advice(meta, arrays)
            case "plan" | "unplanned":
                self._thinking.pop(meta["step"], None)
                return Plans(meta["step"], *_plan(meta, arrays))
            case "failed":
                self._forget()
                return Failure(meta["error"])
        return None

    def begin(self, assignment: Assignment) -> None:
        """Ask how the episode begins; from now on only it is spoken of."""
        self._episode = assignment.episode
        self._forget()
        self._asked["begin"] = time.monotonic()
        self._peer.tell(
            "begin",
            episode=assignment.episode,
            seed=assignment.seed,
            purpose=int(assignment.purpose),
            version=assignment.version,
        )

    def step(
        self,
        step: int,
        observation: Observation,
        executed: Array | None,
        segment: Segment,
        clock: int,
        *,
        mode: str,
        plan: bool,
    ) -> None:
        """Ask about step ``step``: judgement of the step that ended, and a plan if wanted.

        Args:
            step: index of the step that begins.
            observation: in which it begins.
            executed: action ``(Da,)`` of the step that ended; None: it is the first.
            segment: of the step that ended.
            clock: what ``Task.judge`` gets as k.
            mode: ``explore`` or ``eval``.
            plan: whether a plan is wanted.
        """
        arrays = wire.prefixed(observation, wire.OBSERVATION)
        if executed is not None:
            arrays["executed"] = executed
        said = self._peer.tell(
            "step",
            arrays,
            episode=self._episode,
            step=step,
            segment=int(segment),
            clock=clock,
            mode=mode,
            plan=plan,
        )
        # A ring that is full means that a question long before this one is not answered.
        if said:
            self._asked[f"step {step}"] = time.monotonic()

    def handed_back(self) -> None:
        """Let the policy forget its plans and its memory."""
        self._peer.tell("handback")

    def load(self, version: int, path: str) -> None:
        """Let the policy take over the weights in ``path``, before it is asked again."""
        self._peer.tell("load", version=version, path=path)

    def forget(self) -> None:
        """Expect nothing any more: the episode is over."""
        self._episode = ""
        self._forget()

    def _forget(self) -> None:
        self._asked.clear()
        self._thinking.clear()

    def stats(self) -> dict[str, float]:
        """Return counters and gauges."""
        return {f"worker_{name}": value for name, value in self._peer.stats().items()}

    def close(self) -> None:
        """Hang up."""
        self._peer.close()


def _advice(meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> Advice:
    judgement = Judgement(**meta["judgement"]) if "judgement" in meta else None
    return Advice(meta["step"], judgement, *_plan(meta, arrays), later=bool(meta.get("later")))


def _plan(meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> tuple[Plan | None, float, float]:
    """Return the plan in a message, and its times."""
    if "plan" not in meta:
        return None, 0.0, 0.0
    extras, facts = wire.unprefixed(arrays, wire.EXTRA), meta["plan"]
    plan = Plan(arrays["actions"], facts["version"], None, extras)
    return plan, facts["took_ms"], facts["compute_ms"]
