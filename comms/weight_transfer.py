"""A version on its way to a robot host: its bytes are asked for as the link may carry them."""

from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from comms.pb import weights_pb2 as pb
from comms.weight_stream import Stream
from user_system.core.errors import DamageError, UserSystemError
from user_system.core.ports import Manifest, Travel

FREE_PIECE = 256 << 10
"""Bytes asked for at a time where nothing limits what may be under way. Each is copied some times
on its way through gRPC: memory for larger ones is fetched from the kernel anew every time."""

FREE_ASKS = 16
"""Pieces asked for at a time then."""


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


class Source(Protocol):
    """Who has the stream on which a version comes."""

    def event(self, stream: Stream) -> pb.PullEvent:
        """Return what the stream says next."""

    def came(self, size: int) -> None:
        """Count bytes that came."""

    def hang_up(self) -> None:
        """End the stream."""


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
        self._start: tuple[Source, Stream, Budget | None, int] | None = None

    def start(self, source: Source, stream: Stream, budget: Budget | None, asked: int) -> None:
        """Say where the bytes come from."""
        self._start = source, stream, budget, asked

    def __iter__(self) -> Iterator[bytes]:
        """Yield pieces that follow each other from ``offset`` on, until all are there.

        Raises:
            LinkError: the stream broke; what was yielded need not come again.
            DamageError: pieces do not follow each other.
        """
        if self._start is None:
            return
        source, stream, budget, asked = self._start
        asks = _Asks(stream, budget, asked)
        at = self.offset
        try:
            while at < self.total:
                asks.fill(self.total - at)
                event = source.event(stream)
                if not event.HasField("piece"):
                    continue
                data = event.piece.data
                if event.piece.offset != at or not data or at + len(data) > self.total:
                    raise DamageError("weights come in the wrong order", got=event.piece.offset)
                asks.came(len(data))
                source.came(len(data))
                at += len(data)
                yield data
        except UserSystemError:
            source.hang_up()
            raise
        finally:
            asks.end()


class _Asks:
    """Pieces that are asked for: as many as the link may carry."""

    def __init__(self, stream: Stream, budget: Budget | None, asked: int):
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
