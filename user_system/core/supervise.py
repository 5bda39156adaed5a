"""Restarting what died, patiently and never for ever in silence."""

from dataclasses import dataclass, field
from random import Random


@dataclass
class Backoff:
    """Delays between restarts: full jitter under a doubling cap, reset by a quiet life.

    Full jitter: each delay is uniform in [0, cap], so that many processes that died together do not
    come back together.
    """

    base_s: float = 0.2
    cap_s: float = 10.0
    quiet_s: float = 30.0
    """A life this long clears the count."""
    rng: Random = field(default_factory=Random)
    failures: int = 0

    def died(self, lived_s: float) -> float:
        """Note a death after ``lived_s`` seconds; return the delay before the next start."""
        self.failures = 1 if lived_s >= self.quiet_s else self.failures + 1
        # 2^32 lies beyond any cap; without a bound the power itself overflows after 1,024 deaths.
        ceiling = min(self.cap_s, self.base_s * 2.0 ** min(self.failures - 1, 32))
        return self.rng.uniform(0.0, ceiling)
