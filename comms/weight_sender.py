"""The store's end of a robot host's stream of weights."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue

import grpc

from comms.pb import weights_pb2 as pb
from comms.silence import BEAT_S
from comms.weight_bodies import Bodies, Body
from user_system.core.errors import SpecError, UserSystemError
from user_system.core.ports import Shelf

log = logging.getLogger(__name__)

MAX_PIECE = 1 << 20
"""Bytes in one message of a pull, at most."""

MAX_ASKS = 1024
"""Pieces that may be asked for and not sent."""

MAX_REQUEST = 64 << 10
"""Bytes of a request; the largest real one, with names, has a few hundred."""


class Sender:
    """The store's end of one stream: one want at a time, pieces as they are asked for."""

    def __init__(self, shelf: Shelf, bodies: Bodies, sent: Callable[[int], None]):
        self._shelf, self._bodies, self._sent = shelf, bodies, sent
        self._inbox: SimpleQueue[pb.PullRequest | UserSystemError | bool | None] = SimpleQueue()
        """Requests; True: there is a new version; an error, or None, ends the stream."""
        self._want: pb.Want | None = None
        """Not answered yet."""
        self._body: Body | None = None
        self._offset = 0
        self._asks: deque[int] = deque()

    def news(self) -> None:
        """Hear of a new version; thread-safe."""
        self._inbox.put(True)

    def end(self, error: UserSystemError | None) -> None:
        """Have the stream end; thread-safe."""
        self._inbox.put(error)

    def read(self, requests: Iterator[pb.PullRequest]) -> None:
        """Take in what the host says; to be run in a thread of its own."""
        try:
            for request in requests:
                # Where a host does not read, ``run`` stands, and nobody takes out what it asks.
                waiting, size = self._inbox.qsize(), request.ByteSize()
                if waiting > 2 * MAX_ASKS or size > MAX_REQUEST:
                    self._inbox.put(
                        SpecError(
                            "too much is asked for at once",
                            got=f"{waiting} requests that wait, one of {size} bytes",
                            allowed=f"{2 * MAX_ASKS} of {MAX_REQUEST} bytes",
                        )
                    )
                    return
                self._inbox.put(request)
        except grpc.RpcError:
            log.debug("a stream of weights broke")
        finally:
            self._inbox.put(None)

    def run(self) -> Iterator[pb.PullEvent]:
        """Yield what is to be sent.

        Raises:
            SpecError: the host asks for more than it may.
        """
        while True:
            while self._body is not None and self._asks:
                yield self._piece(self._body)
            try:
                said = self._inbox.get(timeout=BEAT_S)
            except Empty:
                yield pb.PullEvent(beat=pb.PullEvent.Beat())
                continue
            if said is None:
                return
            if isinstance(said, UserSystemError):
                raise said
            if isinstance(said, pb.PullRequest):
                self._hear(said)
            if (event := self._answer()) is not None:
                yield event

    def _hear(self, request: pb.PullRequest) -> None:
        if request.HasField("want"):
            self._want, self._body = request.want, None
            self._asks = deque(request.want.asks)
        else:
            self._asks.append(request.ask.size)
        if len(self._asks) > MAX_ASKS or max(self._asks, default=0) > MAX_PIECE:
            raise SpecError("too much is asked for", got=len(self._asks), allowed=MAX_ASKS)

    def _answer(self) -> pb.PullEvent | None:
        """Return the beginning of what is wanted, if it is there."""
        want = self._want
        if want is None:
            return None
        manifest = self._shelf.get(want.policy, want.version)
        if manifest is None and want.version:
            self._want = None
            return pb.PullEvent(missing=pb.PullEvent.Missing(serial=want.serial))
        if manifest is None or (not want.version and manifest.version <= want.newer_than):
            return None
        body = self._bodies.body(manifest, want)
        known = want.body == body.name and want.offset <= body.total
        self._want, self._body = None, body
        self._offset = want.offset if known else 0
        if self._offset >= body.total:
            self._body = None
        begin = pb.Begin(
            offset=self._offset,
            age_s=self._shelf.age_s(manifest.policy, manifest.version),
            serial=want.serial,
        )
        begin.MergeFrom(body.begin)
        return pb.PullEvent(begin=begin)

    def _piece(self, body: Body) -> pb.PullEvent:
        event = body.piece(self._offset, self._asks.popleft())
        size = len(event.piece.data)
        self._offset += size
        self._sent(size)
        if self._offset >= body.total:
            self._body = None
        return event
