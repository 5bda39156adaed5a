"""Waking a thread that waits on sockets."""

import os
import threading
from contextlib import suppress


class Waker:
    """A pipe that becomes readable when somebody calls ``wake``. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: tuple[int, int] | None = None
        self._rung = False

    def open(self) -> None:
        """Make the pipe."""
        ends = os.pipe()
        for end in ends:
            os.set_blocking(end, False)
        self._ends = ends

    def fileno(self) -> int:
        """Return what to wait on."""
        if self._ends is None:
            raise ValueError("waker is not open")
        return self._ends[0]

    def wake(self) -> None:
        """Make the pipe readable; costs nothing when it is already, or when it is closed."""
        with self._lock:
            if self._ends is not None and not self._rung:
                self._rung = True
                os.write(self._ends[1], b"!")

    def clear(self) -> None:
        """Make it unreadable again. Call before looking at what there is to do."""
        with self._lock:
            if self._ends is not None and self._rung:
                self._rung = False
                with suppress(BlockingIOError):
                    os.read(self._ends[0], 16)

    def close(self) -> None:
        """Close the pipe; idempotent."""
        with self._lock:
            ends, self._ends = self._ends, None
        for end in ends or ():
            os.close(end)
