"""The replay buffer for learners on other hosts: ``Data`` over gRPC, one session per learner.

Each session draws in a thread of its own (see ``data_session``). What it draws leaves in parts of
one MiB, the next one only when gRPC has taken the last: a slow learner waits for itself alone. What
one learner may take of this process is bounded: sessions, asks under way, bytes of answers that it
has not confirmed, bytes of one answer, the time without any word from it.
"""

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Protocol

import grpc

from comms.credentials import Peer
from comms.data_session import Limits, Make, Reply, Session, Stream
from comms.data_wire import MAX_ASK, MAX_OPEN, SHARD
from comms.pb import data_pb2 as pb
from comms.pb import data_pb2_grpc
from comms.security import identify
from comms.silence import speak
from user_system.core.errors import LinkError, MissingError, SpecError, UserSystemError

log = logging.getLogger(__name__)

PART = 1 << 20
"""Bytes of an answer in one message."""

_NAME = re.compile(r"[0-9a-f]{32}")
_BEAT = Reply(b"")

_NO_RELAY = "Does the manifest give that host a replay of its own?"

Key = tuple[str, str]
"""(name of the peer, name of the session)."""


class Relay(Protocol):
    """Where streams go that want a shard of another site; ``comms.shard_relay`` is one."""

    def attach(
        self,
        shard: str,
        learner: Peer,
        requests: Iterator[pb.DataRequest],
        context: grpc.ServicerContext,
    ) -> Iterator[pb.DataPart]:
        """Pass a learner's stream on to ``shard``."""


def shard_of(context: grpc.ServicerContext) -> str:
    """Return which shard a call wants; "": the one that is kept here."""
    given = [value for key, value in context.invocation_metadata() or () if key == SHARD]
    return str(given[0])[:256] if given else ""


class DataService(data_pb2_grpc.DataServicer):
    """Serves ``Data``.

    Args:
        make: makes the window of a new session.
        limits: what learners may take of this process.
        relay: where learners are handed on that want a shard of another site; None: nowhere.
    """

    def __init__(self, make: Make, limits: Limits | None = None, relay: Relay | None = None):
        self._make, self._relay = make, relay
        self._limits = limits or Limits()
        self._lock = threading.Lock()
        self._sessions: dict[Key, Session] = {}
        self._ended = threading.Event()
        self._past: Counter[str] = Counter()
        """Figures of sessions that are over."""
        self._janitor = threading.Thread(target=self._tidy, name="janitor", daemon=True)

    def register(self, server: grpc.Server) -> None:
        """Add the methods to ``server``."""
        data_pb2_grpc.add_DataServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Start to look for sessions that nobody comes back to."""
        self._janitor.start()

    def close(self) -> None:
        """End streams and sessions; learners go on from their own state after the next start."""
        self._ended.set()
        with self._lock:
            sessions = dict(self._sessions)
        for session in sessions.values():
            if session.stream is not None:
                session.stream.end(LinkError("the replay reader is shutting down"))
        for key, session in sessions.items():
            self._drop(key, session)
            session.join()
        if self._janitor.is_alive():
            self._janitor.join()

    def stats(self) -> dict[str, float]:
        """Return sessions, streams, and counters since the start."""
        with self._lock:
            sessions = list(self._sessions.values())
            totals = Counter(self._past)
        for session in sessions:
            totals.update(session.stats())
        streams = sum(session.stream is not None for session in sessions)
        now = {"sessions": float(len(sessions)), "streams": float(streams)}
        return {**{name: float(value) for name, value in totals.items()}, **now}

    def Attach(  # noqa: N802 (gRPC's name)
        self, request_iterator: Iterator[pb.DataRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.DataPart]:
        """Serve one learner for as long as its connection holds, or hand it to its shard."""
        shard = shard_of(context)
        if shard and self._relay is not None:
            yield from self._relay.attach(shard, identify(context), request_iterator, context)
        elif shard:
            raise MissingError(f"no shard {shard!r} is offered here", todo=_NO_RELAY)
        else:
            yield from self.attend(identify(context), request_iterator, context.add_callback)

    def attend(
        self,
        peer: Peer,
        requests: Iterator[pb.DataRequest],
        when_over: Callable[[Callable[[], None]], bool],
    ) -> Iterator[pb.DataPart]:
        """Serve one learner's stream, wherever it comes from.

        Args:
            peer: the learner.
            requests: what it asks.
            when_over: has a function called once the connection is over; False: it is already.
        """
        opening = _opening(requests)
        stream = Stream()
        if not when_over(stream.end):
            return  # over before it began
        key = peer.name, opening.session
        session = self._adopt(peer, key, stream)
        try:
            session.put(stream, opening)
            args = key, session, stream, requests
            threading.Thread(
                target=self._read, args=args, name=f"from {peer.name}", daemon=True
            ).start()
            yield from self._answers(session, stream)
        finally:
            stream.end()
            self._leave(session, stream)

    def _answers(self, session: Session, stream: Stream) -> Iterator[pb.DataPart]:
        """Yield the answers of a session in parts, and an empty one when there is none."""
        for reply in speak(stream.outgoing, _BEAT):
            if reply is _BEAT:
                if session.idle_s > self._limits.idle_s:
                    log.info("session %s is idle: ended", session.name)
                    return
                yield pb.DataPart()
                continue
            data = session.wanted(reply)
            for offset in range(0, len(data), PART):
                part = data[offset : offset + PART]
                yield pb.DataPart(total=len(data), offset=offset, data=part)
            stream.release()

    def _read(
        self, key: Key, session: Session, stream: Stream, requests: Iterator[pb.DataRequest]
    ) -> None:
        """Hand what a learner asks to its session, never more than its credit."""
        try:
            while stream.acquire():
                message = next(requests, None)
                if message is None:
                    return
                if message.HasField("close"):
                    self._drop(key, session)
                    return
                session.put(stream, _ask(message))
        except UserSystemError as error:
            stream.end(error)
        except grpc.RpcError:
            log.debug("stream of session %s broke", session.name)
        except Exception:  # top of a thread: this stream ends, the others go on
            log.exception("reading from session %s failed", session.name)
            stream.end(LinkError("unforeseen error at the replay reader; see its log"))
        finally:
            stream.end()

    # --- sessions --------------------------------------------------------------------------------

    def _adopt(self, peer: Peer, key: Key, stream: Stream) -> Session:
        """Return the session of a stream; an older stream of it is what a broken link left."""
        with self._lock:
            if self._ended.is_set():
                raise LinkError("the replay reader is shutting down")
            session = self._sessions.get(key)
            if session is None:
                self._make_room()
                session = Session(f"{peer.name}/{key[1][:8]}", self._make, self._limits)
                session.start()
                self._sessions[key] = session
            older, session.stream = session.stream, stream
        if older is not None:
            older.end(LinkError("this session was opened again"))
        return session

    def _make_room(self) -> None:
        """Give the place of the session that was left first to a new one; the lock is held."""
        if len(self._sessions) < self._limits.sessions:
            return
        left = [item for item in self._sessions.items() if item[1].stream is None]
        if not left:
            raise LinkError(
                "as many learners draw here as may at once",
                got=len(self._sessions),
                allowed=f"{self._limits.sessions} sessions",
                todo="End one of them; this one goes on trying.",
            )
        key, session = min(left, key=lambda item: item[1].left_at)
        self._forget(key, session)

    def _leave(self, session: Session, stream: Stream) -> None:
        with self._lock:
            if session.stream is stream:
                session.stream, session.left_at = None, time.monotonic()

    def _drop(self, key: Key, session: Session) -> None:
        with self._lock:
            if self._sessions.get(key) is session:
                self._forget(key, session)

    def _forget(self, key: Key, session: Session) -> None:
        """Let go of a session; the lock is held."""
        del self._sessions[key]
        session.end()
        self._past.update(session.stats())

    def _tidy(self) -> None:
        """Drop sessions that were left and that nobody came back to."""
        while not self._ended.wait(self._limits.detached_s / 4):
            now = time.monotonic()
            with self._lock:
                for key, session in list(self._sessions.items()):
                    left = session.stream is None
                    if left and now - session.left_at > self._limits.detached_s:
                        log.info("session %s was left: dropped", session.name)
                        self._forget(key, session)


def _opening(requests: Iterator[pb.DataRequest]) -> pb.DataOpen:
    first = next(requests, None)
    if first is None or not first.HasField("open"):
        raise SpecError("a stream begins with DataOpen", got=first and first.WhichOneof("message"))
    if not _NAME.fullmatch(first.open.session):
        raise SpecError("name of a session", got=first.open.session[:80], allowed="32 hex digits")
    if len(first.open.content) > MAX_OPEN:
        got = len(first.open.content)
        raise SpecError("beginning of a session", got=got, allowed=f"{MAX_OPEN} bytes")
    return first.open


def _ask(message: pb.DataRequest) -> pb.DataAsk:
    if not message.HasField("ask"):
        raise SpecError("after DataOpen only asks are expected", got=message.WhichOneof("message"))
    if len(message.ask.content) > MAX_ASK:
        got = len(message.ask.content)
        raise SpecError("ask is too large", got=got, allowed=f"{MAX_ASK} bytes")
    return message.ask
