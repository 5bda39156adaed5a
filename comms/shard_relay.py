"""The head's half of shards that are kept elsewhere: learners' streams over what sites offered.

Nobody can dial a site, so it dials the head and offers streams (``Shards/Offer``); a learner that
wants its shard is given one. What passes is not looked at and nowhere kept: a part waits here only
until gRPC has taken it, and where the learner is slow the site's stream stands.
"""

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, Full, Queue, SimpleQueue

import grpc

from comms.credentials import Peer
from comms.data_session import CREDIT
from comms.pb import data_pb2, shards_pb2_grpc
from comms.pb import shards_pb2 as pb
from comms.security import identify
from comms.silence import speak
from comms.status import known
from user_system.core.errors import LinkError, SecurityError, SpecError, UserSystemError

log = logging.getLogger(__name__)

FREE = 8
"""Streams of one site that may wait for learners; one more replaces the oldest."""

_PARTS = 2
"""Parts of an answer that wait here for the learner's connection."""

_WAIT_S = 5.0
"""How long a learner waits for a site that has no free stream just now."""

_BEAT = pb.ShardDown(beat=pb.ShardBeat())


class ShardRelay(shards_pb2_grpc.ShardsServicer):
    """Serves ``Shards``; hands learners to sites, see ``data_service.Relay``. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._free: dict[str, deque[_Line]] = defaultdict(deque)
        self._closed = False
        self._figures = dict.fromkeys(
            ("shard_offers", "shard_sessions", "shard_parts", "shard_bytes"), 0.0
        )

    def register(self, server: grpc.Server) -> None:
        """Add the methods to ``server``."""
        shards_pb2_grpc.add_ShardsServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Do nothing: the relay has no thread of its own."""

    def close(self) -> None:
        """End what is offered; sites offer again after the next start."""
        with self._changed:
            self._closed = True
            lines = [line for waiting in self._free.values() for line in waiting]
            self._changed.notify_all()
        for line in lines:
            line.end(LinkError("the relay is shutting down"))

    def stats(self) -> dict[str, float]:
        """Return what was offered, taken and passed, and how many streams are free."""
        with self._changed:
            free = sum(len(waiting) for waiting in self._free.values())
            return {**self._figures, "shard_streams_free": float(free)}

    def shards(self) -> list[str]:
        """Return the hosts that offer a shard now."""
        with self._changed:
            return sorted(name for name, waiting in self._free.items() if waiting)

    def Offer(  # noqa: N802 (gRPC's name)
        self, request_iterator: Iterator[pb.ShardUp], context: grpc.ServicerContext
    ) -> Iterator[pb.ShardDown]:
        """Keep one stream of a site until a learner has used it."""
        peer = identify(context)
        first = next(request_iterator, None)
        if first is None or not first.HasField("hello"):
            raise SpecError("an offer begins with ShardHello", got=first and "something else")
        if first.hello.shard != peer.name:
            raise SecurityError(
                "a host offers its own shard", got=first.hello.shard[:80], allowed=peer.name
            )
        line = _Line()
        if not context.add_callback(lambda: line.end(None)):
            return  # over before it began
        self._put(peer.name, line)
        try:
            threading.Thread(
                target=line.read, args=(request_iterator,), name=f"shard {peer.name}", daemon=True
            ).start()
            yield _BEAT
            yield from speak(line.down, _BEAT)
        finally:
            line.end(None)
            with self._changed, suppress(ValueError):
                self._free[peer.name].remove(line)

    def attach(
        self,
        shard: str,
        learner: Peer,
        requests: Iterator[data_pb2.DataRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[data_pb2.DataPart]:
        """Pass a learner's stream on to a site, and the answers back."""
        line = self._take(shard)
        try:
            if not context.add_callback(lambda: line.end(None)):
                return
            begin = pb.ShardBegin(learner=learner.name, role=learner.role.value)
            line.down.put(pb.ShardDown(begin=begin))
            threading.Thread(
                target=line.ask, args=(requests,), name=f"to shard {shard}", daemon=True
            ).start()
            for part in line.parts():
                self._count(len(part.data))
                yield part
        finally:
            line.end(None)

    def _put(self, shard: str, line: "_Line") -> None:
        with self._changed:
            if self._closed:
                raise LinkError("the relay is shutting down")
            waiting = self._free[shard]
            waiting.append(line)
            self._figures["shard_offers"] += 1
            old = waiting.popleft() if len(waiting) > FREE else None
            self._changed.notify_all()
        if old is not None:
            old.end(LinkError("this host offers more streams than are kept"))

    def _take(self, shard: str) -> "_Line":
        """Return the newest free stream of a site: an old one may be what a broken link left."""
        until = time.monotonic() + _WAIT_S
        with self._changed:
            while True:
                waiting = self._free.get(shard)
                while waiting:
                    line = waiting.pop()
                    if not line.ended:
                        self._figures["shard_sessions"] += 1
                        return line
                left = until - time.monotonic()
                if self._closed or left <= 0:
                    raise LinkError(
                        f"the replay shard of {shard!r} is not connected",
                        allowed=", ".join(sorted(n for n, w in self._free.items() if w)) or None,
                        todo="Is that host up, and does the manifest give it a replay of its own?",
                    )
                self._changed.wait(left)

    def _count(self, size: int) -> None:
        with self._changed:
            self._figures["shard_parts"] += 1
            self._figures["shard_bytes"] += size


class _Line:
    """One stream of a site, from its offer to the end of the session that used it."""

    def __init__(self) -> None:
        self.down: SimpleQueue[pb.ShardDown | UserSystemError | None] = SimpleQueue()
        self._up: Queue[data_pb2.DataPart | UserSystemError | None] = Queue(_PARTS)
        self._over = threading.Event()

    @property
    def ended(self) -> bool:
        """Whether nobody can use it any more."""
        return self._over.is_set()

    def end(self, error: UserSystemError | None) -> None:
        """End it on both sides; only the first call counts."""
        if not self._over.is_set():
            self._over.set()
            self.down.put(error)

    def read(self, messages: Iterator[pb.ShardUp]) -> None:
        """Take in what the site says; waits while the learner takes no more."""
        last: UserSystemError | None = LinkError("the site of this shard went away")
        try:
            for message in messages:
                match message.WhichOneof("message"):
                    case "part":
                        self._say(message.part)
                    case "end":
                        last = known(message.end.kind, message.end.text)
                        return
                    case _:
                        last = SpecError("a site says parts, and then an end")
                        return
                if self.ended:
                    return
        except grpc.RpcError:
            log.debug("a stream of a site broke")
        finally:
            self._say(last)
            self.end(None)

    def ask(self, requests: Iterator[data_pb2.DataRequest]) -> None:
        """Pass on what the learner asks; one that asks without waiting for answers is ended."""
        try:
            for request in requests:
                if self.down.qsize() > 2 * CREDIT:
                    self._say(SpecError("asks that wait for their answers", allowed=CREDIT))
                    return
                self.down.put(pb.ShardDown(request=request))
        except grpc.RpcError:
            log.debug("a learner's stream broke")
        finally:
            self.end(None)

    def parts(self) -> Iterator[data_pb2.DataPart]:
        """Yield what the site answers until either side ends."""
        while True:
            try:
                item = self._up.get(timeout=0.5)
            except Empty:
                if self.ended:
                    return
                continue
            if item is None:
                return
            if isinstance(item, UserSystemError):
                raise item
            yield item

    def _say(self, item: data_pb2.DataPart | UserSystemError | None) -> None:
        while True:
            try:
                self._up.put(item, timeout=0.5)
                return
            except Full:
                if self.ended:
                    return
