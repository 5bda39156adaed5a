"""The robot's own controller: what stands in the maker's cabinet, and trusts nobody.

It follows set-points by joint impedance, watches its own limits and its line to the driver, and
latches a fault when one is broken. It knows nothing of policies, leases or the command gate.
"""

import math
from typing import Literal

import numpy as np

from robots.sim import franka_data as fr3
from robots.sim.kinematics import Kinematics
from robots.sim.model import TIMESTEP
from robots.sim.physics import READY, Physics
from user_system.core.clock import MS
from user_system.core.types import Array

CYCLE_STEPS = 5
"""Physics steps per control cycle."""
CYCLE_S = CYCLE_STEPS * TIMESTEP
"""Control cycle, robot s; the joint servos inside run at every physics step."""
TIME_CONSTANT = 2 * CYCLE_S
"""The reference approaches a set-point with this time constant, s: it smooths the seams between
set-points that arrive out of step with the cycle."""
SPEED_MARGIN = 0.9
"""Share of the joint speed limits that references use."""
BRAKE = np.asarray(fr3.JOINT_ACCELERATION)
"""How fast the reference slows down when there is no set-point to follow, rad/s²."""
AGILITY = 5.0 * BRAKE
"""How fast the reference speeds up and slows down while it follows set-points, rad/s²."""
SPRINT = AGILITY * CYCLE_S
"""By how much its speed changes in a cycle at most, rad/s."""
SETTLE_NS = 500 * MS
"""Robot time after a recovery in which the arm may still come to rest from what went wrong."""
JUMP_M, JUMP_RAD = 0.1, 0.4
"""A set-point further than this from the last one is a discontinuity."""

Control = Literal["cartesian", "joint"]


class ControlBox:
    """Joint impedance control with its own watchdog.

    Args:
        physics: the arm.
        control: whether set-points are ``[x y z rx ry rz width]`` or ``[q1 … q7 width]``.
        watchdog_ms: silence of the driver, in robot ms, after which it brakes and latches a fault.
    """

    def __init__(self, physics: Physics, control: Control, watchdog_ms: float):
        self._physics, self._control = physics, control
        self._kinematics = Kinematics(physics.model, np.asarray(READY))
        self._watchdog_ns = watchdog_ms * MS
        self._limit = SPEED_MARGIN * np.asarray(fr3.JOINT_VELOCITY)
        self._reflex = 1.2 * np.asarray(fr3.JOINT_VELOCITY)
        self._setpoint: Array | None = None
        self._heard_ns = self._settled_ns = 0
        self._speed = np.zeros(7)
        self._width = self._width_wanted = fr3.WIDTH_MAX
        self.fault = ""
        """Why it does not move; empty while it does. Latched until ``recover``."""
        self.faults = 0

    def follow(self, setpoint: Array) -> None:
        """Head for a set-point ``(Dc,)``; from the first one on the watchdog listens."""
        if self.fault:
            return
        if len(setpoint) != (7 if self._control == "cartesian" else 8):
            self.fail("set-point has the wrong length")
        elif not np.isfinite(setpoint).all():
            self.fail("set-point is not finite")
        elif self._jumps(setpoint):
            self.fail("set-point discontinuity")
        else:
            self._setpoint, self._heard_ns = setpoint[:-1], self._physics.robot_ns
            self._width_wanted = max(0.0, min(fr3.WIDTH_MAX, float(setpoint[-1])))

    def _jumps(self, setpoint: Array) -> bool:
        """Whether a set-point lies too far from the last one, or from the arm for the first."""
        last, q = self._setpoint, self._physics.reference
        if self._control == "joint":
            away = setpoint[:7] - (q if last is None else last)
            return bool(np.abs(away).max() > JUMP_RAD)
        if last is None:
            metres, radians = self._kinematics.distance(q, setpoint[:6])
        else:
            away = (setpoint[:6] - last).tolist()
            metres, radians = math.hypot(*away[:3]), math.hypot(*away[3:])
        return metres > JUMP_M or radians > JUMP_RAD

    def fail(self, reason: str) -> None:
        """Brake and latch a fault; the first reason stays."""
        if not self.fault:
            self.fault, self.faults = reason, self.faults + 1
        self._setpoint = None

    def rest(self) -> None:
        """Brake and stay, without a fault; the watchdog waits for the next set-point."""
        self._setpoint = None

    def recover(self) -> None:
        """Clear the fault; stand where the arm is."""
        self.fault, self._setpoint = "", None
        self._settled_ns = self._physics.robot_ns + SETTLE_NS
        self._speed = np.zeros(7)
        self._physics.refer(self._physics.data.qpos[:7].copy(), self._speed)

    def cycle(self) -> None:
        """Let one control cycle pass: check, refer, step the physics."""
        self._watch()
        self._speed = self._brake() if self._setpoint is None else self._pursue(self._setpoint)
        self._physics.refer(self._physics.reference, self._speed)
        stroke = fr3.WIDTH_VELOCITY * CYCLE_S
        self._width += max(-stroke, min(stroke, self._width_wanted - self._width))
        self._physics.grip(self._width)
        self._physics.step(CYCLE_STEPS)

    @property
    def silence_ns(self) -> int:
        """Robot time since the last set-point; 0 while none is expected."""
        return self._physics.robot_ns - self._heard_ns if self._setpoint is not None else 0

    def _watch(self) -> None:
        if self.silence_ns > self._watchdog_ns:
            self.fail("communication constraints violation: no set-point in time")
        fast = np.abs(self._physics.speed) > self._reflex
        if fast.any() and self._physics.robot_ns >= self._settled_ns:
            self.fail("joint velocity violation")

    def _brake(self) -> Array:
        """Return joint speeds ``(7,)`` rad/s on the way to rest."""
        slower = np.maximum(np.abs(self._speed) - BRAKE * CYCLE_S, 0.0)
        return np.sign(self._speed) * slower

    def _pursue(self, setpoint: Array) -> Array:
        """Return joint speeds ``(7,)`` rad/s towards the set-point, scaled into the limits.

        Set-points may come late and then jump by some centimetres: the reference takes its time to
        speed up, and is never faster than it can brake before it is there.
        """
        q = self._physics.reference
        if self._control == "joint":
            aim = np.clip(setpoint, fr3.JOINT_LOW, fr3.JOINT_HIGH)
            speeds = (aim - q) / TIME_CONSTANT
        else:
            speeds = self._kinematics.speeds(q, setpoint, TIME_CONSTANT)
        limit = np.minimum(self._limit, np.sqrt(2 * AGILITY * TIME_CONSTANT * np.abs(speeds)))
        speeds = speeds / max(1.0, float((np.abs(speeds) / np.maximum(limit, 1e-9)).max()))
        change = np.minimum(np.maximum(speeds - self._speed, -SPRINT), SPRINT)
        return np.asarray(self._speed + change)

    def state(self) -> Array:
        """Return the state vector of ``robots.sim.state``."""
        return self._physics.sense(self._width)
