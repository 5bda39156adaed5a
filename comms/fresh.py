"""The fresh lane of a robot host or a viewer: commands, states and previews, the newest wins.

``FreshPeer`` dials the hub. What it sends waits in a mailbox where a newer message takes the place
of an older one of its stream, so that a slow or broken link delays nobody and, once it works again,
carries the present. One thread owns the socket, because ZeroMQ's sockets belong to one thread.
"""

import logging
import threading
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Literal

from comms.fresh_flow import Flow
from comms.link import Link
from comms.mailbox import Mailbox, Message, Parcel, decode, encode
from comms.pb import fresh_pb2 as pb
from comms.tunnel import Tunnel
from comms.waker import Waker

if TYPE_CHECKING:
    import zmq

log = logging.getLogger(__name__)

HELLO_S = 1.0
"""Time between two hellos: they keep the hub's picture of who hears what, and show who lives."""

_LOOK_S, _IDLE_S = 0.05, 0.2
"""How long something waits in the mailbox for room on the link before that is looked at again, and
nothing before it is looked whether there is more to measure now."""

_BURST = 256
"""Messages read before what waits to be sent has its turn."""


class FreshPeer:
    """One end of the fresh lane; every method but ``start`` and ``close`` may be called anywhere.

    Args:
        tunnel: the way to the hub.
        role: ``robot`` speaks for robots, ``viewer`` watches them and may command.
        robots: robot: those it speaks for; viewer: whose states it hears, ``"*"`` for all.
        previews: viewer: whose camera previews it hears, ``"*"`` for all.
        link: robot: measured by echoes, and bounds what is under way; None: neither.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        *,
        role: Literal["robot", "viewer"],
        robots: Iterable[str] = (),
        previews: Iterable[str] = (),
        link: Link | None = None,
    ):
        self._tunnel = tunnel
        self._flow = Flow(link) if link is not None else None
        self._lock = threading.Lock()
        self._hello = pb.FreshHello(role=role, robots=robots, previews=previews)
        self._outbox, self._inbox = Mailbox(), Mailbox()
        self._waker = Waker()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fresh lane", daemon=True)
        self._figures = dict.fromkeys(("sent", "received", "malformed"), 0.0)
        self._heard = time.monotonic()

    def start(self) -> None:
        """Start to dial."""
        self._waker.open()
        self._thread.start()

    def close(self) -> None:
        """Hang up; idempotent."""
        self._closing.set()
        self._waker.wake()
        if self._thread.is_alive():
            self._thread.join()
        self._waker.close()

    def subscribe(
        self, *, robots: Iterable[str] | None = None, previews: Iterable[str] | None = None
    ) -> None:
        """Change what this peer speaks for or hears; None leaves a list as it is."""
        with self._lock:
            hello = pb.FreshHello(
                role=self._hello.role,
                robots=self._hello.robots if robots is None else robots,
                previews=self._hello.previews if previews is None else previews,
            )
            self._hello = hello
        self._post(hello)

    def send(self, message: Message) -> None:
        """Send a message as soon as the link takes it, unless a newer one comes first."""
        self._post(message)

    def receive(self, timeout_s: float) -> list[Message]:
        """Return the newest message of each stream since the last call, stops first.

        Waits until there is one; [] on timeout. For one thread.
        """
        parcels = self._inbox.take_all(timeout_s)
        return [p for p in parcels if not isinstance(p, pb.FreshHello | pb.Ping | pb.Pong)]

    def stats(self) -> dict[str, float]:
        """Return counters since the start, what waits, and the time since something was heard."""
        out = {f"out_{name}": value for name, value in self._outbox.stats().items()}
        received = {f"in_{name}": value for name, value in self._inbox.stats().items()}
        heard = {"silence_s": time.monotonic() - self._heard}
        return {**self._figures, **out, **received, **heard}

    def _post(self, parcel: Parcel) -> None:
        self._outbox.put(parcel)
        self._waker.wake()

    def _run(self) -> None:
        import zmq

        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            socket = self._tunnel.fresh(context)
            try:
                self._serve(socket)
            finally:
                socket.close(linger=0)
                if self._flow is not None:
                    self._flow.close()
        except Exception:  # top of a thread: without it the process would be deaf and not know why
            log.exception("fresh lane failed")
        finally:
            context.term()

    def _serve(self, socket: "zmq.Socket[bytes]") -> None:
        import zmq

        poller = zmq.Poller()
        poller.register(self._waker.fileno(), zmq.POLLIN)
        hello_at = time.monotonic()
        while not self._closing.is_set():
            now = time.monotonic()
            if now >= hello_at:
                self._outbox.put(self._hello)
                hello_at = now + HELLO_S
            blocked = not self._flush(socket)
            poller.register(socket, zmq.POLLIN | (zmq.POLLOUT if blocked else 0))
            wait_s = hello_at - time.monotonic()
            if self._flow is not None and not blocked:
                look_s = _LOOK_S if len(self._outbox) or self._flow.cutting else _IDLE_S
                wait_s = min(wait_s, self._flow.due_s(), look_s)
            poller.poll(max(0, int(1000 * wait_s) + 1))
            self._waker.clear()
            self._drain(socket)

    def _flush(self, socket: "zmq.Socket[bytes]") -> bool:
        """Send what waits and may go; False: the link takes no more now."""
        import zmq

        find = self._outbox.first if self._flow is None else partial(self._flow.next, self._outbox)
        while (message := find()) is not None:
            frames = encode(message)
            try:
                socket.send_multipart(frames, zmq.NOBLOCK)
            except zmq.Again:
                return False
            if self._flow is not None:
                self._flow.sent(message, sum(map(len, frames)))
            self._outbox.done(message)
            self._figures["sent"] += 1
        return True

    def _drain(self, socket: "zmq.Socket[bytes]") -> None:
        import zmq

        for _ in range(_BURST):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            message = decode(frames[1]) if len(frames) == 2 else None
            if isinstance(message, pb.Pong) and self._flow is not None:
                self._flow.echoed(message)
                self._heard = time.monotonic()
                continue
            if message is None or isinstance(message, pb.FreshHello | pb.Ping | pb.Pong):
                self._figures["malformed"] += 1
                continue
            self._figures["received"] += 1
            self._heard = time.monotonic()
            self._inbox.put(message)
