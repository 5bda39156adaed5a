"""Random samples of bounded size from a stream of steps."""

from collections.abc import Mapping

import numpy as np

from user_system.core.types import Array

Columns = Mapping[str, Array]
"""Column -> ``[n, …]``, as many rows in each."""


class Reservoir:
    """At most ``capacity`` of the rows that were offered, each as likely to be kept as any other.

    Rows come with random keys, and those with the smallest keys stay: what is kept depends on the
    keys alone, not on how many rows came together.
    """

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._keys: list[Array] = []
        self._parts: list[Columns] = []
        self._held = 0
        self._limit = np.inf
        """Rows with keys from here on cannot be among the smallest any more."""
        self.seen = 0

    def offer(self, keys: Array, columns: Columns) -> None:
        """Take in rows with their keys ``[n]``."""
        self.seen += len(keys)
        fit = np.flatnonzero(keys < self._limit)
        if not len(fit):
            return
        self._keys.append(keys[fit])
        self._parts.append({name: values[fit] for name, values in columns.items()})
        self._held += len(fit)
        if self._held > 2 * self._capacity:
            self._prune()

    def rows(self) -> Columns:
        """Return the rows that are kept, by key."""
        self._prune()
        return self._parts[0] if self._parts else {}

    def _prune(self) -> None:
        if not self._parts:
            return
        keys = np.concatenate(self._keys)
        best = np.argsort(keys, kind="stable")[: self._capacity]
        names = self._parts[0]
        self._parts = [{n: np.concatenate([p[n] for p in self._parts])[best] for n in names}]
        self._keys, self._held = [keys[best]], len(best)
        if len(best) == self._capacity:
            self._limit = float(keys[best[-1]])
