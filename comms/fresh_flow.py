"""What a robot host has under way on the fresh lane: little, and of each camera one picture.

ZeroMQ and the kernel take tens of KiB of whatever is given to them, and what they have cannot be
replaced by something newer. So states and pictures are counted until an echo, which stands behind
them in the line, says that they arrived; beyond a bound they wait in the mailbox, where the newest
wins. Commands, stops and the echoes themselves never wait. Pictures are bulk: they go in pieces
that the link's video lane lets out, with what is more urgent in between, and the hub joins them.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from comms.lanes import Ticket
from comms.link import Link
from comms.mailbox import Mailbox, Parcel, key_of, rank_of
from comms.pb import fresh_pb2 as pb
from comms.tunnel import MAX_FRESH
from user_system.core.errors import SpecError

_STATES = 4 << 10
"""Bytes of states that may be under way on any link."""

_GAP_S = 0.02
"""Least time between two pings."""

_DEAF_S = 3.0
"""What no echo has confirmed for so long went down with its connection."""


MOST_PARTS = 1024
"""Parts of one picture: 1 MiB of the smallest pieces is half of them."""


@dataclass(frozen=True, slots=True)
class _Part:
    """Part of a picture under way."""

    camera: str
    end: int
    """Bytes given to the lane up to and with it."""
    ticket: Ticket


class Flow:
    """Bounds one peer's end of the fresh lane. For one thread.

    Args:
        link: what is known of the link; takes the echoes.
        now: monotonic s.
    """

    def __init__(self, link: Link, now: Callable[[], float] = time.monotonic):
        self._link, self._now = link, now
        self._given = self._pinged = self._arrived = 0
        """Bytes given to the lane, those before the last ping, those that an echo confirmed."""
        self._ping_at = self._gap_until = 0.0
        self._heard = now()
        self._cut: deque[pb.Preview] = deque()
        """What is still to be sent of the picture at hand."""
        self._ticket: Ticket | None = None
        """Of the part that is about to be sent."""
        self._parts: deque[_Part] = deque()

    @property
    def under_way(self) -> int:
        """Bytes given to the lane that no echo has confirmed."""
        return self._given - self._arrived

    @property
    def cutting(self) -> bool:
        """Whether parts of a picture wait to be sent."""
        return bool(self._cut)

    def next(self, outbox: Mailbox) -> Parcel | None:
        """Return what is to go next; None: nothing may. ``sent`` or ``refused`` follows."""
        if self.due_s() <= 0:
            return self._ping()
        self._give_up()
        return outbox.first(self._may) or self._part(outbox)

    def _may(self, message: Parcel) -> bool:
        rank = rank_of(message)
        if rank == 0 or isinstance(message, pb.FreshHello):
            return True
        return rank == 1 and self.under_way < max(_STATES, self._link.experience.limit() // 2)

    def _part(self, outbox: Mailbox) -> pb.Preview | None:
        """Return the next part of a picture, with its ticket taken."""
        if not self._cut:
            under_way = {part.camera for part in self._parts}
            picture = outbox.first(
                lambda message: rank_of(message) == 2 and key_of(message) not in under_way
            )
            if not isinstance(picture, pb.Preview):
                return None
            outbox.done(picture)
            self._cut = deque(cut(picture, self._link.video.chunk()))
        part = self._cut[0]
        self._ticket = self._ticket or self._link.video.take(len(part.jpeg), 0.0)
        return part if self._ticket is not None else None

    def sent(self, message: Parcel, size: int) -> None:
        """Note that a message of ``size`` bytes has been given to the lane."""
        self._given += size
        if isinstance(message, pb.Preview) and self._ticket is not None:
            self._cut.popleft()
            self._parts.append(_Part(key_of(message), self._given, self._ticket))
            self._ticket = None

    def due_s(self) -> float:
        """Return the time until the next ping, s."""
        now = self._now()
        news = self._given - self._pinged
        much = news > self._link.experience.limit() // 4
        ended = bool(self._parts) and not self._cut and self._parts[-1].end > self._pinged
        every_s = self._link.echo_every_s()
        at = now if much or ended else min(self._ping_at, self._gap_until + every_s)
        return max(self._gap_until - now, at - now, 0.0)

    def _ping(self) -> pb.Ping:
        """Return the ping that is due; everything given to the lane so far stands before it."""
        now = self._now()
        self._pinged = self._given
        self._gap_until, self._ping_at = now + _GAP_S, now + self._link.echo_every_s()
        return pb.Ping(sent_s=now, bytes=self._given)

    def echoed(self, pong: pb.Pong) -> None:
        """Take an echo."""
        self._heard = self._now()
        self._arrived = min(self._given, max(self._arrived, pong.bytes))
        while self._parts and self._parts[0].end <= self._arrived:
            self._link.video.done(self._parts.popleft().ticket)
        self._link.echoed(pong.sent_s, pong.there_s)

    def _give_up(self) -> None:
        if self.under_way and self._now() - self._heard > _DEAF_S:
            self.close()
            self._arrived, self._heard = self._given, self._now()

    def close(self) -> None:
        """Give all tickets back."""
        while self._parts:
            self._link.video.lost(self._parts.popleft().ticket)
        if self._ticket is not None:
            self._link.video.lost(self._ticket)
            self._ticket = None


def cut(picture: pb.Preview, size: int) -> list[pb.Preview]:
    """Return a picture in parts of at most ``size`` bytes, or as it is."""
    data = picture.jpeg
    size = max(size, -(-len(data) // MOST_PARTS))
    parts = -(-len(data) // size)
    if parts <= 1:
        return [picture]
    who = {name: getattr(picture, name) for name in ("robot", "camera", "sequence", "wall_ns")}
    return [
        pb.Preview(**who, jpeg=data[i * size : (i + 1) * size], part=i, parts=parts)
        for i in range(parts)
    ]


class Joiner:
    """Puts the parts of pictures together: one picture per camera. For one thread.

    Args:
        cameras: of which parts are kept; of one more, the oldest picture that is not whole goes.
    """

    def __init__(self, cameras: int = 64):
        self._cameras = cameras
        self._begun: OrderedDict[str, list[pb.Preview]] = OrderedDict()

    def add(self, part: pb.Preview) -> pb.Preview | None:
        """Take a part; return the picture once it is whole.

        Raises:
            SpecError: no part of a picture that may be.
        """
        if part.parts <= 1:
            return part
        if not part.part < part.parts <= MOST_PARTS:
            got = (part.part, part.parts)
            raise SpecError("no part of a picture", got=got, allowed=f"0..{MOST_PARTS - 1}")
        key = key_of(part)
        begun = self._begun.pop(key, [])
        follows = begun and begun[0].sequence == part.sequence and len(begun) == part.part
        if part.part and not follows:
            return None  # one before it is missing
        begun = [*begun, part] if part.part else [part]
        if sum(len(one.jpeg) for one in begun) > MAX_FRESH:
            raise SpecError("picture is too large", allowed=MAX_FRESH)
        if len(begun) < part.parts:
            self._begun[key] = begun
            if len(self._begun) > self._cameras:
                self._begun.popitem(last=False)
            return None
        whole = pb.Preview()
        whole.CopyFrom(part)
        whole.jpeg = b"".join(one.jpeg for one in begun)
        whole.part = whole.parts = 0
        return whole
