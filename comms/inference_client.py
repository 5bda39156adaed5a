"""A robot's stream to its policy at the head: dialled again whenever it breaks or falls silent."""

import threading
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from typing import Any, Protocol

import grpc

from comms.pb import inference_pb2 as pb
from comms.pb import inference_pb2_grpc
from comms.reconnect import Reconnecting
from comms.silence import listen
from comms.status import received
from comms.tunnel import Tunnel
from user_system.core.errors import LinkError, UserSystemError
from user_system.core.supervise import Backoff

SILENCE_S = 5.0
"""A policy host that says nothing for so long is dialled again."""
_CAP_S = 1.0
"""Longest wait before the next attempt: a robot stands still meanwhile."""


class Listener(Protocol):
    """Whoever asks for plans. Called from the link's thread."""

    def opened(self) -> None:
        """There is a new stream; nothing is sent on it before ``resume`` is called."""

    def heard(self, reply: pb.InferenceReply) -> None:
        """The policy said something; never a beat."""

    def broke(self, why: str) -> None:
        """The stream is over: what was asked on it will not be answered."""


class InferenceLink:
    """One robot's stream. ``send`` may be called from any thread.

    Args:
        tunnel: the way to the head.
        actor: whose policy.
        robot: for whom.
        listener: who asks.
        silence_s: a policy host that says nothing for so long is dialled again.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        actor: str,
        robot: str,
        listener: Listener,
        silence_s: float = SILENCE_S,
    ):
        self._tunnel, self._actor, self._robot = tunnel, actor, robot
        self._listener, self._silence_s = listener, silence_s
        self._lock = threading.Lock()
        self._outgoing: SimpleQueue[pb.InferenceRequest | None] | None = None
        self._opened: SimpleQueue[pb.InferenceRequest | None] | None = None
        self._call: Any = None  # a grpc.Call, whose stub is not typed
        backoff = Backoff(0.05, _CAP_S, 5.0)
        self._link = Reconnecting(f"policy of {robot}", self._hold, backoff)

    def start(self) -> None:
        """Start to dial."""
        self._link.start()

    def close(self) -> None:
        """Hang up; idempotent."""
        self._link.closing.set()
        with self._lock:
            call = self._call
        if call is not None:
            call.cancel()
        self._link.close()

    def send(self, request: pb.InferenceRequest) -> bool:
        """Send where there is a stream; False: there is none."""
        with self._lock:
            if self._outgoing is None:
                return False
            self._outgoing.put(request)
            return True

    def resume(self, requests: Sequence[pb.InferenceRequest]) -> None:
        """Send what the new stream must know; whatever is sent from now on follows it."""
        with self._lock:
            if self._opened is None:
                return
            for request in requests:
                self._opened.put(request)
            self._outgoing = self._opened

    def stats(self) -> dict[str, float]:
        """Return how often it was dialled."""
        return self._link.stats()

    def _hold(self) -> None:
        """Hold one stream until it breaks."""
        outgoing: SimpleQueue[pb.InferenceRequest | None] = SimpleQueue()
        outgoing.put(pb.InferenceRequest(hello=pb.InferenceHello(robot=self._robot)))
        channel = self._tunnel.channel(f"policy:{self._actor}")
        stub = inference_pb2_grpc.InferenceStub(channel)  # type: ignore[no-untyped-call]
        call = stub.Attach(_requests(outgoing))
        with self._lock:
            self._call, self._opened = call, outgoing
        why: UserSystemError = LinkError(f"the policy of {self._actor!r} hung up")
        try:
            if not self._link.closing.is_set():
                self._take(call)
        except grpc.RpcError as error:
            why = received(error, f"reach the policy of actor {self._actor!r} at the head")
        except UserSystemError as error:
            why = error
        finally:
            with self._lock:
                self._outgoing = self._opened = self._call = None
            outgoing.put(None)
            call.cancel()
            self._listener.broke(str(why))
        raise why

    def _take(self, call: Any) -> None:
        for reply in listen(call, f"the policy of actor {self._actor!r}", self._silence_s):
            if reply.HasField("ready"):
                self._link.up()
                self._listener.heard(reply)
                self._listener.opened()
            elif not reply.HasField("beat"):
                self._listener.heard(reply)


def _requests(
    outgoing: "SimpleQueue[pb.InferenceRequest | None]",
) -> Iterator[pb.InferenceRequest]:
    while (request := outgoing.get()) is not None:
        yield request
