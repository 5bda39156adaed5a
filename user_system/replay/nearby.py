"""Many single pages of a file, read as kernel and disk like it.

Where many pages of a few megabytes are wanted, all of these are read in one go. Such are the
records of fragments without images, which nobody wants again: they do not stay in the page cache,
where they would take the place of what is wanted, and where finding room for them takes longer than
reading them. The kernel is quick at that only where nothing of such a part is in the page cache yet
and where it is read whole; so single pages that need not stay do not either.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

import numpy as np

from user_system.core.errors import DamageError
from user_system.core.types import Array
from user_system.replay.datafile import DataFile
from user_system.replay.mapped import PAGE

WINDOW = 1024
"""Pages read in one go, from a multiple of it on: the kernel caches aligned parts of a file."""
_MANY = WINDOW // 8
"""Pages wanted of a window from which on reading all of it is quicker than picking."""
_AT_ONCE = 8
"""Reads of single pages that the disk has to do at a time."""


class Part(NamedTuple):
    """Some of the pages, and where they are in memory."""

    numbers: Array
    """``[P]`` int64, ascending."""
    places: Array
    """``[P]`` int64, in ``space``."""
    space: Array
    """``[WINDOW, PAGE]`` uint8; this part until the next one is asked for."""


class Nearby:
    """Reads pages of one file inside a ``with`` block: while one part is looked at, the next one.

    Args:
        file: stays open while it is read.
        pages: whole ones in the file.
    """

    def __init__(self, file: DataFile, pages: int):
        self._file = file
        self._end = pages
        self._spaces = np.empty((2, WINDOW, PAGE), np.uint8)
        self._pool = ThreadPoolExecutor(_AT_ONCE, "nearby")

    def __enter__(self) -> "Nearby":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def read(self, numbers: Array, *, keep: bool) -> Iterator[Part]:
        """Yield pages, part by part.

        Args:
            numbers: of the pages ``[N]`` int64, ascending.
            keep: whether single ones may stay in the page cache, for whoever wants them next.

        Raises:
            DamageError: the file ends before one of them.
        """
        waiting: tuple[Part, list[Future[None]]] | None = None
        for i, (found, whole) in enumerate(_divided(numbers)):
            space = self._spaces[i % 2]
            following = self._whole(found, space) if whole else self._pick(found, space, keep)
            if waiting is not None:
                yield _done(*waiting)
            waiting = following
        if waiting is not None:
            yield _done(*waiting)

    def _whole(self, numbers: Array, space: Array) -> tuple[Part, list[Future[None]]]:
        """Begin to read the window of some pages."""
        first = int(numbers[0]) // WINDOW * WINDOW
        target = space[: self._end - first]
        part = Part(numbers, numbers - first, space)
        return part, [self._pool.submit(self._fill, target, first, keep=False)]

    def _pick(self, numbers: Array, space: Array, keep: bool) -> tuple[Part, list[Future[None]]]:
        """Begin to read pages one by one."""
        reads = [
            self._pool.submit(self._fill, space[place : place + 1], number, keep=keep)
            for place, number in enumerate(numbers.tolist())
        ]
        return Part(numbers, np.arange(len(numbers)), space), reads

    def _fill(self, target: Array, first: int, *, keep: bool) -> None:
        read = self._file.read_into if keep else self._file.read_once
        if not read(target.reshape(-1), first * PAGE):
            raise DamageError(f"the file ends before the end of page {first + len(target) - 1}")


def _divided(numbers: Array) -> Iterator[tuple[Array, bool]]:
    """Yield the numbers of pages, part by part, and whether the window of a part is read whole."""
    _, begins = np.unique(numbers // WINDOW, return_index=True)
    counts = np.diff(begins, append=len(numbers))
    many = counts >= _MANY
    for begin, count in zip(begins[many].tolist(), counts[many].tolist(), strict=True):
        yield numbers[begin : begin + count], True
    single = numbers[np.repeat(~many, counts)]
    for begin in range(0, len(single), WINDOW):
        yield single[begin : begin + WINDOW], False


def _done(part: Part, reads: list[Future[None]]) -> Part:
    for read in reads:
        read.result()
    return part
