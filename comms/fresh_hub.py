"""The hub's end of the fresh lane: a socket that knows every peer by its key.

A ROUTER with CURVE. The allow-list decides who gets through the handshake at all; what happens to
a message then is decided in ``comms.switchboard``. One thread owns the sockets.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from comms.credentials import AllowList, Credentials, Peer
from comms.doorway import PATIENCE_S
from comms.mailbox import KIND_OF, Message, Parcel, decode, encode
from comms.pb import fresh_pb2 as pb
from comms.switchboard import Session, Switchboard
from comms.tunnel import limit_queues
from comms.waker import Waker
from user_system.core.errors import MissingError, SecurityError, SpecError

if TYPE_CHECKING:
    import zmq

log = logging.getLogger(__name__)

_TICK_S = 1.0
_RETRY_MS = 2
"""Wait before a peer whose queue was full is tried again: a ROUTER cannot say who has room."""

_BURST = 256
_ZAP = "inproc://zeromq.zap.01"


class FreshHub:
    """The hub's end of the fresh lane. ``announce`` and ``send`` may be called from any thread.

    Args:
        credentials: of the hub.
        allow: who is enrolled.
        address: ``host:port``; port 0 takes a free one, see ``port``.
        owner: robot -> name of its host, None where unknown; without it the first host that
            names a robot keeps it.
        on_message: is told of each accepted state, command and stop, in the lane's own thread; must
            be quick.
        refused: is told of who was refused what, at most once a second; must be quick.
    """

    def __init__(
        self,
        credentials: Credentials,
        allow: AllowList,
        address: str = "127.0.0.1:0",
        *,
        owner: Callable[[str], str | None] | None = None,
        on_message: Callable[[Peer, Message], None] | None = None,
        refused: Callable[[Peer, str], None] = lambda peer, what: None,
    ):
        self._refused = refused
        self._credentials, self._allow, self._address = credentials, allow, address
        self._board = Switchboard(owner, on_message)
        self._own: SimpleQueue[Message] = SimpleQueue()
        self._waker = Waker()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fresh hub", daemon=True)
        self._figures = dict.fromkeys(
            ("received", "sent", "denied", "malformed", "errors", "strangers", "expelled"), 0.0
        )
        self._tick_at = 0.0
        self._seen: object = None
        """The allow-list that the sessions were last held against."""
        self._quiet_until = 0.0
        """Refusals are logged once a second at most: a peer could send thousands."""
        self.port = 0

    def start(self) -> None:
        """Listen.

        Raises:
            MissingError: the address is in use or not of this host.
        """
        import zmq

        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._zap = self._context.socket(zmq.REP)
        self._zap.setsockopt(zmq.LINGER, 0)
        self._zap.bind(_ZAP)
        self._router = self._context.socket(zmq.ROUTER)
        limit_queues(self._router)
        # An unreachable or busy peer is an error to act on, not a message lost without a word.
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # A stranger has no longer than this; it holds a file of this process meanwhile.
        self._router.setsockopt(zmq.HANDSHAKE_IVL, int(PATIENCE_S * 1000))
        self._router.setsockopt(zmq.CURVE_SERVER, 1)
        self._router.setsockopt(zmq.CURVE_SECRETKEY, self._credentials.curve_secret)
        self._router.setsockopt(zmq.ZAP_DOMAIN, b"fresh")
        try:
            self._router.bind(f"tcp://{self._address}")
        except zmq.ZMQError as error:
            self._close_sockets()
            raise MissingError(
                f"cannot listen on {self._address}",
                got=error,
                todo="Is the port in use? Choose another.",
            ) from error
        endpoint = self._router.getsockopt(zmq.LAST_ENDPOINT)
        self.port = int(bytes(endpoint).rstrip(b"\0").rsplit(b":", 1)[1])
        self._waker.open()
        self._thread.start()

    def close(self) -> None:
        """Stop to listen; idempotent."""
        self._closing.set()
        self._waker.wake()
        if self._thread.is_alive():
            self._thread.join()
        self._waker.close()

    def announce(self, policy: str, version: int, hash: str, age_s: float = 0.0) -> None:
        """Tell every peer of the version to act with, now and every second from now on."""
        self.send(pb.Announcement(policy=policy, version=version, hash=hash, age_s=age_s))

    def send(self, message: Message) -> None:
        """Send a command or stop of the hub itself to the host of its robot."""
        self._own.put(message)
        self._waker.wake()

    def stats(self) -> dict[str, float]:
        """Return counters since the start, and how many peers and robots there are."""
        return {**self._figures, **self._board.stats()}

    # --- the lane's thread -----------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._serve()
        except Exception:  # top of a thread: without it the lane would be dead and not say why
            log.exception("fresh hub failed")
        finally:
            self._close_sockets()

    def _close_sockets(self) -> None:
        self._router.close(linger=0)
        self._zap.close(linger=0)
        self._context.term()

    def _serve(self) -> None:
        import zmq

        poller = zmq.Poller()
        for waited in (self._router, self._zap, self._waker.fileno()):
            poller.register(waited, zmq.POLLIN)
        while not self._closing.is_set():
            try:
                self._turn(poller)
            except Exception:  # top of a thread: stops of all robots go through it
                self._failed("a turn of the fresh lane failed")
                self._closing.wait(_RETRY_MS / 1000)

    def _turn(self, poller: "zmq.Poller") -> None:
        now = time.monotonic()
        if now >= self._tick_at:
            self._tick_at = now + _TICK_S  # first: what fails here must not keep the rest waiting
            self._expel()
            self._board.tick()
        self._route_own()
        idle_ms = int(1000 * (self._tick_at - time.monotonic())) + 1
        poller.poll(max(0, idle_ms) if self._flush() else _RETRY_MS)
        self._waker.clear()
        self._admit()
        self._drain()

    def _failed(self, what: str) -> None:
        """Note an error that nobody foresaw."""
        self._figures["errors"] += 1
        if self._may_complain():
            log.exception(what)

    def _admit(self) -> None:
        """Answer handshakes: the key must be on the allow-list (ZAP, RFC 27)."""
        for version, request, *rest in _messages(self._zap):
            public = _z85(rest[4]) if len(rest) == 5 and rest[3] == b"CURVE" else b""
            peer = None
            try:
                peer = self._allow.lookup(public)
                code, text = (b"200", b"OK") if peer else (b"400", b"not enrolled")
            except Exception:  # unanswered, it would block all handshakes that come after it
                self._failed("looking up a key failed")
                code, text = b"300", b"cannot tell now"  # they try again
            self._figures["strangers"] += peer is None
            self._zap.send_multipart([version, request, code, text, public if peer else b"", b""])

    def _drain(self) -> None:
        import zmq

        for _ in range(_BURST):
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            self._figures["received"] += 1
            message = decode(frames[2].bytes) if len(frames) == 3 else None
            if message is None:
                self._figures["malformed"] += 1
                continue
            self._take(frames[0].bytes, frames[2], message)

    def _take(self, identity: bytes, frame: Any, message: Parcel) -> None:
        peer = None
        try:
            key, peer = self._peer(frame)
            self._board.receive(identity, peer, message, key)
        except SpecError:
            self._figures["malformed"] += 1
        except SecurityError as error:
            self._figures["denied"] += 1
            if self._may_complain():
                log.warning("fresh lane: %s", error)
                if peer is not None:
                    self._refused(peer, f"fresh {KIND_OF[type(message)]}")
        except Exception:  # top of a request: one bad message must not silence the lane
            self._failed("message on the fresh lane failed")

    def _may_complain(self) -> bool:
        now = time.monotonic()
        if now < self._quiet_until:
            return False
        self._quiet_until = now + _TICK_S
        return True

    def _peer(self, frame: Any) -> tuple[bytes, Peer]:
        """Return key and owner of a connection: ZAP tied its key to every message."""
        key = str(frame.get("User-Id")).encode()
        peer = self._allow.lookup(key)
        if peer is None:
            raise SecurityError("a key that is not enrolled (any more)", got=key.decode())
        return key, peer

    def _expel(self) -> None:
        """Forget those who were revoked: nothing is sent to them any more, as nothing is heard."""
        version = self._allow.version()
        if version != self._seen:
            self._seen = version
            self._figures["expelled"] += self._board.expel(self._is_enrolled)

    def _is_enrolled(self, session: Session) -> bool:
        return self._allow.lookup(session.key) == session.peer

    def _route_own(self) -> None:
        while True:
            try:
                self._board.own(self._own.get_nowait())
            except Empty:
                return

    def _flush(self) -> bool:
        """Send what waits; False: some peer's queue is full and must be tried again soon."""
        empty = True
        for session in list(self._board.sessions.values()):
            empty &= self._flush_one(session)
        return empty

    def _flush_one(self, session: Session) -> bool:
        import zmq

        while (message := session.mailbox.first()) is not None:
            try:
                self._router.send_multipart([session.identity, *encode(message)], zmq.NOBLOCK)
            except zmq.Again:
                return False
            except Exception as error:
                if isinstance(error, zmq.ZMQError) and error.errno == zmq.EHOSTUNREACH:
                    self._board.forget(session)
                    return True
                # What cannot be written must not hold up what comes after it.
                self._failed(f"a {KIND_OF[type(message)]} for {session.peer.name} was not sent")
            else:
                self._figures["sent"] += 1
            session.mailbox.done(message)
        return True


def _messages(socket: "zmq.Socket[bytes]") -> Iterator[list[bytes]]:
    """Yield what waits in a REP socket; each must be answered before the next."""
    import zmq

    while True:
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        yield frames


def _z85(key: bytes) -> bytes:
    from zmq.utils import z85

    return z85.encode(key) if len(key) == 32 else b""
