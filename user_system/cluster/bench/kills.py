"""``kill -9`` of every kind of process in turn, during one run of the demo, and what it cost.

Before each kill it is noted what the replay buffer has, right after it what the spools have; the
drivers' own telemetry and the agents' states are witnessed throughout. At the end everything that
was ever spooled must be in the replay buffer once, in order, or wait in the spool still.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from user_system.cluster import dial, status
from user_system.cluster.bench import victims
from user_system.cluster.bench.figures import Figure, Goal, judged
from user_system.cluster.bench.history import Verdict, check
from user_system.cluster.bench.options import Options
from user_system.cluster.bench.records import Records
from user_system.cluster.bench.system import System
from user_system.cluster.bench.verdicts import (
    NEVER_NS,
    Kill,
    fault_problems,
    hold_ms,
    released_ns,
    steps_between,
    still_ms,
    unspooled_s,
)
from user_system.cluster.bench.witness import Witness
from user_system.cluster.configs import LinkConfig
from user_system.cluster.manifest import Manifest, load_manifest
from user_system.cluster.parse import read_json
from user_system.cluster.status import Looker, View
from user_system.core.errors import LinkError
from user_system.core.modes import HUMAN_MODES, POLICY_MODES

log = logging.getLogger(__name__)

IDS = (
    "loop.kill_lost",
    "loop.kill_unspooled_s",
    "loop.kill_hold_ms",
    "loop.kill_fault",
    "loop.kill_learning",
)
TRAINING_S = 600.0
MOMENT_S = 60.0
"""Time to wait for the moment in which a kill tells most."""
BACK_S = 120.0
"""Time for a run to go on after a kill."""
STEADY_STEPS = 5
"""Steps of its episode that a robot has done when it is tried."""
LOOK_S = 0.5
NEVER = 10**9


@dataclass
class Trial:
    """One kill and what came of it."""

    kill: Kill
    went_on: bool = False
    """Whether updates and env steps grew afterwards, and every robot acted again."""
    stuck: str = ""
    """Where it did not: how the robots stood then."""
    robots: list[str] = field(default_factory=list)
    """Whom it touched: the robot of a killed driver, those that the killed one was leading."""


class Campaign:
    """Kills one kind after the other in a run that trains.

    Args:
        system: the run.
        looker: entered.
        witness: looking on.
        records: open.
    """

    def __init__(self, system: System, looker: Looker, witness: Witness, records: Records):
        self._system, self._looker = system, looker
        self._witness, self._records = witness, records

    def run(self, kinds: Sequence[str]) -> Iterator[Trial]:
        """Try each kind; yields when the run went on, or did not in time."""
        for kind in kinds:
            before = self._until(_trains, TRAINING_S)
            yield self._try(kind, before)

    def _try(self, kind: str, before: View) -> Trial:
        robots = self._moment(kind)
        victims_ = victims.find(self._system, kind)
        if not victims_:
            raise LinkError(f"there is no {kind} to kill", todo=f"Look into {self._system.log}.")
        name = victims.name(victims_[0])
        acked = self._records.acked()
        states = {r: s for r in self._witness.robots if (s := self._witness.last(r)) is not None}
        kill = Kill(kind, name, time.monotonic_ns(), states, {}, acked)
        victims.kill(victims_)
        kill = replace(kill, spooled=self._records.spooled())
        old = {process.pid for process in victims_}
        trial = Trial(kill, robots=robots)
        if self._wait(lambda: self._is_back(kind, old)):
            trial.kill = replace(kill, back_ns=time.monotonic_ns())
            trial.went_on = self._goes_on(before, trial.kill)
        if not trial.went_on:
            trial.stuck = self._how()
        log.info("killed %s (%s): %s", kind, name, trial.stuck or "went on")
        return trial

    def _how(self) -> str:
        """Return in one line how the run stands."""
        view = self._look()
        if view is None:
            return "the hub does not answer"
        robots = [f"{r.name} {r.mode} {r.help}".strip() for r in view.robots]
        updates = view.figures.get("updates", 0.0)
        return f"did not go on: {updates:.0f} updates; {'; '.join(robots)}"

    def _moment(self, kind: str) -> list[str]:
        """Wait for robots to be where this kill tells most; return them."""
        leading = HUMAN_MODES if kind == "teleop" else POLICY_MODES
        everyone = self._witness.robots
        wanted = {
            "driver": everyone[:1],
            "teleop": [],
            "agent": everyone,
            "policy worker": everyone,
        }

        def ready() -> list[str]:
            states = {robot: self._witness.last(robot) for robot in everyone}
            led = [
                robot
                for robot, s in states.items()
                if s is not None and s.mode in leading and s.step >= STEADY_STEPS
            ]
            return led if led and set(wanted.get(kind, ())) <= set(led) else []

        found = ready()
        deadline = time.monotonic() + MOMENT_S
        while not found and time.monotonic() < deadline:
            time.sleep(0.01)
            found = ready()
        return everyone[:1] if kind == "driver" else found

    def _is_back(self, kind: str, old: set[int]) -> bool:
        found = {process.pid for process in victims.find(self._system, kind)}
        return bool(found) and not found & old

    def _goes_on(self, before: View, kill: Kill) -> bool:
        """Return whether the run trains on: steps, updates, and every robot acts."""
        updates: list[float] = []

        def learns() -> bool:
            view = self._look()
            if view is None:
                return False
            updates.append(view.figures.get("updates", 0.0))
            more = view.figures.get("env_steps", 0.0) > before.figures.get("env_steps", 0.0)
            return more and any(b > a > 0 for a, b in pairwise(updates))

        def act() -> bool:
            states = self._witness.states
            return all(
                steps_between(states[robot], kill.back_ns, NEVER_NS) >= STEADY_STEPS
                for robot in self._witness.robots
            )

        return self._wait(learns) and self._wait(act)

    def _wait(self, until: Callable[[], bool]) -> bool:
        deadline = time.monotonic() + BACK_S
        while not until():
            self._system.check()
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_S)
        return True

    def _look(self) -> View | None:
        try:
            return self._looker.look()
        except LinkError as error:  # the hub is the one that was killed
            log.debug("no status: %s", error)
            return None

    def _until(self, so: Callable[[View], bool], timeout_s: float) -> View:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self._system.check()
            view = self._look()
            if view is not None and so(view):
                return view
            time.sleep(LOOK_S)
        raise LinkError("the run does not train", todo=f"Look into {self._system.run / 'logs'}.")


def _trains(view: View) -> bool:
    return view.phase == "train" and view.figures.get("updates", 0.0) > 0


def settings() -> list[str]:
    """Return the overrides that keep the demo training for as long as it takes."""
    return [f"schedule.eval_every={NEVER}", "schedule.stop_when_done=false"]


def measure(options: Options) -> Iterator[Figure]:
    """Run the demo, kill each kind once, and judge what is left."""
    manifest = load_manifest(options.manifest)
    run = options.directory / "kills"
    trials: list[Trial] = []
    with System(options.manifest, run, settings()) as system, system.wait_up() as looker:
        link = read_json(system.run / "config" / status.FILE, LinkConfig)
        with (
            dial.tunnel(link) as way,
            Witness(system.run, way) as witness,
            Records(system.run) as records,
        ):
            campaign = Campaign(system, looker, witness, records)
            trials.extend(campaign.run(victims.KINDS))
    yield from judge(manifest, system.run, trials, witness)


def judge(
    manifest: Manifest, run: Path, trials: Sequence[Trial], witness: Witness
) -> Iterator[Figure]:
    """Return the figures of a campaign whose run has ended."""
    with Records(run) as records:
        entries, spooled = records.log(), records.spooled()
        acked: dict[tuple[str, int], int] = {}
        for trial in trials:
            for source, count in trial.kill.acked.items():
                acked[source] = max(acked.get(source, 0), count)
        verdict = check(entries, spooled, acked, records.waiting())
    robot = next(iter(manifest.robots.values())).config
    period_s = 1.0 / robot.control_hz
    loose = {
        f"{trial.kill.kind}, {name}": unspooled_s(
            trial.kill, name, witness.ticks[name], entries, period_s
        )
        for trial in trials
        for name in witness.robots
    }
    yield _lost(verdict, trials)
    yield _worst("loop.kill_unspooled_s", loose, Goal("<=", 0.5), "s")
    limit = robot.hold_after_ms + 1000.0 * period_s
    yield _worst("loop.kill_hold_ms", _holds(trials, witness), Goal("<=", limit), "ms")
    yield _faults(trials, witness)
    failed = [f"{trial.kill.kind} ({trial.stuck})" for trial in trials if not trial.went_on]
    untried = set(victims.KINDS) - {trial.kill.kind for trial in trials}
    yield judged(
        "loop.kill_learning",
        len(failed) + len(untried),
        Goal("==", 0),
        note=f"kills after which learning did not go on: {', '.join(failed) or 'none'}",
    )


def _lost(verdict: Verdict, trials: Sequence[Trial]) -> Figure:
    kinds = ", ".join(trial.kill.kind for trial in trials)
    findings = "; ".join(verdict.faults[:3])
    return judged(
        "loop.kill_lost",
        verdict.total,
        Goal("==", 0),
        "steps",
        note=f"of {verdict.checked}, over kill -9 of {kinds}. {findings}".strip(),
    )


def _worst(
    name: str, found: dict[str, float | None] | dict[str, float], goal: Goal, unit: str
) -> Figure:
    """Return the worst of some numbers; one that is missing is worse than any."""
    for key, value in found.items():
        if value is None:
            return judged(name, None, goal, unit, note=f"never: {key}")
    values = {key: value for key, value in found.items() if value is not None}
    worst = max(values, key=lambda key: values[key], default="nothing was tried")
    return judged(name, values.get(worst), goal, unit, note=f"worst: {worst}")


def _holds(trials: Sequence[Trial], witness: Witness) -> dict[str, float | None]:
    """Return how long each robot was led on after whoever commanded it had died, robot ms."""
    found: dict[str, float | None] = {}
    for trial in trials:
        kill = trial.kill
        for name in trial.robots:
            key = f"{kill.kind}, {name}"
            if kill.kind == "agent":
                found[key] = hold_ms(kill, witness.ticks[name])
            elif kill.kind in {"policy worker", "teleop"}:
                found[key] = still_ms(kill, name, witness.ticks[name], witness.states[name])
    return found


def _faults(trials: Sequence[Trial], witness: Witness) -> Figure:
    """Return what was wrong where drivers died: their robots stand, the others go on."""
    problems: list[str] = []
    for trial in (trial for trial in trials if trial.kill.kind == "driver"):
        kill, robot = trial.kill, trial.robots[0]
        problems += fault_problems(kill, robot, witness.ticks[robot], witness.states[robot])
        freed = released_ns(kill, witness.ticks[robot])
        for other in set(witness.robots) - {robot}:
            if steps_between(witness.states[other], kill.wall_ns, freed) < STEADY_STEPS:
                problems.append(f"{other} did not go on while {robot} stood")
    return judged(
        "loop.kill_fault",
        len(problems),
        Goal("==", 0),
        note="; ".join(problems) or "a killed driver's robot stood in FAULT until released",
    )
