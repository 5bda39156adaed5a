"""A learner's process on the head: reserves its place in Ray and keeps its actor alive.

The learner itself runs in a Ray actor, beside a GPU if it wants one. This process is the one that
Ray's driver must be; it draws nothing and sends nothing. If Ray itself goes away it ends, and the
launcher starts it again once there is a new head.
"""

import logging
import socket
import time
from typing import Any

import ray

from user_system.cluster import ray_node, resources
from user_system.cluster.configs import LearnerHostConfig
from user_system.cluster.learner_actor import LearnerActor
from user_system.cluster.process import Life, run
from user_system.core.errors import ConfigError, LinkError, PluginError, UserSystemError
from user_system.core.supervise import Backoff

RESERVE_S = 60.0
STOP_S = 8.0
POLL_S = 0.5

log = logging.getLogger(__name__)


def main(config: LearnerHostConfig, life: Life) -> None:
    """Keep one learner running until told to stop."""
    if not wait_for_head(config.ray, life):
        return
    ray_node.stay_local()
    ray.init(
        address=config.ray,
        _node_ip_address=resources.LOOPBACK,
        namespace=config.run,
        log_to_driver=True,
        logging_level=logging.WARNING,
    )
    life.watch()
    place = reserve(config)
    life.ready()
    backoff, deaths = Backoff(), 0
    while not life.stop.is_set():
        began = time.monotonic()
        try:
            _live_once(config, place, life)
        except ray.exceptions.RayError as error:
            deaths += 1
            reason = _reason(error)
            if isinstance(reason, ConfigError) or deaths > config.max_restarts:
                raise reason from error
            delay = backoff.died(time.monotonic() - began)
            log.warning("learner %s died: %s; again in %.1f s", config.name, reason, delay)
            life.stop.wait(delay)
    ray.shutdown()


def wait_for_head(address: str, life: Life) -> bool:
    """Wait until the head accepts connections; False: this process should end.

    Ray itself would try for half a minute and fail, which is long after a restarted head serves.
    """
    host, _, port = address.rpartition(":")
    while not life.stop.is_set():
        try:
            socket.create_connection((host, int(port)), timeout=1.0).close()
            return True
        except OSError:
            life.stop.wait(0.2)
    return False


def reserve(config: LearnerHostConfig) -> Any:
    """Reserve CPUs, GPUs and robots together, all or nothing.

    Raises:
        LinkError: somebody else has them.
    """
    compute = {"CPU": config.cpus} | ({"GPU": config.gpus} if config.gpus else {})
    robots = {resources.robot_resource(robot): 1.0 for robot in config.robots}
    group = ray.util.placement_group([compute, robots], strategy="PACK", name=config.name)
    if not group.wait(RESERVE_S):
        raise LinkError(
            f"learner {config.name} could not reserve its place in {RESERVE_S:g} s",
            got=f"free: {ray.available_resources()}",
            allowed=f"{compute} and {robots}",
        )
    return group


def _live_once(config: LearnerHostConfig, place: Any, life: Life) -> None:
    """Run the actor until it ends by itself or is told to."""
    strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
        placement_group=place, placement_group_bundle_index=0
    )
    options = {"num_cpus": config.cpus, "num_gpus": config.gpus, "max_concurrency": 2}
    actor = (
        ray.remote(LearnerActor)
        .options(scheduling_strategy=strategy, max_restarts=0, **options)
        .remote(config)
    )
    done = actor.run.remote()
    while not life.stop.is_set():
        if ray.wait([done], timeout=POLL_S)[0]:
            ray.get(done)
            return
    ray.get(actor.stop.remote(), timeout=STOP_S)
    ray.get(done, timeout=STOP_S)


def _reason(error: Exception) -> UserSystemError:
    """Return what the learner itself said, where it said anything."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, UserSystemError) else PluginError(f"learner died: {error}")


if __name__ == "__main__":
    run(main, LearnerHostConfig)
