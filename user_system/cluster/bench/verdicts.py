"""What the evidence of a kill says. Pure: ticks, states and logs in, numbers out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from user_system.cluster.bench.history import Entry, Source
from user_system.cluster.bench.witness import State, Tick
from user_system.core.clock import MS, SECOND
from user_system.core.modes import Mode

NEVER_NS = 1 << 62


@dataclass(frozen=True)
class Kill:
    """One process, killed."""

    kind: str
    name: str
    """Of the process, e.g. ``driver-arm-1``."""
    wall_ns: int
    states: Mapping[str, State]
    """Robot -> the newest state before it."""
    spooled: Mapping[Source, int]
    """Source -> fragments in the spool's count right after it."""
    acked: Mapping[Source, int] = field(default_factory=dict)
    """Source -> fragments in the replay buffer right before it."""
    back_ns: int = 0
    """When a new process of its kind was there; 0: never."""


def unspooled_s(
    kill: Kill, robot: str, ticks: Sequence[Tick], log: Iterable[Entry], period_s: float
) -> float:
    """Return how much of a robot's executed, recorded steps was not spooled at a kill, robot s.

    Whole steps between the end of the last spooled one of the episode at hand and the moment of the
    kill, whether or not the agent had taken note of them; the one under way is not executed yet.

    Args:
        kill: the kill.
        robot: whose motion.
        ticks: all telemetry of its driver.
        log: what the replay buffer held at the end.
        period_s: length of a control period on the robot's clock.
    """
    state = kill.states.get(robot)
    if state is None or state.step == 0:
        return 0.0
    before = [t for t in ticks if t.wall_ns <= kill.wall_ns]
    if not before:
        return 0.0
    killed_at = before[-1].robot_at(kill.wall_ns)
    kept = [
        entry
        for entry in log
        if entry.producer == robot
        and entry.episode == state.episode
        and entry.sequence < kill.spooled.get(entry.source, 0)
    ]
    if any(entry.final for entry in kept):
        return 0.0  # the episode ended between the state and the kill
    period_ns = period_s * SECOND
    begun = state.robot_ns - state.step * period_ns
    kept_to = max((entry.last_ns + period_ns for entry in kept), default=begun)
    return max(0, int((killed_at - kept_to) // period_ns)) * period_s


def hold_ms(kill: Kill, ticks: Sequence[Tick]) -> float | None:
    """Return after how many robot ms a driver held because its agent was gone; None: never.

    0 where it held, or stood in a fault, already.
    """
    before = [t for t in ticks if t.wall_ns <= kill.wall_ns]
    if not before:
        return None
    killed_at = before[-1].robot_at(kill.wall_ns)
    if before[-1].holding or before[-1].fault:
        return 0.0
    for tick in ticks:
        if tick.wall_ns > kill.wall_ns and (tick.holding or tick.fault):
            return max(0.0, (tick.robot_ns - killed_at) / MS)
    return None


def still_ms(kill: Kill, robot: str, ticks: Sequence[Tick], states: Sequence[State]) -> float:
    """Return for how many robot ms a robot was led on after whoever chose its way had died.

    Its agent lives and commands on; what must come to rest is the target, until somebody else
    drives: another mode, or the successor of who died. Seen once per period, so up to one period
    too late.
    """
    before = [t for t in ticks if t.wall_ns <= kill.wall_ns]
    if not before or robot not in kill.states:
        return 0.0
    killed_at, target, moved = before[-1].robot_at(kill.wall_ns), before[-1].target, 0
    resting = {kill.states[robot].mode, Mode.HOLD}
    others = [s.heard_ns for s in states if s.heard_ns > kill.wall_ns and s.mode not in resting]
    until = min([*others, kill.back_ns or NEVER_NS])
    for tick in ticks:
        if kill.wall_ns < tick.wall_ns < until and tick.target != target:
            target, moved = tick.target, tick.robot_ns - killed_at
    return max(0.0, moved / MS)


def fault_problems(
    kill: Kill, robot: str, ticks: Sequence[Tick], states: Sequence[State]
) -> list[str]:
    """Return what is wrong with how a robot stood still while nobody had released it."""
    boots = {t.boot for t in ticks if t.wall_ns <= kill.wall_ns}
    later = [t for t in ticks if t.wall_ns > kill.wall_ns and t.boot not in boots]
    if not later:
        return [f"the driver of {robot} did not come back"]
    problems = []
    if not later[0].fault:
        problems.append(f"{robot} was not in a fault when its driver came back")
    for before, after in pairwise(later):
        if before.fault and not after.fault and after.released == before.released:
            problems.append(f"the fault of {robot} went away by itself")
    freed = released_ns(kill, ticks)
    modes = [s.mode for s in states if kill.wall_ns < s.heard_ns < freed]
    if Mode.FAULT not in modes:
        problems.append(f"the session of {robot} was never in FAULT")
    elif set(modes[modes.index(Mode.FAULT) :]) - {Mode.FAULT}:
        problems.append(f"the session of {robot} left FAULT before it was released")
    if freed == NEVER_NS:
        problems.append(f"nobody released {robot}")
    return problems


def released_ns(kill: Kill, ticks: Sequence[Tick]) -> int:
    """Return when a person released the robot of a killed driver, wall time."""
    boots = {t.boot for t in ticks if t.wall_ns <= kill.wall_ns}
    later = [t for t in ticks if t.wall_ns > kill.wall_ns and t.boot not in boots]
    for before, after in pairwise(later):
        if after.released != before.released:
            return after.wall_ns
    return NEVER_NS


def steps_between(states: Sequence[State], begin_ns: int, end_ns: int) -> int:
    """Return how many steps of episodes a robot began in a span of wall time."""
    steps = {(s.episode, s.step) for s in states if begin_ns < s.heard_ns < end_ns and s.step}
    return max(0, len(steps) - 1)
