"""A tunnel to a process of the same host: one service on a unix socket, TLS as everywhere."""

from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from comms.credentials import Credentials
from comms.tunnel import Dialler, Service
from comms.wallet import Wallet
from user_system.core.errors import LinkError

if TYPE_CHECKING:
    import grpc
    import zmq


def address(socket: Path) -> str:
    """Return a unix socket's path as gRPC listens on it and dials it."""
    return f"unix:{socket}"


class NearTunnel(Dialler):
    """Dials one service of this host; implements ``comms.tunnel.Tunnel``."""

    def __init__(self, service: Service, socket: Path, credentials: Credentials | Wallet):
        # What the certificate says: a path is no name that one could state.
        super().__init__({service: address(socket)}, credentials, "localhost")
        self._service = service

    def channel(self, service: Service) -> "grpc.Channel":
        """Return the channel to the service.

        Raises:
            LinkError: another service is asked for: it is not here.
        """
        if service != self._service:
            raise LinkError(f"{service} is not on this host", allowed=self._service)
        return super().channel(service)

    def fresh(self, context: "zmq.Context[zmq.Socket[bytes]]") -> NoReturn:
        """Refuse: the fresh lane is the hub's."""
        raise LinkError("the fresh lane is not on this host", allowed=self._service)

    def trouble(self) -> str:
        """Return "": there is nothing between the two."""
        return ""

    def stats(self) -> dict[str, float]:
        """Return nothing, for the same reason."""
        return {}
