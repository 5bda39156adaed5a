"""How a process reaches the head: one interface, kinds chosen in the manifest.

Everything that dials goes through a ``Tunnel``, so that where hub and replay really are (this host,
another one, behind a relay) is known in one place. All connections go outwards. The kind ``direct``
dials the endpoints themselves: gRPC over mutual TLS, ZeroMQ with CURVE.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from comms.credentials import Credentials
from comms.wallet import Wallet, as_wallet
from user_system.core.errors import ConfigError

if TYPE_CHECKING:
    import grpc
    import zmq

Service = Literal["hub", "replay", "reader"]

MAX_MESSAGE = 16 << 20
"""Largest gRPC message in bytes, checked by gRPC before it allocates."""

MAX_FRESH = 1 << 20
"""Largest message on the fresh lane in bytes."""

KEEPALIVE_MS = 5000
"""A peer that says nothing for so long is asked; when it does not answer, the link is down."""

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
    # Without this a ping that gets no answer is waited for a minute, whatever stands above.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's own waits, with its jitter; ours on top are in ``comms.reconnect``. The minimum is also
    # the time that one attempt may take, handshake included.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.use_local_subchannel_pool", 1),
]


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the head listens, as ``host:port``."""

    hub: str = "127.0.0.1:7400"
    replay: str = "127.0.0.1:7401"
    fresh: str = "127.0.0.1:7402"
    reader: str = "127.0.0.1:7403"
    """Only where learners draw over the network."""

    def __post_init__(self) -> None:
        for name in ("hub", "replay", "fresh", "reader"):
            host, colon, port = getattr(self, name).rpartition(":")
            if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
                raise ConfigError(
                    f"endpoint {name!r} is no address", got=getattr(self, name), allowed="host:port"
                )


class Tunnel(Protocol):
    """The way to the head. Only ``comms`` calls ``channel`` and ``fresh``. Thread-safe."""

    def channel(self, service: Service) -> "grpc.Channel":
        """Return the one gRPC channel to a service; it reconnects by itself."""

    def fresh(self, context: "zmq.Context[zmq.Socket[bytes]]") -> "zmq.Socket[bytes]":
        """Return a new DEALER that dials the hub; it belongs to the calling thread."""

    def close(self) -> None:
        """Close the channels; sockets are closed by whoever asked for them."""


class DirectTunnel:
    """Dials hub and replay themselves.

    After a renewal new calls go over new channels; streams stay on the old ones until they end.
    """

    def __init__(self, endpoints: Endpoints, credentials: Credentials | Wallet):
        self._endpoints = endpoints
        self._wallet = as_wallet(credentials)
        self._lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}
        self._shown = self._wallet()
        self._retired: list[grpc.Channel] = []
        """Those of the certificate before: it has run out when the one after it is replaced."""

    def channel(self, service: Service) -> "grpc.Channel":
        """Return the one gRPC channel to a service; it reconnects by itself."""
        import grpc

        from comms.security import channel_credentials

        with self._lock:
            self._turn_over(self._wallet())
            if service not in self._channels:
                self._channels[service] = grpc.secure_channel(
                    getattr(self._endpoints, service),
                    channel_credentials(self._shown),
                    options=CHANNEL_OPTIONS,
                )
            return self._channels[service]

    def _turn_over(self, credentials: Credentials) -> None:
        if credentials is self._shown:
            return
        self._shown = credentials
        for channel in self._retired:
            channel.close()
        self._retired = list(self._channels.values())
        self._channels = {}

    def fresh(self, context: "zmq.Context[zmq.Socket[bytes]]") -> "zmq.Socket[bytes]":
        """Return a new DEALER that dials the hub; it belongs to the calling thread."""
        import zmq

        mine = self._wallet()
        socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        limit_queues(socket)
        # Only to a live connection: what waits for one waits where the newest wins.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        socket.setsockopt(zmq.CURVE_SERVERKEY, mine.hub_curve)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, mine.curve_public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, mine.curve_secret)
        socket.connect(f"tcp://{self._endpoints.fresh}")
        return socket

    def close(self) -> None:
        """Close the channels."""
        with self._lock:
            for channel in (*self._channels.values(), *self._retired):
                channel.close()
            self._channels.clear()
            self._retired.clear()


def limit_queues(socket: "zmq.Socket[bytes]") -> None:
    """Keep what waits inside ZeroMQ and the kernel short: it cannot be conflated there."""
    import zmq

    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.SNDHWM, 4)
    socket.setsockopt(zmq.RCVHWM, 64)
    socket.setsockopt(zmq.SNDBUF, 64 << 10)
    socket.setsockopt(zmq.RCVBUF, 64 << 10)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRESH)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)
    socket.setsockopt(zmq.HEARTBEAT_TTL, 3000)


KINDS: dict[str, Callable[[Endpoints, Credentials | Wallet], Tunnel]] = {"direct": DirectTunnel}


def open_tunnel(kind: str, endpoints: Endpoints, credentials: Credentials | Wallet) -> Tunnel:
    """Return a tunnel of a kind; nothing is dialled before it is used.

    Raises:
        ConfigError: there is no such kind; lists those that exist.
    """
    if kind not in KINDS:
        raise ConfigError("unknown kind of tunnel", got=repr(kind), allowed=", ".join(KINDS))
    return KINDS[kind](endpoints, credentials)
