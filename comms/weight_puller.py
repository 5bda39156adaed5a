"""The robot host's end of the weights: one stream, one want at a time, bytes as they are taken.

``pull`` waits until what is wanted begins to come, ``Transfer`` is what comes. A transfer that
breaks is wanted again with its body's name and the number of bytes that are there, and goes on with
the next one. Nothing here knows what the bytes mean; the host checks and decodes them.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

import grpc

from comms.pb import weights_pb2 as pb
from comms.pb import weights_pb2_grpc
from comms.silence import LIMIT_S
from comms.status import received
from comms.tunnel import Tunnel
from comms.wire_specs import manifest_from_proto
from user_system.codec.weights import Entry, entries_hash
from user_system.core.errors import DamageError, LinkError, MissingError, UserSystemError
from user_system.core.ports import Manifest, Travel

log = logging.getLogger(__name__)

FREE_PIECE = 256 << 10
"""Bytes asked for at a time where nothing limits what may be under way. Each is copied some times
on its way through gRPC: memory for larger ones is fetched from the kernel anew every time."""

FREE_ASKS = 16
"""Pieces asked for at a time then."""

MOST_WAITING = 16
"""Events of a stream that wait to be looked at."""


class Ticket(Protocol):
    """One piece under way, as a budget counts it."""


class Budget(Protocol):
    """What may be under way of bulk on one link; ``comms.lanes`` has one. Thread-safe."""

    def chunk(self) -> int:
        """Return the largest piece, in bytes, that keeps the link responsive."""

    def take(self, size: int, timeout_s: float) -> Any:
        """Wait until ``size`` more bytes may be under way and count them; None: not in time."""

    def done(self, ticket: Any) -> None:
        """Note that a piece has arrived."""

    def lost(self, ticket: Any) -> None:
        """Note that it never will."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version that a robot host wants."""

    policy: str
    version: int = 0
    """0: the newest."""
    newer_than: int = 0
    """With version 0: wait for one that is newer."""
    held: int = 0
    """Version that is here whole; 0: none."""
    held_hash: str = ""
    body: str = ""
    """A body that broke."""
    offset: int = 0
    """Bytes of it that are here."""
    pack: bool = False
    """Whether the line is slow enough for compressing to pay."""
    near: bool = False
    """Whether the store's disk can be read from here."""


class WeightPuller:
    """Pulls versions of one policy. One caller at a time; ``wake`` and ``close`` from any thread.

    Args:
        tunnel: the way to the store.
        budget: what bulk may be under way; None: a few large pieces.
        silence_s: a store that says nothing for so long is dialled anew.
    """

    def __init__(self, tunnel: Tunnel, *, budget: Budget | None = None, silence_s: float = LIMIT_S):
        self._tunnel, self._budget, self._silence_s = tunnel, budget, silence_s
        self._stream: _Stream | None = None
        self._woken = threading.Event()
        self._serial = 0
        self._last: Wanted | None = None
        """What was wanted last on this stream and is not answered."""
        self._figures = dict.fromkeys(("pulled", "bytes_pulled", "resumed", "streams"), 0.0)

    def pull(self, want: Wanted) -> "Transfer | None":
        """Wait until what is wanted begins to come; None: ``wake`` was called before.

        Raises:
            LinkError: the stream broke, or the store fell silent; call again to dial anew.
            MissingError: there is no such version.
            DamageError: something else came than was wanted.
        """
        if self._woken.is_set():
            self._woken.clear()
            return None
        stream = self._stream or self._dial()
        try:
            if want != self._last:
                self._ask(stream, want)
            while True:
                event = stream.next(self._silence_s)
                if event is None:
                    self._woken.clear()
                    return None
                kind = event.WhichOneof("event")
                if kind == "missing" and event.missing.serial == self._serial:
                    self._last = None
                    raise MissingError(
                        f"no weights of policy {want.policy!r}", got=want.version or "any version"
                    )
                if kind == "begin" and event.begin.serial == self._serial:
                    self._last = None
                    return self._begun(stream, want, event.begin)
        except MissingError:
            raise
        except UserSystemError:
            self.hang_up()
            raise

    def _dial(self) -> "_Stream":
        self._last = None
        self._figures["streams"] += 1
        self._stream = _Stream(self._tunnel)
        if self._woken.is_set():
            self._stream.wake()
        return self._stream

    def _ask(self, stream: "_Stream", want: Wanted) -> None:
        self._serial += 1
        free = self._budget is None
        message = pb.Want(
            policy=want.policy,
            version=want.version,
            newer_than=want.newer_than,
            held=want.held,
            held_hash=want.held_hash,
            body=want.body,
            offset=want.offset,
            pack=want.pack,
            near=want.near,
            asks=[FREE_PIECE] * FREE_ASKS if free else [],
            serial=self._serial,
        )
        stream.send(pb.PullRequest(want=message))
        self._last = want

    def _begun(self, stream: "_Stream", want: Wanted, begin: pb.Begin) -> "Transfer":
        manifest = checked(manifest_from_proto(begin.manifest), want)
        if len(begin.travels) != len(manifest.tensors):
            raise DamageError("not every tensor travels", got=len(begin.travels))
        travels = tuple(Travel(t.form, t.size, t.file, t.at, t.check) for t in begin.travels)
        total = sum(travel.size for travel in travels)
        if begin.offset not in {0, want.offset} or begin.offset > total:
            raise DamageError("weights go on elsewhere", got=begin.offset, allowed=want.offset)
        self._figures["pulled"] += 1
        self._figures["resumed"] += begin.offset > 0
        asked = FREE_ASKS if self._budget is None else 0
        transfer = Transfer(manifest, travels, begin.body, begin.offset, total, begin.age_s)
        transfer.start(self, stream, self._budget, asked)
        return transfer

    def came(self, size: int) -> None:
        """Count bytes that came."""
        self._figures["bytes_pulled"] += size

    def event(self, stream: "_Stream") -> pb.PullEvent:
        """Return what a stream says next, whoever woke it in between."""
        while (event := stream.next(self._silence_s)) is None:
            self._woken.set()
        return event

    def wake(self) -> None:
        """Have ``pull`` return, now or when it is called next."""
        self._woken.set()
        stream = self._stream
        if stream is not None:
            stream.wake()

    def hang_up(self) -> None:
        """End the stream; ``pull`` dials anew."""
        stream, self._stream, self._last = self._stream, None, None
        if stream is not None:
            stream.close()

    def close(self) -> None:
        """End the stream and whoever waits on it."""
        stream = self._stream
        if stream is not None:
            stream.close()
        self.wake()

    def stats(self) -> dict[str, float]:
        """Return transfers begun and resumed, bytes that came, and streams."""
        return dict(self._figures)


class Transfer:
    """A version that is coming; iterating yields its bytes, each piece as it arrives."""

    def __init__(
        self,
        manifest: Manifest,
        travels: tuple[Travel, ...],
        body: str,
        offset: int,
        total: int,
        age_s: float,
    ):
        self.manifest, self.travels = manifest, travels
        self.body, self.offset, self.total = body, offset, total
        self.age_s = age_s
        """Since the learner offered it, when it began to come."""
        self._start: tuple[WeightPuller, _Stream, Budget | None, int] | None = None

    def start(
        self, puller: WeightPuller, stream: "_Stream", budget: Budget | None, asked: int
    ) -> None:
        """Say where the bytes come from."""
        self._start = puller, stream, budget, asked

    def __iter__(self) -> Iterator[bytes]:
        """Yield pieces that follow each other from ``offset`` on, until all are there.

        Raises:
            LinkError: the stream broke; what was yielded need not come again.
            DamageError: pieces do not follow each other.
        """
        if self._start is None:
            return
        puller, stream, budget, asked = self._start
        asks = _Asks(stream, budget, asked)
        at = self.offset
        try:
            while at < self.total:
                asks.fill(self.total - at)
                event = puller.event(stream)
                if not event.HasField("piece"):
                    continue
                data = event.piece.data
                if event.piece.offset != at or not data or at + len(data) > self.total:
                    raise DamageError("weights come in the wrong order", got=event.piece.offset)
                asks.came(len(data))
                puller.came(len(data))
                at += len(data)
                yield data
        except UserSystemError:
            puller.hang_up()
            raise
        finally:
            asks.end()


class _Asks:
    """Pieces that are asked for: as many as the link may carry."""

    def __init__(self, stream: "_Stream", budget: Budget | None, asked: int):
        self._stream, self._budget = stream, budget
        self._under_way: deque[tuple[int, Any]] = deque([(FREE_PIECE, None)] * asked)

    def fill(self, rest: int) -> None:
        """Ask for more of the ``rest`` that has not come, as far as the budget lets it."""
        rest -= sum(size for size, _ in self._under_way)
        while rest > 0:
            size = min(rest, FREE_PIECE if self._budget is None else self._budget.chunk())
            ticket = None
            if self._budget is None:
                if len(self._under_way) >= FREE_ASKS:
                    return
            else:
                # With nothing under way there is nothing to hear of either, so it may wait.
                wait_s = 0.0 if self._under_way else 1.0
                ticket = self._budget.take(size, wait_s)
                if ticket is None and self._under_way:
                    return
                if ticket is None:
                    continue
            self._stream.send(pb.PullRequest(ask=pb.Ask(size=size)))
            self._under_way.append((size, ticket))
            rest -= size

    def came(self, size: int) -> None:
        """Note the next piece."""
        if not self._under_way or size > self._under_way[0][0]:
            raise DamageError("more weights come than were asked for", got=size)
        _, ticket = self._under_way.popleft()
        if ticket is not None and self._budget is not None:
            self._budget.done(ticket)

    def end(self) -> None:
        """Give back what will not come."""
        while self._under_way:
            _, ticket = self._under_way.popleft()
            if ticket is not None and self._budget is not None:
                self._budget.lost(ticket)


class _Stream:
    """One call, and a thread that takes in what comes."""

    def __init__(self, tunnel: Tunnel):
        stub = weights_pb2_grpc.WeightStoreStub(tunnel.channel("weights"))  # type: ignore[no-untyped-call]
        self._outgoing: SimpleQueue[pb.PullRequest | None] = SimpleQueue()
        self._inbox = _Inbox()
        self._call = stub.Pull(iter(self._outgoing.get, None))
        self._over = False
        threading.Thread(target=self._read, name="weights in", daemon=True).start()

    def _read(self) -> None:
        try:
            for event in self._call:
                self._inbox.put(event)
        except grpc.RpcError as error:
            self._inbox.end(received(error, "pull weights"))
        else:
            self._inbox.end(LinkError("the stream of weights ended"))

    def send(self, request: pb.PullRequest) -> None:
        """Say something to the store."""
        self._outgoing.put(request)

    def next(self, limit_s: float) -> pb.PullEvent | None:
        """Return what comes next; None: ``wake`` was called.

        Raises:
            LinkError: nothing came for so long, or the stream is over.
            UserSystemError: what the store raised.
        """
        try:
            return self._inbox.get(limit_s)
        except TimeoutError:
            self._call.cancel()
            text = f"nothing for {limit_s:g} s"
            raise LinkError("the weight store fell silent", got=text) from None

    def wake(self) -> None:
        """Have ``next`` return."""
        self._inbox.wake()

    def close(self) -> None:
        """End it."""
        self._outgoing.put(None)
        self._call.cancel()
        self._inbox.end(LinkError("the stream of weights was closed"))


class _Inbox:
    """What came and was not looked at yet: a few events, so that gRPC holds back the others.

    A store sends only what was asked for; one that was taken over sends what it likes.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: deque[pb.PullEvent] = deque()
        self._woken = False
        self._end: UserSystemError | None = None

    def put(self, event: pb.PullEvent) -> None:
        """Take one in; wait while there are too many. After the end it is dropped."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) < MOST_WAITING or self._end)
            if self._end is None:
                self._events.append(event)
                self._changed.notify_all()

    def end(self, error: UserSystemError) -> None:
        """Nothing more comes; the first reason counts."""
        with self._changed:
            self._end = self._end or error
            self._changed.notify_all()

    def wake(self) -> None:
        """Have ``get`` return None."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def get(self, limit_s: float) -> pb.PullEvent | None:
        """Return the next event; None: woken.

        Raises:
            TimeoutError: nothing came for so long.
            UserSystemError: why nothing comes any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._woken or self._events or self._end, limit_s)
            if self._woken:
                self._woken = False
                return None
            if self._events:
                event = self._events.popleft()
                self._changed.notify_all()
                return event
            raise self._end or TimeoutError


def checked(manifest: Manifest, want: Wanted) -> Manifest:
    """Refuse an answer to another question, or one whose hash is not that of its entries.

    Raises:
        DamageError: it is one.
    """
    newest = not want.version and manifest.version > want.newer_than
    if manifest.policy != want.policy or not (newest or manifest.version == want.version > 0):
        got = (manifest.policy, manifest.version)
        raise DamageError("weights are not those asked for", got=got, allowed=want)
    if entries_hash(Entry(*row) for row in manifest.tensors) != manifest.hash:
        raise DamageError("manifest is not what its hash says", got=manifest.hash)
    return manifest
