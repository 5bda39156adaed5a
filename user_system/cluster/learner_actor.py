"""The Ray actor in which a learner runs: a window on the replay buffer, a way to the hub."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from comms.data_client import PATIENCE_S, RemoteData
from comms.hub_client import HubClient
from comms.pb import hub_pb2
from comms.tunnel import Tunnel
from comms.weight_publisher import WeightPublisher
from learners.checkpoints import Checkpoints
from learners.runner import Modules, Runner, RunnerConfig
from user_system.cluster import dial
from user_system.cluster.configs import LearnerHostConfig, learner_plugin, make_encoder, robot_spec
from user_system.codec.weights import round_to_bfloat16
from user_system.core.errors import ConfigError, LinkError
from user_system.core.interfaces import Data
from user_system.core.specs import RobotSpec
from user_system.core.types import Array
from user_system.replay.sampler import FOLLOW_S, ReplayData
from user_system.replay.shards import Shard, ShardedData
from user_system.replay.store import reader
from user_system.replay.views import parse_views

LEARNING = frozenset({"", "baseline", "collect", "train"})
"""Phases in which learning serves anything; "": the hub has not said yet."""

SHARD_PATIENCE_S = 10.0
"""How long a learner waits for one of several stores before it learns from the others."""

log = logging.getLogger(__name__)


class LearnerActor:
    """Runs one learner. Ray calls ``run`` and ``stop`` in threads of their own."""

    def __init__(self, config: LearnerHostConfig):
        self._config = config
        self._stop = threading.Event()
        self._phase = ""

    def run(self) -> int:
        """Learn until ``stop``; return the updates done in all lives."""
        config = self._config
        _settle(config)
        plugin, settings = learner_plugin(config.plugin)
        spec = robot_spec(config.robot)
        check_cameras(config, spec)
        with dial.tunnel(config.link) as way, self._window(way) as data:
            publisher = WeightPublisher(way, near=config.shelf)

            def publish(
                modules: Modules, statistics: Mapping[str, Array], notes: Mapping[str, float]
            ) -> int:
                if config.weights_dtype == "bfloat16":
                    modules = {name: _rounded(tensors) for name, tensors in modules.items()}
                return publisher.publish(config.name, modules, statistics, notes=notes)

            runner = Runner(
                plugin.make_learner(spec, settings, data=data, seed=config.seed),
                data,
                publish=publish,
                checkpoints=Checkpoints(config.directory),
                report=lambda figures: self._report(HubClient(way), {**figures, **_stores(data)}),
                name=config.plugin.kind,
                active=lambda: self._phase in LEARNING,
                config=RunnerConfig(
                    publish_s=config.publish_every_s,
                    publish_min_s=min(0.2, config.publish_every_s),
                    checkpoint_s=config.checkpoint_every_s,
                ),
            )
            log.info("resumed" if runner.resume() else "begins")
            runner.run(self._stop.is_set)
            return runner.updates

    def stop(self) -> None:
        """Ask ``run`` to save and return."""
        self._stop.set()

    @contextmanager
    def _window(self, way: Tunnel) -> Iterator[Data]:
        """Yield the window on the replay buffer, or on all stores that hold parts of it."""
        config = self._config
        with ExitStack() as opened:
            stores = {name: self._store(name, way, opened) for name in config.shards}
            if len(stores) == 1:
                yield next(iter(stores.values()))
                return
            together = ShardedData(stores, seed=config.seed)
            opened.callback(together.close)
            yield together

    def _store(self, name: str, way: Tunnel, opened: ExitStack) -> Shard:
        """Return a window on one store, its file or a reader that has it; ``opened`` closes it."""
        config = self._config
        encoders = {name: make_encoder(e) for name, e in config.encoders.items()}
        several = len(config.shards) > 1
        # Each window has a share of the memory, and random numbers of its own.
        cache_bytes = config.cache_bytes // len(config.shards)
        seed = config.seed + config.shards.index(name)
        if config.access == "mmap" and not name:
            env = opened.enter_context(reader(config.replay).open())
            window = ReplayData(
                env,
                seed=seed,
                views=parse_views(config.views),
                encoders=encoders,
                cache_bytes=cache_bytes,
            )
            window.follow_s = FOLLOW_S
            return window
        remote = RemoteData(
            way,
            shard=name,
            seed=seed,
            views=config.views,
            encoders=encoders,
            cache_bytes=cache_bytes,
            # How many rows one of several gives is not known before.
            ahead=0 if several else config.ahead,
            ahead_bytes=config.ahead_bytes,
            patience_s=SHARD_PATIENCE_S if several else PATIENCE_S,
            stopped=self._stop,
        )
        return opened.enter_context(remote)

    def _report(self, hub: HubClient, figures: Mapping[str, float]) -> None:
        report = hub_pb2.ProcessReport(
            name=f"learner-{self._config.name}", kind="learner", pid=os.getpid(), figures=figures
        )
        try:
            self._phase = hub.report(report).phase
        except LinkError as error:  # learning goes on without the hub
            log.warning("the hub did not hear our report: %s", error)


def _stores(data: Data) -> dict[str, float]:
    """Return how many of several stores do not answer, and in how many draws one did not."""
    if not isinstance(data, ShardedData):
        return {}
    found = data.stats()
    return {"stores_away": found["away"], "draws_left_out": found["left_out"]}


def _rounded(tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {name: round_to_bfloat16(tensor) for name, tensor in tensors.items()}


def check_cameras(config: LearnerHostConfig, spec: RobotSpec) -> None:
    """Refuse encoders of images that a learner's robots do not record.

    Raises:
        ConfigError: says which cameras there are.
    """
    if unknown := config.encoders.keys() - spec.cameras.keys():
        raise ConfigError(
            f"learners.{config.name}.encoders: {config.robot.kind} records no such camera",
            got=", ".join(sorted(unknown)),
            allowed=", ".join(spec.cameras) or "none: it has no cameras",
            todo="Name cameras in the robot's config; they are then part of what it observes.",
        )


def _settle(config: LearnerHostConfig) -> None:
    """Take the place of a background process, before the first heavy import reads its threads."""
    os.setpriority(os.PRIO_PROCESS, 0, config.nice)
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(config.threads)
    logging.basicConfig(
        filename=config.log,
        level=logging.INFO,
        format="%(asctime)s %(levelname).1s %(name)s: %(message)s",
        force=True,
    )
