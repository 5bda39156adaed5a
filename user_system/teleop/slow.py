"""Connections to the page: how many from one address, and how long they may say nothing.

A server that waits for as long as its caller likes is full when a few hundred callers say one byte
a minute. Each connection has a short time for the head of its first request, and each address has
so many connections.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection
from typing import Any

HEAD_S = 10.0
"""Time from the first byte, or from the connection, to the end of a request's head, wall s."""

MAX_HEAD = 32 << 10
"""Bytes of a request's head; uvicorn's parser itself takes any number."""

PER_ADDRESS = 128
"""Connections of one address; all people behind one tunnel share it."""

AT_ONCE = 1024
"""Connections of all addresses."""


class Guests:
    """Who is connected, by address. For one event loop."""

    def __init__(self, per_address: int = PER_ADDRESS, at_once: int = AT_ONCE):
        self._per_address, self._at_once = per_address, at_once
        self._open: defaultdict[str, set[asyncio.BaseTransport]] = defaultdict(set)
        self.turned_away = 0
        self.slow = 0

    def __len__(self) -> int:
        return sum(map(len, self._open.values()))

    def admit(self, transport: asyncio.BaseTransport) -> bool:
        """Note a new connection; False: there are as many as there may be."""
        peer = transport.get_extra_info("peername")
        address = str(peer[0]) if peer else ""
        if self.full(address):
            self.turned_away += 1
            return False
        self._open[address].add(transport)
        return True

    def full(self, address: str, coming: Collection[str] = ()) -> bool:
        """Return whether nobody more is let in from an address.

        Args:
            address: from where.
            coming: addresses of those who are still in their handshake.
        """
        self._forget_closed(address)
        if len(self) >= self._at_once:
            for other in list(self._open):
                self._forget_closed(other)
        own = len(self._open.get(address, ())) + sum(other == address for other in coming)
        return own >= self._per_address or len(self) + len(coming) >= self._at_once

    def _forget_closed(self, address: str) -> None:
        left = {t for t in self._open.get(address, ()) if not t.is_closing()}
        if left:
            self._open[address] = left
        else:
            self._open.pop(address, None)


def guarded(base: type[Any], guests: Guests, head_s: float = HEAD_S) -> type[Any]:
    """Return uvicorn's protocol ``base`` with an eye on how long a request's head takes.

    Args:
        base: one of ``uvicorn.protocols.http``.
        guests: who is connected.
        head_s: see ``HEAD_S``.
    """

    class Guarded(base):  # type: ignore[misc]  # its base is a parameter
        _late: asyncio.TimerHandle | None = None
        _size = 0

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            if guests.admit(transport):
                self._wait_for_head()
            else:
                transport.abort()

        def data_received(self, data: bytes) -> None:
            # After an answer the connection may rest; from the first byte on the time counts.
            if self._late is None and not self._busy():
                self._wait_for_head()
            if self._late is not None:
                self._size += len(data)
                if self._size > MAX_HEAD:
                    self._give_up()
                    return
            super().data_received(data)

        def on_headers_complete(self) -> None:
            self._in_time()
            super().on_headers_complete()

        def connection_lost(self, exc: Exception | None) -> None:
            self._in_time()
            super().connection_lost(exc)

        def _busy(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _wait_for_head(self) -> None:
            self._size = 0
            self._late = asyncio.get_running_loop().call_later(head_s, self._give_up)

        def _in_time(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _give_up(self) -> None:
            self._in_time()
            guests.slow += 1
            self.transport.abort()

    return Guarded
