"""Kind ``ssh``: everything goes inside of two outbound ssh connections, urgent apart from bulk.

For heads of which only the ssh port can be reached. gRPC and ZeroMQ run inside with the same proofs
as outside: whoever could reach our sockets, or runs the head's sshd, learns and forges nothing.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from comms.credentials import Credentials
from comms.ssh_client import Destination, SshClient, check_installed, client_argv
from comms.tunnel import BULK, URGENT, Dialler, Endpoints, Service
from comms.wallet import Wallet
from user_system.core.errors import ConfigError

if TYPE_CHECKING:
    import grpc
    import zmq

_OPTIONS = {"grpc.max_reconnect_backoff_ms": 150}
"""To try a socket of this host costs nothing, and ours are there at once when ssh is through."""


_FIRST_S = 6.0
"""Most that the first use waits for; an attempt takes half a second, plus seven round trips."""


class SshTunnel:
    """Two supervised ssh clients, begun when something of theirs is first used.

    Args:
        endpoints: where the head's services listen, as seen from the head.
        credentials: who dials, inside.
        to: the head's sshd.
        pki: folder of the key and of the pinned host key.
    """

    def __init__(
        self, endpoints: Endpoints, credentials: Credentials | Wallet, to: Destination, pki: Path
    ):
        # Short, since a socket's address holds 107 bytes, and ours alone (mode 0700).
        self._folder = Path(tempfile.mkdtemp(prefix="us-ssh-"))
        seen = endpoints.services
        # A colon would end the name of a socket where ssh reads it.
        sockets = {name: self._folder / name.replace(":", "-") for name in seen}
        urgent = [*URGENT, *(name for name in seen if name.startswith("policy:"))]
        self._urgent = _client("urgent", to, pki, {sockets[s]: seen[s] for s in urgent})
        self._bulk = _client("bulk", to, pki, {sockets[s]: seen[s] for s in BULK})
        targets = {name: f"unix:{path}" for name, path in sockets.items()}
        targets["fresh"] = f"ipc://{sockets['fresh']}"
        self._dialler = Dialler(targets, credentials, "localhost", _OPTIONS)

    def channel(self, service: Service) -> "grpc.Channel":
        """Return the one gRPC channel to a service; it reconnects by itself.

        The first call waits for ssh to be through, or to fail.
        """
        client = self._bulk if service in BULK else self._urgent
        client.start()
        # Who asks once and goes would otherwise always be gone before there is a way.
        client.settle(_FIRST_S)
        return self._dialler.channel(service)

    def fresh(self, context: "zmq.Context[zmq.Socket[bytes]]") -> "zmq.Socket[bytes]":
        """Return a new DEALER that dials the hub; it belongs to the calling thread."""
        self._urgent.start()
        return self._dialler.fresh(context)

    def trouble(self) -> str:
        """Return what keeps either way from being there, and what to do; "" where both are."""
        return self._urgent.trouble() or self._bulk.trouble()

    def stats(self) -> dict[str, float]:
        """Return starts and state of both clients."""
        return {**self._urgent.stats(), **self._bulk.stats()}

    def close(self) -> None:
        """Close the channels and end the clients."""
        self._dialler.close()
        self._urgent.close()
        self._bulk.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _client(
    name: Literal["urgent", "bulk"], to: Destination, pki: Path, forwards: Mapping[Path, str]
) -> SshClient:
    qos: Literal["lowdelay", "throughput"] = "lowdelay" if name == "urgent" else "throughput"
    return SshClient(name, client_argv(to, pki, forwards, qos), list(forwards))


def open_ssh(
    endpoints: Endpoints, credentials: Credentials | Wallet, settings: Mapping[str, Any], pki: Path
) -> SshTunnel:
    """Return a tunnel of kind ssh; ``settings``: ``user``, ``host``, ``port``.

    Raises:
        ConfigError: settings that are none.
        MissingError: ssh is not installed.
    """
    to = destination(settings)
    check_installed()
    return SshTunnel(endpoints, credentials, to, pki)


def destination(settings: Mapping[str, Any]) -> Destination:
    """Return where the head's sshd is, from plain values.

    Raises:
        ConfigError: one is missing, unknown or wrong.
    """
    known = {"user", "host", "port", "host_key"}
    if strange := set(settings) - known:
        raise ConfigError("no setting of an ssh tunnel", got=sorted(strange), allowed=sorted(known))
    if missing := {"user", "host"} - set(settings):
        raise ConfigError("a setting of the ssh tunnel is missing", allowed=sorted(missing))
    return Destination(settings["user"], settings["host"], settings.get("port", 22))
