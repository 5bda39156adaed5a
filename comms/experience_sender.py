"""One stream of experience: some sources of an outbox, sent in order until each is acknowledged.

A fragment stays in the outbox until an acknowledgement covers it. After a break the sender dials
again, hears from ``Welcome`` how far each (producer, epoch) is on the head's disk, and goes on
there: what was under way twice is stored once.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc

from comms.experience_messages import TOGETHER, Messages
from comms.experience_session import Session, Source
from comms.lanes import Budget
from comms.pb import experience_pb2 as pb
from comms.pb import experience_pb2_grpc
from comms.reconnect import Reconnecting
from comms.silence import Call, listen
from comms.status import received
from comms.tunnel import Service, Tunnel
from user_system.core.errors import LinkError
from user_system.core.ports import Outbox, Refused
from user_system.core.types import Fragment

log = logging.getLogger(__name__)

_READ_AHEAD = 8
"""Fragments read from the outbox at once: what is newer waits for them."""

_IDLE_S = 0.2
"""How long the sender waits for something new before it looks whether its session still lives."""


class Work(Protocol):
    """What there is to send."""

    def sources(self) -> Sequence[Source]:
        """Return the sources with something to send, newest epoch first."""

    def wait(self, timeout_s: float) -> None:
        """Wait for more of it, not much longer than ``timeout_s``."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a stream goes.

    Args:
        tunnel: the way to the replay process.
        service: connection that it takes, as the tunnel names it.
        host: name of this host, as its certificate states it.
        run: whose replay may have it; "": any run's.
        silence_s: a replay that says nothing for so long is dialled again.
        budget: what may be under way on the link, in which pieces; None: as much as credit allows.
        linger_s: the stream ends when there was nothing to send for so long, and begins when there
            is something; None: it is kept.
    """

    tunnel: Tunnel
    service: Service
    host: str
    run: str
    silence_s: float
    budget: Budget | None
    linger_s: float | None = None


class Sender:
    """Sends what there is over one stream, for as long as it runs.

    Args:
        way: how.
        outbox: the host's spool.
        work: which sources of it.
        messages: makes messages of fragments.
    """

    def __init__(self, way: Way, outbox: Outbox, work: Work, messages: Messages):
        self._way, self._outbox, self._work, self._messages = way, outbox, work, messages
        self._link = Reconnecting(f"{way.service} of {way.host}", self._hold)
        self._lock = threading.Lock()
        self._session: Session | None = None
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

    def holds(self, source: Source) -> bool:
        """Whether something of a source is under way on this stream."""
        with self._lock:
            return self._session is not None and self._session.holds(source)

    def stats(self) -> dict[str, float]:
        """Return counters since the start, and what is under way now."""
        with self._lock:
            session = self._session
            now = session.stats() if session else Session().stats()
            return {**self._figures, **now, **self._link.stats()}

    def _hold(self) -> None:
        """Hold one session: say Hello, then send and hear acknowledgements until it breaks."""
        if self._way.linger_s is not None:
            self._wait_for_work()
        sources = [self._source(*source) for source in self._work.sources()]
        session, hello = Session(self._way.budget), self._hello(sources)
        session.on_stuck = self._outbox.note_stuck
        call = self._dial(self._requests(session, hello))
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

    def _wait_for_work(self) -> None:
        while not self._link.closing.is_set() and not self._work.sources():
            self._work.wait(_IDLE_S)

    def _dial(self, requests: Iterator[pb.HostMessage]) -> Call[pb.ReplayMessage]:
        channel = self._way.tunnel.channel(self._way.service)
        stub = experience_pb2_grpc.ExperienceStub(channel)  # type: ignore[no-untyped-call]
        call: Call[pb.ReplayMessage] = stub.Stream(requests)
        return call

    def _hello(self, sources: Iterable[pb.Source]) -> pb.Hello:
        behind = self._way.linger_s is not None
        return pb.Hello(host=self._way.host, sources=sources, run=self._way.run, behind=behind)

    def _source(self, producer: str, epoch: int) -> pb.Source:
        """Return how a source is named to the replay: with the life that recorded it."""
        boot = self._outbox.boot(producer, epoch)
        return pb.Source(producer=producer, epoch=epoch, boot=boot)

    def _exchange(self, session: Session, call: Call[pb.ReplayMessage]) -> None:
        """Hear Welcome, then acknowledgements, until the stream ends."""
        answers = listen(call, "the replay", self._way.silence_s)
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

    def _heard(self, session: Session, ack: pb.Ack) -> None:
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

    def _requests(self, session: Session, hello: pb.Hello) -> Iterator[pb.HostMessage]:
        """Yield what goes to the replay; runs in a thread of gRPC until the session ends."""
        yield pb.HostMessage(hello=hello)
        busy_at = time.monotonic()
        try:
            while not session.ended:
                if not session.wait_for_credit(_IDLE_S):
                    continue
                batch = self._next_batch(session)
                if batch:
                    busy_at = time.monotonic()
                elif not self._stay(session, busy_at):
                    return
                for message in self._messages.of(batch):
                    self._count(message)
                    yield from session.paced(message)
        except Exception:  # top of a thread of gRPC, which would end the stream without a word
            log.exception("sending experience failed")
            session.end()

    def _stay(self, session: Session, busy_at: float) -> bool:
        """Wait for more to send; False: the session is over, since there was none for long."""
        linger_s = self._way.linger_s
        if linger_s is not None and time.monotonic() - busy_at > linger_s and session.idle:
            session.end()
            return False
        self._work.wait(_IDLE_S)
        return True

    def _count(self, message: pb.HostMessage) -> None:
        with self._lock:
            self._figures["sent"] += max(1, len(message.fragments.fragments))
            self._figures["lost"] += message.HasField("lost")
            self._figures["bytes"] += message.ByteSize()

    def _next_batch(self, session: Session) -> Sequence[Fragment] | Refused:
        """Return what to send next, all of one source; it now counts as under way."""
        for source in session.order(self._work.sources()):
            start, room = session.room(source)
            found = self._outbox.read(*source, start, min(room, self._ahead()))
            numbers = [fragment.header.sequence for fragment in found]
            gap = bool(numbers) and numbers[0] > start and session.knows(source)
            lost = self._outbox.lost(*source, start) if gap else None
            claimed = session.claim(source, start, numbers if lost is None else [start])
            if claimed:
                return found[:claimed] if lost is None else lost
        return ()

    def _ahead(self) -> int:
        """Return how many fragments to read: what is read goes before anything that is newer."""
        budget = self._way.budget
        slow = budget is not None and budget.limit() < TOGETHER
        return 1 if slow else _READ_AHEAD
