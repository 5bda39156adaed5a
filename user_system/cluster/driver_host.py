"""One robot's driver process: the vendor's driver behind the command gate and its watchdog."""

from user_system.cluster.configs import DriverHostConfig, make_robot
from user_system.cluster.process import Life, run
from user_system.edge.driver import DriverConfig, DriverServer


def main(config: DriverHostConfig, life: Life) -> None:
    """Drive until told to stop."""
    world = {"socket": str(config.world)} if config.world is not None else {}
    server = DriverServer(
        DriverConfig(
            name=config.robot,
            socket=config.socket,
            memory=config.memory,
            previews=config.previews,
        ),
        make_robot(config.plugin, **world),
    )
    life.on_end(server.stop)
    life.ready()
    server.run()


if __name__ == "__main__":
    run(main, DriverHostConfig)
