"""How much may be under way to a server: as much as it answers soon.

What a producer waits for an answer is what all of them have under way, divided by what the server
gets done. A fixed window is therefore either too small for one host behind a long link or too large
for sixty beside each other. So the window follows the time that things wait at the server: while
that is short it grows with each answer, and where it is not it shrinks by a tenth. What waits on a
long link is not seen here and shrinks nothing; nor does a slow disk, which takes as long for few as
for many: what a group costs however small it is does not count.
"""

from dataclasses import dataclass

_NEW = 0.05
"""Weight of the newest group among those that were seen."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a window."""

    least: int = 2
    """Per stream, however slow the server is: one under way and one that follows."""
    most: int = 64
    """Per stream, however fast it is: what one host may have in the server's memory."""
    together: int = 24
    """Of all streams, however slow the server is: from fewer it makes groups so small that it gets
    even less done. A few from each of four hosts that are behind."""
    target_s: float = 0.002
    """How long something may wait at the server, beyond what any answer takes."""


class Cost:
    """What answering takes: so much for any group, and so much more for each thing in it.

    Both follow from a regression over the groups seen lately, old ones forgotten exponentially.
    """

    def __init__(self) -> None:
        self._count = self._work = self._squares = self._products = 0.0

    def learn(self, count: int, work: float) -> None:
        """Learn that a group of ``count`` took ``work`` seconds."""
        share = _NEW if self._count else 1.0
        self._count += share * (count - self._count)
        self._work += share * (work - self._work)
        self._squares += share * (count * count - self._squares)
        self._products += share * (count * work - self._products)

    @property
    def fixed(self) -> float:
        """Seconds that a group takes however small it is; all of it where groups are alike."""
        # As much doubt as if groups differed by a tenth: alike ones say nothing of a difference.
        spread = self._squares - self._count**2 + (0.1 * self._count) ** 2
        slope = (self._products - self._count * self._work) / spread if spread else 0.0
        return min(max(self._work - max(slope, 0.0) * self._count, 0.0), self._work)


class Pacing:
    """The window of all streams of one server together. For one thread."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._total = float(limits.most)
        self._cost = Cost()

    def waited(self, seconds: float, work: float, count: int, streams: int) -> None:
        """Learn about the answer to one group.

        Args:
            seconds: from the arrival of its oldest to its answer.
            work: of these, how long answering it took.
            count: how many it answered.
            streams: that share the window.
        """
        self._cost.learn(count, work)
        # Who arrives while a group is answered waits for that one and its own, and they vary.
        if seconds > self._limits.target_s + 2.2 * self._cost.fixed:
            self._total *= 0.9
        else:
            self._total += max(1.0, 0.05 * self._total)
        limits, streams = self._limits, max(1, streams)
        least = max(limits.least * streams, limits.together)
        self._total = min(max(self._total, least), limits.most * streams)

    def credit(self, streams: int) -> int:
        """Return what each of ``streams`` may have under way."""
        share = int(self._total / max(1, streams))
        return min(max(share, self._limits.least), self._limits.most)
