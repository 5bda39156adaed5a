"""Whether a person's command is of now, though no clock is common to page and robot.

The robot's states carry when they were sent, on the robot host's clock; a page returns that stamp
with each command and says how long it had the state. So the robot host knows for how long the state
and the command together were on their way, whatever stood in between: a line that stalled and then
delivers everything at once is found out, and what it delivers moves nothing.
"""

from collections import deque

from user_system.core.clock import MS
from user_system.core.errors import LinkError
from user_system.edge.messages import OperatorCommand

LONGEST_MS = 1000.0
"""A way to and fro that nobody can drive over, wall ms."""
BLIND_MS = 1000.0
"""Age of a picture of the robot by which nobody can drive, wall ms."""
EARLY_MS = 50.0
"""How far two clocks may drift apart while a state rests, wall ms."""
_WINDOW = 100


class Freshness:
    """Knows how long commands are usually under way, and refuses the ones that took longer.

    A command may be later than the quickest of the last hundred by the time that it is valid.
    """

    def __init__(self) -> None:
        self._trips: deque[float] = deque(maxlen=_WINDOW)
        self.stale = 0
        """Commands that were refused."""

    def begin(self) -> None:
        """Somebody else commands now, by another way."""
        self._trips.clear()

    def check(self, command: OperatorCommand, now_ns: int) -> None:
        """Make sure that ``command`` is of now.

        Raises:
            LinkError: it was under way for too long, or nobody saw what it was made for.
        """
        trip_ms = (now_ns - command.born_ns) / MS
        self._trips.append(max(0.0, trip_ms))
        late_ms = trip_ms - min(self._trips)
        fresh = -EARLY_MS <= trip_ms <= LONGEST_MS and 0.0 <= command.rested_ms <= BLIND_MS
        if not fresh or late_ms > command.valid_ms:
            self.stale += 1
            raise LinkError(
                "a command that is not of now",
                got=f"{trip_ms:.0f} ms on its way, {late_ms:.0f} ms more than usual",
                allowed=f"{LONGEST_MS:.0f} ms, {command.valid_ms:.0f} ms more than usual",
            )
