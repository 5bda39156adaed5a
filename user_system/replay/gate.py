"""Who may be inside a map while it moves: many pass together, or one alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from user_system.core.errors import StoreError


class Gate:
    """Many may pass together, or one alone: LMDB may change its map only between transactions."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._inside = 0

    def enter(self) -> None:
        """Come in; waits while somebody is alone."""
        with self._condition:
            self._inside += 1

    def leave(self) -> None:
        """Go out."""
        with self._condition:
            self._inside -= 1
            self._condition.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the condition's lock, so that nobody enters, once everybody left."""
        with self._condition:
            if not self._condition.wait_for(lambda: self._inside == 0, timeout=60.0):
                raise StoreError(
                    "a read transaction stayed open for a minute while the map had to grow",
                    todo="Copy what is needed and end the transaction.",
                )
            yield
