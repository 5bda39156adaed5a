"""Listening for gRPC: mutual TLS always, the role table before every method, limits everywhere."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

import grpc

from comms.credentials import AllowList, Credentials, Peer
from comms.doorway import PATIENCE_S, WORKERS, Doorway
from comms.security import Gatekeeper, server_credentials
from comms.tunnel import CHANNEL_OPTIONS
from comms.wallet import Wallet, as_wallet
from user_system.core.errors import MissingError

log = logging.getLogger(__name__)

CONNECTIONS = 1024
"""Open at once on one port, strangers in the midst of a handshake included."""

STREAMS = 128
"""Calls at once on one connection."""

_LOST_S = 5.0
"""How long a server waits for calls it has cancelled: gRPC can lose one with its connection."""


def _options(connections: int, handshake_s: float) -> list[tuple[str, int]]:
    return [
        *CHANNEL_OPTIONS,
        # Without this two processes could share a port, and a port in use would go unnoticed.
        ("grpc.so_reuseport", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", 1000),
        ("grpc.http2.max_ping_strikes", 0),
        # Whoever connects says who it is soon, and nobody can keep more connections than there are
        # files to be had: those of a stranger end with the time for their handshake.
        ("grpc.server_handshake_timeout_ms", int(handshake_s * 1000)),
        ("grpc.max_allowed_incoming_connections", connections),
        ("grpc.max_concurrent_streams", STREAMS),
        ("grpc.max_metadata_size", 16 << 10),
        # Messages come as they are: one of 16 MiB could unpack to a thousand times as much, and is
        # measured before it is unpacked only. What is worth packing is packed by us, with its size.
        ("grpc.compression_enabled_algorithms_bitset", 1),
    ]


class Service(Protocol):
    """A gRPC service that can be put on a server."""

    def register(self, server: grpc.Server) -> None:
        """Add the methods to ``server``."""

    def start(self) -> None:
        """Start what the service needs."""

    def close(self) -> None:
        """End streams and threads of the service; idempotent."""

    def stats(self) -> dict[str, float]:
        """Return counters and gauges."""


class Server:
    """A running listener; ends with ``stop`` or its ``with`` block."""

    def __init__(
        self, server: grpc.Server, services: Sequence[Service], gate: Gatekeeper, port: int
    ):
        self._server = server
        self._services = services
        self._gate = gate
        self.port = port

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self, grace_s: float = 1.0) -> None:
        """Refuse new calls, end the streams, give calls in progress ``grace_s`` seconds."""
        stopped = self._server.stop(grace_s)
        for service in self._services:
            service.close()
        if not stopped.wait(grace_s + _LOST_S):
            log.warning("a call did not end with its server; not waited for any longer")
        self._gate.close()

    def stats(self) -> dict[str, float]:
        """Return the counters of the gatekeeper and of all services."""
        merged = self._gate.stats()
        for service in self._services:
            merged |= service.stats()
        return merged


def serve(
    services: Sequence[Service],
    *,
    credentials: Credentials | Wallet,
    allow: AllowList,
    address: str = "127.0.0.1:0",
    workers: int = WORKERS,
    doorway: Doorway | None = None,
    refused: Callable[[Peer, str], None] = lambda peer, method: None,
    connections: int = CONNECTIONS,
    handshake_s: float = PATIENCE_S,
) -> Server:
    """Start to listen.

    Args:
        services: what to serve.
        credentials: of this process, role ``service``; a wallet's are shown as they are renewed.
        allow: who is enrolled.
        address: ``host:port``; port 0 takes a free one, see ``Server.port``.
        workers: calls at once; a stream counts as one for as long as it lives. One more is
            refused with RESOURCE_EXHAUSTED instead of waiting unheard.
        doorway: what one caller may take of these.
        refused: is told of who was refused which method.
        connections: see ``CONNECTIONS``.
        handshake_s: time for a TLS handshake.

    Raises:
        MissingError: the address is in use or not of this host.
    """
    gate = Gatekeeper(allow, doorway=doorway, refused=refused)
    server = grpc.server(
        ThreadPoolExecutor(workers, thread_name_prefix="grpc"),
        interceptors=[gate],
        options=_options(connections, handshake_s),
        maximum_concurrent_rpcs=workers,
    )
    for service in services:
        service.register(server)
    try:
        port = server.add_secure_port(address, server_credentials(as_wallet(credentials)))
    except RuntimeError as error:
        raise MissingError(
            f"cannot listen on {address}", got=error, todo="Is the port in use? Choose another."
        ) from error
    for service in services:
        service.start()
    gate.start()
    server.start()
    return Server(server, services, gate, port)
