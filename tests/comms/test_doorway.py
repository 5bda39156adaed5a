"""What one caller may take of a server: threads, time, memory."""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from comms.credentials import AllowList, Credentials, Peer, Role
from comms.doorway import CALLS, SERVICE_CALLS, WORKERS, Doorway
from comms.hub_client import HubClient
from comms.hub_service import HubService
from comms.pb import hub_pb2
from comms.security import channel_credentials
from comms.serving import STREAMS, Server, serve
from comms.tunnel import DirectTunnel, Endpoints
from user_system.core.clock import WallClock
from user_system.core.errors import LinkError
from user_system.hub.service import Hub, HubConfig

GENEROUS_S = 60.0
ATTACH, STATUS = "/user_system.v1.Hub/Attach", "/user_system.v1.Hub/Status"


@pytest.fixture
def refused() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def server(
    tmp_path: Any,
    credentials: Callable[[str], Credentials],
    allow: AllowList,
    refused: list[tuple[str, str]],
) -> Iterator[Server]:
    hub = Hub(tmp_path, HubConfig(run="run"), WallClock())
    hub.open()
    with serve(
        [HubService(hub)],
        credentials=credentials("hub"),
        allow=allow,
        doorway=Doorway(calls=4, patience_s=1.0),
        refused=lambda peer, method: refused.append((peer.name, method)),
    ) as server:
        yield server
    hub.close()


@pytest.fixture
def channel(server: Server, credentials: Callable[[str], Credentials]) -> Iterator[grpc.Channel]:
    """Of a robot host that means no good."""
    secret = channel_credentials(credentials("host-1"))
    with grpc.secure_channel(f"127.0.0.1:{server.port}", secret) as channel:
        yield channel


@pytest.fixture
def honest(server: Server, credentials: Callable[[str], Credentials]) -> Iterator[HubClient]:
    way = DirectTunnel(Endpoints(hub=f"127.0.0.1:{server.port}"), credentials("teleop"))
    client = HubClient(way, timeout_s=GENEROUS_S)
    client.status()
    yield client
    way.close()


class Silence:
    """Requests that never come, until it is closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    def __iter__(self) -> "Silence":
        return self

    def __next__(self) -> bytes:
        self.closed.wait()
        raise StopIteration


@pytest.fixture
def silence() -> Iterator[Silence]:
    silence = Silence()
    yield silence
    silence.closed.set()


def test_no_caller_can_take_half_of_a_server() -> None:
    assert 2 * max(CALLS, SERVICE_CALLS) <= WORKERS


def test_streams_without_a_word_are_few_and_short(
    server: Server, channel: grpc.Channel, honest: HubClient, silence: Silence
) -> None:
    calls = [channel.stream_stream(ATTACH, bytes, bytes)(silence) for _ in range(60)]
    began = time.monotonic()
    assert honest.status().run == "run"
    codes = [call.code() for call in calls]  # waits for their ends
    assert time.monotonic() - began < GENEROUS_S
    crowded, silent = codes.count(grpc.StatusCode.UNAVAILABLE), server.stats()["silent"]
    assert crowded >= 56
    assert 1 <= silent <= 4 + len(codes) - crowded
    assert server.stats()["crowded"] >= 1


def test_a_request_that_never_comes_holds_no_thread_for_long(
    server: Server, channel: grpc.Channel, honest: HubClient, silence: Silence
) -> None:
    """A method of one request, called as if it had many: its head alone is sent."""
    calls = [channel.stream_unary(STATUS, bytes, bytes).future(silence) for _ in range(4)]
    assert all(call.exception() is not None for call in calls)
    assert honest.status().run == "run"
    assert server.stats()["silent"] == 4
    deadline = time.monotonic() + GENEROUS_S
    while server.stats()["calls"]:
        assert time.monotonic() < deadline, "its threads are free again"
        time.sleep(0.02)


def test_a_call_without_a_request_is_told_so(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as told:
        channel.stream_unary(STATUS, bytes, bytes)(iter(()), timeout=GENEROUS_S)
    assert told.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("path", [STATUS, ATTACH])
def test_calls_that_cannot_be_decoded_end(channel: grpc.Channel, path: str) -> None:
    """More of them than one connection may have at once: none stays behind."""
    codes = set()
    for _ in range(STREAMS + 50):
        with pytest.raises(grpc.RpcError) as told:
            list(channel.stream_stream(path, bytes, bytes)(iter([b"\xff"]), timeout=GENEROUS_S))
        codes.add(told.value.code())
    assert codes == {grpc.StatusCode.INVALID_ARGUMENT}


def test_packed_messages_are_refused_before_they_are_unpacked(
    server: Server, credentials: Callable[[str], Credentials], honest: HubClient
) -> None:
    secret = channel_credentials(credentials("teleop"))
    options = [("grpc.max_send_message_length", -1)]
    bomb = hub_pb2.ProcessReport(note="a" * (64 << 20)).SerializeToString()
    with grpc.secure_channel(
        f"127.0.0.1:{server.port}", secret, options=options, compression=grpc.Compression.Gzip
    ) as channel:
        call = channel.unary_unary("/user_system.v1.Hub/Report", bytes, bytes)
        with pytest.raises(grpc.RpcError) as refused:
            call(bomb, timeout=GENEROUS_S)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert honest.status().run == "run"


def test_who_is_refused_is_told_of_once_a_second(
    channel: grpc.Channel, refused: list[tuple[str, str]]
) -> None:
    began = time.monotonic()
    for _ in range(200):
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/user_system.v1.Hub/Claim", bytes, bytes)(b"", timeout=GENEROUS_S)
    assert 1 <= len(refused) <= 2 + time.monotonic() - began
    assert set(refused) == {("host-1", "/user_system.v1.Hub/Claim")}


def test_a_share_is_given_back() -> None:
    doorway, peer = Doorway(calls=2), Peer("host-1", Role.ROBOT)
    for _ in range(10):
        with doorway.enter(peer), doorway.enter(peer), pytest.raises(LinkError, match="too many"):
            doorway.enter(peer).__enter__()
        with doorway.enter(peer), doorway.enter(Peer("host-2", Role.ROBOT)):
            pass
    assert doorway.stats() == {"crowded": 10.0, "silent": 0.0, "calls": 0.0}
    assert not doorway._inside, "no name is kept"
