"""From a tool pose to joint speeds: damped least squares, away from the joint limits."""

import math
from typing import Any

import numpy as np

from robots.sim import franka_data as fr3
from robots.sim.engine import mujoco
from robots.sim.physics import TOOL_DOWN
from user_system.core.types import Array

DAMPING = 0.02
"""Least-squares damping, m: keeps joint speeds finite near singular poses, at the price of lag."""
CENTERING = 0.5
"""Pull towards the resting posture in the null space, 1/s."""


class Kinematics:
    """The control box's own model of the arm, apart from the physics it commands.

    Args:
        model: compiled MJCF.
        posture: joint positions ``(7,)`` rad that the elbow is drawn to.
    """

    def __init__(self, model: Any, posture: Array):
        self._model, self._data = model, mujoco.MjData(model)
        self._site = model.site("tcp").id
        self._qpos = self._data.qpos
        self._posture = np.asarray(posture)
        self._jacobian = np.zeros((6, model.nv))
        self._eye6 = np.eye(6) * DAMPING**2
        self._low = np.asarray(fr3.JOINT_LOW) + 0.02
        self._high = np.asarray(fr3.JOINT_HIGH) - 0.02

    def speeds(self, q: Array, pose: Array, time_constant: float) -> Array:
        """Return joint speeds ``(7,)`` rad/s that lead from ``q`` to ``pose``.

        ``pose`` is ``(6,)``: m, and rotation vector rad from tool-down, base frame. The error
        decays with ``time_constant`` s. The result keeps every joint inside its limits for at
        least that time.
        """
        error = self._error(q, pose) / time_constant
        jacobian = self._jacobian[:, :7]
        drift = CENTERING * (self._posture - q)
        # Both parts share one damped inverse: J^T (J J^T + d^2 I)^-1 (error - J drift) + drift.
        square, effort = jacobian @ jacobian.T + self._eye6, np.empty(6)
        mujoco.mju_cholFactor(square, 0.0)
        mujoco.mju_cholSolve(effort, square, error - jacobian @ drift)
        speeds = jacobian.T @ effort + drift
        low, high = (self._low - q) / time_constant, (self._high - q) / time_constant
        bounded: Array = np.minimum(np.maximum(speeds, low), high)
        return bounded

    def _error(self, q: Array, pose: Array) -> Array:
        """Return ``(6,)`` m and rad from the tool at ``q`` to ``pose``; leaves the Jacobian."""
        data = self._data
        self._qpos[:7] = q
        mujoco.mj_kinematics(self._model, data)
        mujoco.mj_comPos(self._model, data)
        mujoco.mj_jacSite(self._model, data, self._jacobian[:3], self._jacobian[3:], self._site)
        error, turn, here, wanted = np.empty(6), np.empty(4), np.empty(4), np.empty(4)
        error[:3] = pose[:3] - data.site_xpos[self._site]
        angle = math.hypot(*pose[3:].tolist())
        axis = pose[3:] / angle if angle > 0 else np.array((1.0, 0.0, 0.0))
        mujoco.mju_axisAngle2Quat(turn, axis, angle)
        mujoco.mju_mulQuat(wanted, turn, TOOL_DOWN)
        mujoco.mju_mat2Quat(here, data.site_xmat[self._site])
        mujoco.mju_negQuat(here, here.copy())
        mujoco.mju_mulQuat(turn, wanted, here)
        mujoco.mju_quat2Vel(error[3:], turn, 1.0)
        return error

    def distance(self, q: Array, pose: Array) -> tuple[float, float]:
        """Return how far the tool at ``q`` is from ``pose``: m and rad."""
        error = self._error(q, pose)
        return math.hypot(*error[:3].tolist()), math.hypot(*error[3:].tolist())
