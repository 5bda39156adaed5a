"""Ctrl-C and SIGTERM for a process that keeps others running."""

import contextlib
import signal
from collections.abc import Iterator
from typing import Any


class Interrupt:
    """Ctrl-C and SIGTERM as facts that the main loop looks at; the second one is in a hurry."""

    def __init__(self) -> None:
        self.count = 0
        self.number = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator["Interrupt"]:
        """Take over the signals for the length of a ``with`` block (main thread only)."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        self.count, self.number = self.count + 1, number

    def asked(self) -> bool:
        """Whether the run should end."""
        return self.count > 0

    def hurry(self) -> bool:
        """Whether it should end at once."""
        return self.count > 1
