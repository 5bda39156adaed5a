"""Newest wins: one slot per key, written from any thread, waited on in an event loop."""

import asyncio
import threading
from collections.abc import Mapping
from typing import Generic, TypeVar

V = TypeVar("V")


class Latest(Generic[V]):
    """The newest value of each key. A reader that is slow misses values, never order.

    ``revision`` counts every change of anything; a reader keeps the one it saw and asks for what
    changed since.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, tuple[int, V]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self.revision = 0

    def bind(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """Say in which loop readers wait; None: nobody waits any more."""
        self._loop = loop

    def put(self, values: Mapping[str, V]) -> None:
        """Replace values; from any thread."""
        with self._lock:
            for key, value in values.items():
                self.revision += 1
                self._values[key] = (self.revision, value)
        loop = self._loop
        if values and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake)

    def get(self, key: str) -> V | None:
        """Return the newest value of ``key``."""
        with self._lock:
            found = self._values.get(key)
            return None if found is None else found[1]

    def since(self, revision: int) -> tuple[int, dict[str, V]]:
        """Return (revision now, what changed after ``revision``)."""
        with self._lock:
            changed = {k: value for k, (at, value) in self._values.items() if at > revision}
            return self.revision, changed

    async def wait(self, revision: int) -> None:
        """Return once something is newer than ``revision``."""
        while self.revision <= revision:
            await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
