"""From a link's config to the objects of ``comms``; every composition root begins here."""

from contextlib import closing

from comms.credentials import AllowList, Credentials
from comms.near import NearTunnel
from comms.tunnel import Endpoints, Tunnel, open_tunnel
from comms.wallet import DiskWallet
from user_system.cluster.configs import LinkConfig, ShardConfig


def credentials(link: LinkConfig) -> Credentials:
    """Return who this process is.

    Raises:
        SecurityError: its credentials are missing, expired or readable by others.
    """
    return Credentials.load(link.pki, link.name)


def wallet(link: LinkConfig) -> DiskWallet:
    """Return who this process is, as its certificate is renewed.

    Raises:
        SecurityError: its credentials are missing, expired or readable by others.
    """
    return DiskWallet(link.pki, link.name)


def allow_list(link: LinkConfig) -> AllowList:
    """Return whom this process lets in."""
    return AllowList(link.pki)


def listening(listen: str, endpoint: str) -> str:
    """Return where to listen, ``host:port``: at the port of an endpoint, on an own address."""
    return f"{listen}:{endpoint.rpartition(':')[2]}"


def shard_tunnel(shard: ShardConfig) -> "closing[Tunnel]":
    """Return the agent's way to the shard of its own host, closed at the end of its ``with``."""
    me = Credentials.load(shard.pki, shard.host)
    return closing(NearTunnel("replay", shard.socket, me))


def tunnel(link: LinkConfig) -> "closing[Tunnel]":
    """Return the way to the head, closed at the end of its ``with``; nothing is dialled yet."""
    endpoints = Endpoints(
        hub=link.hub,
        replay=link.replay,
        fresh=link.fresh,
        reader=link.reader,
        policies=link.policies,
    )
    return closing(open_tunnel(link.kind, endpoints, wallet(link), link.settings, link.pki))
