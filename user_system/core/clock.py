"""Two clocks. Wall: people, sockets, leases. Robot: period, watchdog, limits, stamps.

Wall time is ``time.monotonic_ns``: it never steps, and is comparable between processes of one host
only. A real robot's clock runs with it; a simulated robot may run faster, so everything that the
robot's safety depends on is measured on its own clock.
"""

import time
from typing import Protocol

MS = 1_000_000
SECOND = 1_000_000_000


class Clock(Protocol):
    """A source of time that can be waited on; injected, so that tests own it."""

    def now_ns(self) -> int:
        """Return the current time in ns."""

    def sleep_until(self, deadline_ns: int) -> None:
        """Return at ``deadline_ns``, at once if it has passed."""


class WallClock:
    """The host's monotonic clock."""

    def now_ns(self) -> int:
        """Return monotonic time in ns."""
        return time.monotonic_ns()

    def sleep_until(self, deadline_ns: int) -> None:
        """Sleep to an absolute deadline, so that lateness never accumulates into drift."""
        while (remaining := deadline_ns - time.monotonic_ns()) > 0:
            time.sleep(remaining / SECOND)


class RobotClock:
    """A robot's clock seen from another process of its host: ``robot = anchor + rate * elapsed``.

    Each reading carries robot time, wall time and rate; ``sync`` takes them over. Between readings
    the clock is extrapolated, and it never runs backwards.
    """

    def __init__(self, wall: Clock | None = None):
        self._wall = wall or WallClock()
        self._anchor_wall = self._wall.now_ns()
        self._anchor_robot = 0
        self._latest = 0
        self.rate = 1.0

    def sync(self, robot_ns: int, wall_ns: int, rate: float) -> None:
        """Take over the robot's own account: at ``wall_ns`` its clock showed ``robot_ns``."""
        self._anchor_robot, self._anchor_wall, self.rate = robot_ns, wall_ns, rate

    def now_ns(self) -> int:
        """Return the robot clock's estimate of now, in ns."""
        elapsed = self._wall.now_ns() - self._anchor_wall
        self._latest = max(self._latest, self._anchor_robot + int(elapsed * self.rate))
        return self._latest

    def sleep_until(self, deadline_ns: int) -> None:
        """Sleep until the robot clock shows ``deadline_ns``."""
        self._wall.sleep_until(self.wall_ns(deadline_ns))

    def wall_ns(self, robot_ns: int) -> int:
        """Return the wall time at which the robot clock shows ``robot_ns``."""
        return self._anchor_wall + int((robot_ns - self._anchor_robot) / self.rate)


def span(seconds: float) -> str:
    """Return a length of time as people say it: ``1 h``, ``1.5 d``, ``40 s``; without a sign."""
    size = abs(seconds)
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if round(size / length, 1) >= 1:
            return f"{round(size / length, 1):g} {unit}"
    return f"{size:.0f} s"
