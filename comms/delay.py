"""How long a way takes: the least of late is the way itself, what is above that is a queue.

The newest few samples are judged by the least among them (as CoDel does, RFC 8289 section 3.2): one
that was lost and sent again, or met a busy thread, says nothing about the queue.
"""

from collections import deque

WINDOW_S = 15.0
"""How long the least sample counts as the way itself; ``lanes`` empties the way more often."""

_FEW = 3
_FRESH_S = 2.0
"""A sample older than this says nothing about now."""

_NEAR_S = 0.005
"""Within this of the least sample the way is empty."""


class Delay:
    """Delay of one way, s; its zero may be anywhere, as that of a clock elsewhere is. One thread.

    Clocks that drift apart by 200 ppm lose 3 ms within the window.
    """

    def __init__(self) -> None:
        self._least: deque[tuple[float, float]] = deque()
        """(time, sample), samples rising: the first one is the least of those in time."""
        self._few: deque[tuple[float, float]] = deque(maxlen=_FEW)
        self.near_at = 0.0
        """When a sample was last so near to the least one that the way was empty, monotonic s."""

    @property
    def base(self) -> float | None:
        """The way itself, s; None: not known."""
        return self._least[0][1] if self._least else None

    def sample(self, seconds: float, now: float) -> None:
        """Take a measurement made at ``now``."""
        self._few.append((now, seconds))
        self._note(now, seconds)
        while self._least[0][0] < now - WINDOW_S:
            self._least.popleft()
        if seconds - self._least[0][1] < _NEAR_S:
            self.near_at = now

    def queue(self, now: float, since: float = 0.0) -> float | None:
        """Return what things wait beyond the way itself, s.

        None: fewer than three samples since then, or none of the last two seconds.
        """
        few = [s for at, s in self._few if at >= max(since, now - _FRESH_S)]
        if len(few) < _FEW or self.base is None:
            return None
        return max(0.0, min(few) - self.base)

    def recent(self, now: float) -> float | None:
        """Return the least of the newest samples, s; None: none of the last two seconds."""
        few = [seconds for at, seconds in self._few if at >= now - _FRESH_S]
        return min(few, default=None)

    def last_at(self) -> float | None:
        """Return when the newest measurement was made; None: never."""
        return self._few[-1][0] if self._few else None

    def forget(self, before: float) -> None:
        """Forget what was measured before a moment: the way is another one now."""
        kept = [(at, s) for at, s in self._few if at >= before]
        if kept:
            self._least.clear()
            for at, seconds in kept:
                self._note(at, seconds)

    def _note(self, at: float, seconds: float) -> None:
        while self._least and self._least[-1][1] >= seconds:
            self._least.pop()
        self._least.append((at, seconds))
