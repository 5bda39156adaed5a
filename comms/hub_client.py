"""Talking to the hub: plain calls with deadlines, and a host's lasting attachment to it."""

import logging
import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import grpc

from comms.pb import hub_pb2 as pb
from comms.pb import hub_pb2_grpc
from comms.reconnect import Reconnecting
from comms.silence import LIMIT_S, Call, listen
from comms.status import received
from comms.tunnel import Tunnel

log = logging.getLogger(__name__)

_IDLE_S = 0.5
_QUEUE = 1024
"""Events that may wait to be sent; on a stream that takes none of so many nothing moves."""

_REMEMBERED = 1024
"""Requests whose answers are kept for the case that the hub repeats one."""


class HubClient:
    """Calls to the hub. Thread-safe.

    Errors that the hub raised arrive as what they were (``LeaseError``, ``TransitionError``, …);
    a hub that cannot be reached, or does not answer in time, is a ``LinkError``.
    """

    def __init__(self, tunnel: Tunnel, timeout_s: float = 2.0):
        self._tunnel = tunnel
        self._timeout_s = timeout_s
        self._calls = 0
        self._failed = 0

    def claim(
        self, robot: str, operator: str, *, realtime: bool = False, force_reason: str = ""
    ) -> pb.Lease:
        """Return a lease on a robot.

        Raises:
            LeaseError: somebody else holds it; says who.
        """
        request = pb.ClaimRequest(
            robot=robot, operator=operator, realtime=realtime, force_reason=force_reason
        )
        lease: pb.Lease = self._call("Claim", request, f"claim {robot}")
        return lease

    def renew(self, lease: pb.Lease) -> pb.Lease:
        """Return the lease, prolonged.

        Raises:
            LeaseError: it has run out or was taken.
        """
        renewed: pb.Lease = self._call("Renew", _reference(lease), f"renew {lease.robot}")
        return renewed

    def yield_(self, lease: pb.Lease) -> None:
        """Give a lease back."""
        self._call("Yield", _reference(lease), f"yield {lease.robot}")

    def ask(
        self,
        robot: str,
        event: str,
        operator: str,
        *,
        token: int = 0,
        success: bool | None = None,
        id: str = "",
        timeout_s: float = 5.0,
    ) -> pb.Answer:
        """Ask a robot's session for a mode event; return what became of it.

        Args:
            robot: its name.
            event: a name of ``core.modes.Event``.
            operator: who asks.
            token: of the operator's lease; an emergency stop needs none.
            success: with ``done``: the person's judgement of the episode.
            id: of the request; asking again under the same one never acts twice.
            timeout_s: how long to wait for the session.
        """
        request = pb.Request(
            id=id or uuid.uuid4().hex,
            robot=robot,
            event=event,
            operator=operator,
            token=token,
            success=success,
        )
        answer: pb.Answer = self._call("Ask", request, f"ask {robot} to {event}", timeout_s)
        return answer

    def setup(self, query: pb.SetupQuery) -> pb.SetupReply:
        """Return what the calling host is to run, and which version the head is of."""
        reply: pb.SetupReply = self._call("Setup", query, "ask for the setup of this host")
        return reply

    def probe(self, sent: int, wanted: int, timeout_s: float = 5.0) -> pb.ProbeReply:
        """Send ``sent`` bytes to the hub and have ``wanted`` come back."""
        query = pb.ProbeQuery(payload=os.urandom(sent), want=wanted)
        reply: pb.ProbeReply = self._call("Probe", query, "probe the link", timeout_s)
        return reply

    def status(self) -> pb.SystemStatus:
        """Return what the system looks like now."""
        status: pb.SystemStatus = self._call("Status", pb.StatusQuery(), "ask for the status")
        return status

    def report(self, report: pb.ProcessReport) -> pb.ReportReply:
        """Say how this process does; return what is wanted of it."""
        reply: pb.ReportReply = self._call("Report", report, "report to the hub")
        return reply

    def stats(self) -> dict[str, float]:
        """Return how many calls were made, and how many failed."""
        return {"calls": float(self._calls), "failed": float(self._failed)}

    def _call(self, method: str, request: Any, what: str, timeout_s: float | None = None) -> Any:
        self._calls += 1
        try:
            return getattr(_stub(self._tunnel), method)(
                request, timeout=timeout_s or self._timeout_s
            )
        except grpc.RpcError as error:
            self._failed += 1
            raise received(error, what) from error


class HubAttachment:
    """A robot host in service: one stream to the hub that is dialled again whenever it breaks.

    What must arrive is kept until it did: wishes for an episode until an assignment comes, reports
    until they are noted, answers for as long as the hub may repeat its request.

    Args:
        tunnel: the way to the hub.
        hello: makes the first message of each stream.
        on_event: takes grants, assignments, notes, and each request once; called from one thread.
        on_link: is told when the stream is there (True) and when it broke (False).
        silence_s: a hub that says nothing for so long is dialled again.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        hello: Callable[[], pb.HostHello],
        on_event: Callable[[pb.HubEvent], None],
        on_link: Callable[[bool], None] | None = None,
        silence_s: float = LIMIT_S,
    ):
        self._tunnel = tunnel
        self._silence_s = silence_s
        self._hello = hello
        self._on_event = on_event
        self._on_link = on_link or (lambda up: None)
        self._link = Reconnecting("attachment to the hub", self._hold)
        self._lock = threading.Lock()
        self._outgoing: SimpleQueue[pb.HostEvent | None] | None = None
        self._call: Any = None  # a grpc.Call, whose stub is not typed
        self._hellos = 0
        """How often a new hello was asked for: one made before the last time is out of date."""
        self._wants: set[str] = set()
        self._reports: OrderedDict[str, pb.EpisodeReport] = OrderedDict()
        self._answers: OrderedDict[str, pb.Answer | None] = OrderedDict()
        self._figures = dict.fromkeys(("events", "repeated", "assignments", "noted"), 0.0)
        self.connected = False
        self._heard = time.monotonic()

    def start(self) -> None:
        """Start to dial."""
        self._link.start()

    def close(self) -> None:
        """Leave the hub; idempotent."""
        self._link.closing.set()
        self.redial()
        self._link.close()

    def redial(self) -> None:
        """End the stream, so that the next one begins with a new hello; nothing else is lost."""
        with self._lock:
            self._hellos += 1
            call = self._call
        if call is not None:
            call.cancel()

    def want(self, robot: str) -> None:
        """Ask for the robot's next episode, until there is an assignment."""
        with self._lock:
            self._wants.add(robot)
            self._send(pb.HostEvent(want=pb.WantEpisode(robot=robot)))

    def report(self, report: pb.EpisodeReport) -> None:
        """Report an episode, until the hub has noted it."""
        with self._lock:
            self._reports[report.episode] = report
            self._send(pb.HostEvent(episode=report))

    def answer(self, answer: pb.Answer) -> None:
        """Answer a request; a request that comes again gets the same answer."""
        with self._lock:
            self._answers[answer.id] = answer
            self._send(pb.HostEvent(answer=answer))

    def stats(self) -> dict[str, float]:
        """Return counters since the start, what waits, and the time since the hub was heard."""
        with self._lock:
            waiting = {"wants": float(len(self._wants)), "reports": float(len(self._reports))}
            heard = {"silence_s": time.monotonic() - self._heard}
            up = {"connected": float(self.connected), **heard}
            return {**self._figures, **waiting, **up, **self._link.stats()}

    def _send(self, event: pb.HostEvent) -> None:
        """Send where there is a stream; what matters is repeated on the next one. Lock is held."""
        if self._outgoing is None:
            return
        if self._outgoing.qsize() < _QUEUE:
            self._outgoing.put(event)
        elif self._call is not None:
            self._call.cancel()  # nothing leaves: another stream, which begins with what matters

    def _hold(self) -> None:
        """Hold one stream: say hello, repeat what was not heard, take events until it breaks."""
        hellos = self._hellos
        outgoing = self._open()
        call = _stub(self._tunnel).Attach(_requests(outgoing))
        with self._lock:
            self._call = call
        try:
            if hellos == self._hellos and not self._link.closing.is_set():
                self._take(call)
        except grpc.RpcError as error:
            if hellos == self._hellos:
                raise received(error, "stay attached to the hub") from error
        finally:
            self._shut(outgoing)
            call.cancel()

    def _open(self) -> "SimpleQueue[pb.HostEvent | None]":
        outgoing: SimpleQueue[pb.HostEvent | None] = SimpleQueue()
        outgoing.put(pb.HostEvent(hello=self._hello()))
        with self._lock:
            for report in self._reports.values():
                outgoing.put(pb.HostEvent(episode=report))
            for robot in sorted(self._wants):
                outgoing.put(pb.HostEvent(want=pb.WantEpisode(robot=robot)))
            self._outgoing = outgoing
        return outgoing

    def _take(self, call: Call[pb.HubEvent]) -> None:
        for event in listen(call, "the hub", self._silence_s):
            self._heard = time.monotonic()
            if not self.connected:  # its first words say that we are in service
                self.connected = True
                self._link.up()
                self._on_link(True)
            if not event.HasField("beat") and self._is_news(event):
                self._on_event(event)

    def _shut(self, outgoing: "SimpleQueue[pb.HostEvent | None]") -> None:
        with self._lock:
            self._outgoing = None
            self._call = None
        outgoing.put(None)
        if self.connected:
            self.connected = False
            self._on_link(False)

    def _is_news(self, event: pb.HubEvent) -> bool:
        """Keep the books; False for a request that was heard before."""
        with self._lock:
            self._figures["events"] += 1
            if event.HasField("assignment"):
                self._figures["assignments"] += 1
                self._wants.discard(event.assignment.robot)
            elif event.HasField("noted"):
                self._figures["noted"] += 1
                self._reports.pop(event.noted.episode, None)
            elif event.HasField("request"):
                return self._is_new_request(event.request.id)
        return True

    def _is_new_request(self, id: str) -> bool:
        if id not in self._answers:
            self._answers[id] = None
            while len(self._answers) > _REMEMBERED:
                self._answers.popitem(last=False)
            return True
        self._figures["repeated"] += 1
        answer = self._answers[id]
        if answer is not None:
            self._send(pb.HostEvent(answer=answer))
        return False


def _requests(outgoing: "SimpleQueue[pb.HostEvent | None]") -> Iterator[pb.HostEvent]:
    while (event := outgoing.get()) is not None:
        yield event


def _reference(lease: pb.Lease) -> pb.LeaseRef:
    return pb.LeaseRef(robot=lease.robot, operator=lease.operator, token=lease.token)


def _stub(tunnel: Tunnel) -> hub_pb2_grpc.HubStub:
    channel = tunnel.channel("hub")
    return hub_pb2_grpc.HubStub(channel)  # type: ignore[no-untyped-call]
