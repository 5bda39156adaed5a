"""Large arrays that are used again once nobody holds them.

A batch of images is fifty megabytes. Asking the system for it anew each time costs more than
filling it: every page of fresh memory is a fault. So memory that a batch was made in is filled
again, but only when neither the batch nor any view of it is left; whoever keeps a batch keeps it
unchanged, and makes the next one take fresh memory.

Arrays begin at a page, as images in the file do. Where source and destination lie differently
within a cache line, copying takes 1.6 to 1.8 times as long: measured with 48 KiB each on Zen 4,
whose ``rep movsb`` that is. A NumPy array of this size would begin 16 bytes into a page.
"""

import math
import sys
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from user_system.core.types import Array
from user_system.replay.mapped import PAGE

T = TypeVar("T", bound=np.generic)

_KEPT = 8
"""Bases kept, used or not."""


class Arena:
    """Memory for arrays. For one thread; arrays may go to others."""

    def __init__(self) -> None:
        self._bases: list[NDArray[np.uint8]] = []
        # Of one that nobody uses: that asking is one as well is true until Python 3.14 only.
        (self._unused,) = _references([np.empty(0, np.uint8)])

    def take(self, shape: Sequence[int], dtype: DTypeLike) -> Array:
        """Return an array of ``shape`` with arbitrary contents that begins at a page."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        base = self._free(size + PAGE)
        lead = -int(base.__array_interface__["data"][0]) % PAGE
        return np.ndarray(shape, dtype, base, lead)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(base.nbytes for base in self._bases)

    def _free(self, size: int) -> NDArray[np.uint8]:
        for base, count in zip(self._bases, _references(self._bases), strict=True):
            # At most twice as large, or a small batch would hold the memory of a large one.
            if size <= base.nbytes <= 2 * size and count == self._unused:
                return base
        fresh = np.empty(size, np.uint8)
        self._bases = [*self._bases[-_KEPT + 1 :], fresh]
        return fresh


def _references(bases: Sequence[Array]) -> list[int]:
    """Return how many references there are to each base, seen from here."""
    return [sys.getrefcount(base) for base in bases]
