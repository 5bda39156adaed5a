"""Limits on how often something may happen: requests, failed logins, lines in a log."""

import threading

from user_system.core.clock import SECOND, Clock


class Throttle:
    """A bucket of tokens for each key, refilled over time. Thread-safe.

    Args:
        clock: wall clock.
        per_s: tokens per second.
        burst: tokens in a full bucket.
        keys: buckets remembered; the one not used for longest is forgotten, and full again.
    """

    def __init__(self, clock: Clock, per_s: float, burst: float, keys: int = 4096):
        self._clock, self._per_s, self._burst, self._keys = clock, per_s, burst, keys
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, int]] = {}

    def take(self, key: str = "") -> bool:
        """Take one token; False where there is none."""
        now = self._clock.now_ns()
        with self._lock:
            level, at = self._buckets.pop(key, (self._burst, now))
            level = min(self._burst, level + (now - at) / SECOND * self._per_s)
            taken = level >= 1.0
            self._buckets[key] = (level - taken, now)
            if len(self._buckets) > self._keys:
                del self._buckets[next(iter(self._buckets))]
            return taken

    def forgive(self, key: str = "") -> None:
        """Fill the bucket of ``key`` up again."""
        with self._lock:
            self._buckets.pop(key, None)
