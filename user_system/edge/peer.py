"""The agent's end of a channel to a process of its own host, whichever life of that process it is.

The other side listens, may die and come back at any time, and greets whoever connects. What is said
to it names the life that it is meant for.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

from user_system.core.errors import LinkError
from user_system.core.types import Array
from user_system.edge import wire
from user_system.edge.rings import Duplex

log = logging.getLogger(__name__)

Message = tuple[dict[str, Any], Mapping[str, Array]]


class Peer:
    """Dials, knows who greeted, passes messages. One thread's business.

    Args:
        duplex: the connecting side.
        what: what is on the other side, for the log.
        retry_s: wall seconds between attempts to reach a process that is away.
    """

    def __init__(self, duplex: Duplex, what: str, retry_s: float = 0.05):
        self._duplex, self._what, self._retry_s = duplex, what, retry_s
        self._tried_at = float("-inf")
        self.hello: wire.Hello | None = None
        """Greeting of the life that was met last; None from dialling until it greets."""

    @property
    def alive(self) -> bool:
        """Whether somebody is there and has greeted."""
        return self._duplex.connected and self.hello is not None

    def fileno(self) -> int | None:
        """File descriptor to wait on, or None while there is none."""
        return self._duplex.fileno() if self._duplex.connected else None

    def receive(self) -> Iterator[Message]:
        """Yield all that was said since the last call, oldest first; dials where nobody is there.

        A greeting is a message too, ``{"k": "hello"}``: whatever came before it belongs to an
        earlier life of one of the two. To be read to its end.
        """
        if not self._duplex.connected and not self._dial():
            return
        while (message := self._duplex.receive()) is not None:
            if message[0]["k"] == "hello":
                self.hello = wire.hello(message[0])
            yield message
        if not self._duplex.connected:
            log.warning("%s at %s went away", self._what, self._duplex.path)

    def _dial(self) -> bool:
        self.hello = None
        if time.monotonic() - self._tried_at < self._retry_s:
            return False
        self._tried_at = time.monotonic()
        try:
            self._duplex.open()
        except LinkError:
            return False
        return True

    def tell(self, kind: str, arrays: Mapping[str, Array] | None = None, **meta: Any) -> bool:
        """Say something to the present life; False: nobody is there, or the ring is full."""
        if not self._duplex.connected or self.hello is None:
            return False
        return self._duplex.send({"k": kind, "boot": self.hello.boot, **meta}, arrays)

    def stats(self) -> dict[str, float]:
        """Return counters and gauges of the channel."""
        return self._duplex.stats()

    def close(self) -> None:
        """Hang up."""
        self._duplex.close()
