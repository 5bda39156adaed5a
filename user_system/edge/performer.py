"""Carries out what a session decided, in order: see ``effects``."""

from user_system.core.modes import Mode
from user_system.core.types import End
from user_system.edge import effects as do
from user_system.edge.acting import ActingWeights
from user_system.edge.adder import Totals
from user_system.edge.advisor import Advisor
from user_system.edge.arbiter import Arbiter
from user_system.edge.driver_link import DriverLink
from user_system.edge.messages import Assignment, EpisodeReport
from user_system.edge.outside import Outside
from user_system.edge.recorder import Recorder
from user_system.edge.session import Session
from user_system.edge.wire import Telemetry
from user_system.edge.worker_client import WorkerClient


class Performer:
    """One robot's. It decides nothing.

    Args:
        session: whose effects they are.
        driver: link to the robot's driver.
        worker: seat in its policy worker.
        advisor: what that said.
        weights: which ones act.
        arbiter: who commands; it knows what a rewind undid.
        recorder: what becomes of the steps.
        outside: where episodes are reported.
    """

    def __init__(
        self,
        *,
        session: Session,
        driver: DriverLink,
        worker: WorkerClient,
        advisor: Advisor,
        weights: ActingWeights,
        arbiter: Arbiter,
        recorder: Recorder,
        outside: Outside,
    ):
        self._session, self._driver, self._worker = session, driver, worker
        self._advisor, self._weights, self._arbiter = advisor, weights, arbiter
        self._recorder, self._outside = recorder, outside
        self._begun: Assignment | None = None

    def perform(self, last: Telemetry | None) -> None:
        """Carry out all that is decided; ``last``: the reading that began this period."""
        while self._session.effects:
            self._do(self._session.effects.pop(0), last)

    def _do(self, effect: do.Effect, last: Telemetry | None) -> None:
        match effect:
            case do.Begin():
                self._begin(effect.assignment)
            case do.Scene():
                self._session.scene_as(self._driver.scene(effect.seed, effect.options))
            case do.Replan():
                self._advisor.chunks.flush(self._recorder.step)
                self._worker.handed_back()
            case do.Finish():
                self._finish(effect, last)
            case do.Stop():
                self._driver.stop(effect.reason)
            case do.Release():
                self._session.released_as(self._driver.release())
            case do.Pace():
                self._driver.pace(effect.rate)
            case do.Want():
                self._outside.want(self._session.name)

    def _begin(self, assignment: Assignment) -> None:
        self._begun = assignment
        self._advisor.begin()
        self._worker.begin(assignment)
        if not self._weights.knows(assignment.version):
            self._outside.need(self._session.name, assignment.version)

    def abandon(self) -> None:
        """The loop failed: report the episode it had begun, for nobody else will go on with it."""
        if (begun := self._begun) is not None:
            self._report(do.Finish(begun, End.ABORT, None, None, None, 0), self._recorder.totals)

    def void_rewound(self) -> None:
        """Void the steps that a rewind has undone so far."""
        if self._arbiter.mode is Mode.REWIND and self._arbiter.rewound_to is not None:
            self._recorder.void(self._arbiter.rewound_to)

    def _finish(self, finish: do.Finish, last: Telemetry | None) -> None:
        if self._recorder.recording:
            self.void_rewound()
        totals, refused = self._recorder.finish(finish, last)
        if refused:
            self._session.store_failed(refused)
        self._worker.forget()
        self._report(finish, totals)

    def _report(self, finish: do.Finish, totals: Totals) -> None:
        self._begun = None
        assignment = finish.assignment
        self._outside.report(
            EpisodeReport(
                robot=self._session.name,
                episode=assignment.episode,
                purpose=assignment.purpose,
                success=finish.success,
                end=finish.end,
                steps=totals.steps,
                human_steps=totals.human_steps,
                reward=totals.reward,
                version=totals.version or self._weights.version,
                seed=assignment.seed,
                takeovers=finish.takeovers,
                segments=totals.segments,
            )
        )
