"""A simulated robot's world: physics, control box and its watchdog. It outlives its driver."""

import os

from robots.sim.world import World, WorldConfig
from user_system.cluster.configs import WorldHostConfig
from user_system.cluster.process import Life, run


def main(config: WorldHostConfig, life: Life) -> None:
    """Simulate until told to stop."""
    # One picture at a time is enough, and the learner needs the other core.
    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("LP_NUM_THREADS", "1")
    world = World(
        WorldConfig(
            socket=str(config.socket),
            space=config.space,
            rate=config.rate,
            image_size=config.image_size,
            cube_half=config.cube_half,
        )
    )
    life.on_end(world.stop)
    life.ready()
    world.run()


if __name__ == "__main__":
    run(main, WorldHostConfig)
