"""Files that are whole already, forced to disk or removed, while everybody goes on."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from user_system.core.durable import sync

log = logging.getLogger(__name__)


DELAY_S = 0.1
"""Wall s that the thread rests first: whoever waits for what is new has the disk to himself."""


class Flusher:
    """Forces files to disk in the order given, in a thread that lives as long as there are any."""

    def __init__(self) -> None:
        self.failures = 0
        self._todo: deque[tuple[Callable[[Path], None], Path]] = deque()
        self._idle = threading.Condition()
        self._running = False
        self._hurry = threading.Event()

    def add(self, *paths: Path) -> None:
        """Have ``paths`` forced to disk, then the directory of the last one."""
        with self._idle:
            self._todo += [(sync, path) for path in (*paths, paths[-1].parent)]
            self._start()

    def remove(self, *paths: Path) -> None:
        """Have ``paths`` removed: that takes as long as it takes to write them."""
        with self._idle:
            self._todo += [(Path.unlink, path) for path in paths]
            self._start()

    def _start(self) -> None:
        if not self._running:
            self._running = True
            threading.Thread(target=self._run, name="flush", daemon=True).start()

    def wait(self) -> None:
        """Wait until nothing is left to do."""
        self._hurry.set()
        with self._idle:
            self._idle.wait_for(lambda: not self._running)
        self._hurry.clear()

    def _run(self) -> None:
        self._hurry.wait(DELAY_S)
        while True:
            with self._idle:
                if not self._todo:
                    self._running = False
                    self._idle.notify_all()
                    return
                act, path = self._todo.popleft()
            try:
                act(path)
            except FileNotFoundError:
                log.debug("%s is gone already", path)
            except OSError as error:
                self.failures += 1
                log.error("%s could not be forced to disk or removed: %s", path, error)
