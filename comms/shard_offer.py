"""A site's half of a shard: its reader dials the head, and serves learners over what it dialled.

Two streams are free at the head at any time; when a learner takes one, another is offered. What a
learner asks is answered by the same ``DataService`` that would answer it on this host.
"""

import logging
import threading
from collections.abc import Callable, Iterator

import grpc

from comms.credentials import Peer, Role
from comms.data_service import DataService
from comms.pb import data_pb2, shards_pb2_grpc
from comms.pb import shards_pb2 as pb
from comms.reconnect import Reconnecting
from comms.silence import LIMIT_S, Call, listen
from comms.status import received
from comms.tunnel import Tunnel
from user_system.core.errors import LinkError, UserSystemError

log = logging.getLogger(__name__)

FREE = 2
"""Streams that wait at the head for a learner."""

SESSIONS = 8
"""Learners at once, beside the free streams; as ``data_session.Limits`` allows."""


class ShardOffer:
    """Offers the shard of this host for as long as it runs.

    Args:
        tunnel: the way to the head.
        host: name of this host, as its certificate states it.
        service: answers; not put on a server.
        silence_s: a head that says nothing for so long is dialled again.
    """

    def __init__(
        self, tunnel: Tunnel, host: str, service: DataService, *, silence_s: float = LIMIT_S
    ):
        self._tunnel, self._host, self._service = tunnel, host, service
        self._silence_s = silence_s
        self._lock = threading.Lock()
        self._places = threading.Semaphore(FREE)
        """Taken by streams that are free; given back once a learner uses one."""
        self._calls: set[Call[pb.ShardDown]] = set()
        self._links = [
            Reconnecting(f"shard offer {n} of {host}", self._hold) for n in range(FREE + SESSIONS)
        ]
        self._served = 0

    def start(self) -> None:
        """Start to offer."""
        self._service.start()
        for link in self._links:
            link.start()

    def close(self) -> None:
        """Stop to offer, and end the sessions; idempotent."""
        for link in self._links:
            link.closing.set()
        with self._lock:
            calls = list(self._calls)
        for call in calls:
            call.cancel()
        self._service.close()
        for link in self._links:
            link.close()

    def stats(self) -> dict[str, float]:
        """Return the service's figures, and how many learners' streams were served."""
        with self._lock:
            now = {"shard_streams": float(len(self._calls)), "shard_served": float(self._served)}
        return {**self._service.stats(), **now}

    def _hold(self) -> None:
        """Offer one stream, serve whoever takes it, and return when that is over."""
        closing = self._links[0].closing
        while not self._places.acquire(timeout=0.2):
            if closing.is_set():
                return
        place = _Place(self._places)
        try:
            if not closing.is_set():
                self._offer(place)
        finally:
            place.leave()

    def _offer(self, place: "_Place") -> None:
        line = _Line(self._service, self._host)
        call: Call[pb.ShardDown] = _stub(self._tunnel).Offer(line.outgoing())
        with self._lock:
            self._calls.add(call)
        try:
            messages = listen(call, "the relay of shards", self._silence_s)
            learner = _begin(messages)
            if learner is None:
                return
            place.leave()
            with self._lock:
                self._served += 1
            line.begin(learner, messages)
            line.done.wait()
        except grpc.RpcError as error:
            raise received(error, "offer the shard of this host") from error
        finally:
            line.end()
            call.cancel()
            with self._lock:
                self._calls.discard(call)


class _Place:
    """One of the free streams, given back once."""

    def __init__(self, places: threading.Semaphore):
        self._places: threading.Semaphore | None = places

    def leave(self) -> None:
        """Let another stream be offered in this one's place."""
        places, self._places = self._places, None
        if places is not None:
            places.release()


class _Line:
    """What one stream says and hears, between the threads of gRPC and the service's."""

    def __init__(self, service: DataService, host: str):
        self._service, self._host = service, host
        self._begun = threading.Event()
        self._learner: Peer | None = None
        self._requests: Iterator[data_pb2.DataRequest] = iter(())
        self._over: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._ended = False
        self.done = threading.Event()
        """Set once nothing more is said on this stream."""

    def begin(self, learner: Peer, messages: Iterator[pb.ShardDown]) -> None:
        """Serve a learner; ``messages`` hold what it asks."""
        self._learner = learner
        self._requests = self._asks(messages)
        self._begun.set()

    def end(self) -> None:
        """End whatever is under way; idempotent."""
        with self._lock:
            self._ended, calls = True, self._over
            self._over = []
        self._begun.set()
        for call in calls:
            call()

    def outgoing(self) -> Iterator[pb.ShardUp]:
        """Yield what goes to the head; runs in a thread of gRPC, which takes one at a time."""
        yield pb.ShardUp(hello=pb.ShardHello(shard=self._host))
        self._begun.wait()
        try:
            if self._learner is not None:
                for part in self._service.attend(self._learner, self._requests, self._when_over):
                    yield pb.ShardUp(part=part)
        except UserSystemError as error:
            yield pb.ShardUp(end=pb.ShardEnd(kind=type(error).__name__, text=str(error)[:2000]))
        except Exception:  # top of a thread of gRPC, which would end the stream without a word
            log.exception("serving a learner over an offered stream failed")
            text = "unforeseen error at the site of this shard; see its log"
            yield pb.ShardUp(end=pb.ShardEnd(kind=LinkError.__name__, text=text))
        finally:
            self.done.set()

    def _when_over(self, call: Callable[[], None]) -> bool:
        with self._lock:
            if not self._ended:
                self._over.append(call)
            return not self._ended

    def _asks(self, messages: Iterator[pb.ShardDown]) -> Iterator[data_pb2.DataRequest]:
        """Yield the learner's asks; read by a thread of the service, which ends with the stream."""
        try:
            for message in messages:
                if message.HasField("request"):
                    yield message.request
        except LinkError as error:
            log.info("a learner's stream ended: %s", error)
        finally:
            self.end()


def _begin(messages: Iterator[pb.ShardDown]) -> Peer | None:
    """Wait until a learner takes this stream; None: the head ended it before."""
    for message in messages:
        if message.HasField("begin"):
            return Peer(message.begin.learner, Role(message.begin.role))
    return None


def _stub(tunnel: Tunnel) -> shards_pb2_grpc.ShardsStub:
    channel = tunnel.channel("reader")
    return shards_pb2_grpc.ShardsStub(channel)  # type: ignore[no-untyped-call]
