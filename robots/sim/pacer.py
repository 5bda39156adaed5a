"""Robot time against wall time: when the next cycle is due, and what happens when it is missed."""

from user_system.core.clock import MS
from user_system.core.errors import ConfigError

RATES = (0.05, 100.0)
"""Slowest and fastest pace, robot seconds per wall second."""
PATIENCE_NS = 20 * MS
"""Wall time that a late world may catch up; beyond that the robot clock slips."""


class Pacer:
    """The robot clock of a simulated robot: it may slip behind the wall, it never jumps.

    Args:
        rate: robot seconds per wall second.
        wall_ns: now.
        robot_ns: what the robot clock shows now.
    """

    def __init__(self, rate: float, wall_ns: int, robot_ns: int):
        self.slipped_ns = 0
        """Wall time by which the robot clock fell behind, summed."""
        self.set_rate(rate, wall_ns, robot_ns)

    def set_rate(self, rate: float, wall_ns: int, robot_ns: int) -> None:
        """Go on at another pace from here.

        Raises:
            ConfigError: the rate is out of range.
        """
        if not RATES[0] <= rate <= RATES[1]:
            raise ConfigError(
                "the pace is out of range", got=rate, allowed=f"{RATES[0]} … {RATES[1]}"
            )
        self.rate, self._wall_ns, self._robot_ns = rate, wall_ns, robot_ns

    def due_ns(self, robot_ns: int) -> int:
        """Return the wall time at which the robot clock shows ``robot_ns``."""
        return self._wall_ns + int((robot_ns - self._robot_ns) / self.rate)

    def arrived(self, robot_ns: int, wall_ns: int) -> None:
        """Note that the robot clock shows ``robot_ns``; slip if that is too late to catch up."""
        late = wall_ns - self.due_ns(robot_ns)
        if late > PATIENCE_NS:
            self.slipped_ns += late
            self._wall_ns, self._robot_ns = wall_ns, robot_ns
