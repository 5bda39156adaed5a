"""How late a bare timer is: what a machine, and this very process, add to whatever is measured."""

import threading
import time
from collections import deque

TICK_S = 0.01
"""Length of a timer, s."""
LEAST_S = 0.005
"""Lateness that is remembered: less of it is how timers are."""
_KEPT = 1000


class Noise:
    """Sets a timer again and again, in a thread of its own, and remembers how late each was.

    It is a thread of the process that measures: who waits for other threads there is as late as
    who waits for an answer. What a server does with its own time adds nothing.
    """

    def __init__(self) -> None:
        self._late: deque[tuple[float, float]] = deque(maxlen=_KEPT)
        """(when it rang, how late), s."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="noise", daemon=True)
        self._thread.start()

    def between(self, began: float, ended: float) -> float:
        """Return by how much timers that rang between two times were late, together, s."""
        return sum(
            max(0.0, min(rang, ended) - max(rang - late, began))
            for rang, late in self._late.copy()
            if rang >= began
        )

    def worst(self) -> float:
        """Return by how much the latest was late, s."""
        return max((late for _, late in self._late.copy()), default=0.0)

    def close(self) -> None:
        """Stop."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            due = time.monotonic() + TICK_S
            time.sleep(TICK_S)
            now = time.monotonic()
            if now - due > LEAST_S:
                self._late.append((now, now - due))
