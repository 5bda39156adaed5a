"""Which action of which plan a step executes, and when the next plan is asked for.

A plan is an action chunk for the observation of one step, ``k``: its action ``i`` is meant for
step ``k + i``. One that comes ``d`` steps after it was asked for is used from its action ``d`` on,
for the first ``d`` belong to the past. So step ``s`` executes ``plan(k)[s - k]`` of the newest plan
that reaches that far, no matter how late plans are and which never come; nothing is padded,
repeated or left out.

The next plan is asked for once ``execute`` steps of the last one are over, or earlier: so that it
comes before the chunk at hand runs out, by how long plans take. Where none came in time the robot
*stalls*: what was computed before it came to rest is not used any more.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from user_system.core.clock import MS
from user_system.core.specs import PolicySpec
from user_system.core.types import Array, Plan

QUANTILE = 0.95
"""Share of plans that must come in time."""
WINDOW = 64
"""Plans over which that is measured; of fewer than twenty it is the slowest."""
MARGIN_MS = 10.0
"""How much earlier than that the next plan is asked for, wall ms."""
IN_FLIGHT = 4
"""Questions under way at once, at most."""
LOST_S = 2.0
"""Wall time after which a question without an answer is lost, or three times what plans take."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the policy wants in one step, and where in its plan that stands."""

    action: Array
    """``(Da,)`` float32."""
    version: int
    chunk: int
    position: int
    extras: dict[str, Array]
    captured_ns: int = 0
    """Robot time of the observation that it was computed for."""


@dataclass(frozen=True, slots=True)
class _Asked:
    captured_ns: int
    at_s: float


@dataclass(frozen=True, slots=True)
class _Chunk:
    step: int
    plan: Plan
    captured_ns: int


class Latency:
    """How long plans take from question to answer: the newest few dozen of them."""

    def __init__(self) -> None:
        self._took: deque[float] = deque(maxlen=WINDOW)
        self._expected: float | None = None

    def note(self, took_ms: float) -> None:
        """A plan took so long, wall ms."""
        self._took.append(took_ms)
        self._expected = None

    @property
    def expected_ms(self) -> float:
        """Time within which ``QUANTILE`` of the plans came; 0 before the first one."""
        if self._expected is None:
            took = list(self._took) or [0.0]
            self._expected = float(np.quantile(took, QUANTILE, method="higher"))
        return self._expected


class Chunks:
    """The plan at hand, the questions under way, and how long plans take. One thread's business.

    Args:
        now_s: wall clock, s.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic):
        self._now_s = now_s
        self._horizon = self._execute = 1
        self._budget_ms = 0.0
        self.latency = Latency()
        self._asked: dict[int, _Asked] = {}
        self._chunk: _Chunk | None = None
        self._number = -1
        self._fresh = False
        """Whether the plan at hand has not given an action yet."""
        self._floor = 0
        """Plans for earlier steps are not used."""
        self._stalled = False
        self._late = 0

    def follow(self, spec: PolicySpec) -> None:
        """Keep to what the policy declares."""
        self._horizon, self._execute = spec.horizon, min(spec.execute, spec.horizon)
        self._budget_ms = spec.budget_ms

    def restart(self) -> None:
        """Begin an episode."""
        self._number = -1
        self._asked.clear()
        self.flush(0)

    def flush(self, step: int) -> None:
        """Drop what was planned before step ``step``: somebody stepped in, or a stall is over."""
        self._chunk, self._floor, self._stalled = None, step, False

    # --- asking -------------------------------------------------------------------------------

    @property
    def prompt(self) -> bool:
        """Whether a step may wait for its own plan: it comes within the policy's budget.

        A plan of one action is of use in its own step only, so that is always waited for.
        """
        return self._horizon == 1 or self.latency.expected_ms <= self._budget_ms

    def interval(self, period_ms: float) -> int:
        """Return the steps between two questions, where a step takes ``period_ms`` of wall time."""
        expected = self.latency.expected_ms
        lead = 0 if self.prompt else math.ceil((expected + MARGIN_MS) / period_ms)
        return max(1, min(self._execute, self._horizon - lead))

    def due(self, step: int, period_ms: float) -> bool:
        """Whether step ``step`` should ask for a plan of its observation."""
        self._forget_lost()
        if len(self._asked) >= IN_FLIGHT:
            return False
        newest = max(self._asked, default=self._chunk.step if self._chunk else -1)
        return newest < self._floor or step - newest >= self.interval(period_ms)

    def _forget_lost(self) -> None:
        patience_s = max(LOST_S, 3e-3 * self.latency.expected_ms)
        until = self._now_s() - patience_s
        self._asked = {step: asked for step, asked in self._asked.items() if asked.at_s > until}

    def asked(self, step: int, captured_ns: int) -> None:
        """Step ``step`` asks, with an observation of robot time ``captured_ns``."""
        self._asked[step] = _Asked(captured_ns, self._now_s())

    def missed(self, step: int) -> None:
        """There will be no plan for step ``step``."""
        self._asked.pop(step, None)

    # --- plans --------------------------------------------------------------------------------

    def take(self, step: int, plan: Plan, now: int) -> bool:
        """Take the plan for step ``step``, now that step ``now`` is to be decided.

        Returns:
            Whether it has an action for step ``now`` and is newer than all before.
        """
        asked = self._asked.pop(step, None)
        if asked is None:
            return False
        # Answers come in the order of their questions: what is older is lost, or not wanted.
        self._asked = {later: a for later, a in self._asked.items() if later > step}
        if step < self._floor or not 0 <= now - step < len(plan.actions):
            self._late += 1
            return False
        self._chunk, self._fresh = _Chunk(step, plan, asked.captured_ns), True
        self._stalled = False
        return True

    def at(self, step: int) -> Proposal | None:
        """Return the action for step ``step``; None: no plan reaches so far."""
        chunk = self._chunk
        if chunk is None or not 0 <= (at := step - chunk.step) < len(chunk.plan.actions):
            return None
        self._number, self._fresh = self._number + self._fresh, False
        plan = chunk.plan
        extras = {name: values[at] for name, values in plan.extras.items()}
        return Proposal(plan.actions[at], plan.version, self._number, at, extras, chunk.captured_ns)

    def stall(self, step: int) -> None:
        """There is no action for step ``step``; what follows needs an observation from after it.

        Where nothing was executed before, the robot is at rest and the step's own will do.
        """
        if not self._stalled:
            self.flush(step if self._chunk is None else step + 1)
            self._stalled = True

    def stats(self) -> dict[str, float]:
        """Return how long plans take, wall ms, and how many came too late to be of use."""
        return {"plan_ms": self.latency.expected_ms, "plans_late": float(self._late)}


class Ages:
    """How old observations are when actions computed for them are executed, robot ms."""

    KEPT = 2000
    REFRESH_S = 1.0

    def __init__(self) -> None:
        self._ages: deque[float] = deque(maxlen=self.KEPT)
        self._figures: dict[str, float] = {}
        self._refreshed = float("-inf")

    def note(self, age_ns: int) -> None:
        """An action was sent to the robot, so long after its observation was captured."""
        self._ages.append(age_ns / MS)

    def stats(self) -> dict[str, float]:
        """Return median and 99th percentile of the newest, ms; looked at once a second."""
        if self._ages and time.monotonic() - self._refreshed > self.REFRESH_S:
            self._refreshed = time.monotonic()
            p50, p99 = np.percentile(list(self._ages), (50, 99), method="higher")
            self._figures = {"action_age_p50_ms": float(p50), "action_age_p99_ms": float(p99)}
        return self._figures
