"""What was consumed: a set of rows, kept small because it is nearly contiguous."""

from collections.abc import Callable

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.types import Array
from user_system.replay import ids
from user_system.replay.rows import Rows


class Consumed:
    """A set of row numbers, as a bitmap in memory and as ranges of ids in a checkpoint.

    Args:
        rows: returns what is numbered; None while there is nothing.
    """

    def __init__(self, rows: Callable[[], Rows | None]) -> None:
        self._rows = rows
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
        """Return the set as ranges of ids, first and last."""
        rows = self._rows()
        return [] if rows is None else ids.ranges_of(rows, self._taken)

    def load(self, state: ids.Ranges, end: int = 1 << 64) -> None:
        """Become what of ``state``, in which all ids are below ``end``, is still there.

        Raises:
            SpecError: no such set.
        """
        before, rows = -1, self._rows()
        taken = np.zeros(256 if rows is None else max(len(rows), 256), bool)
        for first, last in state:
            # Rising, so that to take them over is one pass, whoever made them up.
            if not before < int(first) <= int(last) < end:
                allowed = f"rising, below {end}"
                raise SpecError("ranges of what was consumed", got=(first, last), allowed=allowed)
            before = int(last)
            if rows is not None:
                taken[ids.between(rows, int(first), before)] = True
        self._taken = taken

    def __len__(self) -> int:
        return int(self._taken.sum())

    def _reserve(self, size: int) -> None:
        if size > len(self._taken):
            grown = np.zeros(max(size, 2 * len(self._taken)), bool)
            grown[: len(self._taken)] = self._taken
            self._taken = grown
