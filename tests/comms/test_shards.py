"""Shards that are kept where nobody can dial: the same draws, over what the site has dialled."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
import pytest

from comms.credentials import AllowList, Credentials
from comms.data_client import RemoteData
from comms.data_service import DataService
from comms.data_session import Limits
from comms.pb import data_pb2, shards_pb2_grpc
from comms.pb import shards_pb2 as pb
from comms.serving import Server, serve
from comms.shard_offer import FREE as OFFERED
from comms.shard_offer import ShardOffer
from comms.shard_relay import FREE, ShardRelay
from comms.tunnel import DirectTunnel, Endpoints
from user_system.core.errors import LinkError, MissingError, SecurityError, SpecError
from user_system.core.interfaces import Draw, NotReady

from .test_data import Log, Numbers, same, wait_until


class Head:
    """The head's reader, with a relay; can be stopped and started again on the same port."""

    def __init__(self, credentials: Credentials, allow: AllowList):
        self.credentials, self.allow = credentials, allow
        self.server: Server | None = None
        self.port = 0

    def start(self, *, relay: bool = True) -> "Head":
        self.relay = ShardRelay()
        own = DataService(
            lambda opening: Numbers(Log(5), opening.seed), relay=self.relay if relay else None
        )
        self.server = serve(
            [own, self.relay],
            credentials=self.credentials,
            allow=self.allow,
            address=f"127.0.0.1:{self.port}",
        )
        self.port = self.server.port
        return self

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop(0.0)
        self.server = None

    def free(self) -> float:
        return self.relay.stats()["shard_streams_free"]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def head(
    credentials: Callable[[str], Credentials], allow: AllowList, stack: ExitStack
) -> Iterator[Head]:
    head = Head(credentials("replay"), allow)
    yield head.start()
    stack.close()  # who dialled goes first
    head.stop()


Open = Callable[..., Any]


@pytest.fixture
def tunnel(head: Head, credentials: Callable[[str], Credentials], stack: ExitStack) -> Open:
    def dial(name: str) -> DirectTunnel:
        way = DirectTunnel(Endpoints(reader=f"127.0.0.1:{head.port}"), credentials(name))
        stack.callback(way.close)
        return way

    return dial


@pytest.fixture
def offer(tunnel: Open, stack: ExitStack) -> Open:
    """Return a function that offers a log as the shard of a host."""

    def start(host: str, log: Log, **limits: Any) -> ShardOffer:
        service = DataService(lambda opening: Numbers(log, opening.seed), Limits(**limits))
        shard = ShardOffer(tunnel(host), host, service)
        shard.start()
        stack.callback(shard.close)
        return shard

    return start


@pytest.fixture
def window(tunnel: Open, stack: ExitStack) -> Open:
    def dial(shard: str, name: str = "learner", **options: Any) -> RemoteData:
        data = RemoteData(tunnel(name), shard=shard, **{"patience_s": 20.0, **options})
        stack.callback(data.close)
        return data

    return dial


@pytest.mark.parametrize("ahead", [0, 2])
def test_draws_are_those_of_the_shard_asked_for(offer: Open, window: Open, ahead: int) -> None:
    one, other = Log(50), Log(1000)
    offer("host-1", one)
    offer("host-2", other)
    for shard, log in (("host-1", one), ("host-2", other), ("", Log(5))):
        remote, local = window(shard, seed=3, ahead=ahead), Numbers(log, 3)
        for n in (3, 3, 1, 40, 40):
            same(remote.draw(Draw(n)), local.draw(Draw(n)))
        assert remote.state_dict() == local.state_dict()
        assert remote.count() == log.size


def test_what_a_shard_refuses_is_heard_in_its_words(offer: Open, window: Open) -> None:
    offer("host-1", Log(4))
    data = window("host-1")
    with pytest.raises(NotReady):
        data.consume(Draw(5))
    assert data.consume(Draw(4)).ids.tolist() == [0, 1, 2, 3]


def test_large_batches_pass_in_parts_and_wait_for_the_learner(offer: Open, window: Open) -> None:
    log = Log(50)
    log.row_bytes = 1 << 20
    offer("host-1", log)
    data, local = window("host-1", seed=1, ahead=0), Numbers(log, 1)
    for _ in range(3):
        same(data.draw(Draw(9)), local.draw(Draw(9)))


def test_a_stream_is_offered_for_each_that_was_taken(head: Head, offer: Open, window: Open) -> None:
    shard = offer("host-1", Log())
    wait_until(lambda: head.free() == OFFERED)
    windows = [window("host-1", seed=seed) for seed in range(5)]
    for data in windows:
        data.draw(Draw(2))
    wait_until(lambda: head.free() == OFFERED)
    assert shard.stats()["shard_served"] == 5
    for data in windows:
        data.close()
    wait_until(lambda: shard.stats()["sessions"] == 0)
    wait_until(lambda: shard.stats()["shard_streams"] == OFFERED)


def test_a_head_that_was_restarted_is_dialled_again_and_nothing_is_drawn_twice(
    head: Head, offer: Open, window: Open
) -> None:
    log = Log(500)
    shard = offer("host-1", log)
    data, local = window("host-1", seed=2, ahead=1), Numbers(log, 2)
    for _ in range(3):
        for _ in range(4):
            same(data.draw(Draw(7)), local.draw(Draw(7)))
            same(data.consume(Draw(3)), local.consume(Draw(3)))
        head.stop()
        head.start()
    same(data.draw(Draw(7)), local.draw(Draw(7)))
    assert shard.stats()["windows"] == 1, "the session outlived the streams"


def test_a_site_that_was_restarted_goes_on_where_the_learner_is(offer: Open, window: Open) -> None:
    log = Log(500)
    first = offer("host-1", log)
    data, local = window("host-1", seed=2), Numbers(log, 2)
    same(data.draw(Draw(7)), local.draw(Draw(7)))
    first.close()
    offer("host-1", log)
    for _ in range(5):
        same(data.draw(Draw(7)), local.draw(Draw(7)))


def test_a_shard_that_is_not_offered_is_named_with_those_that_are(
    offer: Open, window: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comms.shard_relay._WAIT_S", 0.1)
    shard = offer("host-1", Log())
    wait_until(lambda: shard.stats()["shard_streams"] == OFFERED)
    with pytest.raises(LinkError, match="shard of 'host-2' is not connected; allowed: host-1"):
        window("host-2", patience_s=0.5).draw(Draw(1))


def test_a_head_without_a_relay_says_so(head: Head, window: Open) -> None:
    head.stop()
    head.start(relay=False)
    with pytest.raises(MissingError, match="no shard 'host-1' is offered here"):
        window("host-1", patience_s=5.0).draw(Draw(1))


# --- who may what ---------------------------------------------------------------------------------


def said(tunnel: Open, name: str, first: pb.ShardUp) -> grpc.RpcError:
    """Return what the head answers to an offer that it refuses."""
    stub = shards_pb2_grpc.ShardsStub(tunnel(name).channel("reader"))  # type: ignore[no-untyped-call]
    over = threading.Event()

    def messages() -> Iterator[pb.ShardUp]:
        yield first
        over.wait(20.0)

    try:
        with pytest.raises(grpc.RpcError) as refused:
            for _ in stub.Offer(messages(), timeout=15.0):
                pass
        return refused.value
    finally:
        over.set()


@pytest.mark.parametrize("name", ["learner", "kim", "ada", "eve"])
def test_only_robot_hosts_offer(tunnel: Open, name: str) -> None:
    refused = said(tunnel, name, pb.ShardUp(hello=pb.ShardHello(shard=name)))
    assert refused.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_host_offers_its_own_shard_only(tunnel: Open, head: Head) -> None:
    refused = said(tunnel, "host-2", pb.ShardUp(hello=pb.ShardHello(shard="host-1")))
    assert refused.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "offers its own shard" in refused.details()
    assert head.free() == 0


@pytest.mark.parametrize("name", ["host-2", "ada", "eve"])
def test_who_may_not_draw_here_may_not_draw_there(offer: Open, window: Open, name: str) -> None:
    offer("host-1", Log())
    with pytest.raises(SecurityError, match="may not call"):
        window("host-1", name=name, patience_s=2.0).draw(Draw(1))


def test_an_offer_that_begins_with_something_else_is_refused(tunnel: Open, head: Head) -> None:
    refused = said(tunnel, "host-1", pb.ShardUp(part=data_pb2.DataPart()))
    assert "begins with ShardHello" in refused.details()
    assert head.free() == 0


def test_no_more_streams_are_kept_than_there_is_room_for(
    tunnel: Open, head: Head, stack: ExitStack
) -> None:
    stub = shards_pb2_grpc.ShardsStub(tunnel("host-1").channel("reader"))  # type: ignore[no-untyped-call]
    over = threading.Event()
    stack.callback(over.set)

    def messages() -> Iterator[pb.ShardUp]:
        yield pb.ShardUp(hello=pb.ShardHello(shard="host-1"))
        over.wait(60.0)

    calls = [stub.Offer(messages()) for _ in range(FREE + 3)]
    for call in calls:
        stack.callback(call.cancel)
    wait_until(lambda: head.relay.stats()["shard_offers"] == len(calls))
    assert head.free() == FREE


def test_a_learner_that_asks_without_end_is_ended(tunnel: Open, offer: Open, head: Head) -> None:
    from comms import data_wire
    from comms.data_wire import SHARD, Opening
    from comms.pb import data_pb2_grpc

    log = Log()
    hold = threading.Event()
    log.before_draw = lambda number: hold.wait(30.0) and None
    offer("host-1", log)
    wait_until(lambda: head.free() == OFFERED)
    stub = data_pb2_grpc.DataStub(tunnel("learner").channel("reader"))  # type: ignore[no-untyped-call]
    content = data_wire.encode_opening(Opening(), None)
    opening = data_pb2.DataOpen(session="0" * 32, content=content)
    draw = data_wire.encode_draw(Draw(1))

    def flood() -> Iterator[data_pb2.DataRequest]:
        yield data_pb2.DataRequest(open=opening)
        for number in range(1, 100_000):
            ask = data_pb2.DataAsk(kind=data_pb2.DATA_KIND_DRAW, number=number, content=draw)
            yield data_pb2.DataRequest(ask=ask)

    try:
        with pytest.raises(grpc.RpcError) as refused:
            for _ in stub.Attach(flood(), metadata=((SHARD, "host-1"),), timeout=20.0):
                pass
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "asks that wait" in refused.value.details()
    finally:
        hold.set()


def test_garbage_from_a_site_ends_that_session_only(
    tunnel: Open, head: Head, window: Open, stack: ExitStack
) -> None:
    """A site that lies to a learner: what is no answer is noticed at the learner."""
    stub = shards_pb2_grpc.ShardsStub(tunnel("host-1").channel("reader"))  # type: ignore[no-untyped-call]
    over = threading.Event()
    stack.callback(over.set)

    def messages() -> Iterator[pb.ShardUp]:
        yield pb.ShardUp(hello=pb.ShardHello(shard="host-1"))
        noise = np.random.default_rng(0).bytes(100)
        yield pb.ShardUp(part=data_pb2.DataPart(total=100, offset=0, data=noise))
        over.wait(60.0)

    call = stub.Offer(messages())
    stack.callback(call.cancel)
    wait_until(lambda: head.free() == 1)
    with pytest.raises((LinkError, SpecError, Exception)) as heard:
        window("host-1", patience_s=0.2).draw(Draw(1))
    assert type(heard.value).__module__ == "user_system.core.errors"
    assert window("", seed=1).draw(Draw(2)).ids.shape == (2,)
