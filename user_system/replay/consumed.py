"""What was consumed: a set of row numbers, kept small because it is nearly contiguous."""

from collections.abc import Sequence

import numpy as np

from user_system.core.types import Array


class Consumed:
    """A set of whole numbers >= 0, as a bitmap in memory and as ranges in a checkpoint."""

    def __init__(self) -> None:
        self._taken = np.zeros(256, bool)

    def add(self, numbers: Array) -> None:
        """Put ``numbers`` ``[N]`` into the set."""
        if len(numbers):
            self._reserve(int(numbers.max()) + 1)
            self._taken[numbers] = True

    def without(self, numbers: Array) -> Array:
        """Return those of ``numbers`` ``[N]`` that are not in the set, in their order."""
        if not len(numbers):
            return numbers
        self._reserve(int(numbers.max()) + 1)
        rest: Array = numbers[~self._taken[numbers]]
        return rest

    def state(self) -> list[list[int]]:
        """Return the set as ``[first, end)`` ranges."""
        edges = np.diff(np.concatenate([[0], self._taken.astype(np.int8), [0]]))
        starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
        return [[int(start), int(end)] for start, end in zip(starts, ends, strict=True)]

    def load(self, state: Sequence[Sequence[int]]) -> None:
        """Become the set that ``state`` returned."""
        self._taken[:] = False
        for start, end in state:
            self._reserve(end)
            self._taken[start:end] = True

    def __len__(self) -> int:
        return int(self._taken.sum())

    def _reserve(self, size: int) -> None:
        if size > len(self._taken):
            grown = np.zeros(max(size, 2 * len(self._taken)), bool)
            grown[: len(self._taken)] = self._taken
            self._taken = grown
