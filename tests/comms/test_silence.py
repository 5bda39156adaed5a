"""Silence: who says nothing is ended, who says little is not."""

import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, cast

import grpc
import pytest

from comms import silence
from comms.credentials import AllowList, Credentials
from comms.experience_client import ExperienceClient
from comms.hub_client import HubAttachment
from comms.pb import (
    experience_pb2,
    experience_pb2_grpc,
    hub_pb2,
    hub_pb2_grpc,
)
from comms.serving import serve
from comms.silence import listen, speak
from comms.tunnel import DirectTunnel, Endpoints
from user_system.core.errors import LinkError
from user_system.core.ports import Outbox

GENEROUS_S = 60.0


class Cancelled(grpc.RpcError):
    pass


class FakeCall:
    """A stream that says what is put into ``words`` and can be cancelled."""

    def __init__(self) -> None:
        self.words: SimpleQueue[Any] = SimpleQueue()

    def __next__(self) -> Any:
        word = self.words.get(timeout=GENEROUS_S)
        if isinstance(word, BaseException):
            raise word
        return word

    def cancel(self) -> None:
        self.words.put(Cancelled())


def test_one_that_says_nothing_is_ended_and_named() -> None:
    call = FakeCall()
    call.words.put("welcome")
    words = listen(call, "the replay", 0.1)
    assert next(words) == "welcome"
    with pytest.raises(LinkError, match=r"the replay fell silent; got nothing for 0\.1 s"):
        next(words)


def test_one_whose_receive_outlives_its_call_keeps_nobody_waiting() -> None:
    """gRPC loses a receive now and then, together with its connection."""
    call = FakeCall()
    cancelled: list[bool] = []
    call.cancel = lambda: cancelled.append(True)  # type: ignore[method-assign]
    began = time.monotonic()
    with pytest.raises(LinkError, match="fell silent"):
        next(listen(call, "the replay", 0.1))
    assert cancelled
    assert time.monotonic() - began < GENEROUS_S / 2
    call.words.put("late")  # and its thread ends


def test_nothing_is_read_before_it_is_asked_for() -> None:
    call = FakeCall()
    words = listen(call, "the hub", GENEROUS_S)
    for word in ("one", "two", StopIteration()):
        call.words.put(word)
    assert next(words) == "one"
    time.sleep(0.05)
    assert call.words.qsize() == 2
    words.close()  # type: ignore[attr-defined]
    time.sleep(0.05)
    assert call.words.qsize() == 2


def test_one_that_breaks_is_not_called_silent() -> None:
    call = FakeCall()
    call.words.put(Cancelled())
    with pytest.raises(Cancelled):
        next(listen(call, "the replay", GENEROUS_S))


def test_what_the_listener_does_with_a_word_is_no_silence() -> None:
    call = FakeCall()
    words = listen(call, "the hub", 0.1)
    call.words.put("first")
    assert next(words) == "first"
    time.sleep(0.4)
    call.words.put("second")
    call.words.put(StopIteration())
    assert list(words) == ["second"]


def test_a_server_without_news_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "BEAT_S", 0.01)
    outgoing: SimpleQueue[Any] = SimpleQueue()
    spoken = speak(outgoing, "beat")
    assert [next(spoken), next(spoken)] == ["beat", "beat"]
    outgoing.put("news")
    outgoing.put(None)
    assert [word for word in spoken if word != "beat"] == ["news"]
    outgoing.put(LinkError("over"))
    with pytest.raises(LinkError, match="over"):
        list(speak(outgoing, "beat"))


class Mute(experience_pb2_grpc.ExperienceServicer, hub_pb2_grpc.HubServicer):
    """Takes streams and never answers them, as a process does that stands still."""

    def __init__(self) -> None:
        self.streams = 0
        self.over = threading.Event()

    def Stream(  # noqa: N802 (gRPC's name)
        self, requests: Any, context: Any
    ) -> Iterator[experience_pb2.ReplayMessage]:
        return self._hang()

    def Attach(  # noqa: N802 (gRPC's name)
        self, requests: Any, context: Any
    ) -> Iterator[hub_pb2.HubEvent]:
        return self._hang()

    def _hang(self) -> Iterator[Any]:
        self.streams += 1
        self.over.wait(GENEROUS_S)
        yield from ()

    def register(self, server: grpc.Server) -> None:
        experience_pb2_grpc.add_ExperienceServicer_to_server(self, server)
        hub_pb2_grpc.add_HubServicer_to_server(self, server)

    def start(self) -> None:
        pass

    def close(self) -> None:
        self.over.set()

    def stats(self) -> dict[str, float]:
        return {}


class NoOutbox:
    """A spool with nothing in it, as far as this client gets."""

    def sources(self) -> Any:
        return []

    def note_stuck(self, producer: str, epoch: int, why: str) -> None:
        raise AssertionError("there is nothing here")

    def wait(self, timeout_s: float) -> bool:
        return False


def experience(tunnel: DirectTunnel) -> ExperienceClient:
    return ExperienceClient(tunnel, cast(Outbox, NoOutbox()), "host-1", silence_s=0.1)


def attachment(tunnel: DirectTunnel) -> HubAttachment:
    hello = hub_pb2.HostHello(host="host-1")
    return HubAttachment(tunnel, lambda: hello, lambda event: None, silence_s=0.1)


@pytest.mark.parametrize("kind", [experience, attachment])
def test_a_stream_that_is_never_answered_is_dialled_again(
    kind: Callable[[DirectTunnel], Any],
    credentials: Callable[[str], Credentials],
    allow: AllowList,
) -> None:
    mute = Mute()
    with serve([mute], credentials=credentials("hub"), allow=allow) as server:
        address = f"127.0.0.1:{server.port}"
        tunnel = DirectTunnel(Endpoints(hub=address, replay=address), credentials("host-1"))
        client = kind(tunnel)
        client.start()
        deadline = time.monotonic() + GENEROUS_S
        while mute.streams < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert client.stats()["connected"] == 0
        client.close()
        tunnel.close()
