"""One robot's parts and what the loop does with them; see ``loop.py``."""

import collections
import contextlib
import logging
import os
import select
import time
from dataclasses import dataclass, replace
from typing import Protocol

from user_system.core.clock import MS
from user_system.core.errors import LeaseError, LinkError
from user_system.core.interfaces import ResetPlan
from user_system.core.modes import HUMAN_MODES, POLICY_MODES, STOPPED_MODES, Mode
from user_system.core.specs import RobotSpec
from user_system.core.types import Array, End, Purpose, Segment
from user_system.edge import effects as do
from user_system.edge.acting import ActingWeights
from user_system.edge.adder import Totals
from user_system.edge.advisor import Advisor
from user_system.edge.arbiter import Arbiter
from user_system.edge.chunks import Proposal
from user_system.edge.driver_link import DriverLink
from user_system.edge.messages import (
    Answer,
    Assignment,
    EpisodeReport,
    Grant,
    OperatorCommand,
    Request,
    Trouble,
    WeightsNews,
    WeightsReady,
)
from user_system.edge.periods import Periods
from user_system.edge.recorder import Recorder
from user_system.edge.session import Session
from user_system.edge.turns import Turn
from user_system.edge.wire import Telemetry
from user_system.edge.worker_client import (
    Acting,
    Advice,
    Away,
    Failure,
    Loaded,
    Plans,
    WorkerClient,
)

log = logging.getLogger(__name__)

_INBOX = 256
"""What may wait for a loop before commands are dropped: a second of two people's at 100 Hz."""

Heard = Grant | Assignment | Request | OperatorCommand | WeightsReady | WeightsNews | Trouble
"""What other threads post to a robot's loop."""


class Outside(Protocol):
    """Where a station's news go; called from the loop's thread, so nothing here may block."""

    def want(self, robot: str) -> None:
        """The robot is at rest and free."""

    def report(self, report: EpisodeReport) -> None:
        """An episode ended."""

    def answer(self, answer: Answer) -> None:
        """A request was dealt with."""

    def need(self, robot: str, version: int) -> None:
        """An evaluation is pinned to this version of the robot's policy."""

    def state(self, station: "Station", seen: Telemetry | None) -> None:
        """A period began; None: the driver is away."""

    def preview(self, robot: str, camera: str, image: Array, wall_ns: int) -> None:
        """A picture for people came, ``(H, W, 3)`` uint8."""


@dataclass(frozen=True)
class StationConfig:
    """Periods and patience of one robot's loop, wall time unless it says otherwise."""

    drive_hz: float = 200.0
    """Rate at which a driving person's motion is passed on."""
    hang_s: float = 1.0
    """Silence of a worker that was asked after which it counts as hung."""
    think_s: float = 10.0
    """Time that a policy may take for an action chunk before it counts as hung."""
    begin_s: float = 10.0
    """Time for it to prepare an episode."""
    person_s: float = 0.04
    """Time for which a fast robot clock stands for who drives it; below ``driver.STAND_S``."""
    away_s: float = 2.0
    """Time without any reading after which a driver that lives counts as gone."""
    max_weights_age_s: float | None = None
    """For how long the policy may act with weights that are not known to be the newest; None: as
    long as need be."""


@dataclass(frozen=True, slots=True)
class Step:
    """The step that begins now, as decided."""

    mode: Mode
    segment: Segment
    index: int | None
    """Of the episode; None where none is recorded."""
    proposal: Proposal | None
    operator: str


@dataclass
class Counters:
    """What a station counts."""

    periods: int = 0
    overruns: int = 0
    """Periods whose reading was waiting already: the loop was late."""
    refused_commands: int = 0
    step_ms: float = 0.0
    """Wall time from reading to command, moving average."""


class Station:
    """Everything one robot's loop works with. ``post`` may be called from any thread.

    Args:
        session: the robot's mode, lease and episode.
        spec: of the robot.
        driver: link to its driver.
        worker: seat in its policy worker.
        arbiter: who commands.
        recorder: what becomes of its steps.
        outside: hub and fresh lane.
        policy: its name, for messages to people.
        task: its name.
        config: patience.
    """

    def __init__(
        self,
        *,
        session: Session,
        spec: RobotSpec,
        driver: DriverLink,
        worker: WorkerClient,
        arbiter: Arbiter,
        recorder: Recorder,
        outside: Outside,
        policy: str,
        task: str,
        config: StationConfig | None = None,
    ):
        self.policy, self.task = policy, task
        self.session, self.spec, self.driver, self.worker = session, spec, driver, worker
        self.arbiter, self.recorder, self.outside = arbiter, recorder, outside
        self.config = config or StationConfig()
        self.counters = Counters()
        self.periods = Periods(spec.control_hz)
        self.advisor = Advisor(spec, policy)
        self.open = True
        self.hung = False
        """The worker hangs and is to be killed; False again once its link is gone."""
        self.weights = ActingWeights()
        self.last: Telemetry | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._inbox: collections.deque[Heard] = collections.deque()
        self._queue: collections.deque[Telemetry] = collections.deque()
        self._begun: Assignment | None = None
        self._seen_at = time.monotonic()
        self._worker_up = False
        self.turn = Turn(self.config.person_s)

    # --- other threads ------------------------------------------------------------------------

    def post(self, heard: Heard) -> None:
        """Hand something to the loop; thread-safe.

        Of a loop that stands still commands wait no longer than they are valid: more are dropped.
        """
        if isinstance(heard, OperatorCommand) and len(self._inbox) >= _INBOX:
            return
        self._inbox.append(heard)
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """Let the loop return after the present period; thread-safe."""
        self.open = False
        os.eventfd_write(self._wake, 1)

    def let_go(self) -> None:
        """Give its file descriptor back; nobody may post any more."""
        os.close(self._wake)

    # --- the words of the loop, in its order ------------------------------------------------------

    def observe(self) -> Telemetry | None:
        """Return the reading that begins the next period; None where the driver is away."""
        while self.open:
            # First of all: a loop that is always late must still hear a person.
            self._attend()
            self._listen_to_driver()
            if self._queue:
                return self._begin_period(self._queue.popleft())
            if not self.driver.alive or time.monotonic() - self._seen_at > self.config.away_s:
                return None
            self._sleep(self.driver.fileno(), 0.05)
        return None

    def _listen_to_driver(self) -> None:
        for item in self.driver.poll():
            self._seen_at = time.monotonic()
            if item.period:
                self._queue.append(item)
            else:
                self.session.seen(item)
                self._perform()

        for camera, image, wall_ns in self.driver.take_previews():
            self.outside.preview(self.session.name, camera, image, wall_ns)

    def _begin_period(self, seen: Telemetry) -> Telemetry:
        self.counters.periods += 1
        self.periods.begins(time.monotonic_ns(), seen.reading.rate)
        self.counters.overruns += bool(self._queue)
        self.last = seen
        self._listen_to_worker()
        self.session.seen(seen)
        self._let_time_pass()
        assignment = self.session.assignment
        if self.session.recording and assignment and not self.recorder.recording:
            self.recorder.begin(assignment, self.worker.spec)
            self.arbiter.begin_episode()
        return seen

    def alone(self) -> None:
        """Go on without a driver: people are answered, and the next one finds a fault."""
        if not self.open:
            return  # nobody is away: this loop was told to end while it waited for a reading
        self.session.driver_lost("the driver is away; it is being restarted")
        self._queue.clear()
        self.periods.pauses()
        self.recorder.forget()
        self._listen_to_worker()
        self._let_time_pass()
        self.tell(None)
        self._sleep(self.driver.fileno(), 0.05)
        self._attend()

    def _let_time_pass(self) -> None:
        self.session.spool_full(self.recorder.full)
        self.session.unready = self.advisor.away
        self.session.slow = not self.advisor.chunks.prompt
        if self._pinned not in {0, self.weights.version} and not self.advisor.away:
            self.session.unready = f"Waits for version {self._pinned} of its policy."
        limit_s = None if self._pinned else self.config.max_weights_age_s
        self.session.stale = self.weights.too_old(limit_s, self.policy)
        self.session.unready = self.session.unready or self.session.stale
        self.session.tick()
        self._perform()
        if not self.session.recording:
            self._load_weights()

    def executed(self, seen: Telemetry) -> Array | None:
        """Close the step that ended; return what was executed in it ``(Da,)``, if one was open."""
        executed = self.recorder.close(seen)
        if executed is not None:
            self.session.counted(self.recorder.segment)
            self._end_rewind()
        return executed

    def _end_rewind(self) -> None:
        if self.arbiter.mode is not Mode.REWIND:
            return
        if self.session.mode is Mode.REWIND and not self.arbiter.rewinding:
            self.session.rewound()
        if self.session.mode is not Mode.REWIND:
            self._void_rewound()

    def _void_rewound(self) -> None:
        if self.arbiter.mode is Mode.REWIND and self.arbiter.rewound_to is not None:
            self.recorder.void(self.arbiter.rewound_to)

    def advise(self, seen: Telemetry, executed: Array | None) -> list[Advice]:
        """Ask the worker about the step that begins; return all that it said in time."""
        if not self.session.judged:
            self.advisor.forget()
            return []
        step = self.recorder.step
        if self.session.mode is not self.arbiter.mode:
            self.advisor.chunks.flush(step)
        plan = self.session.wants_plan and self.advisor.due(step, seen) and not self._queue
        if plan or not self.session.wants_plan:  # a person drives: hand-backs find the newest
            self._load_weights()
        if plan:
            self.advisor.asked(step, seen)
        segment = self.recorder.segment
        self.worker.step(
            step,
            seen.reading.fields,
            executed,
            segment,
            self.session.clock_of(segment),
            mode="eval" if self._purpose is Purpose.EVAL else "explore",
            plan=plan,
        )
        return self._wait_for_advice(step, plan=plan and self.advisor.chunks.prompt)

    @property
    def _purpose(self) -> Purpose | None:
        return self.session.assignment.purpose if self.session.assignment else None

    @property
    def _pinned(self) -> int:
        return self.session.assignment.version if self.session.assignment else 0

    def _load_weights(self) -> None:
        """Between plans is the safe point: the worker loads before it answers the next question."""
        if self._worker_up and (ready := self.weights.due(self._pinned)) is not None:
            self.worker.load(ready.version, ready.path)

    def _wait_for_advice(self, step: int, *, plan: bool) -> list[Advice]:
        """Wait for the answer about ``step`` within the policy's budget, awake to stops."""
        budget = self.worker.spec.budget_ms / 1000 if self.worker.spec else 0.0
        deadline = time.monotonic() + budget
        mode = self.session.mode
        late = bool(self._queue) or self.worker.silent_s > budget
        while not self.advisor.answered(step, plan=plan) and self.session.mode is mode:
            remaining = 0.0 if late else deadline - time.monotonic()
            if remaining > 0:
                self._sleep(self.worker.fileno(), remaining)
                self._attend()
            self._listen_to_worker()
            if remaining <= 0:
                break
        return self.advisor.take()

    def decide(self, said: list[Advice]) -> Step:
        """Let the session follow what the worker said, and settle what the next step is."""
        for advice in said:
            if advice.judgement is not None and self.recorder.recording:
                self.recorder.judge(advice.step - 1, advice.judgement.reward)
                self.session.judge(advice.step - 1, advice.judgement)
        if self.advisor.settle(self.recorder.step):
            self.session.planned()
        self._perform()
        at = self.recorder.step
        proposal = self.advisor.propose(at, wanted=self.session.wants_plan)
        if self.session.mode in POLICY_MODES and (why := self.advisor.starves(at, self.last)):
            self.session.starved(why)
        mode, index = self.session.mode, at if self.session.recording else None
        return Step(mode, self.session.segment, index, proposal, self.session.operator)

    def arbitrate(self, seen: Telemetry, step: Step) -> Array:
        """Return the set-point ``(Dc,)`` of the period that begins."""
        if self.driver.in_flight(seen):
            # Its reading is older than our last command: that one is what the gate will have.
            seen = replace(seen, accepted=self.arbiter.target)
        if step.mode is not self.arbiter.mode:
            self.turn.drop()
        self.arbiter.enter(step.mode, seen)
        target = self.arbiter.choose(seen, step.index, step.proposal)
        plan = self.session.reset_plan
        if step.mode is Mode.RESET and plan is not None:
            arrived = self.arbiter.reset(seen, plan)
            target = self.arbiter.target
            if arrived:
                self.session.reset_reached()
            elif arrived is None:
                self.session.reset_failed("The robot does not reach where the episode begins")
            self._perform()
        return target

    def command(self, target: Array) -> None:
        """Send the set-point, for as long as the driver may go without the next one.

        Where a person drives a robot with a fast clock, theirs is waited for: see ``turns``.
        """
        if self._turns and self.last is not None:
            self.turn.begin(self.last.reading.wall_ns, hurry=self.last.holding)
            self._play()
        else:
            self._send(target)
            if self.arbiter.mode in POLICY_MODES:
                self.advisor.executes(self.driver.clock.now_ns())

    @property
    def _turns(self) -> bool:
        """Whether a person's actions are taken one per period."""
        return self.arbiter.stepwise and self.arbiter.mode in HUMAN_MODES

    def _play(self) -> None:
        if self.turn.due:
            action = self.turn.take()
            self._send(self.arbiter.target if action is None else self.arbiter.act(action))

    def _send(self, target: Array) -> None:
        if self.session.mode not in STOPPED_MODES and self.session.leases.token > 0:
            self.driver.command(target, self.session.leases.token, self.spec.hold_after_ms)
        if self.last is not None:
            took = (time.monotonic_ns() - self.last.reading.wall_ns) / MS
            self.counters.step_ms += 0.02 * (took - self.counters.step_ms)

    def record(self, seen: Telemetry, step: Step) -> None:
        """Open the step that begins, and spool what is ready."""
        if step.index is not None and self.recorder.recording:
            self.recorder.open(seen, step.segment, step.proposal, step.operator)
        else:
            self.recorder.forget()
        if refused := self.recorder.keep():
            self.session.store_failed(refused)

    def tell(self, seen: Telemetry | None) -> None:
        """Let the outside know how the robot is."""
        self.outside.state(self, seen)

    # --- in between -----------------------------------------------------------------------------

    def _sleep(self, fd: int | None, timeout_s: float) -> None:
        """Wait for the peer behind ``fd``, a post, or the next moment to pass motion on."""
        if self.arbiter.mode in HUMAN_MODES:
            timeout_s = min(timeout_s, 1.0 / self.config.drive_hz)
        waiting = [self._wake] if fd is None else [self._wake, fd]
        select.select(waiting, [], [], max(0.0, timeout_s))

    def _attend(self) -> None:
        """Take everything other threads posted; pass a person's motion on."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._inbox:
            self._hear(self._inbox.popleft())
        if self.turn.open and self.session.mode is not self.arbiter.mode:
            self.turn.drop()  # whoever would have answered this period does something else now
            self._send(self.arbiter.target)
        if self.session.mode not in HUMAN_MODES:
            self.arbiter.rest()
        elif self._turns:
            self._play()
        elif self.arbiter.mode in HUMAN_MODES:
            self._send(self.arbiter.drive(self.driver.clock.now_ns()))

    def _hear(self, heard: Heard) -> None:
        match heard:
            case OperatorCommand():
                self._steer(heard)
            case Request():
                answer = self.session.request(heard)
                self._perform()
                if heard.id:
                    self.outside.answer(answer)
            case Grant():
                self.session.grant(heard)
            case Assignment():
                self.session.assign(heard)
            case WeightsReady():
                self.weights.found(heard)
            case WeightsNews():
                self.weights.heard(heard)
            case Trouble():
                self.session.trouble(heard.why)

    def _steer(self, command: OperatorCommand) -> None:
        try:
            counts = self.session.command(command)
        except (LeaseError, LinkError) as error:
            self.counters.refused_commands += 1
            log.debug("%s: %s", self.session.name, error)
            return
        if counts and self._turns:
            state_ns = command.born_ns - round(command.rested_ms * MS)
            self.turn.hear(command.action, state_ns, command.valid_ms / 1000)
        elif counts:
            self.arbiter.steer(command, self.driver.clock.now_ns())

    def _listen_to_worker(self) -> None:
        for news in self.worker.poll():
            match news:
                case Advice() | Plans():
                    self.advisor.hear(news)
                case Away():
                    self.advisor.hear(news)
                    self.session.trouble(news.why)
                case Acting():
                    self.weights.acts(news.version)
                case ResetPlan():
                    self.session.begun(news)
                case Failure():
                    self.session.plugin_failed(news.error)
                case Loaded():
                    self.weights.loaded(news)
        self._watch_worker()
        self._perform()

    def _watch_worker(self) -> None:
        """Note when the worker came, went, or was silent for too long."""
        if not self.worker.alive:
            self.hung = False
            if self._worker_up:
                self._worker_up = False
                self.weights.worker_lost()
                self.session.worker_lost(f"the worker of policy {self.policy!r} died")
            return
        if not self._worker_up and not self.hung:
            self._worker_up = True
            if self.worker.spec is not None:
                self.advisor.chunks.follow(self.worker.spec)
            self.session.worker_ready()
        patience = self.config.hang_s if self.session.recording else self.config.begin_s
        hangs = self.worker.silent_s > patience
        if self.worker.thinking_s > self.config.think_s:
            hangs, patience = True, self.config.think_s
        if self._worker_up and hangs:
            self._worker_up, self.hung = False, True
            self.weights.worker_lost()
            why = f"policy {self.policy!r} or task {self.task!r} hangs, silent for {patience:.1f} s"
            self.session.worker_lost(f"{why}; its worker is restarted")

    # --- what the session wants -------------------------------------------------------------------

    def _perform(self) -> None:
        """Carry out what the session decided, in order."""
        while self.session.effects:
            effect = self.session.effects.pop(0)
            match effect:
                case do.Begin():
                    self._begun = effect.assignment
                    self.advisor.begin()
                    self.worker.begin(effect.assignment)
                    if not self.weights.knows(effect.assignment.version):
                        self.outside.need(self.session.name, effect.assignment.version)
                case do.Scene():
                    number = self.driver.scene(effect.seed, effect.options)
                    self.session.scene_as(number)
                case do.Replan():
                    self.advisor.chunks.flush(self.recorder.step)
                    self.worker.handed_back()
                case do.Finish():
                    self._finish(effect)
                case do.Stop():
                    self.driver.stop(effect.reason)
                case do.Release():
                    self.session.released_as(self.driver.release())
                case do.Pace():
                    self.driver.pace(effect.rate)
                case do.Want():
                    self.outside.want(self.session.name)

    def abandon(self) -> None:
        """The loop failed: report the episode it had begun, for nobody else will go on with it."""
        if (begun := self._begun) is not None:
            self._report(do.Finish(begun, End.ABORT, None, None, None, 0), self.recorder.totals)

    def _finish(self, finish: do.Finish) -> None:
        if self.recorder.recording:
            self._void_rewound()
        totals, refused = self.recorder.finish(finish, self.last)
        if refused:
            self.session.store_failed(refused)
        self.worker.forget()
        self._report(finish, totals)

    def _report(self, finish: do.Finish, totals: Totals) -> None:
        self._begun = None
        assignment = finish.assignment
        self.outside.report(
            EpisodeReport(
                robot=self.session.name,
                episode=assignment.episode,
                purpose=assignment.purpose,
                success=finish.success,
                end=finish.end,
                steps=totals.steps,
                human_steps=totals.human_steps,
                reward=totals.reward,
                version=totals.version or self.weights.version,
                seed=assignment.seed,
                takeovers=finish.takeovers,
                segments=totals.segments,
            )
        )

    def stats(self) -> dict[str, float]:
        """Return counters and gauges of the loop and its links."""
        counters = {name: float(value) for name, value in vars(self.counters).items()}
        return {
            **counters,
            **self.recorder.stats(),
            **self.periods.stats(),
            **self.weights.stats(),
            **self.advisor.stats(),
            **self.worker.stats(),
            **self.driver.figures,
            "takeovers": float(self.session.takeovers),
            "stale_commands": float(self.session.freshness.stale),
        }
