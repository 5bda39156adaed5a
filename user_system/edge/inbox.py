"""What other threads say to a robot's loop, and what wakes that loop."""

import collections
import contextlib
import os
import select
from collections.abc import Iterator

from user_system.edge.messages import (
    Assignment,
    Grant,
    OperatorCommand,
    Request,
    Trouble,
    WeightsNews,
    WeightsReady,
)

CROWDED = 256
"""What may wait for a loop before commands are dropped: a second of two people's at 100 Hz."""

Heard = Grant | Assignment | Request | OperatorCommand | WeightsReady | WeightsNews | Trouble
"""What other threads post to a robot's loop."""


class Inbox:
    """Posts of any thread, taken by one in their order; to be closed."""

    def __init__(self) -> None:
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._posts: collections.deque[Heard] = collections.deque()

    def __len__(self) -> int:
        return len(self._posts)

    def post(self, heard: Heard) -> None:
        """Leave something and wake who waits; thread-safe.

        Of a loop that stands still commands wait no longer than they are valid: more are dropped.
        """
        if isinstance(heard, OperatorCommand) and len(self._posts) >= CROWDED:
            return
        self._posts.append(heard)
        self.wake()

    def wake(self) -> None:
        """Wake who waits; thread-safe."""
        os.eventfd_write(self._wake, 1)

    def take(self) -> Iterator[Heard]:
        """Take everything that was posted, also meanwhile."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._posts:
            yield self._posts.popleft()

    def wait(self, fd: int | None, timeout_s: float) -> None:
        """Wait for a post, for what ``fd`` brings, or until the time is over."""
        waiting = [self._wake] if fd is None else [self._wake, fd]
        select.select(waiting, [], [], max(0.0, timeout_s))

    def close(self) -> None:
        """Give its file descriptor back; nobody may post any more."""
        os.close(self._wake)
