"""How much a link delivers: bytes acknowledged over the time that took, and the most of late.

Each piece remembers, when it is sent, how much had been delivered by then. When it is acknowledged,
what was delivered since, divided by the longer of the two times (that of sending and that of
acknowledging), is one sample; the longer of the two, so that acknowledgements that come in a bunch
pretend no speed. What is acknowledged in between may have been under way when the piece was sent,
on this connection or another one, so the time of sending begins with the oldest that was. The rate
is the largest sample of late. A sample taken while there was too little to send says only that the
link does *at least* that much, so it counts where it is larger, and makes nothing older expire.

Method: Cheng, Cardwell et al., "Delivery Rate Estimation", draft-cheng-iccrg-delivery-rate-
estimation-02, section 3; the windowed maximum is the one of BBR (Cardwell et al., "BBR Congestion
Control", ACM Queue 14(5), 2016; draft-ietf-ccwg-bbr, section 5.5).
"""

from collections import OrderedDict, deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mark:
    """What a piece remembers of the moment at which it was sent; times are monotonic s."""

    sent: float
    first_sent: float
    """When the oldest piece was sent that was under way then."""
    delivered: int
    """Bytes acknowledged by then, in all."""
    delivered_at: float
    full: bool
    """There was more to send than could be under way."""
    number: int = 0
    """Of the piece."""


_STUCK_S = 1.0
"""What has been under way for longer may be on a connection that is gone: it is not counted on."""


class Rate:
    """Delivery rate of one direction, bytes/s. For one thread."""

    def __init__(self) -> None:
        self._delivered = 0
        self._delivered_at = 0.0
        self._sent = 0
        self._under_way: OrderedDict[int, float] = OrderedDict()
        """Number of a piece -> when it was sent."""
        self._best: deque[tuple[float, float]] = deque()
        """(time, sample), samples falling: the first one is the largest of those in time."""

    @property
    def value(self) -> float:
        """The most of late, bytes/s; 0: nothing is known."""
        return self._best[0][1] if self._best else 0.0

    def send(self, now: float, *, idle: bool, full: bool) -> Mark:
        """Note that a piece goes out; ``idle``: nothing else is under way."""
        if idle:
            self._delivered_at = now
        while self._under_way and next(iter(self._under_way.values())) < now - _STUCK_S:
            self._under_way.popitem(last=False)
        self._sent += 1
        self._under_way[self._sent] = now
        first = next(iter(self._under_way.values()))
        return Mark(now, first, self._delivered, self._delivered_at, full, self._sent)

    def gone(self, mark: Mark) -> None:
        """Note that a piece will never arrive."""
        self._under_way.pop(mark.number, None)

    def arrived(self, mark: Mark, size: int, now: float, window_s: float, least_s: float) -> None:
        """Note that a piece has arrived.

        Args:
            mark: of the piece.
            size: of the piece, bytes.
            now: monotonic s.
            window_s: how long a sample counts.
            least_s: a sample over less time than a round trip can take says nothing.
        """
        self._delivered += size
        self._delivered_at = now
        self._under_way.pop(mark.number, None)
        took = max(mark.sent - mark.first_sent, now - mark.delivered_at)
        if took <= 0 or took < least_s:
            return
        sample = (self._delivered - mark.delivered) / took
        while self._best and self._best[-1][1] <= sample:
            self._best.pop()
        self._best.append((now, sample))
        if mark.full:
            self.forget(now - window_s)

    def forget(self, before: float) -> None:
        """Forget samples taken before a moment, but for the newest."""
        while len(self._best) > 1 and self._best[0][0] < before:
            self._best.popleft()
