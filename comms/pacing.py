"""How much may be under way to a server: as much as it answers soon.

What a producer waits for an answer is what all of them have under way, divided by what the server
gets done. A fixed window is therefore either too small for one host behind a long link or too large
for sixty beside each other. So the window follows the time that things wait at the server: while
that is short it grows with each answer, and where it is not it shrinks by a tenth. What waits on a
long link is not seen here and shrinks nothing; nor does a slow disk, which takes as long for few as
for many.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a window."""

    least: int = 2
    """Per stream, however slow the server is: one under way and one that follows."""
    most: int = 64
    """Per stream, however fast it is: what one host may have in the server's memory."""
    together: int = 32
    """Of all streams, however slow the server is: from fewer it makes groups so small that it gets
    even less done. A message each of four hosts that are behind."""
    target_s: float = 0.015
    """How long something may wait at the server, beyond what the quickest answers take."""


class Pacing:
    """The window of all streams of one server together. For one thread."""

    def __init__(self, limits: Limits):
        self._limits = limits
        self._total = float(limits.most)
        self._quickest = 0.0

    def waited(self, seconds: float, work: float, streams: int) -> None:
        """Learn about the answer to one group.

        Args:
            seconds: from the arrival of its oldest to its answer.
            work: of these, how long answering it took.
            streams: that share the window.
        """
        # The floor of what answering takes, which rises slowly where the server has become slower.
        self._quickest = min(work, 1.1 * self._quickest) if self._quickest else work
        # Who arrives while a group is answered waits for that one and its own.
        if seconds > self._limits.target_s + 2 * self._quickest:
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
