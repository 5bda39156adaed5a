"""Where messages of the fresh lane wait: the newest per key, bounded, stops first.

Whoever puts never waits. A message that nobody took before the next one of its key came is gone;
that is what makes a slow link show the present. A ``Stop`` is never replaced and goes first. A
command that waited longer than it is valid is not delivered at all.
"""

import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from comms.pb import fresh_pb2 as pb

Message = pb.OperatorCommand | pb.Stop | pb.RobotState | pb.Preview | pb.Announcement
"""What people, robots and the hub tell each other."""

Parcel = Message | pb.FreshHello
"""What a ``Fresh`` may carry."""

KINDS: dict[str, type] = {
    "hello": pb.FreshHello,
    "command": pb.OperatorCommand,
    "state": pb.RobotState,
    "preview": pb.Preview,
    "announcement": pb.Announcement,
    "stop": pb.Stop,
}
"""Field of ``Fresh`` -> class."""

MAX_BYTES = 8 << 20
"""Bytes that may wait in one mailbox: a few pictures of every robot that one peer looks at."""

MAX_NAME = 255
"""Characters of a name of a robot, camera, person or policy."""

KIND_OF = {kind: field for field, kind in KINDS.items()}
_MS = 1_000_000


def key_of(message: Parcel) -> str:
    """Return the stream a message belongs to; the newest of a stream wins."""
    match message:
        case pb.FreshHello():
            return "hello"
        case pb.OperatorCommand():
            # Per operator: nobody's commands are pushed out by those of another.
            return f"command/{message.robot}/{message.operator}"
        case pb.RobotState():
            return f"state/{message.robot}"
        case pb.Preview():
            return f"preview/{message.robot}/{message.camera}"
        case pb.Announcement():
            return f"weights/{message.policy}"
        case pb.Stop():
            return f"stop/{message.robot}"


def encode(message: Parcel) -> list[bytes]:
    """Return the two frames of a message: key and content."""
    fresh = pb.Fresh()
    getattr(fresh, KIND_OF[type(message)]).CopyFrom(message)
    return [key_of(message).encode(), fresh.SerializeToString()]


def decode(content: bytes) -> Parcel | None:
    """Return the message in a frame; None: there is none, or none that we know."""
    try:
        fresh = pb.Fresh.FromString(content)
    except DecodeError:
        return None
    field = fresh.WhichOneof("message")
    message: Parcel | None = getattr(fresh, field) if field else None
    return message


@dataclass(frozen=True, slots=True)
class _Waiting:
    message: Parcel
    expires_ns: int | None
    size: int


class Mailbox:
    """Newest message per key, oldest key first. Thread-safe.

    Args:
        limit: keys that may wait; one more pushes out the key that waits longest.
        max_bytes: the same for what they hold together.
    """

    def __init__(self, limit: int = 1024, max_bytes: int = MAX_BYTES):
        self._limit, self._max_bytes = limit, max_bytes
        self._bytes = 0
        self._news = threading.Condition()
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._stops: deque[pb.Stop] = deque()
        self._replaced = self._expired = self._pushed_out = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._stops)

    def put(self, message: Parcel) -> None:
        """Put a message in the place of an older one of its key; never waits."""
        with self._news:
            if isinstance(message, pb.Stop):
                self._put_stop(message)
            else:
                self._put(key_of(message), message)
            self._news.notify()

    def first(self) -> Parcel | None:
        """Return what is to go next and leave it here; None: nothing waits."""
        with self._news:
            if self._stops:
                return self._stops[0]
            now = time.monotonic_ns()
            while self._waiting:
                key, waiting = next(iter(self._waiting.items()))
                if waiting.expires_ns is None or now < waiting.expires_ns:
                    return waiting.message
                self._drop(key)
                self._expired += 1
            return None

    def done(self, message: Parcel) -> None:
        """Remove what ``first`` returned, unless a newer one has taken its place."""
        with self._news:
            if isinstance(message, pb.Stop):
                if self._stops and self._stops[0] is message:
                    self._stops.popleft()
                return
            key = key_of(message)
            waiting = self._waiting.get(key)
            if waiting is not None and waiting.message is message:
                self._drop(key)

    def take_all(self, timeout_s: float) -> list[Parcel]:
        """Wait until something is there and return all of it, stops first; [] on timeout."""
        with self._news:
            self._news.wait_for(lambda: len(self) > 0, timeout_s)
        found = []
        while (message := self.first()) is not None:
            self.done(message)
            found.append(message)
        return found

    def stats(self) -> dict[str, float]:
        """Return what waits, and how many messages were replaced, too old or pushed out."""
        with self._news:
            return {
                "waiting": float(len(self)),
                "replaced": float(self._replaced),
                "expired": float(self._expired),
                "pushed_out": float(self._pushed_out),
            }

    def _put(self, key: str, message: Parcel) -> None:
        expires = None
        if isinstance(message, pb.OperatorCommand):
            expires = time.monotonic_ns() + message.valid_ms * _MS
        # A key keeps its place in the line, so that a chatty one cannot starve the others.
        older = self._waiting.get(key)
        self._replaced += older is not None
        waiting = self._waiting[key] = _Waiting(message, expires, message.ByteSize())
        self._bytes += waiting.size - (older.size if older is not None else 0)
        while len(self._waiting) > self._limit or self._bytes > self._max_bytes:
            self._drop(next(iter(self._waiting)))
            self._pushed_out += 1

    def _drop(self, key: str) -> None:
        self._bytes -= self._waiting.pop(key).size

    def _put_stop(self, message: pb.Stop) -> None:
        """A stop that says the same as one that waits adds nothing: so the line is bounded."""
        if message in self._stops:
            return
        self._stops.append(message)
        if len(self._stops) > self._limit:
            self._stops.popleft()
            self._pushed_out += 1
