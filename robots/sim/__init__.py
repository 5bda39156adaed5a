"""A simulated Franka arm on real physics, behind the same interface as a real one."""

from robots.sim.config import SimFrankaConfig
from robots.sim.driver import SimFranka

__all__ = ["SimFranka", "SimFrankaConfig"]
