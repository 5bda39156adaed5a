"""Kind ``wireguard``: the head's inner address is dialled, through an interface that is up.

For sites whose firewall lets UDP out, and where other things (a debugger, ROS) shall go the same
way. Where this process may, it brings the interface up itself; where not, it says once what to run
as root and goes on dialling, so that it works as soon as somebody has. The interface is the host's,
not the process's: others may be using it, so it stays.
"""

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comms import wireguard_link
from comms.credentials import Credentials
from comms.tunnel import DirectTunnel, Endpoints, Service
from comms.wallet import Wallet
from comms.wireguard import check_interface
from user_system.core.errors import ConfigError, LinkError

if TYPE_CHECKING:
    import grpc
    import zmq

log = logging.getLogger(__name__)


_AGAIN_S = 5.0
"""Between two looks whether the interface is there; calls in between do not look."""


class WireguardTunnel:
    """A direct tunnel to inner addresses, and the interface that leads there.

    Args:
        endpoints: where the head's services listen inside.
        credentials: who dials, inside.
        conf: ``<interface>.conf`` for ``wg-quick``.
    """

    def __init__(self, endpoints: Endpoints, credentials: Credentials | Wallet, conf: Path):
        # Whatever the head is called inside, its services' certificates name ``localhost``.
        self._inside = DirectTunnel(endpoints, credentials, "localhost")
        self._conf = conf
        self._lock = threading.Lock()
        self._again_at = 0.0
        self._failure = ""

    def channel(self, service: Service) -> "grpc.Channel":
        """Return the one gRPC channel to a service; it reconnects by itself."""
        self._bring_up()
        return self._inside.channel(service)

    def fresh(self, context: "zmq.Context[zmq.Socket[bytes]]") -> "zmq.Socket[bytes]":
        """Return a new DEALER that dials the hub; it belongs to the calling thread."""
        self._bring_up()
        return self._inside.fresh(context)

    def trouble(self) -> str:
        """Return why there is no interface, and what to run; "" where there is one."""
        if wireguard_link.is_up(self._conf.stem):
            return ""
        return self._failure

    def stats(self) -> dict[str, float]:
        """Return whether there is an interface."""
        return {"wireguard_up": float(wireguard_link.is_up(self._conf.stem))}

    def close(self) -> None:
        """Close the channels; the interface stays."""
        self._inside.close()

    def _bring_up(self) -> None:
        """See to it that there is an interface, now and then; say it once where there cannot be."""
        with self._lock:
            now = time.monotonic()
            if now < self._again_at:
                return
            self._again_at = now + _AGAIN_S
            try:
                wireguard_link.bring_up(self._conf)
            except LinkError as error:
                if str(error) != self._failure:
                    log.warning("%s", error)
                self._failure = str(error)


def open_wireguard(
    endpoints: Endpoints, credentials: Credentials | Wallet, settings: Mapping[str, Any], pki: Path
) -> WireguardTunnel:
    """Return a tunnel of kind wireguard; of ``settings`` the ``interface`` is needed.

    Raises:
        ConfigError: there is no such setting, or no configuration of it, which joining writes.
    """
    interface = settings.get("interface")
    check_interface(interface)
    conf = pki / f"{interface}.conf"
    if not conf.exists():
        raise ConfigError(
            f"there is no {conf}, which joining writes",
            todo="Enrol this host: `user-system edge join LINE`.",
        )
    return WireguardTunnel(endpoints, credentials, conf)
