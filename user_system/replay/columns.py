"""Arrays that grow at the end and stay contiguous, so that a draw is one ``np.take`` per field."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from user_system.core.types import Array

log = logging.getLogger(__name__)

MAX_EXTRAS = 512
"""Of one schema, that differ in name, dtype or shape: each costs a look per block and per draw."""


class Column:
    """A growing array ``[N, *tail]``; the space doubles, so that appending stays cheap.

    Args:
        dtype: of the values.
        tail: shape of one of them.
        space: for how many there is space at first: none where one may be huge.
    """

    def __init__(self, dtype: DTypeLike, tail: tuple[int, ...] = (), space: int = 256):
        self._space: Array = np.empty((space, *tail), dtype)
        self._size = 0

    def reserve(self, n: int) -> None:
        """Have space for ``n`` more at once, where doubling would take several steps.

        Each step is a copy; space that is never filled costs no memory.
        """
        if self._size + n > 2 * len(self._space):
            self._grow(self._size + n)

    def extend(self, values: Array) -> None:
        """Append ``values`` ``[n, *tail]``."""
        end = self._reserve(len(values))
        self._space[self._size : end] = values
        self._size = end

    def repeat(self, value: Any, n: int) -> None:
        """Append ``n`` times the same."""
        end = self._reserve(n)
        self._space[self._size : end] = value
        self._size = end

    def pad(self, size: int, value: Any) -> None:
        """Append ``value`` until there are ``size``."""
        if size > self._size:
            self.repeat(value, size - self._size)

    def cut(self, size: int) -> None:
        """Forget everything from ``size`` on."""
        self._size = min(self._size, size)

    @property
    def data(self) -> Array:
        """The values, as a view that lasts until the next ``extend``."""
        return self._space[: self._size]

    @property
    def nbytes(self) -> int:
        """Bytes taken."""
        return self._space.nbytes

    def __len__(self) -> int:
        return self._size

    def _reserve(self, n: int) -> int:
        end = self._size + n
        if end > len(self._space):
            self._grow(max(end, 2 * len(self._space)))
        return end

    def _grow(self, size: int) -> None:
        grown = np.empty((size, *self._space.shape[1:]), self.dtype)
        grown[: self._size] = self._space[: self._size]
        self._space = grown

    @property
    def dtype(self) -> "np.dtype[Any]":
        """The dtype of the values."""
        return self._space.dtype


class Late:
    """What a late label says, float32, of every step: it may come in any order, and be taken back.

    NaN where it says nothing.
    """

    def __init__(self) -> None:
        self.values, self.known = Column("float32"), Column(bool)

    def pad(self, size: int) -> None:
        """Make it ``size`` steps long."""
        self.values.pad(size, np.nan)
        self.known.pad(size, value=False)

    @property
    def dtype(self) -> "np.dtype[Any]":
        """The dtype of the values."""
        return self.values.dtype

    def has(self, rows: Array) -> Array:
        """Return for each of some steps whether it is known."""
        return self.known.data[rows]

    def at(self, rows: Array) -> Array:
        """Return the values of some steps, copied."""
        return self.values.data[rows]

    @property
    def nbytes(self) -> int:
        """Bytes taken."""
        return self.values.nbytes + self.known.nbytes


class Extra:
    """What policies recorded under one name: values ``[K, *tail]`` of the steps that have it.

    One may be large and recorded once, so nothing is kept for the steps that lack it: those that
    have it are runs of steps that follow each other, most often a single one.
    """

    def __init__(self, dtype: Any, tail: tuple[int, ...]):
        self.values = Column(dtype, tail, 0)
        self._first, self._end, self._place = (Column("int64", (), 0) for _ in range(3))
        """By run: its first step, the step after its last, where in ``values`` it begins."""

    def extend(self, firsts: Array, counts: Array, values: Array) -> None:
        """Append values of runs that come after all that are here.

        Args:
            firsts: first step of each ``[R]``, ascending.
            counts: how many steps each has ``[R]``, none without any.
            values: of all these steps, one after the other.
        """
        ends, places = firsts + counts, len(self.values) + np.cumsum(counts) - counts
        self.values.extend(values)
        before = self._end.data[-1:] if len(self._end) else np.array([-1])
        new = np.flatnonzero(firsts != np.concatenate([before, ends[:-1]]))
        grown = int(new[0]) if len(new) else len(firsts)
        if grown:
            self._end.data[-1] = ends[grown - 1]
        self._first.extend(firsts[new])
        self._place.extend(places[new])
        self._end.extend(ends[np.append(new[1:], len(firsts))[: len(new)] - 1])

    @property
    def dtype(self) -> "np.dtype[Any]":
        """The dtype of the values."""
        return self.values.dtype

    @property
    def tail(self) -> tuple[int, ...]:
        """The shape of one value."""
        return self.values.data.shape[1:]

    def has(self, rows: Array) -> Array:
        """Return for each of some steps whether it has it."""
        return self._find(rows) >= 0

    def at(self, rows: Array) -> Array:
        """Return the values of some steps, copied; NaN, or 0, for those that have none."""
        found = self._find(rows)
        values: Array = self.values.data[found]
        values[found < 0] = np.nan if self.dtype.kind == "f" else 0
        return values

    @property
    def nbytes(self) -> int:
        """Bytes taken."""
        return sum(c.nbytes for c in (self.values, self._first, self._end, self._place))

    def _find(self, rows: Array) -> Array:
        """Return where in ``values`` some steps are; -1: they have none."""
        run = np.searchsorted(self._first.data, rows, side="right") - 1
        there = (run >= 0) & (rows < self._end.data[run])
        return np.where(there, rows - self._first.data[run] + self._place.data[run], -1)


class Extras(dict[str, list[Extra]]):
    """Extras of one schema by name; a list, since two policies may mean two things by a name."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds = 0
        self.ignored = 0
        """Times that a fragment brought one beyond ``MAX_EXTRAS``."""

    def column(self, name: str, dtype: Any, tail: tuple[int, ...], fragments: int) -> Extra | None:
        """Return the column of one kind that ``fragments`` more have; None: there are too many.

        Which ones those are follows from the order of the log alone, so all readers agree.
        """
        for variant in self.get(name, ()):
            if variant.dtype == dtype and variant.tail == tail:
                return variant
        if self._kinds >= MAX_EXTRAS:
            if not self.ignored:
                log.error("too many extras, left out; got %r; allowed: %d", name, MAX_EXTRAS)
            self.ignored += fragments
            return None
        self._kinds += 1
        self.setdefault(name, []).append(Extra(dtype, tail))
        return self[name][-1]


class Names:
    """Strings as small numbers, in the order in which they were first seen."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}

    def code(self, name: str) -> int:
        """Return the number of ``name``, a new one if it was not seen before."""
        return self._codes.setdefault(name, len(self._codes))

    def find(self, names: "tuple[str, ...]") -> list[int]:
        """Return the numbers of those of ``names`` that were seen."""
        return [self._codes[name] for name in names if name in self._codes]

    def __iter__(self) -> Iterator[str]:
        return iter(self._codes)

    def __len__(self) -> int:
        return len(self._codes)
