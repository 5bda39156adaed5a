"""How much memory a run takes: the largest sum of proportional set sizes over its whole life."""

import threading

from user_system.cluster import census
from user_system.cluster.bench.system import System

EVERY_S = 5.0
"""Rarely: the kernel walks the page tables of every process for it."""


class PeakMemory:
    """Samples in a thread of its own inside a ``with`` block.

    Proportional set size shares each page among the processes that map it, so the sum over the
    processes is what the run really takes.
    """

    def __init__(self, system: System, every_s: float = EVERY_S):
        self._system, self._every_s = system, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)
        self.bytes = 0
        """Largest sum so far."""
        self.samples = 0

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self.bytes = max(self.bytes, census.pss_bytes(self._system.processes()))
            self.samples += 1
