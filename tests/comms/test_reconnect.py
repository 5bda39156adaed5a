"""Waiting between attempts: for the other side with jitter and patience, for a connection not."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from comms import reconnect
from comms.reconnect import Reconnecting
from comms.status import received, unreached
from user_system.core.errors import LinkError, UserSystemError
from user_system.core.supervise import Backoff

LONG_S = 60.0
"""Longer than any of these tests may take."""


class Patient(Backoff):
    """Waits longer than a test."""

    def died(self, lived_s: float) -> float:
        return LONG_S


def again(session: Callable[[], None], within_s: float) -> bool:
    """Return whether a session that ended is followed by another in time."""
    begun = threading.Semaphore(0)

    def counted() -> None:
        begun.release()
        session()

    link = Reconnecting("test", counted, Patient())
    link.start()
    try:
        assert begun.acquire(timeout=10)
        return begun.acquire(timeout=within_s)
    finally:
        link.close()


@pytest.fixture
def nobody() -> Iterator[Callable[[], None]]:
    """A call to a port where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with grpc.insecure_channel(f"127.0.0.1:{bound.getsockname()[1]}") as channel:
            yield lambda: channel.unary_unary("/x/y")(b"", timeout=10)


@pytest.fixture
def somebody() -> Iterator[Callable[[], None]]:
    """A call to a server that is there and wants none."""
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.add_generic_rpc_handlers((_Refusing(),))
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield lambda: channel.unary_unary("/x/y")(b"", timeout=10)
    server.stop(0).wait()


class _Refusing(grpc.GenericRpcHandler):
    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def refuse(request: bytes, context: grpc.ServicerContext) -> bytes:
            context.set_trailing_metadata((("error-kind", "LinkError"),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "shutting down")

        return grpc.unary_unary_rpc_method_handler(refuse)


def as_ours(call: Callable[[], None]) -> None:
    """Make a call as clients do, that say what was tried."""
    try:
        call()
    except grpc.RpcError as error:
        raise received(error, "try") from error


def test_where_nobody_can_be_reached_it_is_tried_again_soon(nobody):
    assert again(nobody, 10)
    assert again(lambda: as_ours(nobody), 10)


def test_whoever_answered_is_left_alone_for_a_while(somebody):
    limit_s = 2 * reconnect._DIALLING_S
    assert not again(somebody, limit_s)
    assert not again(lambda: as_ours(somebody), limit_s)


def fails() -> None:
    raise LinkError("the replay fell silent")


def breaks() -> None:
    raise ValueError("unforeseen")


@pytest.mark.parametrize("session", [lambda: None, fails, breaks])
def test_other_ends_wait_as_they_should(session):
    assert not again(session, 2 * reconnect._DIALLING_S)


def test_closing_ends_a_wait():
    link = Reconnecting("test", fails, Patient())
    link.start()
    began = time.monotonic()
    link.close()
    assert time.monotonic() - began < LONG_S / 2


def test_what_is_unreached(nobody, somebody):
    def error_of(call: Callable[[], None]) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        return caught.value

    assert unreached(error_of(nobody))
    assert not unreached(error_of(somebody))
    assert not unreached(None)
    assert not unreached(ValueError())
    assert not unreached(UserSystemError("of ours"))
    assert not unreached(grpc.RpcError())
