"""The hub as the wire sees it: typed plain methods in front, gRPC behind.

The hub implements ``HubHandler`` and knows nothing of gRPC. What every hub would have to check of a
caller (does the host speak under its own name, does the operator act under its own) is checked
here, where the caller's certificate is at hand.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Protocol

import grpc

from comms.credentials import Peer, Role
from comms.pb import hub_pb2 as pb
from comms.pb import hub_pb2_grpc
from comms.security import identify
from comms.silence import speak
from user_system.core.errors import LinkError, SecurityError, SpecError, UserSystemError
from user_system.core.modes import Event

log = logging.getLogger(__name__)

_QUEUE = 1024
"""Events that may wait for one host; a host that hears none of so many is as good as gone."""

_ANSWER_S = 10.0
"""How long ``ask`` may take where the caller set no deadline, and at most."""

MAX_TEXT = 500
"""Characters of a name, an id or a reason: they are kept, written down and shown."""

PROBE_MAX = 256 << 10
"""Bytes of a probe in either direction."""

_BEAT = pb.HubEvent(beat=pb.Beat())


class HostLink(Protocol):
    """The hub's side of one attached host."""

    def receive(self, event: pb.HostEvent) -> None:
        """Take an event; in order, from one thread at a time, never a hello, never after closed."""

    def closed(self) -> None:
        """Note that the stream is over; called exactly once."""


class HubHandler(Protocol):
    """What a hub does. Methods are called from many threads at once.

    A ``UserSystemError`` raised by one arrives at the caller as the same class and text.
    """

    def attach(
        self, peer: Peer, hello: pb.HostHello, send: Callable[[pb.HubEvent], None]
    ) -> HostLink:
        """Take a host into service.

        Args:
            peer: the host; ``hello.host`` is its name.
            hello: its robots.
            send: sends an event; never blocks; raises ``LinkError`` when the stream is gone.
        """

    def claim(self, peer: Peer, request: pb.ClaimRequest) -> pb.Lease:
        """Give a person the exclusive right to command a robot."""

    def renew(self, peer: Peer, request: pb.LeaseRef) -> pb.Lease:
        """Prolong a lease."""

    def yield_(self, peer: Peer, request: pb.LeaseRef) -> None:
        """Take a lease back."""

    def ask(self, peer: Peer, request: pb.Request, timeout_s: float) -> pb.Answer:
        """Pass a wish to a robot's session and return what became of it."""

    def setup(self, peer: Peer, query: pb.SetupQuery) -> pb.SetupReply:
        """Return what the calling host is to run."""

    def probe(self, peer: Peer, query: pb.ProbeQuery) -> pb.ProbeReply:
        """Answer with as many bytes as are wanted, and what time it is."""

    def status(self, peer: Peer) -> pb.SystemStatus:
        """Return what the system looks like."""

    def report(self, peer: Peer, report: pb.ProcessReport) -> pb.ReportReply:
        """Take the report of a process of the head."""


class HubService(hub_pb2_grpc.HubServicer):
    """Serves ``Hub`` over a ``HubHandler``."""

    def __init__(self, handler: HubHandler):
        self._handler = handler
        self._lock = threading.Lock()
        self._attaching = threading.Lock()
        """One host at a time: else one that dials twice could be closed before it is attached."""
        self._streams: dict[str, _HostStream] = {}
        self._closed = False
        self._attached = 0

    def register(self, server: grpc.Server) -> None:
        """Add the methods to ``server``."""
        hub_pb2_grpc.add_HubServicer_to_server(self, server)  # type: ignore[no-untyped-call]

    def start(self) -> None:
        """Do nothing: the service has no thread of its own."""

    def close(self) -> None:
        """End all streams; idempotent."""
        with self._lock:
            self._closed = True
            streams = list(self._streams.values())
        for stream in streams:
            stream.end(LinkError("hub is shutting down"))

    def stats(self) -> dict[str, float]:
        """Return attached hosts, and how often one attached."""
        with self._lock:
            return {"hosts": float(len(self._streams)), "attached": float(self._attached)}

    def Attach(  # noqa: N802 (gRPC's name)
        self, request_iterator: Iterator[pb.HostEvent], context: grpc.ServicerContext
    ) -> Iterator[pb.HubEvent]:
        """Keep one host in service for as long as its stream lives."""
        peer = identify(context)
        first = next(request_iterator, None)
        if first is None or not first.HasField("hello"):
            raise SpecError("a host says hello first", got=first and first.WhichOneof("event"))
        if first.hello.host != peer.name:
            raise SecurityError(
                "host speaks under another name", got=first.hello.host, allowed=peer.name
            )
        stream = _HostStream(peer.name)
        try:
            with self._attaching:
                self._adopt(stream)
                stream.link = self._handler.attach(peer, first.hello, stream.send)
            if not context.add_callback(lambda: stream.end(None)):
                return  # over before it began
            yield _BEAT
            reader = threading.Thread(
                target=stream.read, args=(request_iterator,), name=f"from {peer.name}", daemon=True
            )
            reader.start()
            yield from speak(stream.outgoing, _BEAT)
        finally:
            stream.finish()
            with self._lock:
                if self._streams.get(peer.name) is stream:
                    del self._streams[peer.name]

    def Claim(  # noqa: N802 (gRPC's name)
        self, request: pb.ClaimRequest, context: grpc.ServicerContext
    ) -> pb.Lease:
        """Give a lease."""
        _check_texts(request)
        return self._handler.claim(_person(context, request.operator), request)

    def Renew(  # noqa: N802 (gRPC's name)
        self, request: pb.LeaseRef, context: grpc.ServicerContext
    ) -> pb.Lease:
        """Prolong a lease."""
        _check_texts(request)
        return self._handler.renew(_person(context, request.operator), request)

    def Yield(  # noqa: N802 (gRPC's name)
        self, request: pb.LeaseRef, context: grpc.ServicerContext
    ) -> pb.YieldReply:
        """Take a lease back."""
        _check_texts(request)
        self._handler.yield_(_person(context, request.operator), request)
        return pb.YieldReply()

    def Ask(  # noqa: N802 (gRPC's name)
        self, request: pb.Request, context: grpc.ServicerContext
    ) -> pb.Answer:
        """Pass a wish to a robot's session."""
        _check_texts(request)
        peer = _person(context, request.operator)
        if peer.role is Role.VIEWER and request.event != Event.ESTOP:
            raise SecurityError(
                "a viewer may only stop robots", got=request.event, allowed=Event.ESTOP.value
            )
        remaining = context.time_remaining()
        timeout_s = _ANSWER_S if remaining is None else min(remaining, _ANSWER_S)
        return self._handler.ask(peer, request, timeout_s)

    def Setup(  # noqa: N802 (gRPC's name)
        self, request: pb.SetupQuery, context: grpc.ServicerContext
    ) -> pb.SetupReply:
        """Return what the calling host is to run."""
        return self._handler.setup(identify(context), request)

    def Probe(  # noqa: N802 (gRPC's name)
        self, request: pb.ProbeQuery, context: grpc.ServicerContext
    ) -> pb.ProbeReply:
        """Answer with as many bytes as are wanted."""
        if max(len(request.payload), request.want) > PROBE_MAX:
            raise SpecError(
                "a probe is too large",
                got=f"{len(request.payload)} there, {request.want} back",
                allowed=f"{PROBE_MAX} bytes",
            )
        return self._handler.probe(identify(context), request)

    def Status(  # noqa: N802 (gRPC's name)
        self, request: pb.StatusQuery, context: grpc.ServicerContext
    ) -> pb.SystemStatus:
        """Return what the system looks like."""
        return self._handler.status(identify(context))

    def Report(  # noqa: N802 (gRPC's name)
        self, request: pb.ProcessReport, context: grpc.ServicerContext
    ) -> pb.ReportReply:
        """Take the report of a process."""
        return self._handler.report(identify(context), request)

    def _adopt(self, stream: "_HostStream") -> None:
        """Make ``stream`` the one of its host, after the older one is over for the handler too."""
        with self._lock:
            if self._closed:
                raise LinkError("hub is shutting down")
            older = self._streams.get(stream.host)
            self._streams[stream.host] = stream
            self._attached += 1
        if older is not None:
            older.end(LinkError("this host has dialled again"))
            older.finish()


class _HostStream:
    """One host's stream, between the threads of gRPC and those of the hub."""

    def __init__(self, host: str):
        self.host = host
        self.link: HostLink | None = None
        self._lock = threading.Lock()
        self._ended = False
        self._finished = False
        self.outgoing: SimpleQueue[pb.HubEvent | UserSystemError | None] = SimpleQueue()

    def send(self, event: pb.HubEvent) -> None:
        """Send an event to the host, without waiting.

        Raises:
            LinkError: the stream is over.
        """
        if self.outgoing.qsize() >= _QUEUE:
            self.end(LinkError(f"host {self.host!r} does not read its events"))
        if self._ended:
            raise LinkError(f"host {self.host!r} is not attached")
        self.outgoing.put(event)

    def end(self, error: UserSystemError | None) -> None:
        """End the stream, with an error or in order; only the first call counts."""
        if not self._ended:
            self._ended = True
            self.outgoing.put(error)

    def finish(self) -> None:
        """Tell the handler that the stream is over, once, and never in the midst of an event."""
        self.end(None)
        with self._lock:
            if self._finished:
                return
            self._finished = True
            if self.link is not None:
                self.link.closed()

    def read(self, events: Iterator[pb.HostEvent]) -> None:
        """Hand the host's events to the handler until the stream ends."""
        try:
            for event in events:
                if event.HasField("hello"):
                    raise SpecError("hello comes once")
                with self._lock:
                    if self._finished or self.link is None:
                        return
                    self.link.receive(event)
        except UserSystemError as error:
            log.warning("stream of %s ended: %s", self.host, error)
            self.end(error)
        except grpc.RpcError:
            log.debug("stream of %s broke", self.host)
        except Exception:  # top of a thread: this host dials again, the others go on
            log.exception("an event of %s failed", self.host)
            self.end(LinkError("unforeseen error at the hub; see its log"))
        finally:
            self.end(None)


def _check_texts(request: pb.ClaimRequest | pb.LeaseRef | pb.Request) -> None:
    """Refuse texts without end, before anything is done."""
    for field, value in request.ListFields():
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise SpecError(f"{field.name} is too long", got=len(value), allowed=MAX_TEXT)


def _person(context: grpc.ServicerContext, operator: str) -> Peer:
    """Return the caller, who may act for another only where its role is to act for people."""
    peer = identify(context)
    if peer.role in (Role.OPERATOR, Role.VIEWER) and operator != peer.name:
        raise SecurityError("people act under their own name", got=operator, allowed=peer.name)
    return peer
