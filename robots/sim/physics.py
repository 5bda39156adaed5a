"""The world itself: MuJoCo, the arm's sensors and servos, the cube."""

import math
from typing import Any

import numpy as np

from robots.sim.engine import mujoco
from robots.sim.model import TIMESTEP, Scene, build_xml
from robots.sim.state import PARTS, SIZE
from robots.sim.wrist import Wrist
from user_system.core.types import Array

READY = (0.0, 0.0459, 0.0, -2.3763, 0.0, 2.4222, np.pi / 4)
"""Joint positions (7,) rad that the physics begin in: the tool points down at (0.5, 0, 0.2) m."""

TOOL_DOWN = np.array((0.0, 1.0, 0.0, 0.0))
"""Nominal orientation of the tool as a quaternion (w, x, y, z): base turned about x by pi."""

CLEAR = 0.09
"""Nobody lays out a cube closer than this to the tool, m."""


class Physics:
    """The simulated world; time passes only in ``step``.

    Args:
        scene: what stands on the table.
    """

    def __init__(self, scene: Scene):
        self.scene = scene
        self.model = mujoco.MjModel.from_xml_string(build_xml(scene))
        self.data = mujoco.MjData(self.model)
        self._tcp = self.model.site("tcp").id
        pads = [self.model.geom(name).id for name in ("finger1", "finger2")]
        cube = self.model.geom("cube").id
        self._pinching = {pair for pad in pads for pair in ((pad, cube), (cube, pad))}
        """Pairs of geoms in contact when a finger touches the cube."""
        self._cube = int(self.model.joint("cube").qposadr[0])
        self._cube_v = int(self.model.joint("cube").dofadr[0])
        self._servo = np.array([self.model.actuator(f"joint{i}").id for i in range(1, 8)])
        self._damper = np.array([self.model.actuator(f"joint{i}_damper").id for i in range(1, 8)])
        self._grip = self.model.actuator("grip").id
        self._jacobian = np.zeros((3, self.model.nv))
        # Views on the engine's own memory: asking the engine for one takes as long as using it.
        data = self.data
        self._qpos, self._qvel, self._act, self._ctrl = data.qpos, data.qvel, data.act, data.ctrl
        self._arm = data.qpos[:7], data.qvel[:7]
        self._contact_force = np.zeros(6)
        self._wanted_cube: Array | None = None
        self.steps = 0
        self.wrist = Wrist(self.model, self.data)
        self.restart()

    def restart(self) -> None:
        """Stand in ``READY`` with open fingers, the cube in the middle."""
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:7] = READY
        self.data.qpos[7:9] = 0.04
        self.refer(np.asarray(READY), np.zeros(7))
        self.grip(0.08)
        mujoco.mj_forward(self.model, self.data)

    @property
    def robot_ns(self) -> int:
        """Robot time in ns: it passes with the physics steps."""
        return self.steps * round(TIMESTEP * 1e9)

    def step(self, n: int) -> None:
        """Let ``n`` physics steps pass."""
        if self.wrist.hz:
            for i in range(n):
                mujoco.mj_step(self.model, self.data)
                self.wrist.stepped(self.steps + i)
        else:
            mujoco.mj_step(self.model, self.data, n)
        self.steps += n
        if self._wanted_cube is not None:
            self._place_cube()

    def refer(self, q: Array, dq: Array) -> None:
        """Set the joint servos' reference: positions ``(7,)`` rad moving at ``(7,)`` rad/s."""
        self._act[:] = q
        self._ctrl[self._servo] = dq
        self._ctrl[self._damper] = dq

    def grip(self, width: float) -> None:
        """Set the hand's reference: opening in m."""
        self._ctrl[self._grip] = width / 2

    @property
    def reference(self) -> Array:
        """Joint reference ``(7,)`` rad after the steps so far; a view, which moves with them."""
        reference: Array = self._act
        return reference

    @property
    def speed(self) -> Array:
        """Joint speeds ``(7,)`` rad/s; a view."""
        speed: Array = self._arm[1]
        return speed

    def sense(self, width_command: float) -> Array:
        """Return the state vector of ``robots.sim.state``."""
        state, (q, dq) = np.empty(SIZE), self._arm
        state[PARTS["q"]], state[PARTS["dq"]] = q, dq
        state[PARTS["tcp"]] = tool_pose(self.data, self._tcp)
        mujoco.mj_jacSite(self.model, self.data, self._jacobian, None, self._tcp)
        state[PARTS["tcp_velocity"]] = self._jacobian[:, :7] @ dq
        state[PARTS["width"]] = self._qpos[7] + self._qpos[8]
        state[PARTS["width_command"]] = width_command
        state[PARTS["grip_force"]] = self._grip_force()
        state[PARTS["cube"]] = self._qpos[self._cube : self._cube + 3]
        w, _, _, z = self._qpos[self._cube + 3 : self._cube + 7].tolist()
        state[PARTS["cube_turn"]] = 2 * math.atan2(z, w)
        return state

    def _grip_force(self) -> float:
        """Return the force with which one finger presses on the cube, N."""
        total = 0.0
        if self.data.ncon:
            for i, pair in enumerate(self.data.contact.geom.tolist()):
                if tuple(pair) in self._pinching:
                    mujoco.mj_contactForce(self.model, self.data, i, self._contact_force)
                    total += abs(float(self._contact_force[0]))
        return total / 2

    def lay_out(self, cube: Array) -> None:
        """Put the cube at ``(x m, y m, turn rad)``, as soon as the hand is not in its place."""
        self._wanted_cube = np.asarray(cube, np.float64)
        self._place_cube()

    def _place_cube(self) -> None:
        """Place the wanted cube, or keep it aside behind the arm until the hand is clear of it."""
        wanted = self._wanted_cube
        if wanted is None:
            return
        x, y, turn = wanted
        half = self.scene.cube_half
        clear = np.linalg.norm(self.data.site_xpos[self._tcp] - (x, y, half)) > CLEAR
        at = (x, y) if clear else (-0.5, 0.0)
        pose = (*at, half, np.cos(turn / 2), 0.0, 0.0, np.sin(turn / 2))
        self.data.qpos[self._cube : self._cube + 7] = pose
        self.data.qvel[self._cube_v : self._cube_v + 6] = 0.0
        if clear:
            self._wanted_cube = None
        mujoco.mj_forward(self.model, self.data)


def tool_pose(data: Any, site: int) -> Array:
    """Return the pose ``(6,)`` of a site: m, and rotation vector rad from ``TOOL_DOWN``."""
    quat, pose = np.empty(4), np.empty(6)
    mujoco.mju_mat2Quat(quat, data.site_xmat[site])
    mujoco.mju_mulQuat(quat, quat.copy(), np.array((0.0, -1.0, 0.0, 0.0)))
    pose[:3] = data.site_xpos[site]
    mujoco.mju_quat2Vel(pose[3:], quat, 1.0)
    return pose
