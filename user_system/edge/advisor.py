"""What one robot's policy worker said, sorted: judgements by step, plans by when they are due.

The loop asks once per period and takes what is there. Whether a plan is asked for, which action of
which plan a step executes, and how long the robot has had none, is kept here; see ``chunks``.
"""

from user_system.core.clock import MS
from user_system.core.specs import RobotSpec
from user_system.edge.chunks import Ages, Chunks, Proposal
from user_system.edge.wire import Telemetry
from user_system.edge.worker_client import Advice, Away, Plans


class Advisor:
    """One robot's advice. One thread's business.

    Args:
        spec: of the robot.
        policy: name of its policy, for messages to people.
    """

    def __init__(self, spec: RobotSpec, policy: str):
        self._spec, self._policy = spec, policy
        self.chunks, self.ages = Chunks(), Ages()
        self.acting: Proposal | None = None
        """What the policy wants in the step that was settled last."""
        self.away = ""
        """Why the policy cannot be reached; empty where it can."""
        self._advice: dict[int, Advice] = {}
        self._plans: list[Plans] = []
        self._hungry_ns: int | None = None
        """Robot time since which the policy should act and has no plan."""
        self._compute_ms = 0.0
        self.unplanned = 0
        """Steps in which the policy should have acted and had no plan in time."""

    def begin(self) -> None:
        """Begin an episode."""
        self.chunks.restart()
        self.forget()
        self._hungry_ns = None

    def forget(self) -> None:
        """Nobody follows the episode any more, or there is none."""
        self._advice.clear()
        self._plans.clear()

    def hear(self, news: Advice | Plans | Away) -> None:
        """Take what the worker said."""
        match news:
            case Advice():
                self._advice[news.step] = news
            case Plans():
                self._plans.append(news)
            case Away():
                self.away = news.why

    # --- once per period, in this order ---------------------------------------------------------

    def due(self, step: int, seen: Telemetry) -> bool:
        """Whether the question of ``step``, which begins with ``seen``, asks for a plan."""
        return self.chunks.due(step, 1000.0 / self._spec.control_hz / seen.reading.rate)

    def asked(self, step: int, seen: Telemetry) -> None:
        """It does."""
        self.chunks.asked(step, seen.reading.robot_ns)

    def answered(self, step: int, *, plan: bool) -> bool:
        """Whether ``step`` has its answer, and if ``plan`` is waited for also that."""
        advice = self._advice.get(step)
        awaits = plan and advice is not None and advice.later
        return advice is not None and (not awaits or any(p.step == step for p in self._plans))

    def take(self) -> list[Advice]:
        """Return the answers that came, in the order of their steps."""
        said = [self._advice[key] for key in sorted(self._advice)]
        self._advice.clear()
        self._plans += [Plans(a.step, a.plan, a.took_ms, a.compute_ms) for a in said if not a.later]
        return said

    def settle(self, step: int) -> bool:
        """Take the plans that came; return whether one is new and reaches ``step``."""
        plans, self._plans = self._plans, []
        fresh = False
        for came in plans:
            if came.plan is None:
                self.chunks.missed(came.step)
                continue
            self.chunks.latency.note(came.took_ms)
            self._compute_ms += 0.05 * (came.compute_ms - self._compute_ms)
            fresh |= self.chunks.take(came.step, came.plan, step)
        return fresh

    def propose(self, step: int, *, wanted: bool) -> Proposal | None:
        """Return what the policy wants in ``step``, where that is ``wanted``."""
        self.acting = self.chunks.at(step) if wanted else None
        return self.acting

    def starves(self, step: int, seen: Telemetry | None) -> str:
        """Take note that the policy drives ``step``; return why the robot must hold, "" if not.

        Without an action it comes to rest at once. It holds where that lasts longer than a robot
        goes without commands.
        """
        if self.acting is not None or seen is None:
            self._hungry_ns = None
            return ""
        self.unplanned += 1
        self.chunks.stall(step)
        now = seen.reading.robot_ns
        if self._hungry_ns is None:
            self._hungry_ns = now
        if now - self._hungry_ns <= self._spec.hold_after_ms * MS:
            return ""
        why = self.away or f"plans take {self.chunks.latency.expected_ms:.0f} ms"
        return f"No plan of policy {self._policy!r} came in time: {why}"

    def executes(self, now_ns: int) -> None:
        """At robot time ``now_ns`` the action of this step is sent to the robot."""
        if self.acting is not None:
            self.ages.note(now_ns - self.acting.captured_ns)

    def stats(self) -> dict[str, float]:
        """Return counters and gauges."""
        own = {"unplanned": float(self.unplanned), "plan_compute_ms": self._compute_ms}
        return {**own, **self.chunks.stats(), **self.ages.stats()}
