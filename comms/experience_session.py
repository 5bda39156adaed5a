"""What one stream of experience knows: how far each source is, credit, what the link has of it."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from comms.lanes import Budget, Ticket
from comms.pb import experience_pb2 as pb
from comms.pieces import cut

log = logging.getLogger(__name__)

_IDLE_S = 0.2
"""How long a message waits for room before it is looked whether its session still lives."""

Source = tuple[str, int]
"""Producer and epoch."""

_STRANGER = "the replay has fragments of that name from another process"
_MISSING = "the replay wants fragment {}, but the spool begins at {}: what it had is missing there"
_TODO = (
    "Where two robots share a name, or this spool was lost and the clock went back, give this "
    "robot another name; `user-system replay adopt` brings what stays into a store under a new one"
)


@dataclass
class _Progress:
    """How far one (producer, epoch) is."""

    acked: int = 0
    """Everything below is on the head's disk."""
    next: int = 0
    """What to send next."""


class Session:
    """What one connection knows: progress per source, credit, and whose turn it is. Thread-safe."""

    def __init__(self, budget: Budget | None = None) -> None:
        self._way = _Way(budget) if budget is not None else None
        self.ended = False
        self.welcomed = False
        self.on_end: Callable[[], object] = lambda: None
        self.on_stuck: Callable[[str, int, str], object] = lambda producer, epoch, why: None
        self._changed = threading.Condition()
        self._credit = 0  # nothing may be sent before Welcome
        self._progress: dict[Source, _Progress] = {}
        self._turn = 0
        self._stuck: set[Source] = set()

    @property
    def under_way(self) -> int:
        """Fragments sent and not acknowledged; the lock is held."""
        return sum(progress.next - progress.acked for progress in self._progress.values())

    @property
    def idle(self) -> bool:
        """Whether all that was sent has been acknowledged."""
        with self._changed:
            return self.under_way == 0

    def stats(self) -> dict[str, float]:
        """Return gauges."""
        with self._changed:
            return {
                "connected": float(self.welcomed and not self.ended),
                "under_way": float(self.under_way),
                "stuck": float(len(self._stuck)),
            }

    def welcome(self, welcome: pb.Welcome) -> None:
        """Take over how far the replay is."""
        with self._changed:
            self.welcomed = True
            self._credit = max(1, welcome.credit)
            for answer in welcome.next:
                source = (answer.source.producer, answer.source.epoch)
                self._progress[source] = _Progress(answer.next, answer.next)
            for stranger in welcome.strangers:
                self._give_up((stranger.producer, stranger.epoch), _STRANGER)
            self._changed.notify_all()

    def acknowledge(self, ack: pb.Ack) -> int:
        """Take over an acknowledgement; return how many fragments it newly covers."""
        covered = 0
        with self._changed:
            self._credit = max(1, ack.credit)
            for answer in ack.next:
                progress = self._of(answer.source)
                covered += max(0, answer.next - progress.acked)
                progress.acked = max(progress.acked, answer.next)
                progress.next = max(progress.next, progress.acked)
            for gap in ack.gaps:
                progress = self._of(gap.source)
                # What is missing may lie before the first one kept, where this session began.
                progress.acked = min(progress.acked, gap.next)
                progress.next = min(progress.next, gap.next)
            self._changed.notify_all()
        return covered

    def _of(self, source: pb.Source) -> _Progress:
        return self._progress.setdefault((source.producer, source.epoch), _Progress())

    def paced(self, message: pb.HostMessage) -> Iterator[pb.HostMessage]:
        """Yield a message, in pieces where it is large, each as soon as the link has room."""
        if self._way is None:
            yield message
            return
        for part in self._way.parts(message):
            while not self._way.enter(part):
                if self.ended:
                    return
            yield part

    def arrived(self, count: int) -> None:
        """Note how many messages the replay has seen, on disk or not."""
        if self._way is not None:
            self._way.arrived(count)

    def wait_for_credit(self, timeout_s: float) -> bool:
        """Wait until one more fragment may be sent; False on timeout or at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self.ended or self.under_way < self._credit, timeout_s)
            return not self.ended and self.under_way < self._credit

    def order(self, sources: Sequence[Source]) -> list[Source]:
        """Return the order in which to look for something to send: each in turn is the first."""
        self._turn += 1
        first = self._turn % max(1, len(sources))
        turns = [*sources[first:], *sources[:first]]
        return [source for source in turns if source not in self._stuck]

    def holds(self, source: Source) -> bool:
        """Whether something of a source is under way here."""
        with self._changed:
            progress = self._progress.get(source)
            return progress is not None and progress.next > progress.acked

    def room(self, source: Source) -> tuple[int, int]:
        """Return the sequence to go on from, and how many fragments the credit still covers."""
        with self._changed:
            progress = self._progress.get(source)
            return (progress.next if progress else 0), max(0, self._credit - self.under_way)

    def knows(self, source: Source) -> bool:
        """Whether what ``room`` said of this source came from the replay or was sent to it."""
        with self._changed:
            return source in self._progress

    def claim(self, source: Source, start: int, sequences: Sequence[int]) -> int:
        """Count the first of ``sequences`` that follow each other as under way; return how many.

        ``start`` is what ``room`` said; when an acknowledgement has moved it, none are.
        """
        if not sequences:
            return 0
        with self._changed:
            progress = self._progress.setdefault(source, _Progress(sequences[0], sequences[0]))
            follow = [sequence == progress.next + i for i, sequence in enumerate(sequences)]
            count = follow.index(False) if False in follow else len(follow)
            if count == 0 and start == progress.next:
                self._give_up(source, _MISSING.format(start, sequences[0]))
            progress.next += count
            return count

    def _give_up(self, source: Source, why: str) -> None:
        """Leave a source alone for this session, and say so; the lock is held."""
        self._stuck.add(source)
        log.error("%s/%d stays in the spool: %s. %s", *source, why, _TODO)
        self.on_stuck(*source, why)

    def end(self) -> None:
        """End the session from whatever side."""
        with self._changed:
            if self.ended:
                return
            self.ended = True
            self._changed.notify_all()
        if self._way is not None:
            self._way.close()
        self.on_end()


class _Way:
    """What one connection has on the link, by the number of the message. Thread-safe."""

    def __init__(self, budget: Budget):
        self._budget = budget
        self._lock = threading.Lock()
        self._tickets: deque[tuple[int, Ticket]] = deque()
        self._sent = self._unasked = 0
        self._closed = False

    def parts(self, message: pb.HostMessage) -> Iterator[pb.HostMessage]:
        """Yield a message, in pieces where it is larger than one should be."""
        if message.ByteSize() <= self._budget.chunk() or not message.HasField("fragments"):
            yield message
        else:
            yield from cut(message.fragments, self._budget.chunk)

    def enter(self, part: pb.HostMessage) -> bool:
        """Wait until a message may go, and count it; False: not yet.

        A receipt is asked for when much has gone out without: an acknowledgement, which comes as
        soon as the disk has it, says as well what has arrived, and mostly that is soon enough.
        """
        size = part.ByteSize()
        ticket = self._budget.take(size, _IDLE_S)
        if ticket is None:
            return False
        self._unasked += size
        part.receipt = part.receipt or self._unasked > self._budget.limit() // 4
        if part.receipt:
            self._unasked = 0
        with self._lock:
            if self._closed:
                self._budget.lost(ticket)
            else:
                self._sent += 1
                self._tickets.append((self._sent, ticket))
        return True

    def arrived(self, count: int) -> None:
        """Note how many messages have arrived."""
        with self._lock:
            while self._tickets and self._tickets[0][0] <= count:
                self._budget.done(self._tickets.popleft()[1])

    def close(self) -> None:
        """Give back what nobody will acknowledge any more."""
        with self._lock:
            self._closed = True
            while self._tickets:
                self._budget.lost(self._tickets.popleft()[1])
