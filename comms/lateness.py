"""How much later than the way itself acknowledgements come, where losses hold them back.

TCP delivers in order, so what arrived after a gap waits there until the gap is filled, and what
says that it has arrived comes late for another reason than a queue. A cap on what is under way that
knows the way alone would then slow the link down, and a rate that is measured under it would pull
the cap further. So as much more may be under way as half of the pieces come later, while echoes
find no queue. A link that loses a piece now and then delays few of them, and gives nothing.
"""

from collections import deque
from statistics import median

_MOST_S, _MOST_BASES = 0.05, 2.0
"""Bound: what was lost and sent again once or twice has come by then."""

_LEAST_S, _PIECES = 0.025, 3
"""Less than this is the clockwork of processes, and pieces that wait for each other; not losses."""

_PERIOD_S, _PERIOD_BASES = 0.5, 3.0
"""How often it is looked at."""

_KEPT = 256
"""Newest pieces that are looked at."""


class Lateness:
    """Time by which more may be under way than fills the way itself, s. For one thread.

    Args:
        now: monotonic s.
    """

    def __init__(self, now: float):
        self.extra_s = 0.0
        """What is given, s; 0: the way itself is enough."""
        self.mean = 0.0
        """What was delivered in the last period, bytes/s."""
        self._trips: deque[float] = deque(maxlen=_KEPT)
        self._total = 0
        self._since = now

    def arrived(self, size: int, trip_s: float) -> None:
        """Note that ``size`` bytes were acknowledged, ``trip_s`` after they were sent."""
        self._total += size
        self._trips.append(trip_s)

    def look(self, now: float, base_s: float, queue_s: float, piece_s: float, calm: bool) -> None:
        """Look at the last period, if it is over.

        Args:
            now: monotonic s.
            base_s: round trip of the way itself.
            queue_s: what echoes find beyond that.
            piece_s: time on the link of one piece: echoes, being tiny, do not see it.
            calm: echoes find so little of a queue that more may be under way.
        """
        period_s = now - self._since
        if period_s < max(_PERIOD_S, _PERIOD_BASES * base_s) or not self._trips:
            return
        self.mean = self._total / period_s
        late_s = median(self._trips) - base_s - queue_s
        least_s, most_s = max(_LEAST_S, _PIECES * piece_s), _MOST_S + _MOST_BASES * base_s
        late_s = min(late_s, most_s) if late_s >= least_s else 0.0
        if calm or late_s < self.extra_s:
            self.extra_s = late_s
        self.restart(now)

    def restart(self, now: float) -> None:
        """Begin a period anew, now or later: what was sent until then says nothing of the link."""
        self._since, self._total = now, 0
        self._trips.clear()
