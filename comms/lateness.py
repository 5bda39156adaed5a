"""How much later than the way itself acknowledgements come, where losses hold them back.

TCP delivers in order, so what arrived after a gap waits there until the gap is filled, and what
says that it has arrived comes late for another reason than a queue. A cap on what is under way that
knows the way alone would then slow the link down. This says how much may be under way beyond it:
as much as acknowledgements are late by, where that has been seen to make the link faster. What made
it no faster is taken back and tried again only after a while: then the link is full, and
acknowledgements are late because what goes beyond it is lost.
"""

from collections import deque
from statistics import median

_MOST_S, _MOST_BASES = 0.05, 2.0
"""Bound: what was lost and sent again once or twice has come by then."""

_LEAST_S = 0.025
"""What comes less late than this is not worth a try; nor is a quarter more than is given."""

_LEAST_BASES, _WORTH = 0.25, 1.25
_GAIN = 1.1
"""A try must make the link so much faster."""

_PERIOD_S, _PERIOD_BASES = 0.5, 3.0
"""What is compared is what was delivered in so long a time."""

_REST_S, _MOST_REST_S = 5.0, 40.0
"""After a try in vain the next one waits so long, and twice as long after each further one."""

_KEPT = 256
"""Newest acknowledgements that are looked at."""


class Lateness:
    """Time by which more may be under way than fills the way itself, s. For one thread.

    Args:
        now: monotonic s.
    """

    def __init__(self, now: float):
        self.extra_s = 0.0
        """What is given, s; 0: the way itself is enough."""
        self.mean = 0.0
        """What was really delivered of late, bytes/s."""
        self._trips: deque[float] = deque(maxlen=_KEPT)
        self._total = 0
        self._since = now
        self._trial: tuple[float, float] | None = None
        """(bytes/s, s given) before the try that is under way."""
        self._settles_at: float | None = None
        """When the next period begins."""
        self._rest_s, self._again_at = _REST_S, now

    def arrived(self, size: int, trip_s: float) -> None:
        """Note that ``size`` bytes were acknowledged, ``trip_s`` after they were sent."""
        self._total += size
        self._trips.append(trip_s)

    def look(self, now: float, base_s: float, queue_s: float, *, full: bool, calm: bool) -> None:
        """Judge the last period, if it is over.

        Args:
            now: monotonic s.
            base_s: round trip of the way itself.
            queue_s: what echoes find beyond that.
            full: the cap was what limited.
            calm: echoes find so little of a queue that more may be tried.
        """
        if self._settles_at is not None:
            if now >= self._settles_at:
                self.restart(now)
            return
        period_s = now - self._since
        if period_s < max(_PERIOD_S, _PERIOD_BASES * base_s):
            return
        self.mean = self._total / period_s
        late_s = median(self._trips) - base_s - queue_s if self._trips else 0.0
        self.restart(now)
        if self._trial is not None:
            self._judge(now)
        elif late_s < self.extra_s / 2:
            self.extra_s = max(0.0, late_s)
        elif full and calm and now >= self._again_at:
            self._try(late_s, base_s, now)

    def restart(self, now: float, settles_at: float | None = None) -> None:
        """Begin a period anew, or later: what was delivered until then says nothing of the cap."""
        self._since, self._total, self._settles_at = now, 0, settles_at
        self._trips.clear()

    def refuse(self, now: float) -> None:
        """Give nothing for a while: echoes find a queue."""
        self.extra_s, self._trial = 0.0, None
        self._again_at = now + self._rest_s

    def _try(self, late_s: float, base_s: float, now: float) -> None:
        if late_s < max(_WORTH * self.extra_s, _LEAST_S, _LEAST_BASES * base_s):
            return
        self._trial = self.mean, self.extra_s
        self.extra_s = min(late_s, _MOST_S + _MOST_BASES * base_s)
        self.restart(now, now + base_s + late_s)  # when what goes because of it is acknowledged

    def _judge(self, now: float) -> None:
        (before, given_s), self._trial = self._trial or (0.0, 0.0), None
        if self.mean >= _GAIN * before:
            self._rest_s = _REST_S
            return
        self.extra_s = given_s
        self._again_at, self._rest_s = now + self._rest_s, min(2 * self._rest_s, _MOST_REST_S)
