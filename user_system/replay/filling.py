"""When fragments are enough for one block.

A block is of a few thousand steps, so that a reader takes it over at once. It ends before that
where its fragments are huge, since it is made in memory and is one value of the store; and where
they bear very many kinds of extras or streams, since it counts the rows of each kind for each
fragment.
"""

from math import inf
from typing import Any

from user_system.core.types import Fragment

BLOCK_BYTES = 64 << 20
"""Of records."""

BLOCK_KINDS = 512
"""Extras and streams that differ in name, dtype or shape: with those of one more fragment, and four
thousand fragments, 11 MiB of counts."""


class Filling:
    """What is in a block so far.

    Args:
        steps: a block's worth of them; without, bytes and kinds alone decide.
    """

    def __init__(self, steps: float = inf):
        self._steps = steps
        self._bytes = 0
        self._kinds: set[tuple[Any, ...]] = set()
        self.enough = False
        """Whether the block ends here."""

    def add(self, fragment: Fragment, size: int) -> None:
        """Count one more fragment, whose record has ``size`` bytes."""
        self._steps -= len(fragment)
        self._bytes += size
        for name, values in fragment.extras.items():
            self._kinds.add((name, values.dtype, values.shape[1:]))
        for name, stream in fragment.streams.items():
            self._kinds.add((name, stream.values.dtype, stream.values.shape[1:], "stream"))
        full = self._bytes >= BLOCK_BYTES or len(self._kinds) >= BLOCK_KINDS
        self.enough = full or self._steps <= 0
