"""Strangers at a gRPC port: connections that never finish their handshake are few and short."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import grpc
import pytest

from comms.credentials import AllowList, Credentials
from comms.security import channel_credentials
from comms.serving import Server, serve

GENEROUS_S = 60.0
HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
"""How a TLS handshake begins; more is never said."""

SAID = pytest.mark.parametrize("said", [b"", HELLO], ids=["silent", "half open"])


@pytest.fixture
def make_server(
    credentials: Callable[[str], Credentials], allow: AllowList
) -> Iterator[Callable[..., Server]]:
    with ExitStack() as opened:
        yield lambda **options: opened.enter_context(
            serve([], credentials=credentials("hub"), allow=allow, **options)
        )


@pytest.fixture
def strangers() -> Iterator[Callable[[Server, int, bytes], list[socket.socket]]]:
    with ExitStack() as opened:

        def come(server: Server, count: int, said: bytes) -> list[socket.socket]:
            ends = []
            for _ in range(count):
                one = socket.create_connection(("127.0.0.1", server.port), GENEROUS_S)
                ends.append(opened.enter_context(one))
                with suppress(ConnectionError):  # turned away already
                    one.sendall(said)
            return ends

        yield come


def ended(one: socket.socket) -> bool:
    with suppress(ConnectionError):
        return one.recv(1) == b""
    return True


def served(server: Server, credentials: Credentials, within_s: float) -> bool:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
    secure = channel_credentials(credentials)
    with grpc.secure_channel(f"localhost:{server.port}", secure, options=options) as channel:
        try:
            grpc.channel_ready_future(channel).result(within_s)
        except grpc.FutureTimeoutError:
            return False
    return True


def resident_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@SAID
def test_a_handshake_that_does_not_come_is_not_waited_for(
    make_server: Callable[..., Server],
    strangers: Callable[[Server, int, bytes], list[socket.socket]],
    credentials: Callable[[str], Credentials],
    said: bytes,
) -> None:
    server = make_server(handshake_s=1.0)
    before = resident_mb()
    slowly = strangers(server, 400, said)
    assert served(server, credentials("kim"), GENEROUS_S), "others are let in meanwhile"
    assert resident_mb() - before <= 32.0
    assert all(ended(one) for one in slowly)


@SAID
def test_there_are_no_more_connections_than_there_are_places_for(
    make_server: Callable[..., Server],
    strangers: Callable[[Server, int, bytes], list[socket.socket]],
    credentials: Callable[[str], Credentials],
    said: bytes,
) -> None:
    server = make_server(connections=32, handshake_s=2 * GENEROUS_S)
    crowd = strangers(server, 100, said)
    assert all(ended(one) for one in crowd[40:]), "those who came first hold the places"
    for one in crowd[:40]:
        one.close()
    assert served(server, credentials("kim"), GENEROUS_S), "a place that is left is free again"
