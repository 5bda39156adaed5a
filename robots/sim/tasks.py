"""What a simulated arm can be asked to do."""

from dataclasses import dataclass

import numpy as np

from robots.sim.config import HOME
from user_system.core.errors import ConfigError
from user_system.core.interfaces import Judgement, ResetPlan
from user_system.core.types import Array, Observation, Purpose


@dataclass(frozen=True)
class PickCubeConfig:
    """Lift the cube off the table.

    Raises:
        ConfigError: a value is out of range.
    """

    lift_m: float = 0.1
    """How high the cube's lower face must be over the table, m."""
    max_steps: int = 50
    """Time limit, control periods."""
    centre: tuple[float, float] = (0.5, 0.0)
    """Middle of the region where cubes are laid out, x and y in the base frame, m."""
    half_extent: tuple[float, float] = (0.08, 0.12)
    """Half its extent along x and y, m."""
    turn: float = 0.25
    """Cubes are turned about the vertical by up to this angle, rad."""
    home: tuple[float, ...] = HOME
    """Set-point in which episodes begin; ``HOME_JOINTS`` for joint control."""
    start_noise: float = 0.02
    """Its first three coordinates vary by up to this much, m or rad."""
    step_penalty: float = 0.0
    """Taken from the reward of every step but a successful one."""
    cube_half: float = 0.02
    """Half an edge of the cube, m."""
    reset_speed: float = 1.0
    """Share of the arm's speed limits on its way home; on a real arm less."""

    def __post_init__(self) -> None:
        if self.max_steps < 1 or self.lift_m <= 0 or not 0 <= self.start_noise <= 0.05:
            raise ConfigError(
                "sim.pick_cube: value out of range",
                got=(self.max_steps, self.lift_m, self.start_noise),
                allowed="max_steps >= 1, lift_m > 0, start_noise in [0, 0.05]",
            )
        if not 0 < self.reset_speed <= 1:
            raise ConfigError(
                "sim.pick_cube: reset_speed", got=self.reset_speed, allowed="above 0, at most 1"
            )


class PickCube:
    """Sparse: reward 1 and the end once the cube hangs between the fingers at ``lift_m``.

    Needs the observation fields ``tcp_position``, ``gripper_width`` and ``cube_position``, so it
    judges a real arm whose cube is tracked just as well.
    """

    config_type = PickCubeConfig

    def __init__(self, config: PickCubeConfig | None = None):
        self.config = config or PickCubeConfig()

    def reset(self, *, seed: int, purpose: Purpose) -> ResetPlan:
        """Go home, a little beside it, and lay out a new cube; both follow from ``seed``."""
        noise = self.config.start_noise
        home = np.array(self.config.home)
        home[:3] += np.random.default_rng([seed, 1]).uniform(-noise, noise, 3)
        (x, y), (dx, dy) = self.config.centre, self.config.half_extent
        scene = {
            "x_low": x - dx,
            "x_high": x + dx,
            "y_low": y - dy,
            "y_high": y + dy,
            "turn": self.config.turn,
        }
        return ResetPlan((tuple(home.tolist()),), scene, speed=self.config.reset_speed)

    def judge(self, before: Observation, executed: Array, after: Observation, k: int) -> Judgement:
        """Judge by the observation after the step alone."""
        success = self.lifted(after)
        timeout = not success and k + 1 >= self.config.max_steps
        return Judgement(
            reward=1.0 if success else -self.config.step_penalty,
            terminated=success,
            timeout=timeout,
            success=success if success or timeout else None,
        )

    def lifted(self, observation: Observation) -> bool:
        """Whether the cube hangs between the fingers, high enough."""
        cube, half = observation["cube_position"], self.config.cube_half
        near = np.linalg.norm(cube - observation["tcp_position"]) < 1.5 * half
        held = float(observation["gripper_width"][0]) > 1.5 * half
        return bool(near and held and cube[2] - half >= self.config.lift_m)
