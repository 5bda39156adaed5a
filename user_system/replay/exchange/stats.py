"""Statistics of columns as the datasets keep them: per episode, and over all.

Per episode everything is exact: quantiles from the sorted values, those of images from histograms
(8 bits make that exact too). Over all episodes, count, min, max, mean and std are exact, and so are
the quantiles of images; quantiles of other columns are the episodes' weighted mean, an estimate.
What is not finite (a reward not known yet) is left out, and so is what has no finite square.
"""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from user_system.core.types import Array

Stats: TypeAlias = Mapping[str, Array]
"""``min max mean std q01 q10 q50 q90 q99`` in the column's shape, ``count`` ``[1]``."""

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)

MAX_ELEMENTS = 4096
"""Columns with more numbers per row get no statistics: nobody normalises those one by one."""

MAX_VALUE = 1e150


def of_values(values: Array) -> Stats | None:
    """Return the statistics of a column ``[N, …]``; None where none of it is finite."""
    with np.errstate(invalid="ignore"):  # a NaN of a kind that signals; it is left out below
        rows = values.reshape(len(values), -1).astype(np.float64)
    rows = rows[(np.abs(rows) < MAX_VALUE).all(1)]
    if not len(rows):
        return None
    shape = values.shape[1:] or (1,)
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    quantiles = np.quantile(rows, list(QUANTILES.values()), axis=0)
    found |= dict(zip(QUANTILES, quantiles, strict=True))
    stats = {name: value.reshape(shape) for name, value in found.items()}
    return stats | {"count": np.array([len(rows)])}


class Histogram:
    """Counts of the 256 values of each channel, over any number of images."""

    def __init__(self, channels: int):
        self.bins = np.zeros((channels, 256), np.int64)
        self.images = 0

    def add(self, image: Array) -> None:
        """Take in one image ``(H, W, C)`` uint8."""
        self.images += 1
        for channel, bins in enumerate(self.bins):
            bins += np.bincount(image[:, :, channel].reshape(-1), minlength=256)

    def merge(self, other: "Histogram") -> None:
        """Take in all that another one saw."""
        self.images += other.images
        self.bins += other.bins

    def stats(self) -> Stats | None:
        """Return the statistics ``(C, 1, 1)`` of values in [0, 1]; None without images."""
        if not self.images:
            return None
        levels = np.arange(256) / 255.0
        total = self.bins.sum(1)
        mean = self.bins @ levels / total
        squares = self.bins @ levels**2 / total
        below = self.bins.cumsum(1)
        found = {
            "min": levels[(self.bins > 0).argmax(1)],
            "max": levels[255 - (self.bins[:, ::-1] > 0).argmax(1)],
            "mean": mean,
            "std": np.sqrt(np.maximum(0.0, squares - mean**2)),
        }
        for name, q in QUANTILES.items():
            found[name] = levels[(below >= np.ceil(q * total)[:, None]).argmax(1)]
        stats = {name: value.reshape(-1, 1, 1) for name, value in found.items()}
        return stats | {"count": np.array([self.images])}


class Total:
    """Statistics of one column over all episodes, made from theirs."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: dict[str, Array] = {}
        self._low: Array | None = None
        self._high: Array | None = None

    def add(self, stats: Stats) -> None:
        """Take in an episode's."""
        n = int(stats["count"][0])
        self._count += n
        weighted = {name: n * stats[name] for name in ("mean", *QUANTILES)}
        weighted["squares"] = n * (stats["std"] ** 2 + stats["mean"] ** 2)
        for name, value in weighted.items():
            self._sum[name] = self._sum.get(name, 0.0) + value
        low, high = stats["min"], stats["max"]
        self._low = low if self._low is None else np.minimum(self._low, low)
        self._high = high if self._high is None else np.maximum(self._high, high)

    def stats(self) -> Stats | None:
        """Return them; None where no episode had any."""
        if self._low is None or self._high is None:
            return None
        found = {name: value / self._count for name, value in self._sum.items()}
        variance = found.pop("squares") - found["mean"] ** 2
        found["std"] = np.sqrt(np.maximum(0.0, variance))
        count = np.array([self._count])
        return {"min": self._low, "max": self._high, **found, "count": count}
