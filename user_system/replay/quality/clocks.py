"""How evenly observations were captured, from their stamps."""

from dataclasses import dataclass

import numpy as np

from user_system.core.types import Array

_BIN = np.log(1.005)
_SHORTEST, _LONGEST = 1e3, 1e13


@dataclass(frozen=True, slots=True)
class Timing:
    """The time from one observation to the next, on the robot clock."""

    p50_ms: float
    p99_ms: float
    longest_ms: float
    intervals: int
    missed: int
    """Observations that should have been in between: intervals over the median one, rounded."""

    @property
    def missed_share(self) -> float:
        """Share of the observations that should be there."""
        return self.missed / max(1, self.missed + self.intervals)


class Clock:
    """Intervals of one robot, in bins half a percent wide: any number of them in 80 kB."""

    def __init__(self) -> None:
        bins = 1 + int(np.log(_LONGEST / _SHORTEST) / _BIN)
        self._counts = np.zeros(bins, np.int64)
        self._sums = np.zeros(bins)
        self._longest = 0.0

    def offer(self, stamps: Array) -> None:
        """Take in the stamps ``[n]`` int64 ns of observations that followed each other."""
        gaps = np.diff(stamps).astype(np.float64)
        if not len(gaps):
            return
        place = np.log(np.clip(gaps, _SHORTEST, _LONGEST) / _SHORTEST) / _BIN
        bins = np.minimum(place.astype(np.int64), len(self._counts) - 1)
        self._counts += np.bincount(bins, minlength=len(self._counts))
        self._sums += np.bincount(bins, weights=gaps, minlength=len(self._counts))
        self._longest = max(self._longest, float(gaps.max()))

    def timing(self) -> Timing | None:
        """Return what was seen; None if there was no interval."""
        total = int(self._counts.sum())
        if not total:
            return None
        middle = self._quantile(0.5)
        used = np.flatnonzero(self._counts)
        periods = np.rint(self._sums[used] / self._counts[used] / middle)
        missed = int((self._counts[used] * np.maximum(0, periods - 1)).sum())
        return Timing(middle / 1e6, self._quantile(0.99) / 1e6, self._longest / 1e6, total, missed)

    def _quantile(self, share: float) -> float:
        """Return the mean of the bin in which a quantile lies."""
        upto = np.cumsum(self._counts)
        bin_ = int(np.searchsorted(upto, share * upto[-1]))
        return float(self._sums[bin_] / self._counts[bin_])
