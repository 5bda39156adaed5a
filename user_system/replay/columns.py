"""Arrays that grow at the end and stay contiguous, so that a draw is one ``np.take`` per field."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from user_system.core.types import Array

log = logging.getLogger(__name__)

MAX_EXTRAS = 512
"""Of one schema, that differ in name, dtype or shape: each is as long as all steps."""


class Column:
    """A growing array ``[N, *tail]``; the space doubles, so that appending stays cheap."""

    def __init__(self, dtype: DTypeLike, tail: tuple[int, ...] = ()):
        self._space: Array = np.empty((256, *tail), dtype)
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


class Extra:
    """A column that only some steps have: what a policy recorded, or a late label."""

    def __init__(self, dtype: Any, tail: tuple[int, ...]):
        self.values, self.known = Column(dtype, tail), Column(bool)

    def pad(self, size: int) -> None:
        """Make it ``size`` rows long; NaN, where the dtype has it, for those not known."""
        self.values.pad(size, np.nan if self.values.dtype.kind == "f" else 0)
        self.known.pad(size, value=False)


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
            if variant.values.dtype == dtype and variant.values.data.shape[1:] == tail:
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
