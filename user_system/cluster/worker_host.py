"""A policy worker's process: the only one of a robot host that runs plugin code."""

from functools import partial

from user_system.cluster.configs import (
    SeatEntry,
    WorkerHostConfig,
    learner_plugin,
    make_task,
    robot_spec,
)
from user_system.cluster.process import Life, run
from user_system.edge.worker import SeatConfig, WorkerServer


def main(config: WorkerHostConfig, life: Life) -> None:
    """Serve one policy to its robots until told to stop."""
    server = WorkerServer([_seat(config, entry) for entry in config.seats])
    life.on_end(server.stop)
    life.ready()
    server.run()


def _seat(config: WorkerHostConfig, entry: SeatEntry) -> SeatConfig:
    plugin, settings = learner_plugin(config.learner)
    return SeatConfig(
        robot=entry.robot,
        socket=entry.socket,
        policy_name=config.learner.kind,
        task_name=entry.task.kind,
        make_policy=partial(plugin.make_policy, robot_spec(entry.plugin), settings),
        make_task=partial(make_task, entry.task),
    )


if __name__ == "__main__":
    run(main, WorkerHostConfig)
