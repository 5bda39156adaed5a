"""The page's entrance: whoever connects is counted, and hurried, from before the TLS handshake on.

A stranger who connects and says nothing costs a file and a quarter of a MiB for the handshake's
buffers. So a handshake has a short time, and only so many are under way: where one more comes, that
address loses its oldest of which most are waiting, and strangers are in their own way only.
"""

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable

import uvicorn

from user_system.teleop.slow import Guests

log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
"""Time for a TLS handshake, wall s."""

HANDSHAKES = 64
"""Handshakes under way at once, of all addresses."""

_PAUSE_S = 0.2
"""Rest after a connection could not be accepted: this process has no file left."""


class Entrance:
    """Accepts connections and hands them on once their handshake is done. For one event loop.

    Args:
        guests: who is connected.
        handshake_s: see ``HANDSHAKE_S``.
        at_once: see ``HANDSHAKES``.
    """

    def __init__(self, guests: Guests, handshake_s: float = HANDSHAKE_S, at_once: int = HANDSHAKES):
        self._guests, self._handshake_s, self._at_once = guests, handshake_s, at_once
        self._shaking: dict[asyncio.Task[None], str] = {}
        """Handshakes under way, the oldest first, and from where."""
        self._tasks: list[asyncio.Task[None]] = []
        self.given_up = 0
        """Handshakes that failed, took too long, or made way for others."""

    def __len__(self) -> int:
        return len(self._shaking)

    def open(
        self,
        listener: socket.socket,
        factory: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
    ) -> None:
        """Begin to accept.

        Args:
            listener: bound.
            factory: makes the protocol of a connection.
            tls: None: there is no handshake.
        """
        listener.listen()
        listener.setblocking(False)
        self._tasks.append(asyncio.create_task(self._accept(listener, factory, tls)))

    def close(self) -> None:
        """Accept nobody any more; handshakes end."""
        for task in (*self._tasks, *self._shaking):
            task.cancel()

    async def _accept(
        self,
        listener: socket.socket,
        factory: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                one, peer = await loop.sock_accept(listener)
            except OSError as error:
                log.warning("the page cannot accept a connection: %s", error)
                await asyncio.sleep(_PAUSE_S)
                continue
            address = str(peer[0])
            if self._guests.full(address, self._shaking.values()):
                self._guests.turned_away += 1
                one.close()
                continue
            if len(self._shaking) >= self._at_once:
                self._make_way()
            task = asyncio.create_task(self._let_in(one, factory, tls))
            self._shaking[task] = address
            task.add_done_callback(self._over)

    def _make_way(self) -> None:
        """End the oldest handshake of whoever has most of them."""
        ((crowd, _),) = Counter(self._shaking.values()).most_common(1)
        oldest = next(task for task, address in self._shaking.items() if address == crowd)
        oldest.cancel()
        self._over(oldest)
        self.given_up += 1

    def _over(self, task: asyncio.Task[None]) -> None:
        self._shaking.pop(task, None)

    async def _let_in(
        self,
        one: socket.socket,
        factory: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
    ) -> None:
        time = self._handshake_s if tls is not None else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                factory, one, ssl=tls, ssl_handshake_timeout=time
            )
        except OSError:  # no TLS, not in time, or gone again
            self.given_up += 1


class Server(uvicorn.Server):
    """Uvicorn behind an ``Entrance``; it would accept anybody, and wait a minute for each."""

    def __init__(self, config: uvicorn.Config, entrance: Entrance):
        super().__init__(config)
        self._entrance = entrance

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then accept on ``sockets``."""
        await super().startup(sockets=[])
        for one in sockets or []:
            self._entrance.open(one, self._protocol, self.config.ssl)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nobody any more, then end what is open."""
        self._entrance.close()
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made
