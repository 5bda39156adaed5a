"""Where messages of the fresh lane wait: the newest per key, bounded, stops first, pictures last.

Whoever puts never waits. A message that nobody took before the next one of its key came is gone;
that is what makes a slow link show the present. A ``Stop`` is never replaced and goes first. A
command that waited longer than it is valid is not delivered at all.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from google.protobuf.message import DecodeError

from comms.pb import fresh_pb2 as pb

Message = pb.OperatorCommand | pb.Stop | pb.RobotState | pb.Preview | pb.Announcement
"""What people, robots and the hub tell each other."""

Parcel = Message | pb.FreshHello | pb.Ping | pb.Pong
"""What a ``Fresh`` may carry."""

Rank = Literal[0, 1, 2]
"""0: commands, and what measures how long they take; 1: states and news; 2: pictures."""

KINDS: dict[str, type] = {
    "hello": pb.FreshHello,
    "command": pb.OperatorCommand,
    "state": pb.RobotState,
    "preview": pb.Preview,
    "announcement": pb.Announcement,
    "stop": pb.Stop,
    "ping": pb.Ping,
    "pong": pb.Pong,
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
        case pb.Ping():
            return "ping"
        case pb.Pong():
            return "pong"


def rank_of(message: Parcel) -> Rank:
    """Return how urgent a message is; a stop goes before all ranks."""
    if isinstance(message, pb.OperatorCommand | pb.Ping | pb.Pong):
        return 0
    return 2 if isinstance(message, pb.Preview) else 1


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
    """Newest message per key; by rank, and within one the oldest key first. Thread-safe.

    Args:
        limit: keys that may wait; one more pushes out the key that waits longest, a picture first.
        max_bytes: the same for what they hold together.
    """

    def __init__(self, limit: int = 1024, max_bytes: int = MAX_BYTES):
        self._limit, self._max_bytes = limit, max_bytes
        self._bytes = 0
        self._news = threading.Condition()
        self._ranks: tuple[OrderedDict[str, _Waiting], ...] = tuple(OrderedDict() for _ in range(3))
        self._stops: deque[pb.Stop] = deque()
        self._replaced = self._expired = self._pushed_out = 0

    def __len__(self) -> int:
        return sum(map(len, self._ranks)) + len(self._stops)

    def put(self, message: Parcel) -> None:
        """Put a message in the place of an older one of its key; never waits."""
        with self._news:
            if isinstance(message, pb.Stop):
                self._put_stop(message)
            else:
                self._put(key_of(message), message)
            self._news.notify()

    def first(self, may: Callable[[Parcel], bool] = lambda message: True) -> Parcel | None:
        """Return what is to go next and leave it here; None: nothing waits that ``may`` go."""
        with self._news:
            if self._stops:
                return self._stops[0]
            now = time.monotonic_ns()
            for waiting_of in self._ranks:
                expired = []
                found = None
                for key, waiting in waiting_of.items():
                    if waiting.expires_ns is not None and now >= waiting.expires_ns:
                        expired.append(key)
                    elif may(waiting.message):
                        found = waiting.message
                        break
                for key in expired:
                    self._drop(waiting_of, key)
                self._expired += len(expired)
                if found is not None:
                    return found
            return None

    def done(self, message: Parcel) -> None:
        """Remove what ``first`` returned, unless a newer one has taken its place."""
        with self._news:
            if isinstance(message, pb.Stop):
                if self._stops and self._stops[0] is message:
                    self._stops.popleft()
                return
            key, waiting_of = key_of(message), self._ranks[rank_of(message)]
            waiting = waiting_of.get(key)
            if waiting is not None and waiting.message is message:
                self._drop(waiting_of, key)

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
        waiting_of = self._ranks[rank_of(message)]
        older = waiting_of.get(key)
        self._replaced += older is not None
        waiting = waiting_of[key] = _Waiting(message, expires, message.ByteSize())
        self._bytes += waiting.size - (older.size if older is not None else 0)
        while sum(map(len, self._ranks)) > self._limit or self._bytes > self._max_bytes:
            last = next(filter(None, reversed(self._ranks)))
            self._drop(last, next(iter(last)))
            self._pushed_out += 1

    def _drop(self, waiting_of: OrderedDict[str, _Waiting], key: str) -> None:
        self._bytes -= waiting_of.pop(key).size

    def _put_stop(self, message: pb.Stop) -> None:
        """A stop that says the same as one that waits adds nothing: so the line is bounded."""
        if message in self._stops:
            return
        self._stops.append(message)
        if len(self._stops) > self._limit:
            self._stops.popleft()
            self._pushed_out += 1
