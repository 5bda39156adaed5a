"""How long a robot's session and its loop wait for whom."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SessionConfig:
    """How patient a session is, in wall time, and how an intervention ends."""

    rate: float = 1.0
    """Robot seconds per wall second while no person drives in real time."""
    idle_ms: float = 200.0
    """Rest without an episode after which a simulated robot's clock runs no faster than the wall's:
    a fast one would only take processor time from whom the robot waits for."""
    handback_ends: bool = False
    """Whether handing back ends the episode (RaC's second rule) or the policy goes on in it."""
    operator_lost_ms: float = 500.0
    """Silence after which a driving person counts as lost; the robot rests long before that."""
    operator_first_ms: float = 3000.0
    """Time for the first command after a person took over."""
    stop_again_ms: float = 100.0
    """Time for a stop to arrive before it is said again."""
    release_ms: float = 5000.0
    """Time for a release to clear the robot's fault."""
    want_ms: float = 2000.0
    """Time between reminders that the robot is free."""
    plugin_retry_ms: float = 1000.0
    """Rest after a plugin's failure, before the next episode is tried."""
    starved_ms: float = 5000.0
    """Rest for want of a plan after which the episode is given up and a person is asked."""
    left_ms: float = 5000.0
    """Rest in an episode that nobody holds after which it is given up, where the host is to
    restart: the head that a person would come back through may have made way for another one."""
    plugin_failures: int = 3
    """Failures in a row after which a person must look."""

    def pace(self, *, slow: bool) -> float:
        """Return the rate of a simulated robot's clock; ``slow``: no faster than the wall's."""
        return min(1.0, self.rate) if slow else self.rate

    def silence_ms(self, *, first: bool) -> float:
        """Return how long a driving person may be silent, before the first command and after it."""
        return self.operator_first_ms if first else self.operator_lost_ms


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
