"""What was made of stored frames and is likely to be wanted again, in bounded memory.

Draws are nearly uniform, so that which values are kept hardly matters, and how many does: the
oldest one makes room, and nothing is spent on knowing who was used last.
"""

import math

import numpy as np
from numpy.typing import DTypeLike

from user_system.core.types import Array
from user_system.replay.columns import Column

_BESIDE = 8
"""Bytes kept beside each value."""


class Cache:
    """Equal arrays, each that of one row. For one thread.

    Args:
        shape: of one of them.
        dtype: of them.
        limit_bytes: of all of them; less than one of them is none at all.
    """

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike, limit_bytes: int):
        self._size = math.prod(shape) * np.dtype(dtype).itemsize + _BESIDE
        capacity = max(limit_bytes, 0) // self._size
        # Memory is taken page by page as it fills.
        self.values: Array = np.empty((capacity, *shape), dtype)
        self.asked = 0
        """Rows that were wanted."""
        self.hits = 0
        """Of these, those that were there."""
        self._slot = Column("int32")
        self._owner = np.zeros(capacity, np.int64)
        """Whose value a slot holds, plus 1."""
        self._next = 0
        self._filled = 0

    @property
    def nbytes(self) -> int:
        """Bytes taken."""
        return self._filled * self._size

    def find(self, rows: Array) -> Array:
        """Return where in ``values`` those of ``rows`` ``[N]`` are; -1: nowhere."""
        if len(rows):
            self._slot.pad(int(rows.max()) + 1, -1)
        slots: Array = self._slot.data[rows]
        self.asked += len(rows)
        self.hits += int((slots >= 0).sum())
        return slots

    def put(self, rows: Array, values: Array) -> None:
        """Keep values ``[N, ...]`` of ``rows`` ``[N]``, none of which is kept or comes twice."""
        capacity = len(self._owner)
        rows, values = rows[:capacity], values[:capacity]
        if not len(rows):
            return
        slots = (self._next + np.arange(len(rows))) % capacity
        leaving = self._owner[slots] - 1
        self._slot.data[leaving[leaving >= 0]] = -1
        self._slot.pad(int(rows.max()) + 1, -1)
        self._slot.data[rows] = slots
        self._owner[slots] = rows + 1
        self.values[slots] = values
        self._next = int(slots[-1] + 1) % capacity
        self._filled = max(self._filled, min(capacity, self._filled + len(rows)))
