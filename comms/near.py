"""A tunnel to a process of the same host: one service on a unix socket, TLS as everywhere."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from comms.credentials import Credentials
from comms.tunnel import CHANNEL_OPTIONS, Service
from user_system.core.errors import LinkError

if TYPE_CHECKING:
    import grpc
    import zmq


_NAME = ("grpc.ssl_target_name_override", "localhost")
"""What the service's certificate says: a path is no name that one could hold."""


def address(socket: Path) -> str:
    """Return a unix socket's path as gRPC listens on it and dials it."""
    return f"unix:{socket}"


class NearTunnel:
    """Dials one service of this host; implements ``comms.tunnel.Tunnel``."""

    def __init__(self, service: Service, socket: Path, credentials: Credentials):
        self._service, self._socket, self._credentials = service, socket, credentials
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None

    def channel(self, service: Service) -> "grpc.Channel":
        """Return the channel to the service.

        Raises:
            LinkError: another service is asked for: it is not here.
        """
        import grpc

        from comms.security import channel_credentials

        if service != self._service:
            raise LinkError(f"{service} is not on this host", allowed=self._service)
        with self._lock:
            if self._channel is None:
                self._channel = grpc.secure_channel(
                    address(self._socket),
                    channel_credentials(self._credentials),
                    options=[*CHANNEL_OPTIONS, _NAME],
                )
            return self._channel

    def fresh(self, context: "zmq.Context[zmq.Socket[bytes]]") -> NoReturn:
        """Refuse: the fresh lane is the hub's."""
        raise LinkError("the fresh lane is not on this host", allowed=self._service)

    def close(self) -> None:
        """Close the channel."""
        with self._lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None
