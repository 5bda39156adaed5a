"""WireGuard's keys, addresses and configuration files, for both ends.

A robot host makes its key and keeps it. The head hands out an address of a private network and
knows which key may use it; a robot host lets nothing in but the head's one address, and dials
outwards only, so that it works behind any NAT. What runs inside proves itself as it does outside.
"""

import base64
import binascii
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from comms.credentials import check_name, read_secret, write
from user_system.core.errors import ConfigError, SecurityError

KEY, PEERS = "wireguard.key", "wireguard.peers"
"""Files in ``pki``: this host's secret key; at the head, who has which address and key."""

MTU = 1280
"""What IPv6 promises everywhere. With 60 to 80 bytes around it a packet still passes PPPoE, LTE and
one more tunnel, where larger ones vanish without a word."""

KEEPALIVE_S = 25
"""NATs forget a silent flow after 30 s at the earliest."""

_INTERFACE = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,14}")
_ENDPOINT = re.compile(r"(\[[0-9A-Fa-f:]{2,45}\]|[A-Za-z0-9._-]{1,253}):(\d{1,5})")


@dataclass(frozen=True)
class Network:
    """The head's end: its interface, port and network, of which it has the first address.

    Raises:
        ConfigError: one is none; the message begins with its name.
    """

    interface: str = "us0"
    port: int = 51820
    network: str = "10.86.0.0/24"

    def __post_init__(self) -> None:
        check_interface(self.interface)
        if isinstance(self.port, bool) or not isinstance(self.port, int):
            raise ConfigError("port is no number", got=repr(self.port), allowed="1..65535")
        if not 0 < self.port < 65536:
            raise ConfigError("port is out of range", got=self.port, allowed="1..65535")
        try:
            net = IPv4Network(self.network)
        except ValueError as error:
            raise ConfigError("network is none", got=error, allowed="e.g. 10.86.0.0/24") from error
        if not net.is_private or not 8 <= net.prefixlen <= 29:
            raise ConfigError(
                "network is not a private one with room for some hosts",
                got=self.network,
                allowed="between /8 and /29 of 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16",
            )

    @property
    def net(self) -> IPv4Network:
        """Its addresses."""
        return IPv4Network(self.network)

    @property
    def head(self) -> IPv4Address:
        """The head's own."""
        return self.net[1]


@dataclass(frozen=True)
class Peer:
    """A robot host, as the head knows it."""

    key: str
    """Public, base64."""
    address: str


@dataclass(frozen=True)
class Way:
    """What a robot host is told: all of it is public.

    Raises:
        ConfigError: a value that is none; nothing of it may become a line of its own in a file.
    """

    interface: str
    address: str
    """Of this host, inside."""
    head: str
    """Of the head, inside."""
    head_key: str
    endpoint: str
    """``host:port`` of the head, outside."""

    def __post_init__(self) -> None:
        check_interface(self.interface)
        for name in ("address", "head"):
            try:
                IPv4Address(getattr(self, name))
            except ValueError as error:
                raise ConfigError(f"{name} is no IPv4 address", got=error) from error
        checked_key(self.head_key)
        found = _ENDPOINT.fullmatch(self.endpoint)
        if not (found and 0 < int(found[2]) < 65536):
            raise ConfigError("endpoint is none", got=repr(self.endpoint), allowed="host:port")


def check_interface(name: object) -> None:
    """Refuse what is no name of a network interface.

    Raises:
        ConfigError: it is none.
    """
    if not (isinstance(name, str) and _INTERFACE.fullmatch(name)):
        raise ConfigError(
            "interface is no name of one",
            got=repr(name),
            allowed="a letter, then letters, digits, - and _, at most 15",
        )


def make_key(path: Path) -> str:
    """Return the public half, base64, of the X25519 key at ``path``, made where there is none.

    Raises:
        SecurityError: what is there is no key, or others can read it.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = X25519PrivateKey.generate().private_bytes_raw()
        write(path, base64.b64encode(made) + b"\n", secret=True)
    secret = base64.b64decode(secret_key(path))
    public = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    return base64.b64encode(public).decode()


def secret_key(path: Path) -> str:
    """Return the secret key at ``path``, base64.

    Raises:
        SecurityError: there is none, or others can read it.
    """
    text = read_secret(path).decode(errors="replace").strip()
    if len(_decoded(text)) != 32:
        raise SecurityError(f"{path} is no WireGuard key", todo="Delete it and join again.")
    return text


def checked_key(text: object) -> str:
    """Return a public key, written anew.

    Raises:
        SecurityError: it is none.
    """
    blob = _decoded(text) if isinstance(text, str) else b""
    # An all-zero key, and the other points of small order, make secrets that everybody knows; the
    # library refuses them when it is used, zero is the one that an error would make.
    if len(blob) != 32 or not any(blob):
        raise SecurityError(
            "not a public WireGuard key", got=repr(text)[:80], allowed="32 bytes in base64"
        )
    return base64.b64encode(blob).decode()


# --- files ---------------------------------------------------------------------------------------


def edge_file(way: Way, secret: str) -> str:
    """Return the robot host's configuration for ``wg-quick``.

    ``AllowedIPs`` is the head's address alone: packets of other robots are dropped, and only what
    is for the head goes this way. Where there is a packet filter, connections that the head would
    begin are dropped too; ours all begin here.
    """
    rule = "INPUT -i %i -m conntrack --ctstate NEW,INVALID -j DROP"
    filters = f"PostUp = iptables -I {rule}\nPreDown = iptables -D {rule}\n"
    return f"""\
# Made by user-system: the way of this robot host to its head.
[Interface]
PrivateKey = {secret}
Address = {way.address}/32
MTU = {MTU}
{filters if shutil.which("iptables") else ""}
[Peer]
PublicKey = {way.head_key}
Endpoint = {way.endpoint}
AllowedIPs = {way.head}/32
PersistentKeepalive = {KEEPALIVE_S}
"""


def head_file(here: Network, secret: str, peers: Mapping[str, Peer]) -> str:
    """Return the head's configuration for ``wg-quick``, with every robot host as a peer."""
    parts = [
        f"""\
# Made by user-system: the head's end. Written again whenever a robot host joins or is revoked.
[Interface]
PrivateKey = {secret}
Address = {here.head}/{here.net.prefixlen}
ListenPort = {here.port}
MTU = {MTU}
"""
    ]
    for name, peer in sorted(peers.items()):
        parts.append(f"[Peer]  # {name}\nPublicKey = {peer.key}\nAllowedIPs = {peer.address}/32\n")
    return "\n".join(parts)


def read_peers(pki: Path) -> dict[str, Peer]:
    """Return which robot host has which key and address.

    Raises:
        SecurityError: the file is damaged.
    """
    path = pki / PEERS
    if not path.exists():
        return {}
    try:
        return {name: Peer(**entry) for name, entry in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise SecurityError(f"{path} is damaged", got=error, todo="Restore a backup.") from error


def write_peers(pki: Path, here: Network, peers: Mapping[str, Peer]) -> None:
    """Write down who the peers are, and the head's configuration with them."""
    plain: Any = {name: {"key": p.key, "address": p.address} for name, p in peers.items()}
    write(pki / PEERS, json.dumps(plain, indent=1, sort_keys=True).encode(), secret=True)
    text = head_file(here, secret_key(pki / KEY), peers)
    write(pki / f"{here.interface}.conf", text.encode(), secret=True)


def with_peer(peers: Mapping[str, Peer], here: Network, name: str, key: str) -> dict[str, Peer]:
    """Return the peers with one more, who keeps the address that its name had.

    Raises:
        SecurityError: not a name or a key, the key is another name's, or the network is full.
    """
    check_name(name)
    own = checked_key(key)
    others = {other: peer for other, peer in peers.items() if other != name}
    holder = next((other for other, peer in others.items() if peer.key == own), "")
    if holder:
        raise SecurityError(
            "this WireGuard key is another host's",
            got=holder,
            todo=f"Delete {KEY} there, so that it makes one of its own, and join again.",
        )
    taken = {IPv4Address(peer.address) for peer in others.values()} | {here.head}
    before = IPv4Address(peers[name].address) if name in peers else None
    if before is not None and before in here.net and before not in taken:
        return {**others, name: Peer(own, str(before))}
    free = next((address for address in here.net.hosts() if address not in taken), None)
    if free is None:
        raise SecurityError(
            f"all addresses of {here.network} are taken",
            todo="Revoke hosts that are gone, or choose a larger tunnel.wireguard.network.",
        )
    return {**others, name: Peer(own, str(free))}


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text.strip(), validate=True)
    except (ValueError, binascii.Error):
        return b""
