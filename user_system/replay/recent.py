"""What was appended lately, kept so that a block of it is made without reading it again."""

import threading
from collections.abc import Sequence
from typing import NamedTuple

from user_system.core.types import Fragment

MAX_BYTES = 64 << 20
"""Of records; where more wait for a block, they are read from the log."""


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

    def add(self, stored: Sequence[Stored]) -> None:
        """Keep what one transaction stored."""
        with self._lock:
            self._stored.update((each.offset, each) for each in stored)
            self._bytes += sum(each.size for each in stored)
            if self._bytes > MAX_BYTES:
                self._stored, self._bytes = {}, 0

    def since(self, start: int, stop: int, steps: int) -> list[tuple[int, Fragment]] | None:
        """Return ``steps`` steps of the log's ``[start, stop)``: offset and fragment of each.

        Nothing where there are fewer; None where one of them is not kept here.
        """
        found: list[tuple[int, Fragment]] = []
        with self._lock:
            while steps > 0:
                if start == stop:
                    return []
                each = self._stored.get(start)
                if each is None:
                    return None
                found.append((start, each.fragment))
                steps -= len(each.fragment)
                start += 1
        return found

    def forget(self, below: int) -> None:
        """Drop what is in blocks now."""
        with self._lock:
            self._stored = {n: each for n, each in self._stored.items() if n >= below}
            self._bytes = sum(each.size for each in self._stored.values())
