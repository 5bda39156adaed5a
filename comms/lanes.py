"""Lanes: how much bulk may be under way, so that what is urgent never waits long behind it.

A network queues whatever it is given, and what is urgent then waits behind it, whichever connection
it takes: nobody on the way knows what matters. So the sender keeps that queue short. One ``Pipe``
per direction holds what is under way, not yet acknowledged by the other *process*, to

    rate x (base round trip + 50 ms)

in small pieces. That fills the link and leaves at most 50 ms in its queue. The rate is what was
delivered (``rate``), so the cap never exceeds what the link is known to take, and still grows: what
it lets out beyond rate x base shows, one round trip later, that the link takes more.

Where much is lost, TCP holds back what arrived after a gap, and our acknowledgements come late for
another reason than a queue. Tiny echoes on the fresh lane (``link``) tell the two apart: while they
find no queue, as much more may be under way as acknowledgements are late by (``lateness``); when
they find more than 50 ms, the cap is lowered. Unless it was seen empty of late, or when lowering
does not help, the pipe is emptied for a round trip, so that the base is measured anew: what still
waits then is not ours.

Lanes of one pipe have ranks: a lane gets what those before it do not want, and a sixteenth of the
rate at least, so that a person who must see something sees something. What is behind may leave less
of a queue than the others, so that it never takes the room of what is live.

After BBR (see ``rate``), whose cap is 2 x rate x base, and LEDBAT (RFC 6817), whose aim is a queue
of so many ms; the cap here is the smaller one of both for any base beyond 50 ms.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from comms.delay import Delay
from comms.lateness import Lateness
from comms.rate import Mark, Rate

TARGET_S = 0.05
"""What is urgent may wait so long behind bulk."""

FIRST = 125_000.0
"""What a link is taken for before anything is known, bytes/s: 1 Mbit/s."""

LEAST, MOST = 1 << 10, 256 << 10
"""Bounds of a piece, bytes."""

_PIECE_S = 0.008
"""Time on the link that one piece takes, where the bounds permit."""

_CEILING = 64 << 20
"""Most that may be under way, bytes."""

_CALM_WINDOW_S = 10.0
"""How long the best rate counts while echoes find no queue."""

_STEP_S = 0.025
"""What a correction upwards gives back of those downwards, s."""

BEHIND_S = 0.010
"""What is behind may leave so much of a queue: then what is live finds room and a short way, the
way itself is seen all the time, and no router is so small (40 ms) that it drops what waits."""

_START, _BEYOND = 2.0, 4.0
"""Growth per round trip on a link of which little is known, and most of it beyond what is."""

_FASTER, _FLAT = 1.25, 3
"""A link that was given more so often in a row, and became less faster than this, is known (as in
BBR's startup): it is full, or losses limit it, which ``lateness`` sees to."""

_CALM_S = 0.02
"""Queue up to which echoes are said to find none."""

_AIM_S = 0.03
"""Queue that a correction downwards aims at."""

_ROUND_S = 0.1
"""Least time over which the rate is looked at."""

_BLIND_S = 10.0
"""Without an echo for so long nobody can tell a queue from losses. Then as much again may be under
way as was: a cap that follows what arrives, where losses make that less than the link can take,
would follow it down to nothing."""

_EMPTY_EVERY_S = 10.0
_EMPTY_S, _EMPTY = 0.5, 0.6
"""A pipe is emptied when its base was not seen for so long; for at most so long, and three bases.
Then less may be under way than fills the way itself, in this share: what is live goes on."""

_VAIN = 4
"""Corrections downwards without effect after which the queue is not ours."""

_FLOOR = 1 / 16
"""Share of the rate that a lane gets whatever those before it want."""

_HELD_S = 2.0
"""A lane that waited within this time is shown as held back."""

_PRESSED_S = 10.0
"""A lane that waited within this time is worth some effort to need less."""

_BEFORE_S = 0.25
"""A lane that waited within this time wants more: those after it make room."""

_BURST_S = 0.03
"""What may go at once, as time on the link."""

_PACE_NEW, _PACE, _PACE_FULL = 2.0, 1.25, 1.05
"""Pace of what goes beyond that, in rates: of a new link, of one without a queue, of one with."""

_LOOK_S = 0.05
"""Longest wait for news before time alone may have changed what is allowed."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """One piece under way."""

    size: int
    """Bytes."""
    mark: Mark
    """Of the moment at which it was sent; for the pipe."""


class Budget(Protocol):
    """What one lane may have under way. Thread-safe."""

    def chunk(self) -> int:
        """Return the largest piece that keeps the link responsive, bytes: 1 KiB to 256 KiB."""

    def limit(self) -> int:
        """Return bytes that may be under way now in this direction, all lanes together."""

    def take(self, size: int, timeout_s: float) -> Ticket | None:
        """Wait until ``size`` more bytes may be under way and count them; None: not in time.

        A piece larger than the limit passes while nothing else is under way.
        """

    def done(self, ticket: Ticket) -> None:
        """Note that a piece has arrived, as the other side said or as it is here."""

    def lost(self, ticket: Ticket) -> None:
        """Note that nobody will ever say so: its connection is gone."""


class Pipe:
    """One direction of a link, shared by its lanes. Thread-safe.

    Args:
        way: delay of this direction, as echoes measure it.
        trip: round trip, as echoes measure it.
        changed: guards this pipe and both delays; notified when more may be sent.
        now: monotonic s.
    """

    def __init__(
        self,
        way: Delay,
        trip: Delay,
        changed: threading.Condition | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        self.changed, self.now = changed or threading.Condition(), now
        self._delay, self._trip = way, trip
        self._own = Delay()
        """Round trips of pieces: the base where there are no echoes."""
        self._rate = Rate()
        self._under_way = 0
        self._less_s, self._vain = 0.0, 0
        """What echoes that found a queue take off the cap, s; at most 0."""
        self._calm_rounds = 0
        self._late = Lateness(now())
        self._new = self._calm = True
        self._guess, self._guessed = FIRST, now()
        """What a new link is taken for, bytes/s, and since when."""
        self._paced = now()
        """When the link, at the pace that it is given, has taken what was sent."""
        self._corrected = self._sure = now()
        self._best, self._flat = 0.0, 0
        """The rate when a new link was last found faster, and how often it was not since."""
        self._wanted = self._corrected - _HELD_S
        """When something last had to wait for room."""
        self._emptying: float | None = None
        self._emptied: float | None = None
        self._lanes: list[Lane] = []

    def lane(self, name: str, aim_s: float = TARGET_S) -> "Lane":
        """Return a new lane, which comes after all that there are.

        Args:
            name: for people.
            aim_s: queue that this lane may leave; those that may leave more always find room.
        """
        before = tuple(self._lanes)
        self._lanes.append(Lane(self, name, before, aim_s))
        return self._lanes[-1]

    def stats(self) -> dict[str, float]:
        """Return gauges: delivered Mbit/s, bytes under way and allowed, lanes held back."""
        with self.changed:
            now = self.now()
            held = {f"held_{lane.name}": float(lane.held(now)) for lane in self._lanes}
            return {
                "mbit_s": 8e-6 * self._rate.value,
                "under_way": float(self._under_way),
                "limit": float(self._limit()),
                **held,
            }

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        return self._under_way > 0

    @property
    def emptying(self) -> bool:
        """Whether the pipe is emptied, so that the way itself can be measured."""
        return self._emptying is not None

    @property
    def growing(self) -> bool:
        """Whether a new link is being found out about: the next echo may let more go."""
        return self._new and self._calm and self.busy

    @property
    def rate(self) -> float:
        """Delivered of late, bytes/s; 0: nothing is known."""
        return self._rate.value

    def limit(self, aim_s: float = TARGET_S) -> int:
        """Return how many bytes may be under way of who may leave a queue of ``aim_s``."""
        with self.changed:
            return self._limit(aim_s)

    def chunk(self) -> int:
        """Return how large a piece should be, bytes."""
        with self.changed:
            return self._chunk()

    def _chunk(self) -> int:
        fits = min(self._rate.value * _PIECE_S, self._limit() / 4)
        return min(max(LEAST, int(fits)), MOST)

    def _base_s(self) -> float:
        base = self._trip.base
        return base if base is not None else (self._own.base or 0.0)

    def _blind(self) -> bool:
        """Whether the echoes have ceased, or none ever came."""
        last_at = self._trip.last_at()
        return last_at is None or self.now() - last_at > _BLIND_S

    def _limit(self, aim_s: float = TARGET_S) -> int:
        guess = self._guess if self._new else 0.0
        rate = max(self._rate.value, guess)
        if self._rate.value and self._blind():
            took_s = self._own.recent(self.now()) or self._base_s()
            return min(max(LEAST, int(2 * rate * (took_s + TARGET_S))), _CEILING)
        base_s = self._base_s()
        if self._emptying is not None:
            return min(max(LEAST, int(_EMPTY * rate * base_s)), _CEILING)
        more_s = self._late.extra_s + max(self._less_s, self._least_s(base_s))
        known = self._rate.value * (base_s + TARGET_S + more_s)
        cap = max(known, guess * (base_s + TARGET_S)) * (base_s + aim_s) / (base_s + TARGET_S)
        return min(max(2 * LEAST, int(cap)), _CEILING)  # one piece on the way, one that follows

    def _least_s(self, base_s: float) -> float:
        """Return the bound of what a queue may take off the cap, s."""
        return -0.8 * TARGET_S - base_s / 4 - self._late.extra_s

    # --- for lanes, which hold ``changed`` --------------------------------------------------------

    def room(self, size: int, aim_s: float = TARGET_S) -> bool:
        """Return whether ``size`` more bytes may go now, of who may leave so much of a queue."""
        if self._emptying is not None:
            self._look()
        if self._paced > self.now() + _BURST_S:
            return False
        return not self._under_way or self._under_way + size <= self._limit(aim_s)

    def wait_s(self) -> float:
        """Return after how long time alone may have made room, s."""
        pace = self._paced - _BURST_S - self.now()
        return min(_LOOK_S, pace) if pace > 0 else _LOOK_S

    def want(self) -> None:
        """Note that something waits for room."""
        self._wanted = self.now()

    def sent(self, size: int) -> Mark:
        """Note that a piece goes out."""
        now = self.now()
        full = now - self._wanted <= self._base_s() + TARGET_S
        mark = self._rate.send(now, idle=not self._under_way, full=full)
        self._under_way += size
        if self._rate.value:
            pace = _PACE_NEW if self._new else _PACE if self._calm else _PACE_FULL
            rate = max(self._rate.value, self._guess if self._new else 0.0)
            self._paced = max(self._paced, now) + size / (pace * rate)
        return mark

    def arrived(self, ticket: Ticket) -> None:
        """Note that a piece arrived."""
        now = self.now()
        self._under_way -= ticket.size
        self._own.sample(now - ticket.mark.sent, now)
        self._late.arrived(ticket.size, now - ticket.mark.sent)
        base_s = self._base_s()
        queue = self._delay.queue(now)
        self._calm = queue is None or queue < _CALM_S
        # A link that became slower shows a queue. Where there is none, it is the cap that limits,
        # and a rate that followed it down would pull it further.
        window_s = _CALM_WINDOW_S if self._calm and not self._blind() else 0.0
        window_s = max(1.0, 10 * base_s, window_s)
        self._rate.arrived(ticket.mark, ticket.size, now, window_s, base_s)
        self._new = self._new and (queue is None or queue < TARGET_S)
        if self._new:
            self._grow(now, base_s)
        self._correct(now, base_s)
        self._released(now)

    def gone(self, ticket: Ticket) -> None:
        """Note that a piece will never be acknowledged."""
        self._under_way -= ticket.size
        self._rate.gone(ticket.mark)
        self._released(self.now())

    def _released(self, now: float) -> None:
        if self._emptying is not None and self._emptied is None and self._drained():
            self._emptied = now
        self.changed.notify_all()

    # --- what echoes say --------------------------------------------------------------------------

    def _grow(self, now: float, base_s: float) -> None:
        """Take a new link for more once a round trip, as long as that makes no queue."""
        queue = self._delay.queue(now, self._guessed + base_s)
        if queue is None or queue >= _CALM_S or self._wanted < self._guessed:
            return
        if self._rate.value >= _FASTER * self._best:
            self._best, self._flat = self._rate.value, 0
        else:
            self._flat += 1
        self._new = self._flat < _FLAT
        most = _BEYOND * max(FIRST, self._rate.value)
        self._guess, self._guessed = min(most, _START * self._guess), now

    def _correct(self, now: float, base_s: float) -> None:
        """Follow what the echoes that were sent since the last correction say about the queue."""
        if self._emptying is not None or now < self._corrected + base_s:
            return
        queue = self._delay.queue(now, self._corrected + base_s)
        if queue is None:
            return
        wanted = self._wanted >= self._corrected
        self._corrected = now
        if wanted and queue > TARGET_S:
            self._lower(queue, now, base_s)
        elif wanted:
            self._recover(queue)
        piece_s = self._chunk() / self._rate.value if self._rate.value else 0.0
        self._late.look(now, base_s, queue, piece_s, calm=queue < _CALM_S)
        sure = max(self._delay.near_at, self._sure)
        if wanted and (self._vain >= _VAIN or now - sure > _EMPTY_EVERY_S):
            self._emptying, self._new = now, False
            self._emptied = now if self._drained() else None

    def _drained(self) -> bool:
        return self._under_way <= self._limit()

    def _lower(self, queue: float, now: float, base_s: float) -> None:
        self._vain, self._calm_rounds = self._vain + 1, 0
        self._less_s = max(self._least_s(base_s), self._less_s - (queue - _AIM_S))
        # Twice in a row: the link is another one than the older samples are of. Once: echoes came
        # late together, as what is lost and sent again does.
        if queue > 2 * TARGET_S and self._vain > 1:
            self._rate.forget(now - max(_ROUND_S, 2 * base_s))

    def _recover(self, queue: float) -> None:
        self._vain = 0
        self._calm_rounds = self._calm_rounds + 1 if queue < _CALM_S else 0
        # One round may be a pause of TCP's own: its BBR looks for its base as we do for ours.
        if self._calm_rounds > 1:
            self._less_s = min(0.0, self._less_s + _STEP_S)

    def _look(self) -> None:
        """End the emptying once the way was measured empty, or that takes too long."""
        now, began, emptied = self.now(), self._emptying, self._emptied
        # What comes back a round trip later was sent when the way was empty.
        since = None if emptied is None else emptied + self._base_s()
        seen = since is not None and self._delay.queue(now, since) is not None
        late = began is not None and now - began > _EMPTY_S + 3 * self._base_s()
        if not (seen or late):
            return
        if seen and since is not None and self._vain >= _VAIN:  # it is not ours: another way
            self._delay.forget(since)
            self._trip.forget(since)
            self._new, self._guess, self._guessed = True, max(FIRST, self._late.mean), now
            self._best, self._flat, self._less_s = 0.0, 0, 0.0
        self._emptying, self._vain, self._sure = None, 0, now
        self._calm_rounds = 0
        self._corrected = now + self._base_s() + TARGET_S  # once it is full again
        self._late.restart(self._corrected)


class Lane:
    """One kind of bulk in a pipe: a ``Budget``. Thread-safe."""

    def __init__(self, pipe: Pipe, name: str, before: tuple["Lane", ...], aim_s: float):
        self.name, self._pipe, self._before, self._aim_s = name, pipe, before, aim_s
        self._held_at = pipe.now() - _HELD_S
        self._tokens, self._filled_at = 0.0, pipe.now()

    def held(self, now: float, within_s: float = _HELD_S) -> bool:
        """Return whether something of this lane had to wait for room of late."""
        return now - self._held_at < within_s

    def chunk(self) -> int:
        """Return the largest piece that keeps the link responsive, bytes."""
        return self._pipe.chunk()

    def limit(self) -> int:
        """Return bytes that may be under way now in this direction, all lanes together."""
        return self._pipe.limit(self._aim_s)

    def left(self) -> float:
        """Return about how much those before this lane leave it, bytes/s; 0: nothing is known."""
        with self._pipe.changed:
            now, rate = self._pipe.now(), self._pipe.rate
            return _FLOOR * rate if any(lane.held(now) for lane in self._before) else rate / 2

    def pressed(self) -> float:
        """Return the rate of the link where this lane waits for it, bytes/s; 0: it does not.

        For ten seconds after it last waited: what is compressed because of that waits no longer.
        """
        with self._pipe.changed:
            return self._pipe.rate if self.held(self._pipe.now(), _PRESSED_S) else 0.0

    def take(self, size: int, timeout_s: float) -> Ticket | None:
        """Wait until ``size`` more bytes may be under way and count them; None: not in time.

        A piece larger than the limit passes while nothing else is under way.
        """
        deadline = self._pipe.now() + timeout_s
        with self._pipe.changed:
            while not self._may(size):
                self._want()
                remaining = deadline - self._pipe.now()
                if remaining <= 0:
                    return None
                self._pipe.changed.wait(min(remaining, self._pipe.wait_s()))
            return Ticket(size, self._pipe.sent(size))

    def want(self) -> None:
        """Note that this lane would send more if it might."""
        with self._pipe.changed:
            self._want()

    def done(self, ticket: Ticket) -> None:
        """Note that a piece has arrived, as the other side said or as it is here."""
        with self._pipe.changed:
            self._pipe.arrived(ticket)

    def lost(self, ticket: Ticket) -> None:
        """Note that nobody will ever say so: its connection is gone."""
        with self._pipe.changed:
            self._pipe.gone(ticket)

    def _want(self) -> None:
        self._held_at = self._pipe.now()
        self._pipe.want()

    def _may(self, size: int) -> bool:
        now = self._pipe.now()
        self._tokens += _FLOOR * self._pipe.rate * (now - self._filled_at)
        self._filled_at = now
        self._tokens = min(self._tokens, max(float(LEAST), 2 * _PIECE_S * self._pipe.rate))
        if not any(lane.held(now, _BEFORE_S) for lane in self._before):
            return self._pipe.room(size, self._aim_s)
        if self._tokens < size:
            return False
        self._tokens -= size
        return True
