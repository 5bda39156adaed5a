"""The way from a set-point to the driver: one a period, and a person's motion in between."""

import logging
import time

from user_system.core.clock import MS
from user_system.core.errors import LeaseError, LinkError
from user_system.core.modes import HUMAN_MODES, STOPPED_MODES
from user_system.core.types import Array
from user_system.edge.arbiter import Arbiter
from user_system.edge.driver_link import DriverLink
from user_system.edge.messages import OperatorCommand
from user_system.edge.session import Session
from user_system.edge.turns import Turn
from user_system.edge.wire import Telemetry

log = logging.getLogger(__name__)


class Helm:
    """Sends what the arbiter chose, and passes on what a person who drives wants.

    Args:
        session: who may command, and in which mode.
        arbiter: makes set-points of a person's commands.
        driver: link to the robot's driver.
        hold_after_ms: robot time for which the driver may go without the next command.
        person_s: wall time for which a fast robot clock stands for who drives it.
    """

    def __init__(
        self,
        session: Session,
        arbiter: Arbiter,
        driver: DriverLink,
        hold_after_ms: float,
        person_s: float,
    ):
        self._session, self._arbiter, self._driver = session, arbiter, driver
        self._hold_after_ms = hold_after_ms
        self._turn = Turn(person_s)
        self._last: Telemetry | None = None
        self._refused = 0
        self._step_ms = 0.0

    def begin(self, seen: Telemetry) -> None:
        """A period begins with ``seen``."""
        self._last = seen

    def command(self, target: Array) -> None:
        """Send the period's set-point ``(Dc,)``.

        Where a person drives a robot with a fast clock, theirs is waited for: see ``turns``.
        """
        if self._turns and self._last is not None:
            self._turn.begin(self._last.reading.wall_ns, hurry=self._last.holding)
            self._play()
        else:
            self._send(target)

    def steer(self, command: OperatorCommand) -> None:
        """Take what a person wants; what is not theirs to want, or not of now, moves nothing."""
        try:
            counts = self._session.command(command)
        except (LeaseError, LinkError) as error:
            self._refused += 1
            log.debug("%s: %s", self._session.name, error)
            return
        if counts and self._turns:
            state_ns = command.born_ns - round(command.rested_ms * MS)
            self._turn.hear(command.action, state_ns, command.valid_ms / 1000)
        elif counts:
            self._arbiter.steer(command, self._driver.clock.now_ns())

    def attend(self) -> None:
        """Pass a person's motion on, between the beginnings of two periods."""
        if self._turn.open and self._session.mode is not self._arbiter.mode:
            self._turn.drop()  # whoever would have answered this period does something else now
            self._send(self._arbiter.target)
        if self._session.mode not in HUMAN_MODES:
            self._arbiter.rest()
        elif self._turns:
            self._play()
        elif self._arbiter.mode in HUMAN_MODES:
            self._send(self._arbiter.drive(self._driver.clock.now_ns()))

    def change(self) -> None:
        """Another mode begins: an action of the last one does not move it."""
        self._turn.drop()

    @property
    def _turns(self) -> bool:
        """Whether a person's actions are taken one per period."""
        return self._arbiter.stepwise and self._arbiter.mode in HUMAN_MODES

    def _play(self) -> None:
        if self._turn.due:
            action = self._turn.take()
            self._send(self._arbiter.target if action is None else self._arbiter.act(action))

    def _send(self, target: Array) -> None:
        token = self._session.leases.token
        if self._session.mode not in STOPPED_MODES and token > 0:
            self._driver.command(target, token, self._hold_after_ms)
        if self._last is not None:
            took = (time.monotonic_ns() - self._last.reading.wall_ns) / MS
            self._step_ms += 0.02 * (took - self._step_ms)

    def stats(self) -> dict[str, float]:
        """Return refused commands, and the wall time from reading to command, moving average."""
        return {"refused_commands": float(self._refused), "step_ms": self._step_ms}
