"""How a process reaches the head: one interface, kinds chosen in the manifest.

Everything that dials goes through a ``Tunnel``, so that where hub and replay really are (this host,
another one, behind a relay) is known in one place. All connections go outwards. The kind ``direct``
dials the endpoints themselves: gRPC over mutual TLS, ZeroMQ with CURVE. The others (``tunnel_ssh``,
``tunnel_wireguard``) carry the very same connections, with all their proofs, inside of something.

Whatever the kind, urgent and bulk never share a TCP connection: what waits in the one's queue
would otherwise delay the other.
"""

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from comms.credentials import Credentials
from comms.wallet import Wallet, as_wallet
from user_system.core.errors import ConfigError

if TYPE_CHECKING:
    import grpc
    import zmq

Service = Literal["hub", "weights", "replay", "behind", "reader"] | str
"""On connections of their own, ``weights`` is answered by the hub, and ``behind`` by the replay;
``policy:<actor>`` is the policy of an actor that runs at the head."""

URGENT: tuple[str, ...] = ("hub", "fresh")
BULK: tuple[str, ...] = ("weights", "replay", "behind", "reader")
"""What shares a way where a kind has one way per class, as ssh does; policies are urgent."""

MAX_MESSAGE = 16 << 20
"""Largest gRPC message in bytes, checked by gRPC before it allocates."""

MAX_FRESH = 1 << 20
"""Largest message on the fresh lane in bytes."""

KEEPALIVE_MS = 5000
"""A peer that says nothing for so long is asked; when it does not answer, the link is down."""

RETIRED = 3
"""Renewals of its certificate that a stream outlives."""

ATTEMPT_MS = 3000
"""Time of one attempt to connect, handshakes included. An attempt begun in an outage asks again
after 1 s and later less and less often; a new one asks at once."""

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
    # Without this a ping that gets no answer is waited for a minute, whatever stands above.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_MS),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's own waits, with its jitter; ours on top are in ``comms.reconnect``. The minimum is
    # what one attempt may take.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", ATTEMPT_MS),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Channels of one process to one address are still connections of their own.
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
    policies: Mapping[str, str] = field(default_factory=dict)
    """Actor -> where its policy listens, of actors that run at the head."""

    def __post_init__(self) -> None:
        for name, address in self.services.items():
            host, colon, port = address.rpartition(":")
            if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
                raise ConfigError(
                    f"endpoint {name!r} is no address", got=address, allowed="host:port"
                )

    @property
    def services(self) -> dict[str, str]:
        """Service -> where it listens; the fresh lane among them."""
        own = {"hub": self.hub, "fresh": self.fresh, "replay": self.replay, "reader": self.reader}
        policies = {f"policy:{actor}": address for actor, address in self.policies.items()}
        return {**own, "weights": self.hub, "behind": self.replay, **policies}


class Tunnel(Protocol):
    """The way to the head. Only ``comms`` calls ``channel`` and ``fresh``. Thread-safe."""

    def channel(self, service: Service) -> "grpc.Channel":
        """Return the one gRPC channel to a service; it reconnects by itself."""

    def fresh(self, context: "zmq.Context[zmq.Socket[bytes]]") -> "zmq.Socket[bytes]":
        """Return a new DEALER that dials the hub; it belongs to the calling thread."""

    def trouble(self) -> str:
        """Return why the way is not there, as far as the tunnel knows, and what to do; else ""."""

    def stats(self) -> dict[str, float]:
        """Return counters and gauges of the tunnel itself."""

    def close(self) -> None:
        """Close the channels; sockets are closed by whoever asked for them."""


class Dialler:
    """One gRPC channel per service, and sockets for the fresh lane, to given addresses.

    After a renewal new calls go over new channels; streams stay on the old ones until they end.

    Args:
        targets: service -> address as gRPC writes it, ``fresh`` -> as ZeroMQ writes it.
        credentials: who dials.
        server_name: name that the head's certificate must state; "": the one dialled. All
            certificates of services state ``localhost``.
        options: of the channels, before those that all have.
    """

    def __init__(
        self,
        targets: Mapping[str, str],
        credentials: Credentials | Wallet,
        server_name: str = "",
        options: Mapping[str, Any] = MappingProxyType({}),
    ):
        self._targets = targets
        self._wallet = as_wallet(credentials)
        named = {"grpc.ssl_target_name_override": server_name} if server_name else {}
        self._options = list({**dict(CHANNEL_OPTIONS), **named, **options}.items())
        self._lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}
        self._shown = self._wallet()
        self._retired: deque[list[grpc.Channel]] = deque()
        """Those of certificates before this one; streams may still live on them."""

    def channel(self, service: Service) -> "grpc.Channel":
        """Return the one channel to a service."""
        import grpc

        from comms.security import channel_credentials

        with self._lock:
            self._turn_over(self._wallet())
            if service not in self._channels:
                self._channels[service] = grpc.secure_channel(
                    self._target(service),
                    channel_credentials(self._shown),
                    options=self._options,
                )
            return self._channels[service]

    def _target(self, service: str) -> str:
        if service not in self._targets:
            allowed = ", ".join(self._targets)
            raise ConfigError("no such service at the head", got=service, allowed=allowed)
        return self._targets[service]

    def _turn_over(self, credentials: Credentials) -> None:
        if credentials is self._shown:
            return
        self._shown = credentials
        self._retired.append(list(self._channels.values()))
        self._channels = {}
        if len(self._retired) > RETIRED:
            for channel in self._retired.popleft():
                channel.close()

    def fresh(self, context: "zmq.Context[zmq.Socket[bytes]]") -> "zmq.Socket[bytes]":
        """Return a new DEALER that dials the hub."""
        import zmq

        mine = self._wallet()
        socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        limit_queues(socket)
        # Only to a live connection: what waits for one waits where the newest wins.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        # Left alone, an attempt from before the end of an outage is waited for half a minute.
        socket.setsockopt(zmq.CONNECT_TIMEOUT, ATTEMPT_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, ATTEMPT_MS)
        socket.setsockopt(zmq.CURVE_SERVERKEY, mine.hub_curve)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, mine.curve_public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, mine.curve_secret)
        socket.connect(self._targets["fresh"])
        return socket

    def close(self) -> None:
        """Close the channels."""
        with self._lock:
            for channel in (*self._channels.values(), *chain(*self._retired)):
                channel.close()
            self._channels.clear()
            self._retired.clear()


class DirectTunnel(Dialler):
    """Dials hub and replay themselves."""

    def __init__(
        self, endpoints: Endpoints, credentials: Credentials | Wallet, server_name: str = ""
    ):
        targets = {**endpoints.services, "fresh": f"tcp://{endpoints.fresh}"}
        super().__init__(targets, credentials, server_name)

    def trouble(self) -> str:
        """Return "": the connections know best, and say it where they are used."""
        return ""

    def stats(self) -> dict[str, float]:
        """Return nothing: there is nothing between the connections and the network."""
        return {}


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


KINDS: Mapping[str, str] = {
    "direct": "comms.tunnel:open_direct",
    "ssh": "comms.tunnel_ssh:open_ssh",
    "wireguard": "comms.tunnel_wireguard:open_wireguard",
}
"""Kind -> ``module:function`` that opens a tunnel of it."""


def open_direct(
    endpoints: Endpoints, credentials: Credentials | Wallet, settings: Mapping[str, Any], pki: Path
) -> Tunnel:
    """Return a tunnel that is none.

    Raises:
        ConfigError: it was given settings.
    """
    if settings:
        raise ConfigError("a direct tunnel takes no settings", got=", ".join(settings))
    return DirectTunnel(endpoints, credentials)


def open_tunnel(
    kind: str,
    endpoints: Endpoints,
    credentials: Credentials | Wallet,
    settings: Mapping[str, Any] | None = None,
    pki: Path = Path(),
) -> Tunnel:
    """Return a tunnel of a kind; nothing is dialled before it is used.

    Args:
        kind: one of ``KINDS``.
        endpoints: where the services are: for ``ssh`` as seen from the head, for ``wireguard``
            inside of it.
        credentials: who dials; they are proved inside the tunnel whatever its kind.
        settings: of the kind, plain values, as ``comms.admission`` makes them.
        pki: directory of this host's keys, the tunnel's among them.

    Raises:
        ConfigError: there is no such kind, which lists those that exist; or its settings are none.
        MissingError: this machine lacks what the kind needs.
    """
    if kind not in KINDS:
        raise ConfigError("unknown kind of tunnel", got=repr(kind), allowed=", ".join(KINDS))
    module, _, function = KINDS[kind].partition(":")
    opened = getattr(import_module(module), function)(endpoints, credentials, settings or {}, pki)
    return cast(Tunnel, opened)
