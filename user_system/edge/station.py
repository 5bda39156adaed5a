"""One robot's parts and what the loop does with them; see ``loop.py``."""

import logging
import time
from dataclasses import dataclass, replace

from user_system.core.interfaces import ResetPlan
from user_system.core.modes import HUMAN_MODES, POLICY_MODES, Mode
from user_system.core.specs import RobotSpec
from user_system.core.types import Array, Purpose, Segment
from user_system.edge.acting import ActingWeights
from user_system.edge.advisor import Advisor
from user_system.edge.arbiter import Arbiter
from user_system.edge.chunks import Proposal
from user_system.edge.driver_link import DriverLink
from user_system.edge.helm import Helm
from user_system.edge.inbox import Heard, Inbox
from user_system.edge.messages import (
    Assignment,
    Grant,
    OperatorCommand,
    Request,
    Trouble,
    WeightsNews,
    WeightsReady,
)
from user_system.edge.outside import Outside
from user_system.edge.patience import StationConfig
from user_system.edge.performer import Performer
from user_system.edge.periods import Periods
from user_system.edge.presence import Presence
from user_system.edge.readings import Readings
from user_system.edge.recorder import Recorder
from user_system.edge.session import Session
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
        self.weights = ActingWeights()
        self.last: Telemetry | None = None
        self.inbox = Inbox()
        self.helm = Helm(session, arbiter, driver, spec.hold_after_ms, self.config.person_s)
        self._readings = Readings(driver, self.config.away_s)
        self._presence = Presence(worker, self.config, policy, task)
        self._performer = Performer(
            session=session,
            driver=driver,
            worker=worker,
            advisor=self.advisor,
            weights=self.weights,
            arbiter=arbiter,
            recorder=recorder,
            outside=outside,
        )

    # --- other threads ------------------------------------------------------------------------

    def post(self, heard: Heard) -> None:
        """Hand something to the loop; thread-safe."""
        self.inbox.post(heard)

    def close(self) -> None:
        """Let the loop return after the present period; thread-safe."""
        self.open = False
        self.inbox.wake()

    def let_go(self) -> None:
        """Give its file descriptor back; nobody may post any more."""
        self.inbox.close()

    @property
    def hung(self) -> bool:
        """Whether the worker hangs and is to be killed."""
        return self._presence.hung

    # --- the words of the loop, in its order ------------------------------------------------------

    def observe(self) -> Telemetry | None:
        """Return the reading that begins the next period; None where the driver is away."""
        while self.open:
            # First of all: a loop that is always late must still hear a person.
            self._attend()
            self._listen_to_driver()
            if (seen := self._readings.take()) is not None:
                return self._begin_period(seen)
            if self._readings.ended:
                return None
            self._sleep(self.driver.fileno(), 0.05)
        return None

    def _listen_to_driver(self) -> None:
        for item in self._readings.listen():
            self.session.seen(item)
            self._perform()
        for camera, image, wall_ns in self.driver.take_previews():
            self.outside.preview(self.session.name, camera, image, wall_ns)

    def _begin_period(self, seen: Telemetry) -> Telemetry:
        self.counters.periods += 1
        self.periods.begins(time.monotonic_ns(), seen.reading.rate)
        self.counters.overruns += bool(self._readings)
        self.last = seen
        self.helm.begin(seen)
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
        self._readings.forget()
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
            self._performer.void_rewound()

    def advise(self, seen: Telemetry, executed: Array | None) -> list[Advice]:
        """Ask the worker about the step that begins; return all that it said in time."""
        if not self.session.judged:
            self.advisor.forget()
            return []
        step = self.recorder.step
        if self.session.mode is not self.arbiter.mode:
            self.advisor.chunks.flush(step)
        plan = self.session.wants_plan and self.advisor.due(step, seen) and not self._readings
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
        if self._presence.up and (ready := self.weights.due(self._pinned)) is not None:
            self.worker.load(ready.version, ready.path)

    def _wait_for_advice(self, step: int, *, plan: bool) -> list[Advice]:
        """Wait for the answer about ``step`` within the policy's budget, awake to stops."""
        budget = self.worker.spec.budget_ms / 1000 if self.worker.spec else 0.0
        deadline = time.monotonic() + budget
        mode = self.session.mode
        late = bool(self._readings) or self.worker.silent_s > budget
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
            self.helm.change()
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
        """Send the set-point, for as long as the driver may go without the next one."""
        self.helm.command(target)
        if self.arbiter.mode in POLICY_MODES:
            self.advisor.executes(self.driver.clock.now_ns())

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
        self.inbox.wait(fd, timeout_s)

    def _attend(self) -> None:
        """Take everything other threads posted; pass a person's motion on."""
        for heard in self.inbox.take():
            self._hear(heard)
        self.helm.attend()

    def _hear(self, heard: Heard) -> None:
        match heard:
            case OperatorCommand():
                self.helm.steer(heard)
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
        for change in self._presence.look(recording=self.session.recording):
            if change.what == "lost":
                self.weights.worker_lost()
                self.session.worker_lost(change.why)
                continue
            if self.worker.spec is not None:
                self.advisor.chunks.follow(self.worker.spec)
            self.session.worker_ready()

    def _perform(self) -> None:
        self._performer.perform(self.last)

    def abandon(self) -> None:
        """The loop failed: report the episode it had begun, for nobody else will go on with it."""
        self._performer.abandon()

    def stats(self) -> dict[str, float]:
        """Return counters and gauges of the loop and its links."""
        counters = {name: float(value) for name, value in vars(self.counters).items()}
        return {
            **counters,
            **self.helm.stats(),
            **self.recorder.stats(),
            **self.periods.stats(),
            **self.weights.stats(),
            **self.advisor.stats(),
            **self.worker.stats(),
            **self.driver.figures,
            "takeovers": float(self.session.takeovers),
            "stale_commands": float(self.session.freshness.stale),
        }
