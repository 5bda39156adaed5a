"""Experience arriving at the replay buffer: one committer for all streams, ack after commit.

Each host has one stream, and a second one while older epochs are behind. Fragments wait, in order,
for the committer: a single thread that
takes what all streams have brought, stores it in one group commit, and then acknowledges. A disk
flush costs about the same for one fragment as for sixty-four, and while one runs the next group
comes together by itself: nobody waits for company. That thread also decodes what it stores: were
each stream to decode its own, all of them would fight the committer for the interpreter.

Back-pressure has no message of its own: a stream is read only while fewer than ``credit`` of its
fragments are unanswered, so that a slow disk fills the windows of gRPC and then the spools of the
hosts, never this process. Within that, each answer says how many may be under way (``pacing``).
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import grpc

from comms import wire
from comms.credentials import Peer
from comms.pacing import Limits, Pacing
from comms.pb import experience_pb2 as pb
from comms.pb import experience_pb2_grpc
from comms.pieces import Joiner
from comms.security import identify
from comms.silence import speak
from user_system.core.clock import WallClock
from user_system.core.errors import LinkError, SecurityError, SpecError, StoreError, UserSystemError
from user_system.core.ports import Ingest, Refused
from user_system.core.throttle import Throttle
from user_system.core.types import Parcel

log = logging.getLogger(__name__)

MAX_SOURCES = 4096
"""(producer, epoch) pairs in one Hello."""

_MAX_NAME, _MAX_REASON = 255, 2000

UNREAD = 256
"""Answers that may wait for one host. It has fewer fragments under way than that, so one that has
so many reads none of them, and is cut off."""

_RECEIPT = pb.ReplayMessage(received=pb.Received())
"""Stands in the queue for one that is written when it is sent."""

UNHEARD = 256
"""Sequences before the next one whose refusals Welcome repeats; the credit where that is larger."""


@dataclass(frozen=True, slots=True)
class _Arrival:
    """What waits for the committer, as it came."""

    stream: "_Stream"
    part: pb.Fragment | pb.Lost
    size: int
    """Bytes on the wire."""
    weight: int
    """Bytes that it claims to have decoded; no more than one may have."""
    at: float
    """Monotonic seconds of its arrival."""

    @classmethod
    def of(cls, stream: "_Stream", part: pb.Fragment | pb.Lost) -> "_Arrival":
        """Return what has just come."""
        size = weight = part.ByteSize()
        if isinstance(part, pb.Fragment):
            claimed = (i.height * i.width * i.channels for i in part.images[: wire.MAX_PARTS])
            weight = min(sum(claimed, len(part.record)), wire.MAX_DECODED)
        return cls(stream, part, size, weight, time.monotonic())

    @property
    def key(self) -> tuple[str, int, int]:
        """Producer, epoch, sequence."""
        source = self.part.source
        return source.producer, source.epoch, self.part.sequence


class ExperienceService(experience_pb2_grpc.ExperienceServicer):
    """Serves ``Experience`` over an ``Ingest``.

    Args:
        ingest: the replay buffer.
        credit: fragments that a host may have under way without an answer, at most.
        commit_ms: how long the first fragment of a group waits for others.
        commit_fragments: largest group.
        commit_bytes: decoded size of a group after which it is committed.
        owners: producer -> the only host that may send for it; others: whoever began an epoch.
    """

    def __init__(
        self,
        ingest: Ingest,
        *,
        owners: Mapping[str, str] | None = None,
        run: str = "",
        credit: int = 64,
        commit_ms: float = 0.0,
        commit_fragments: int = 64,
        commit_bytes: int = 16 << 20,
    ):
        self._ingest, self._hosts, self._of = ingest, owners or {}, run
        self._credit = credit
        self._pacing = Pacing(Limits(least=min(2, credit), most=credit))
        self._commit_s = commit_ms / 1000
        self._commit_fragments = commit_fragments
        self._commit_bytes = commit_bytes
        self._arrivals: SimpleQueue[_Arrival | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._streams: dict[tuple[str, bool], _Stream] = {}
        """(host, whether it is the one for what is behind) -> stream."""
        self._owners: dict[tuple[str, int], str] = {}
        """(producer, epoch) -> the boot that need not be asked about again; for the committer."""
        self._closed = False
        self._committer = threading.Thread(target=self._run, name="committer", daemon=True)
        self._figures = dict.fromkeys(
            ("fragments", "bytes", "commits", "commit_ms", "refused", "gaps", "store_errors"), 0.0
        )
        self._figures["credit"] = float(credit)
        # A host can send what is refused as fast as its line: neither fills the disk with lines.
        self._lines = Throttle(WallClock(), 5.0, 50.0)

    def register(self, server: grpc.Server) -> None:
        """Add the methods to ``server``."""
        experience_pb2_grpc.add_ExperienceServicer_to_server(  # type: ignore[no-untyped-call]
            self, server
        )

    def start(self) -> None:
        """Start the committer."""
        self._committer.start()

    def close(self) -> None:
        """End the streams and the committer; what was not acknowledged will come again."""
        with self._lock:
            self._closed = True
            streams = list(self._streams.values())
        for stream in streams:
            stream.end(LinkError("replay is shutting down"))
        self._arrivals.put(None)
        if self._committer.is_alive():
            self._committer.join()

    def stats(self) -> dict[str, float]:
        """Return counters since the start, open streams, and the last commit's duration."""
        with self._lock:
            return {**self._figures, "streams": float(len(self._streams))}

    def Stream(  # noqa: N802 (gRPC's name)
        self, request_iterator: Iterator[pb.HostMessage], context: grpc.ServicerContext
    ) -> Iterator[pb.ReplayMessage]:
        """Take the experience of one host."""
        peer = identify(context)
        hello = self._hello(request_iterator, peer)
        stream = _Stream(peer, self._credit, behind=hello.behind)
        if not context.add_callback(lambda: stream.end(None)):
            return  # over before it began
        self._adopt(stream)
        try:
            yield self._welcome(hello)
            reader = threading.Thread(
                target=self._read, args=(stream, request_iterator), name=f"from {peer.name}"
            )
            reader.daemon = True
            reader.start()
            beat = pb.ReplayMessage(ack=pb.Ack(credit=self._credit))
            for message in speak(stream.outgoing, beat):
                yield stream.with_arrived(message)
        finally:
            stream.end(None)
            with self._lock:
                if self._streams.get(stream.key) is stream:
                    del self._streams[stream.key]

    def Label(  # noqa: N802 (gRPC's name)
        self, request: pb.LabelRequest, context: grpc.ServicerContext
    ) -> pb.LabelReply:
        """Write a late label."""
        success = request.success if request.HasField("success") else None
        values = wire.array_from_proto(request.values) if request.HasField("values") else None
        if not (request.episode and request.name):
            raise SpecError(
                "label needs an episode and a name", got=(request.episode, request.name)
            )
        self._ingest.label(request.episode, request.name, request.version, success, values)
        return pb.LabelReply()

    def Stats(  # noqa: N802 (gRPC's name)
        self, request: pb.StatsRequest, context: grpc.ServicerContext
    ) -> pb.StatsReply:
        """Return figures of the buffer and of this service."""
        return pb.StatsReply(values={**self._ingest.stats(), **self.stats()})

    def _hello(self, requests: Iterator[pb.HostMessage], peer: Peer) -> pb.Hello:
        first = next(requests, None)
        if first is None or not first.HasField("hello"):
            raise SpecError("a stream begins with Hello", got=first and first.WhichOneof("message"))
        if first.hello.host != peer.name:
            raise SecurityError(
                "host speaks under another name", got=first.hello.host, allowed=peer.name
            )
        if self._of and first.hello.run not in ("", self._of):
            # An evaluation took the run's place, or the run took it back: the host follows soon.
            raise LinkError(
                "experience of another run", got=repr(first.hello.run[:64]), allowed=repr(self._of)
            )
        if len(first.hello.sources) > MAX_SOURCES:
            raise SpecError("too many sources", got=len(first.hello.sources), allowed=MAX_SOURCES)
        for source in first.hello.sources:
            _require_source(source)
        return first.hello

    def _anothers(self, host: str, producer: str) -> bool:
        """Whether a producer is a robot of another host; one that no manifest names is nobody's."""
        return self._hosts.get(producer, host) != host

    def _require_host(self, peer: Peer, producer: str) -> None:
        """Refuse what a host sends in the name of a robot that is another's.

        Raises:
            SecurityError: it is not the host of that robot.
        """
        if self._anothers(peer.name, producer):
            raise SecurityError(
                f"host {peer.name!r} sends for a robot that is not its own",
                got=producer,
                allowed=", ".join(r for r, host in self._hosts.items() if host == peer.name),
                todo="Did the robot move to another host? Then what is left here must be adopted.",
            )

    def _adopt(self, stream: "_Stream") -> None:
        """Make ``stream`` its host's; an older one of its kind is what a broken link left over."""
        with self._lock:
            if self._closed:
                raise LinkError("replay is shutting down")
            older = self._streams.get(stream.key)
            self._streams[stream.key] = stream
        if older is not None:
            older.end(LinkError("this host has dialled again"))

    def _welcome(self, hello: pb.Hello) -> pb.ReplayMessage:
        strange = [
            self._anothers(hello.host, s.producer)
            or self._ingest.strange(s.producer, s.epoch, s.boot)
            for s in hello.sources
        ]
        strangers = [s for s, is_one in zip(hello.sources, strange, strict=True) if is_one]
        ours = [s for s, is_one in zip(hello.sources, strange, strict=True) if not is_one]
        if strangers:
            names = sorted({source.producer for source in strangers})
            log.error("%s: others began what it sends of %s", hello.host, names)
        nexts = [self._next(source.producer, source.epoch) for source in ours]
        refusals = [_refusal(r) for answer in nexts for r in self._unheard(answer)]
        credit = self._credit
        welcome = pb.Welcome(next=nexts, credit=credit, refusals=refusals, strangers=strangers)
        return pb.ReplayMessage(welcome=welcome)

    def _unheard(self, answer: pb.Next) -> Sequence[Refused]:
        """Return the refusals whose Ack may have been lost: no more than were under way."""
        start = max(0, answer.next - max(self._credit, UNHEARD))
        return self._ingest.refused(answer.source.producer, answer.source.epoch, start)

    def _next(self, producer: str, epoch: int) -> pb.Next:
        source = pb.Source(producer=producer, epoch=epoch)
        return pb.Next(source=source, next=self._ingest.expected(producer, epoch))

    def _read(self, stream: "_Stream", requests: Iterator[pb.HostMessage]) -> None:
        """Hand one host's fragments to the committer, in order, never more than its credit."""
        try:
            sources: set[tuple[str, int]] = set()
            while stream.acquire():
                message = stream.next_message(requests)
                if message is None:
                    return
                for number, part in enumerate(self._parts(message)):
                    if number and not stream.acquire():
                        return
                    arrival = _Arrival.of(stream, part)
                    if arrival.key[:2] not in sources:
                        self._require_host(stream.peer, arrival.key[0])
                        # One that is no source must end this stream, not the commit of all hosts.
                        self._ingest.expected(*arrival.key[:2])
                        sources.add(arrival.key[:2])
                        if len(sources) > MAX_SOURCES:
                            sources.clear()  # looking again costs little, remembering all would not
                    self._arrivals.put(arrival)
        except UserSystemError as error:
            stream.end(error)
        except grpc.RpcError:
            log.debug("stream of %s broke", stream.peer.name)
        except Exception:  # top of a thread: this host's stream ends, the others go on
            log.exception("reading from %s failed", stream.peer.name)
            stream.end(LinkError("unforeseen error at the replay; see its log"))
        finally:
            stream.end(None)

    def _parts(self, message: pb.HostMessage) -> Sequence[pb.Fragment | pb.Lost]:
        """Return what a message holds.

        Raises:
            SpecError: nothing that may come now, or more than the credit allows.
        """
        kind = message.WhichOneof("message")
        parts: Sequence[pb.Fragment | pb.Lost] = ()
        if kind == "fragments":
            parts = message.fragments.fragments
        elif kind == "lost":
            parts = [message.lost]
        if not parts:
            raise SpecError("after Hello only fragments are expected", got=kind)
        for part in parts:
            _require_source(part.source)
            if isinstance(part, pb.Lost) and not part.source.boot:
                # Whoever passed it over for it might have been sent the very fragment by another.
                raise SpecError(
                    f"lost fragment {part.sequence} of {part.source.producer!r} is nobody's",
                    got="no boot",
                    allowed="that of the process that recorded it",
                    todo="Install today's version on this host.",
                )
        if len(parts) > self._credit:
            raise SpecError("too many fragments at once", got=len(parts), allowed=self._credit)
        return parts

    def _run(self) -> None:
        running = True
        while running:
            group, running = self._collect()
            try:
                self._commit(group)
            except StoreError as error:
                with self._lock:
                    self._figures["store_errors"] += 1
                log.error("nothing of %d fragments stored: %s", len(group), error)
                _end_all(group, error)
            except Exception:  # top of a thread: hosts keep what was not acknowledged
                log.exception("commit failed; each host by itself now")
                self._commit_apart(group)

    def _commit_apart(self, group: Sequence[_Arrival]) -> None:
        """Commit a group that failed host by host: what one of them sent stops no other."""
        for stream in {arrival.stream: None for arrival in group}:
            own = [arrival for arrival in group if arrival.stream is stream]
            try:
                self._commit(own)
            except Exception:  # top of a thread, as above
                log.exception("commit of what %s sent failed", stream.peer.name)
                _end_all(own, LinkError("unforeseen error at the replay; see its log"))

    def _collect(self) -> tuple[list[_Arrival], bool]:
        """Return the next group, and False once there will be no more."""
        first = self._arrivals.get()
        if first is None:
            return [], False
        group, weight = [first], first.weight
        deadline = time.monotonic() + self._commit_s
        while len(group) < self._commit_fragments and weight < self._commit_bytes:
            try:
                arrival = self._arrivals.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                break
            if arrival is None:
                return group, False
            group.append(arrival)
            weight += arrival.weight
        return group, True

    def _commit(self, group: Sequence[_Arrival]) -> None:
        # What a stream brought after it was cut off may come again on the next one: not stored
        # here, so that the order within an epoch never depends on two streams.
        group = self._own([arrival for arrival in group if not arrival.stream.ended])
        started = time.monotonic()
        refused = self._store(group)
        gaps = 0
        for stream in {arrival.stream: None for arrival in group}:
            own = [arrival for arrival in group if arrival.stream is stream]
            gaps += self._acknowledge(stream, own, refused)
        now = time.monotonic()
        with self._lock:
            if group:
                streams, waited = len(self._streams), now - group[0].at
                self._pacing.waited(waited, now - started, len(group), streams)
                self._figures["credit"] = float(self._pacing.credit(streams))
            self._figures["commits"] += bool(group)
            self._figures["fragments"] += len(group)
            self._figures["bytes"] += sum(arrival.size for arrival in group)
            self._figures["refused"] += len(refused)
            self._figures["gaps"] += gaps
            self._figures["commit_ms"] = (now - started) * 1000

    def _own(self, group: Sequence[_Arrival]) -> list[_Arrival]:
        """Return what comes from whoever began its source; the streams of others end.

        Here and not where it arrives: two may begin at the same moment, and nothing is said to
        either of what the other one sent. Dialled again, a host hears of a stranger in Welcome.
        """
        kept: list[_Arrival] = []
        begun: dict[tuple[str, int], str] = {}
        for arrival in group:
            source, of = arrival.part.source, arrival.key[:2]
            known = of in begun or self._owners.get(of) == source.boot
            strange = not known and self._ingest.strange(*of, source.boot)
            if strange or begun.setdefault(of, source.boot) not in ("", source.boot):
                arrival.stream.end(_stranger(source))
            else:
                kept.append(arrival)
        return [arrival for arrival in kept if not arrival.stream.ended]

    def _store(self, group: Sequence[_Arrival]) -> list[Refused]:
        """Store a group in order; return what was refused."""
        refused: list[Refused] = []
        pending: list[Parcel] = []
        for arrival in group:
            content = _content(arrival.part)
            if isinstance(content, Refused) and self._lines.take(arrival.stream.peer.name):
                log.warning(
                    "fragment %d of %s: %s", content.sequence, content.producer, content.reason
                )
            if isinstance(content, Parcel):
                pending.append(content)
                continue
            # It was not even decoded. What came before it must be stored before it is skipped.
            if pending:
                refused += self._ingest.append(pending)
                pending = []
            self._ingest.skip(content)
            refused.append(content)
        if pending:
            refused += self._ingest.append(pending)
        return refused

    def _acknowledge(
        self, stream: "_Stream", group: Sequence[_Arrival], refused: Sequence[Refused]
    ) -> int:
        """Answer one stream's part of a group; return the number of its sources with gaps."""
        newest: dict[tuple[str, int], int] = {}
        for producer, epoch, sequence in (arrival.key for arrival in group):
            newest[producer, epoch] = sequence
        nexts = [self._next(*source) for source in newest]
        if len(self._owners) > MAX_SOURCES:
            self._owners.clear()
        self._owners.update((arrival.key[:2], arrival.part.source.boot) for arrival in group)
        gaps = [
            answer
            for answer, sequence in zip(nexts, newest.values(), strict=True)
            if answer.next <= sequence
        ]
        keys = {arrival.key for arrival in group}
        refusals = [_refusal(r) for r in refused if (r.producer, r.epoch, r.sequence) in keys]
        credit = self._pacing.credit(len(self._streams))
        ack = pb.Ack(next=nexts, credit=credit, refusals=refusals, gaps=gaps)
        stream.answer(pb.ReplayMessage(ack=ack), len(group))
        return len(gaps)


class _Stream:
    """One host's stream: what is to be sent to it, and how much of its credit is used."""

    def __init__(self, peer: Peer, credit: int, *, behind: bool = False):
        self.peer = peer
        self.key = peer.name, behind
        self.ended = False
        self._credit = threading.Semaphore(credit)
        self.outgoing: SimpleQueue[pb.ReplayMessage | UserSystemError | None] = SimpleQueue()
        self._joiner = Joiner()
        self._arrived = 0
        """Messages after Hello."""
        self._receipts = False
        """One waits to be sent."""

    def next_message(self, requests: Iterator[pb.HostMessage]) -> pb.HostMessage | None:
        """Return what the host sends next, put together where it came in pieces; None: no more."""
        for message in requests:
            self._arrived += 1
            if message.receipt:
                self._receipt()
            if not message.HasField("piece"):
                if self._joiner.begun:
                    raise SpecError("a message came between pieces of another")
                return message
            whole = self._joiner.add(message.piece)
            if whole is not None:
                return pb.HostMessage(fragments=whole)
        return None

    def _receipt(self) -> None:
        """Say how much has arrived; what is not said yet is said with the newest number."""
        if not self._receipts:
            self._receipts = True
            self.outgoing.put(_RECEIPT)

    def with_arrived(self, message: pb.ReplayMessage) -> pb.ReplayMessage:
        """Return a message that goes out now, and says how much has arrived."""
        if message is _RECEIPT:
            self._receipts = False  # before the number is read: what comes later asks again
            message = pb.ReplayMessage(received=pb.Received())
        message.arrived = self._arrived
        return message

    def acquire(self) -> bool:
        """Wait until one more fragment may be unanswered; False: the stream is over."""
        self._credit.acquire()
        return not self.ended

    def answer(self, message: pb.ReplayMessage, count: int) -> None:
        """Send an answer to ``count`` fragments."""
        if self.outgoing.qsize() >= UNREAD:
            self.end(LinkError(f"host {self.peer.name!r} does not read its answers"))
        self.outgoing.put(message)
        self._credit.release(count)

    def end(self, error: UserSystemError | None) -> None:
        """End the stream, with an error or in order; only the first call counts."""
        if self.ended:
            return
        self.ended = True
        self.outgoing.put(error)
        self._credit.release()


def _require_source(source: pb.Source) -> None:
    """Refuse names that nobody has, before anything is kept by them.

    Raises:
        SpecError: there is no name, or one is too long.
    """
    if not source.producer:
        raise SpecError("a source has no producer", allowed="a name")
    if max(len(source.producer), len(source.boot)) > _MAX_NAME:
        got = (len(source.producer), len(source.boot))
        raise SpecError("names of a source are too long", got=got, allowed=_MAX_NAME)


def _stranger(source: pb.Source) -> SpecError:
    return SpecError(
        f"epoch {source.epoch} of {source.producer!r} was begun by another process",
        got=f"boot {source.boot!r}",
        allowed="the one that began it",
        todo="Two robots share a name, or a host has lost its spool and its clock went back: give "
        "this robot another name. Nothing of it was stored or forgotten.",
    )


def _content(part: pb.Fragment | pb.Lost) -> Parcel | Refused:
    """Return the fragment that arrived, or the reason why it is none."""
    if isinstance(part, pb.Lost):
        refused = _named(part, f"lost on its host: {part.reason}")
    else:
        try:
            return wire.fragment_from_proto(part)
        except UserSystemError as error:
            refused = _named(part, str(error))
    return refused


def _named(part: pb.Fragment | pb.Lost, reason: str) -> Refused:
    """Return a refusal; the reason may quote what came, which may be long, and no text."""
    said = reason[:_MAX_REASON].encode("ascii", "backslashreplace").decode()
    source = part.source
    return Refused(source.producer, source.epoch, part.sequence, said, source.boot)


def _refusal(refused: Refused) -> pb.Refusal:
    source = pb.Source(producer=refused.producer, epoch=refused.epoch)
    return pb.Refusal(source=source, sequence=refused.sequence, reason=refused.reason[:_MAX_REASON])


def _end_all(group: Sequence[_Arrival], error: UserSystemError) -> None:
    for arrival in group:
        arrival.stream.end(error)
