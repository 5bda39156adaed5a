"""The agent's process, one per robot host: no plugin code, no Ray, no page."""

import os
import sys
import time
from contextlib import ExitStack

from user_system.cluster import dial
from user_system.cluster.configs import EdgeChild, EdgeHostConfig, EdgeRobot
from user_system.cluster.layout import JOURNALS, QUEUE
from user_system.cluster.process import Life, run
from user_system.edge.agent import Agent, AgentConfig, RobotConfig
from user_system.edge.patience import SessionConfig, StationConfig
from user_system.edge.spool import Spool
from user_system.edge.stop import StopSocket
from user_system.edge.supervisor import ChildConfig
from user_system.edge.uplink import Uplink
from user_system.edge.weight_files import keep_only
from user_system.replay.queue import Queue

RESERVE_BYTES = 64 * 2**20
"""Room beyond the quota in which the episodes at hand are finished."""


def main(config: EdgeHostConfig, life: Life, spool_type: type[Spool] = Spool) -> None:
    """Run the robots of this host until told to stop; a benchmark has a spool that takes notes."""
    place, records = config.directory, config.apart or config.directory
    settings = AgentConfig(
        host=config.host,
        run=config.run,
        directory=records / JOURNALS,
        # Whoever waits for a person does so whatever it is that records.
        memory=place / JOURNALS,
        robots=tuple(_robot(entry) for entry in config.robots),
        children=tuple(_child(entry) for entry in config.children),
    )
    keep_only(place / "weights", dial.authority_of(config.link))
    quota = config.spool_bytes + RESERVE_BYTES
    # Epochs by the calendar, so that a spool that replaces a lost one does not repeat its own.
    queue = Queue(records / QUEUE, max_bytes=quota, first_epoch=int(time.time()))
    with ExitStack() as held:
        held.enter_context(queue.open(create=True))
        way = held.enter_context(dial.tunnel(config.link))
        near = held.enter_context(dial.shard_tunnel(config.shard)) if config.shard else way
        spool = spool_type(queue, quota_bytes=config.spool_bytes)
        here = {entry.policy for entry in config.robots if not entry.remote}
        away = frozenset(entry.policy for entry in config.robots) - here
        uplink = Uplink(
            way,
            config.host,
            settings.boot,
            spool,
            place / "weights",
            replay=near,
            away=away,
            link=dial.measured(config.link),
            lossy=config.lossy,
            shelf=config.shelf,
            run=config.run,
        )
        agent = Agent(settings, spool, uplink)
        life.on_end(agent.close)
        life.on_finish(agent.finish)
        local = StopSocket(place, agent.stop)
        local.start()
        held.callback(local.close)
        life.ready()
        agent.run()


def _robot(entry: EdgeRobot) -> RobotConfig:
    return RobotConfig(
        name=entry.name,
        driver=entry.driver,
        seat=entry.seat,
        worker=entry.worker,
        task=entry.task,
        policy=entry.policy,
        session=SessionConfig(rate=entry.rate, starved_ms=1000.0 * entry.help_after_s),
        station=StationConfig(max_weights_age_s=entry.max_weights_age_s),
    )


def _child(entry: EdgeChild) -> ChildConfig:
    meek = ("nice", "-n", str(entry.nice)) if entry.nice else ()
    argv = (*meek, sys.executable, "-m", entry.module, str(entry.config))
    # A policy in NumPy on one thread: more would take time from the robots' loops.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return ChildConfig(entry.name, argv, log=entry.log, socket=entry.socket, env=env)


if __name__ == "__main__":
    run(main, EdgeHostConfig)
