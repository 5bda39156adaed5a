"""One jerk-limited motion per coordinate, from what was last commanded to a target."""

import numpy as np
from ruckig import (
    ControlInterface,
    InputParameter,
    Result,
    Ruckig,
    RuckigError,
    Synchronization,
    Trajectory,
)

from user_system.core.specs import Limits
from user_system.core.types import Array

JERK_SHARES = (1.0, 0.99, 0.97)
"""Shares of the jerk limits that are tried, in this order, until a plan is found."""


class Motion:
    """The state (position, velocity, acceleration) of the commanded motion and where it leads.

    There is always a valid motion that ends at rest. A new target is planned from the commanded
    state, never from a measured one, so consecutive set-points join smoothly; if it cannot be
    planned, the motion at hand goes on and planning is tried again in the next tick.

    Args:
        limits: velocity, acceleration and jerk of the ``Dc`` coordinates.
    """

    def __init__(self, limits: Limits):
        n = len(limits)
        self._planner = Ruckig(n)
        self._input = InputParameter(n)
        self._input.synchronization = Synchronization.No
        self._input.max_velocity = list(limits.velocity)
        self._input.max_acceleration = list(limits.acceleration)
        self._input.max_jerk = list(limits.jerk)
        self._trajectory, self._spare = Trajectory(n), Trajectory(n)
        self._rest = [0.0] * n
        self._time = 0.0
        self._pending: ControlInterface | None = None
        self.target: Array = np.zeros(n)
        """Where the motion leads ``(Dc,)`` float64."""
        self.moving = False
        self.unsolved = 0
        """Plans that could not be made."""
        self._setpoint: Array = self.target
        self._state: tuple[list[float], list[float], list[float]] = (
            self._rest,
            self._rest,
            self._rest,
        )

    def place(self, setpoint: Array) -> None:
        """Be at rest at ``setpoint`` ``(Dc,)``."""
        self._pending = None
        self._rest_at(np.array(setpoint, np.float64))

    def rest(self) -> None:
        """Be at rest where the motion is now, and set out from there to where it was to lead."""
        target, self._pending = self.target, None
        self._rest_at(np.array(self._setpoint))
        self.head_for(target)

    def head_for(self, target: Array) -> None:
        """Lead to ``target`` ``(Dc,)`` from the next tick on."""
        if not np.array_equal(target, self.target) or self._pending is not None:
            self.target = target
            self._pending = ControlInterface.Position

    def brake(self) -> None:
        """Come to rest as fast as the limits allow; the target becomes where that is."""
        if self.moving or self._pending is not None:
            self._pending = ControlInterface.Velocity
            self._plan()

    def advance(self, seconds: float) -> Array:
        """Return the set-point ``(Dc,)`` float64 ``seconds`` further along."""
        if self._pending is not None:
            self._plan()
        if self.moving:
            self._time += seconds
            if self._time >= self._trajectory.duration:
                self._rest_at(self._end)
            else:
                self._state = self._trajectory.at_time(self._time)
                self._setpoint = np.array(self._state[0])
                self._setpoint.flags.writeable = False
        return self._setpoint

    def _plan(self) -> None:
        """Plan towards the pending target from the present state."""
        kind, given = self._pending, self._input
        given.control_interface = kind
        given.current_position, given.current_velocity, given.current_acceleration = self._state
        given.target_velocity = given.target_acceleration = self._rest
        if kind == ControlInterface.Position:
            given.target_position = self.target.tolist()
        if not self._solved(given):
            self.unsolved += 1
            return
        self._trajectory, self._spare = self._spare, self._trajectory
        self._time, self._pending, self.moving = 0.0, None, True
        if kind == ControlInterface.Velocity:
            self.target = np.array(self._trajectory.at_time(self._trajectory.duration)[0])
        self._end = self.target

    def _solved(self, given: InputParameter) -> bool:
        """Plan into the spare trajectory; return whether it worked.

        Where a distance lies on the border between two profiles (2 a³/j², say), rounding can
        leave the planner without either. A little less jerk moves the border, within the limits.
        """
        jerk = given.max_jerk
        try:
            for share in JERK_SHARES:
                given.max_jerk = [share * limit for limit in jerk]
                try:
                    result = self._planner.calculate(given, self._spare)
                except RuckigError:
                    continue
                if result in (Result.Working, Result.Finished):
                    return True
            return False
        finally:
            given.max_jerk = jerk

    def _rest_at(self, setpoint: Array) -> None:
        setpoint.flags.writeable = False
        self._setpoint = self._end = setpoint
        if not self._pending:
            self.target = setpoint
        self._state = (setpoint.tolist(), self._rest, self._rest)
        self.moving = False
