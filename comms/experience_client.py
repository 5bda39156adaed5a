"""Experience leaving a robot host: the spool drained over one stream, newest first, nothing lost.

A fragment stays in the outbox until an acknowledgement covers it. After a break the client dials
again, hears from ``Welcome`` how far each (producer, epoch) is on the head's disk, and goes on
there: what was under way twice is stored once. Within a (producer, epoch) fragments are sent in
order; between them live data goes first, each producer's newest epoch in turn, and what older
epochs left behind follows when there is nothing newer to send, on a lane of its own that leaves
less of a queue.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import grpc

from comms import wire
from comms.lanes import Budget, Ticket
from comms.packing import Packing
from comms.pb import experience_pb2 as pb
from comms.pb import experience_pb2_grpc
from comms.pieces import cut
from comms.reconnect import Reconnecting
from comms.silence import LIMIT_S, Call, listen
from comms.status import received
from comms.tunnel import MAX_MESSAGE, Tunnel
from user_system.core.errors import LinkError, SpecError
from user_system.core.ports import Outbox, Refused
from user_system.core.types import Array, Fragment

log = logging.getLogger(__name__)

_READ_AHEAD, _BEHIND_AHEAD = 8, 2
"""Fragments read from the outbox at once, live and behind: live data waits for what is read."""

_IDLE_S = 0.2
"""How long the sender waits for something new before it looks whether its session still lives."""

_MARGIN = 64 << 10
"""Bytes kept free in a message for everything but the fragment."""

_TOGETHER = 256 << 10
"""Bytes of fragments that share a message: few enough that nothing waits long behind them."""

Source = tuple[str, int]

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


class ExperienceClient:
    """Drains an outbox into the replay buffer for as long as it runs.

    Args:
        tunnel: the way to the replay process.
        outbox: the host's spool.
        host: name of this host, as its certificate states it.
        packing: of the images.
        silence_s: a replay that says nothing for so long is dialled again.
        budget: what may be under way on the link, in which pieces; None: as much as credit allows.
        behind: the same of what older epochs left behind; None: as for live data.
        run: whose replay may have it; "": any run's.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        outbox: Outbox,
        host: str,
        *,
        packing: Packing | None = None,
        silence_s: float = LIMIT_S,
        budget: Budget | None = None,
        behind: Budget | None = None,
        run: str = "",
    ):
        self._tunnel, self._run = tunnel, run
        self._budgets = {False: budget, True: behind or budget}
        """Whether it is behind -> what may be under way."""
        self._outbox = outbox
        self._host = host
        self._packings = packing or Packing(), Packing(tight=True)
        self._silence_s = silence_s
        self._link = Reconnecting(f"experience of {host}", self._hold)
        self._lock = threading.Lock()
        self._session: _Session | None = None
        self._figures = dict.fromkeys(("sent", "acked", "refused", "gaps", "lost", "bytes"), 0.0)

    def start(self) -> None:
        """Start to dial and to send."""
        self._link.start()

    def close(self) -> None:
        """Stop sending; what was not acknowledged stays in the outbox. Idempotent."""
        self._link.closing.set()
        with self._lock:
            session = self._session
        if session is not None:
            session.end()
        self._link.close()

    def stats(self) -> dict[str, float]:
        """Return counters since the start, and what is under way now."""
        with self._lock:
            session = self._session
            now = session.stats() if session else _Session().stats()
            return {**self._figures, **now, **self._link.stats()}

    def _hello(self, sources: Iterable[pb.Source]) -> pb.Hello:
        return pb.Hello(host=self._host, sources=sources, run=self._run)

    def _hold(self) -> None:
        """Hold one session: say Hello, then send and hear acknowledgements until it breaks."""
        sources = [self._source(*source) for source in self._outbox.sources()]
        session, hello = _Session(self._budgets), self._hello(sources)
        session.on_stuck = self._outbox.note_stuck
        call = _stub(self._tunnel).Stream(self._requests(session, hello))
        session.on_end = call.cancel
        with self._lock:
            self._session = session
        try:
            if not self._link.closing.is_set():
                self._exchange(session, call)
        except grpc.RpcError as error:
            if not session.ended:
                raise received(error, "send experience to the replay") from error
        finally:
            session.end()
            with self._lock:
                self._session = None

    def _source(self, producer: str, epoch: int) -> pb.Source:
        """Return how a source is named to the replay: with the life that recorded it."""
        boot = self._outbox.boot(producer, epoch)
        return pb.Source(producer=producer, epoch=epoch, boot=boot)

    def _exchange(self, session: "_Session", call: Call[pb.ReplayMessage]) -> None:
        """Hear Welcome, then acknowledgements, until the stream ends."""
        answers = listen(call, "the replay", self._silence_s)
        first = next(answers, None)
        if first is None or not first.HasField("welcome"):
            raise LinkError("replay did not say Welcome", got=first)
        self._quarantine(first.welcome.refusals)
        for answer in first.welcome.next:
            self._outbox.forget(answer.source.producer, answer.source.epoch, answer.next)
            self._outbox.note_stuck(answer.source.producer, answer.source.epoch, "")
        session.welcome(first.welcome)
        self._link.up()
        for message in answers:
            session.arrived(message.arrived)
            if message.HasField("ack"):
                self._heard(session, message.ack)

    def _heard(self, session: "_Session", ack: pb.Ack) -> None:
        """Act on an acknowledgement: set aside, forget, go back."""
        self._quarantine(ack.refusals)
        for answer in ack.next:
            self._outbox.forget(answer.source.producer, answer.source.epoch, answer.next)
        acked = session.acknowledge(ack)
        with self._lock:
            self._figures["acked"] += acked
            self._figures["refused"] += len(ack.refusals)
            self._figures["gaps"] += len(ack.gaps)

    def _quarantine(self, refusals: Iterable[pb.Refusal]) -> None:
        """Set aside what the replay will never take, before it is forgotten."""
        for refusal in refusals:
            source = refusal.source
            if self._outbox.lost(source.producer, source.epoch, refusal.sequence) is not None:
                continue  # done already
            log.error(
                "replay refused fragment %d of %s/%d: %s",
                *(refusal.sequence, source.producer, source.epoch, refusal.reason),
            )
            self._outbox.set_aside(
                Refused(source.producer, source.epoch, refusal.sequence, refusal.reason)
            )

    def _requests(self, session: "_Session", hello: pb.Hello) -> Iterator[pb.HostMessage]:
        """Yield what goes to the replay; runs in a thread of gRPC until the session ends."""
        yield pb.HostMessage(hello=hello)
        try:
            while not session.ended:
                if not session.wait_for_credit(_IDLE_S):
                    continue
                batch, behind = self._next_batch(session)
                if not batch:
                    self._outbox.wait(_IDLE_S)
                for message in self._messages(batch):
                    with self._lock:
                        self._figures["sent"] += max(1, len(message.fragments.fragments))
                        self._figures["bytes"] += message.ByteSize()
                    yield from session.paced(message, behind=behind)
        except Exception:  # top of a thread of gRPC, which would end the stream without a word
            log.exception("sending experience failed")
            session.end()

    def _next_batch(self, session: "_Session") -> tuple[Sequence[Fragment] | Refused, bool]:
        """Return what to send next, all of one source, and whether that is behind.

        It now counts as under way.
        """
        for source, behind in session.order(self._outbox.sources()):
            start, room = session.room(source)
            found = self._outbox.read(*source, start, min(room, self._ahead(behind)))
            numbers = [fragment.header.sequence for fragment in found]
            gap = bool(numbers) and numbers[0] > start and session.knows(source)
            lost = self._outbox.lost(*source, start) if gap else None
            claimed = session.claim(source, start, numbers if lost is None else [start])
            if claimed:
                return (found[:claimed] if lost is None else lost), behind
        return (), False

    def _ahead(self, behind: bool) -> int:
        """Return how many fragments to read: what is read goes before anything that is newer."""
        budget = self._budgets[behind]
        if budget is None:
            return _READ_AHEAD
        if budget.limit() < _TOGETHER:
            return 1
        return _BEHIND_AHEAD if behind else _READ_AHEAD

    def _messages(self, batch: Sequence[Fragment] | Refused) -> Iterator[pb.HostMessage]:
        """Yield the messages that say ``batch``, in order: several small fragments in one."""
        if isinstance(batch, Refused):
            yield self._lost(batch)
            return
        parts: list[pb.Fragment] = []
        total = 0
        for part in map(self._fragment, batch):
            size = part.ByteSize()
            if parts and total + size > _TOGETHER:
                yield _together(parts)
                parts, total = [], 0
            parts.append(part)
            total += size
        if parts:
            yield _together(parts)

    def _lost(self, refused: Refused) -> pb.HostMessage:
        """Return the message that says that a fragment is lost here."""
        source = pb.Source(producer=refused.producer, epoch=refused.epoch, boot=refused.boot)
        with self._lock:
            self._figures["lost"] += 1
        lost = pb.Lost(source=source, sequence=refused.sequence, reason=refused.reason[:2000])
        return pb.HostMessage(lost=lost)

    def _fragment(self, fragment: Fragment) -> pb.Fragment:
        """Return a fragment as a message; one that cannot travel goes by its name alone.

        The replay refuses that by name, so that the fragment is set aside instead of blocking all
        that come after it.
        """
        problem: object = None
        try:
            for packing in self._packings:
                message = wire.fragment_to_proto(fragment, packing)
                if message.ByteSize() <= MAX_MESSAGE - _MARGIN:
                    return message
                problem = f"{message.ByteSize()} bytes, more than a message may have"
        except SpecError as error:
            problem = error
        log.error(
            "fragment %d of %s cannot be sent: %s",
            *(fragment.header.sequence, fragment.header.producer, problem),
        )
        return wire.unsendable_to_proto(fragment.header)


def label(
    tunnel: Tunnel,
    episode: str,
    name: str,
    version: str,
    *,
    success: bool | None = None,
    values: Array | None = None,
    timeout_s: float = 5.0,
) -> None:
    """Write a late label of an episode; see ``core.ports.Ingest.label``.

    Raises:
        LinkError: the replay cannot be reached.
        StoreError: its disk failed.
    """
    request = pb.LabelRequest(episode=episode, name=name, version=version, success=success)
    if values is not None:
        request.values.CopyFrom(wire.array_to_proto(values, name))
    try:
        _stub(tunnel).Label(request, timeout=timeout_s)
    except grpc.RpcError as error:
        raise received(error, "label an episode") from error


def replay_stats(tunnel: Tunnel, timeout_s: float = 5.0) -> dict[str, float]:
    """Return the figures of the replay process.

    Raises:
        LinkError: it cannot be reached.
    """
    try:
        reply: pb.StatsReply = _stub(tunnel).Stats(pb.StatsRequest(), timeout=timeout_s)
    except grpc.RpcError as error:
        raise received(error, "ask the replay how it does") from error
    return dict(reply.values)


def _together(parts: Sequence[pb.Fragment]) -> pb.HostMessage:
    return pb.HostMessage(fragments=pb.Fragments(fragments=parts))


def _stub(tunnel: Tunnel) -> experience_pb2_grpc.ExperienceStub:
    channel = tunnel.channel("replay")
    return experience_pb2_grpc.ExperienceStub(channel)  # type: ignore[no-untyped-call]


class _Session:
    """What one connection knows: progress per source, credit, and whose turn it is. Thread-safe."""

    def __init__(self, budgets: Mapping[bool, Budget | None] | None = None) -> None:
        known = {behind: one for behind, one in (budgets or {}).items() if one is not None}
        self._way = _Way(known) if known else None
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

    def paced(self, message: pb.HostMessage, *, behind: bool) -> Iterator[pb.HostMessage]:
        """Yield a message, in pieces where it is large, each as soon as the link has room."""
        if self._way is None:
            yield message
            return
        for part in self._way.parts(message, behind):
            while not self._way.enter(part, behind):
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

    def order(self, sources: Sequence[Source]) -> list[tuple[Source, bool]]:
        """Return the order in which to look for something to send, and what of it is behind.

        Args:
            sources: newest epoch first, as the outbox lists them.
        """
        newest = dict(reversed([(producer, epoch) for producer, epoch in sources]))
        live = [source for source in sources if newest[source[0]] == source[1]]
        behind = [source for source in sources if newest[source[0]] != source[1]]
        self._turn += 1
        first = self._turn % max(1, len(live))
        turns = [(s, False) for s in live[first:] + live[:first]] + [(s, True) for s in behind]
        return [turn for turn in turns if turn[0] not in self._stuck]

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
    """What one connection has on the link, by the number of the message. Thread-safe.

    Args:
        budgets: of live data, False, and of what is behind, True.
    """

    def __init__(self, budgets: Mapping[bool, Budget]):
        self._budgets = budgets
        self._lock = threading.Lock()
        self._tickets: deque[tuple[int, Budget, Ticket]] = deque()
        self._sent = self._unasked = 0
        self._closed = False

    def parts(self, message: pb.HostMessage, behind: bool) -> Iterator[pb.HostMessage]:
        """Yield a message, in pieces where it is larger than one should be."""
        chunk = self._budgets[behind].chunk
        if message.ByteSize() <= chunk() or not message.HasField("fragments"):
            yield message
        else:
            yield from cut(message.fragments, chunk)

    def enter(self, part: pb.HostMessage, behind: bool) -> bool:
        """Wait until a message may go, and count it; False: not yet.

        A receipt is asked for when much has gone out without: an acknowledgement, which comes as
        soon as the disk has it, says as well what has arrived, and mostly that is soon enough.
        """
        size, budget = part.ByteSize(), self._budgets[behind]
        ticket = budget.take(size, _IDLE_S)
        if ticket is None:
            return False
        self._unasked += size
        part.receipt = part.receipt or self._unasked > budget.limit() // 4
        if part.receipt:
            self._unasked = 0
        with self._lock:
            if self._closed:
                budget.lost(ticket)
            else:
                self._sent += 1
                self._tickets.append((self._sent, budget, ticket))
        return True

    def arrived(self, count: int) -> None:
        """Note how many messages have arrived."""
        with self._lock:
            while self._tickets and self._tickets[0][0] <= count:
                _, budget, ticket = self._tickets.popleft()
                budget.done(ticket)

    def close(self) -> None:
        """Give back what nobody will acknowledge any more."""
        with self._lock:
            self._closed = True
            while self._tickets:
                _, budget, ticket = self._tickets.popleft()
                budget.lost(ticket)
