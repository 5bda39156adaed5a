"""The same arm, gate and task in one process, as fast as it goes: reference loop and test bench.

Example::

    env = SimEnv()
    observation = env.reset(seed=0)
    while not env.done:
        observation, judgement, executed = env.step(pick_cube(observation))
"""

from collections.abc import Mapping

import numpy as np

from robots.gate import Command, CommandGate
from robots.sim.config import HOME, HOME_JOINTS, SimFrankaConfig, spec_of
from robots.sim.control_box import CYCLE_S, ControlBox
from robots.sim.layout import cube_pose
from robots.sim.model import Scene
from robots.sim.physics import Physics
from robots.sim.state import cartesian_setpoint, joint_setpoint, observe
from robots.sim.tasks import PickCube, PickCubeConfig
from user_system.core.clock import SECOND
from user_system.core.errors import RobotFault
from user_system.core.interfaces import Judgement
from user_system.core.types import Array, Observation, Purpose

ARRIVED = 0.003
"""How close to a waypoint, per coordinate, m or rad."""
SETTLE_STEPS = 40
"""Control periods that a reset may take."""


class SimEnv:
    """One arm, one cube, one task, unpaced; the control walk is the system's own.

    Args:
        config: the robot.
        task: the task's configuration.
    """

    def __init__(self, config: SimFrankaConfig | None = None, task: PickCubeConfig | None = None):
        self.config = config or SimFrankaConfig()
        joints = self.config.space == "joint"
        self.task = PickCube(task or PickCubeConfig(home=HOME_JOINTS if joints else HOME))
        self.spec = spec_of(self.config)
        self._physics = Physics(Scene(cube_half=self.task.config.cube_half))
        self._box = ControlBox(self._physics, self.config.space, watchdog_ms=2000.0)
        spec = self.spec
        self._gate = CommandGate(
            spec.limits,
            tick_hz=spec.tick_hz,
            hold_after_ms=spec.hold_after_ms,
            stop_after_ms=spec.stop_after_ms,
            boot="single",
        )
        self._ticks = round(spec.tick_hz / spec.control_hz)
        self._cycles = round(1 / (spec.tick_hz * CYCLE_S))
        self._sequence = self._k = 0
        self._before: Observation = {}
        self.done = True
        self._gate.start(self._setpoint())

    def reset(self, seed: int, purpose: Purpose = Purpose.TRAIN) -> Observation:
        """Lay out the scene of ``seed``, go where the task begins, return the first observation.

        Raises:
            RobotFault: the control box latched a fault; a test bench has nobody to release it.
        """
        plan = self.task.reset(seed=seed, purpose=purpose)
        if plan.scene is not None:
            self._physics.lay_out(cube_pose(seed, plan.scene))
        for waypoint in plan.waypoints:
            for _ in range(SETTLE_STEPS):
                self._drive(np.asarray(waypoint))
                if np.abs(self._setpoint() - waypoint).max() < ARRIVED:
                    break
        self._drive(self._gate.target)
        self._k, self.done = 0, False
        self._before = self.observation()
        return self._before

    def step(self, action: Array) -> tuple[Observation, Judgement, Array]:
        """Act for one control period; return what is seen, its judgement, the executed action."""
        start = self._gate.target
        self._drive(self.spec.action.target(start, action))
        executed = self.spec.action.between(start, self._gate.target)
        after = self.observation()
        judgement = self.task.judge(self._before, executed, after, self._k)
        self.done = judgement.terminated or judgement.timeout
        self._before, self._k = after, self._k + 1
        return after, judgement, executed

    def observation(self) -> Observation:
        """Return what the robot sees now."""
        return observe(self._box.state(), self.config.space == "joint")

    def stats(self) -> Mapping[str, float]:
        """Return the gate's counters and the robot time that passed."""
        return {**self._gate.stats(), "robot_s": self._physics.robot_ns / SECOND}

    def _drive(self, target: Array) -> None:
        """Command one target and let one control period pass."""
        now = self._physics.robot_ns
        self._sequence += 1
        self._gate.offer(Command(0, "single", self._sequence, now + SECOND, target), now)
        for _ in range(self._ticks):
            self._box.follow(self._gate.tick(self._physics.robot_ns).setpoint)
            for _ in range(self._cycles):
                self._box.cycle()
        if self._box.fault:
            raise RobotFault("the simulated control box stopped the arm", got=self._box.fault)

    def _setpoint(self) -> Array:
        state = self._box.state()
        return (cartesian_setpoint if self.config.space == "cartesian" else joint_setpoint)(state)
