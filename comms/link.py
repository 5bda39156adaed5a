"""What a robot host knows of its link to the head, and what it may put on it.

A tiny echo on the fresh lane, which waits behind nothing but what the network itself has queued,
gives the round trip; the clock of the other end in it tells how much of a queue is on the way there
and how much on the way back, whatever the two clocks show. What is delivered comes from the lanes
(``lanes``), what is lost from the kernel (``sockets``), where our own connections cross the link.

Bulk to the head: experience, live before what is behind, then video. Bulk to the host: weights. The
e-stop, commands and states ask nobody: they are small, and everything here is there for them.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from comms.delay import Delay
from comms.lanes import BEHIND_S, Pipe
from comms.sockets import Segments

ECHO_S, ECHO_BUSY_S, ECHO_SOON_S = 1.0, 0.1, 0.03
"""Time between echoes: at rest, while bulk is under way, while a pipe waits for what they say."""

_LOSS_S = 5.0
"""Time between two looks at what the kernel counts."""

_OLD_S = 60.0
"""An echo older than this, or from the future, is none of ours."""


class Link:
    """One robot host's link. Thread-safe.

    Args:
        segments: returns what the kernel counted per connection across the link; {}: none can be
            seen, and no loss is told.
        now: monotonic s.
    """

    def __init__(
        self,
        segments: Callable[[], Mapping[int, Segments]] = dict,
        now: Callable[[], float] = time.monotonic,
    ):
        self._now = now
        self._changed = threading.Condition()
        self._trip, there, back = Delay(), Delay(), Delay()
        self._there, self._back = there, back
        self.up = Pipe(there, self._trip, self._changed, now)
        self.down = Pipe(back, self._trip, self._changed, now)
        self.experience = self.up.lane("experience")
        self.behind = self.up.lane("behind", BEHIND_S)
        """Experience of older epochs, which drains behind live data."""
        self.video = self.up.lane("video")
        self.weights = self.down.lane("weights")
        self._loss = _Loss(segments, now)

    def echoed(self, sent_s: float, there_s: float) -> None:
        """Take an echo that has just come back.

        Args:
            sent_s: when it was sent, monotonic s of this host.
            there_s: when the other end answered it, monotonic s of that one.
        """
        now = self._now()
        if not 0 <= now - sent_s < _OLD_S:
            return
        with self._changed:
            self._trip.sample(now - sent_s, now)
            self._there.sample(there_s - sent_s, now)
            self._back.sample(now - there_s, now)
            self._changed.notify_all()

    def echo_every_s(self) -> float:
        """Return how long to wait between two echoes now."""
        pipes = self.up, self.down
        if any(pipe.emptying or pipe.growing for pipe in pipes):
            return ECHO_SOON_S
        return ECHO_BUSY_S if self.up.busy or self.down.busy else ECHO_S

    def stats(self) -> dict[str, float]:
        """Return round trip, rates and loss; what is not known is left out.

        ``rtt_ms`` now and ``base_rtt_ms`` without any queue; ``rate_mbit_s`` to the head and
        ``down_mbit_s`` from it, as delivered of late: of a link that is not full, at least that;
        ``loss``: share of segments that was sent again; ``held_<lane>``: 1 where one had to wait.
        """
        with self._changed:
            trip, base = self._trip.recent(self._now()), self._trip.base
        up, down = self.up.stats(), self.down.stats()
        known = {"rtt_ms": trip and 1000 * trip, "base_rtt_ms": base and 1000 * base}
        known |= {"loss": self._loss.share()}
        known |= {"rate_mbit_s": up["mbit_s"] or None, "down_mbit_s": down["mbit_s"] or None}
        held = {k: v for k, v in {**up, **down}.items() if k.startswith("held_")}
        return {name: value for name, value in known.items() if value is not None} | held


@dataclass
class _Loss:
    """Share of segments sent again, between the last two looks."""

    segments: Callable[[], Mapping[int, Segments]]
    now: Callable[[], float]

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._looked = self.now() - _LOSS_S
        self._last: Mapping[int, Segments] = {}
        self._share: float | None = None

    def share(self) -> float | None:
        """Return the share; None: not known."""
        with self._lock:
            if self.now() - self._looked >= _LOSS_S:
                self._looked = self.now()
                self._look()
            return self._share

    def _look(self) -> None:
        counted = self.segments()
        pairs = [(one, self._last[key]) for key, one in counted.items() if key in self._last]
        self._last = counted
        sent = sum(one.sent - before.sent for one, before in pairs)
        if sent:
            self._share = sum(one.again - before.again for one, before in pairs) / sent
        elif not pairs:
            self._share = None
