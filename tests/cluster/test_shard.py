"""A robot host's own shard: what its agent records stays there, and learners draw from it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from comms import near
from comms.authority import Authority
from comms.credentials import AllowList, Credentials, Role
from comms.data_service import DataService
from comms.experience_client import ExperienceClient, replay_stats
from comms.serving import serve
from comms.shard_offer import ShardOffer
from comms.shard_relay import ShardRelay
from comms.tunnel import CHANNEL_OPTIONS, DirectTunnel, Endpoints
from user_system.cluster import dial, reader_host, shard_host
from user_system.cluster.configs import (
    LearnerHostConfig,
    LinkConfig,
    PluginConfig,
    ShardConfig,
    ShardHostConfig,
)
from user_system.cluster.learner_actor import LearnerActor
from user_system.cluster.process import Life
from user_system.codec import fragments as codec
from user_system.core.errors import LinkError
from user_system.core.interfaces import Draw
from user_system.edge.spool import Spool
from user_system.replay.queue import Queue
from user_system.replay.shards import ShardedData
from user_system.replay.store import Store, reader

from ..episodes import fragment

GENEROUS_S = 60.0


@pytest.fixture
def pki(tmp_path: Path) -> Path:
    authority = Authority.open(tmp_path / "pki")
    roles = {"hub": Role.SERVICE, "reader": Role.SERVICE}
    for name, role in {**roles, "lab-1": Role.ROBOT, "learner": Role.LEARNER}.items():
        authority.issue(name, role)
    return tmp_path / "pki"


@pytest.fixture
def shard(tmp_path: Path) -> ShardConfig:
    return ShardConfig("lab-1", tmp_path / "r", tmp_path / "lab" / "pki")


@pytest.fixture
def writer(tmp_path: Path, pki: Path, shard: ShardConfig) -> ShardHostConfig:
    link = LinkConfig("lab-1", pki, *["127.0.0.1:9"] * 3)
    return ShardHostConfig(link, shard, tmp_path / "lab" / "replay", 1 << 28, 0, {})


@contextmanager
def writing(config: ShardHostConfig) -> Iterator[None]:
    """Run the shard's writer in a thread, as its process runs it; no hub hears its reports."""
    ready = config.directory.parent / "ready"
    ready.parent.mkdir(exist_ok=True)
    life = Life(str(ready))
    thread = threading.Thread(target=shard_host.main, args=(config, life), daemon=True)
    thread.start()
    wait_for(ready.exists)
    yield
    life.end()
    thread.join(GENEROUS_S)
    assert not thread.is_alive()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GENEROUS_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def record(path: Path, shard: ShardConfig, count: int) -> None:
    """Have an agent's spool drain into the shard."""
    with Queue(path, max_bytes=1 << 28).open(create=True) as queue, dial.shard_tunnel(shard) as way:
        for k in range(count):
            one = fragment("arm-1", k)
            queue.append("arm-1", 1, k, codec.encode(one), boot=one.header.boot)
        spool = Spool(queue, quota_bytes=1 << 28)
        client = ExperienceClient(way, spool, shard.host)
        client.start()
        wait_for(lambda: spool.depth == 0)
        client.close()


def test_what_is_recorded_stays_at_the_host_and_is_drawn_from_the_head(
    tmp_path: Path, pki: Path, shard: ShardConfig, writer: ShardHostConfig
) -> None:
    with writing(writer):
        record(tmp_path / "spool", shard, 12)
    with Store(tmp_path / "replay").open(create=True) as own:
        own.append([fragment("arm-9", k) for k in range(6)])
    relay = ShardRelay()
    me = Credentials.load(pki, "reader")
    with reader(tmp_path / "replay").open() as env:
        head = DataService(lambda opening: reader_host.window(env, opening), relay=relay)
        with serve([head, relay], credentials=me, allow=AllowList(pki)) as server:
            link = replace(writer.link, name="learner", reader=f"127.0.0.1:{server.port}")
            with offering(pki, writer.directory, link):
                check_draws(tmp_path, link)


def check_draws(tmp_path: Path, link: LinkConfig) -> None:
    for shards, robots in (
        (("", "lab-1"), {"arm-1", "arm-9"}),
        (("lab-1",), {"arm-1"}),
        (("",), {"arm-9"}),
    ):
        config = learner_config(tmp_path, link, shards)
        with dial.tunnel(link) as way, LearnerActor(config)._window(way) as data:
            assert isinstance(data, ShardedData) == (len(shards) > 1)
            batch = data.draw(Draw(64, columns=("robot",)))
            names = data.names()
            assert {names[code] for code in batch.extras["robot"].tolist()} == robots
            assert data.count() == 3 * (12 * ("lab-1" in shards) + 6 * ("" in shards))


@contextmanager
def offering(pki: Path, store: Path, link: LinkConfig) -> Iterator[None]:
    """Offer the host's store to the head."""
    way = DirectTunnel(Endpoints(reader=link.reader), Credentials.load(pki, "lab-1"))
    with closing(way), reader(store).open() as env:
        service = DataService(lambda opening: reader_host.window(env, opening))
        offer = ShardOffer(way, "lab-1", service)
        offer.start()
        yield
        offer.close()


def learner_config(tmp_path: Path, link: LinkConfig, shards: tuple[str, ...]) -> LearnerHostConfig:
    nothing = dict.fromkeys(("seed", "cpus", "gpus", "threads", "nice", "max_restarts"), 1)
    return LearnerHostConfig(
        link=link,
        name="learner",
        run="run",
        plugin=PluginConfig("rlpd"),
        robot=PluginConfig("sim.franka"),
        robots=(),
        **nothing,
        publish_every_s=1.0,
        checkpoint_every_s=1.0,
        replay=tmp_path / "replay",
        shards=shards,
        access="remote",
        ahead=1,
        ahead_bytes=1 << 20,
        views={},
        encoders={},
        cache_bytes=1 << 20,
        directory=tmp_path,
        log=tmp_path / "log",
        ray="",
    )


def test_nobody_else_of_the_host_gets_in(
    tmp_path: Path, pki: Path, shard: ShardConfig, writer: ShardHostConfig
) -> None:
    """Neither without a certificate nor with one of the head's: the two know each other only."""
    stranger = near.NearTunnel("replay", shard.socket, Credentials.load(pki, "lab-1"))
    with writing(writer), closing(stranger):
        with dial.shard_tunnel(shard) as way:
            assert replay_stats(way)["fragments"] == 0
        with pytest.raises(LinkError):
            replay_stats(stranger, timeout_s=2.0)
        with grpc.insecure_channel(near.address(shard.socket), CHANNEL_OPTIONS) as channel:
            call = channel.unary_unary("/user_system.v1.Experience/Stats")
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=2.0)


def test_only_the_shard_is_reached_by_its_tunnel(
    shard: ShardConfig, writer: ShardHostConfig
) -> None:
    with writing(writer), dial.shard_tunnel(shard) as way:
        with pytest.raises(LinkError, match="hub is not on this host; allowed: replay"):
            way.channel("hub")
        with pytest.raises(LinkError, match="fresh lane"):
            way.fresh(None)  # type: ignore[arg-type]
