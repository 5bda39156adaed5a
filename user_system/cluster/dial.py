"""From a link's config to the objects of ``comms``; every composition root begins here."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager

from comms.credentials import AllowList, key_fingerprint, parse, read
from comms.enrolment import EnrolmentClient
from comms.link import Link
from comms.near import NearTunnel
from comms.renewal import Renewer, here
from comms.sockets import segments
from comms.tunnel import Endpoints, Tunnel, open_tunnel
from comms.wallet import DiskWallet
from user_system.cluster.configs import LinkConfig, ShardConfig

_OURS = frozenset({"direct", "wireguard"})
"""Kinds of tunnel in which no other process carries what we send."""


def wallet(link: LinkConfig) -> DiskWallet:
    """Return who this process is, as its certificate is renewed.

    Raises:
        SecurityError: its credentials are missing, expired or readable by others.
    """
    return DiskWallet(link.pki, link.name)


def allow_list(link: LinkConfig) -> AllowList:
    """Return whom this process lets in."""
    return AllowList(link.pki)


def authority_of(link: LinkConfig) -> str:
    """Return what names the authority of a process, hex: its key's fingerprint."""
    return key_fingerprint(parse(read(link.pki / "ca.crt")).public_key()).hex()


def listening(listen: str, endpoint: str) -> str:
    """Return where to listen, ``host:port``: at the port of an endpoint, on an own address."""
    return f"{listen}:{endpoint.rpartition(':')[2]}"


def shard_tunnel(shard: ShardConfig) -> "closing[Tunnel]":
    """Return the agent's way to the shard of its own host, closed at the end of its ``with``."""
    return closing(NearTunnel("replay", shard.socket, DiskWallet(shard.pki, shard.host)))


def tunnel(link: LinkConfig) -> AbstractContextManager[Tunnel]:
    """Return the way to the head, closed at the end of its ``with``; nothing is dialled yet.

    Within the ``with`` the process's certificate is renewed when that is due.

    Raises:
        SecurityError: its credentials are missing, expired or readable by others.
    """
    return _renewing(link, wallet(link))


def way_of(link: LinkConfig, held: DiskWallet) -> "closing[Tunnel]":
    """Return the way to the head with these credentials, closed at the end of its ``with``."""
    endpoints = Endpoints(
        hub=link.hub,
        replay=link.replay,
        fresh=link.fresh,
        reader=link.reader,
        policies=link.policies,
    )
    return closing(open_tunnel(link.kind, endpoints, held, link.settings, link.pki))


@contextmanager
def _renewing(link: LinkConfig, held: DiskWallet) -> Iterator[Tunnel]:
    with way_of(link, held) as way:
        renewer = None if here(held.directory) else Renewer(held, EnrolmentClient(way).renew)
        try:
            if renewer is not None:
                renewer.start()
            yield way
        finally:
            if renewer is not None:
                renewer.close()


def measured(link: LinkConfig) -> Link:
    """Return what is measured of a link; what it loses only where our own connections cross it."""
    if link.kind not in _OURS:
        return Link()
    ends = link.hub, link.replay, link.fresh
    ports = {int(end.rpartition(":")[2]) for end in ends}
    return Link(lambda: segments(ports))
