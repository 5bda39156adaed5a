"""A policy worker's process: the only one of a robot host that runs plugin code."""

from contextlib import nullcontext
from functools import partial
from typing import NoReturn

from comms.tunnel import Tunnel
from user_system.cluster import dial
from user_system.cluster.configs import (
    AwayConfig,
    SeatEntry,
    WorkerHostConfig,
    learner_plugin,
    make_task,
    robot_spec,
)
from user_system.cluster.process import Life, run
from user_system.core.errors import PluginError
from user_system.edge.remote import Remote
from user_system.edge.worker import SeatConfig, WorkerServer


def main(config: WorkerHostConfig, life: Life) -> None:
    """Serve one policy to its robots until told to stop."""
    away = config.away
    with nullcontext() if away is None else dial.tunnel(away.link) as way:
        server = WorkerServer([_seat(config, entry, way) for entry in config.seats])
        life.on_end(server.stop)
        life.ready()
        server.run()


def _seat(config: WorkerHostConfig, entry: SeatEntry, way: Tunnel | None) -> SeatConfig:
    if config.away is not None and way is not None:
        return _away(config.away, way, config, entry)
    plugin, settings = learner_plugin(config.learner)
    return SeatConfig(
        robot=entry.robot,
        socket=entry.socket,
        policy_name=config.learner.kind,
        task_name=entry.task.kind,
        make_policy=partial(plugin.make_policy, robot_spec(entry.plugin), settings),
        make_task=partial(make_task, entry.task),
    )


def _away(away: AwayConfig, way: Tunnel, config: WorkerHostConfig, entry: SeatEntry) -> SeatConfig:
    """Return a seat whose policy acts at the head: its code need not be installed here."""

    def nothing() -> NoReturn:
        raise PluginError(f"policy {config.policy!r} acts at the head")

    return SeatConfig(
        robot=entry.robot,
        socket=entry.socket,
        policy_name=config.learner.kind,
        task_name=entry.task.kind,
        make_policy=nothing,
        make_task=partial(make_task, entry.task),
        away=lambda tell: Remote(way, away.actor, entry.robot, tell, away.images),
    )


if __name__ == "__main__":
    run(main, WorkerHostConfig)
