"""From the manifest's ``tunnel`` to what the head offers and what robot hosts are given."""

import getpass
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comms import admission, ssh_keys, wireguard_link
from comms.tunnel import Endpoints
from user_system.cluster.manifest import OWN, TunnelEntry
from user_system.core.errors import ConfigError, LinkError, SecurityError

HOST_KEYS = Path("/etc/ssh")
"""Where the machine's own sshd has its host keys."""

HOST_KEY = "ssh_host_ed25519_key.pub"


def offer(pki: Path, entry: TunnelEntry) -> dict[str, Any]:
    """Return the settings of the head's tunnel, for ``admission.publish``.

    Args:
        pki: the head's; an own host key is made there.
        entry: the tunnel.

    Raises:
        ConfigError: kind ssh, no host key is given, and the machine has none of its own.
    """
    if entry.kind == "ssh":
        return {**settings(entry), "host_key": _host_key(pki, entry.ssh.host_key)}
    if entry.kind == "wireguard":
        here = entry.wireguard
        return {
            "host": entry.host,
            "port": here.port,
            "network": here.network,
            "interface": here.interface,
        }
    return {}


def settings(entry: TunnelEntry) -> dict[str, Any]:
    """Return what a robot host's link is told of the tunnel, beside what joining left there."""
    if entry.kind == "ssh":
        return {
            "user": entry.ssh.user or getpass.getuser(),
            "host": entry.ssh.host or entry.host,
            "port": entry.ssh.port,
        }
    return {"interface": entry.wireguard.interface} if entry.kind == "wireguard" else {}


def seen(entry: TunnelEntry, near: Endpoints) -> Endpoints:
    """Return where the services are for whoever comes through the tunnel.

    Args:
        entry: the tunnel.
        near: where processes of the head reach them.
    """
    if entry.kind == "ssh":  # sshd dials them, from the head
        return near
    host = str(entry.wireguard.head) if entry.kind == "wireguard" else entry.host
    ports = {name: _port(getattr(near, name)) for name in ("hub", "replay", "fresh", "reader")}
    policies = {actor: f"{host}:{_port(at)}" for actor, at in near.policies.items()}
    return Endpoints(**{name: f"{host}:{port}" for name, port in ports.items()}, policies=policies)


def publish(pki: Path, entry: TunnelEntry, near: Endpoints) -> Mapping[str, Any]:
    """Write down in the head's ``pki`` how robot hosts get in; return the settings.

    Raises:
        ConfigError: settings that are none.
        SecurityError: keys that are none.
    """
    found = offer(pki, entry)
    ways = dict.fromkeys([near.hub, near.fresh, near.replay, near.reader, *near.policies.values()])
    admission.publish(pki, entry.kind, found, list(ways))
    return found


def bring_up(pki: Path, entry: TunnelEntry) -> str:
    """Bring up the head's own interface, where there is one; return "" or what a person is to do.

    Raises:
        ConfigError: services are to listen inside, and there is no inside.
    """
    if entry.kind != "wireguard":
        return ""
    conf = pki / f"{entry.wireguard.interface}.conf"
    try:
        return "" if wireguard_link.bring_up(conf) else wireguard_link.follow(conf)
    except LinkError as error:
        if not entry.inside:
            return str(error)
        raise ConfigError(
            f"tunnel.listen: {entry.listen} is WireGuard's, and this machine has no such address",
            got=error,
            todo=f"Then go on with this run: user-system up --resume {pki.parent}.",
        ) from error


def _port(endpoint: str) -> str:
    return endpoint.rpartition(":")[2]


def _host_key(pki: Path, given: str | None) -> str:
    if given is not None:
        return ssh_keys.make_key(pki / ssh_keys.HOST_KEY) if given == OWN else given
    path = HOST_KEYS / HOST_KEY
    todo = "Give it, or `own` and run an sshd for this alone: see docs/network.md."
    try:
        return ssh_keys.checked_host_key(path.read_text())
    except (OSError, SecurityError) as error:
        raise ConfigError(
            "tunnel.ssh.host_key is not given, and this machine has none", got=error, todo=todo
        ) from error
