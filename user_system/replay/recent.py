"""What was appended lately, kept so that a block of it is made without reading it again."""

import threading
from collections.abc import Sequence
from typing import NamedTuple

from user_system.core.types import Fragment
from user_system.replay.filling import BLOCK_BYTES, Filling

MAX_BYTES = BLOCK_BYTES
"""Of records: enough for a block. What comes while so much waits is read from the log."""


class Stored(NamedTuple):
    """One fragment that is on disk."""

    offset: int
    fragment: Fragment
    """Without its images."""
    size: int
    """Bytes of its record."""


class Recent:
    """Fragments that are on disk and not in blocks yet. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stored: dict[int, Stored] = {}
        self._bytes = 0

    @property
    def full(self) -> bool:
        """Whether so many bytes wait that they are enough for a block, however few the steps."""
        return self._bytes >= MAX_BYTES

    def add(self, stored: Sequence[Stored]) -> None:
        """Keep what one transaction stored; the older ones first, since their block is the next."""
        with self._lock:
            for each in stored:
                if self.full:
                    return
                self._stored[each.offset] = each
                self._bytes += each.size

    def since(self, start: int, stop: int, filling: Filling) -> list[tuple[int, Fragment]] | None:
        """Return a block's worth of the log's ``[start, stop)``: offset and fragment of each.

        Nothing where there is less; None where one of them is not kept here.
        """
        found: list[tuple[int, Fragment]] = []
        with self._lock:
            while not filling.enough:
                if start == stop:
                    return []
                each = self._stored.get(start)
                if each is None:
                    return None
                found.append((start, each.fragment))
                filling.add(each.fragment, each.size)
                start += 1
        return found

    def forget(self, below: int) -> None:
        """Drop what is in blocks now."""
        with self._lock:
            self._stored = {n: each for n, each in self._stored.items() if n >= below}
            self._bytes = sum(each.size for each in self._stored.values())
