"""Hosts and how they are joined: ``Lab`` with a router that translates addresses, ``Wire`` without.

Addresses are the same in every lab, since no lab sees another: those of the site are private, those
between router and head are set aside for documentation (RFC 5737), so that they mean no real host.
"""

import ctypes
import os
import shutil
import threading

from user_system.cluster.lab import members
from user_system.cluster.lab.host import Host, search_path
from user_system.cluster.lab.link import Link
from user_system.cluster.lab.namespaces import CLONE_NEWNET, libc
from user_system.cluster.lab.profiles import Profile, profile
from user_system.core.errors import ConfigError, MissingError

HEAD, OUTSIDE = "192.0.2.1", "192.0.2.2"
"""The head, and whoever is at the other end of the link: the router, or the edge of a wire."""
MOST_EDGES = 250
_RULES = """\
*nat
-A POSTROUTING -o wan0 -j MASQUERADE
COMMIT
*filter
-A FORWARD -i wan0 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A FORWARD -i wan0 -j DROP
-A INPUT -i wan0 -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A INPUT -i wan0 -j DROP
COMMIT
"""
_QUEUE = 10_000
"""Packets that may wait for the emulator; a real line's queue is ``Line.queue_bytes``."""


def available(*, nat: bool = True) -> str:
    """Return "", or why no lab can be made here: for the reason of a skipped test.

    Args:
        nat: whether a ``Lab`` is wanted; a ``Wire`` needs less.
    """
    tools = {"ip": "iproute2", "nsenter": "util-linux"} | (
        {"iptables-restore": "iptables"} if nat else {}
    )
    for tool, package in tools.items():
        if shutil.which(tool, path=search_path()) is None:
            return f"{tool} is not installed (Debian package {package})"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "/dev/net/tun cannot be opened by this user"
    return _may_make_namespaces()


def _may_make_namespaces() -> str:
    """Return "", or why this process may make no network namespace."""
    reason: list[str] = []

    def probe() -> None:
        # In a thread of its own, which is left behind in there and ends.
        if libc.unshare(CLONE_NEWNET) != 0:
            reason.append(os.strerror(ctypes.get_errno()))

    thread = threading.Thread(target=probe)
    thread.start()
    thread.join()
    if not reason:
        return ""
    return f"this user may make no network namespace ({reason[0]}); root may, or `unshare -Urn`"


class _Site:
    """What ``Lab`` and ``Wire`` have in common: a link, hosts, beginning and end.

    Args:
        link: the profile of the link, or its name.
        seed: of what happens to packets.
        mtu: largest packet of the link, bytes.
        congestion: TCP's congestion control on all hosts; "": the kernel's default.
    """

    def __init__(
        self, link: Profile | str, *, seed: int = 0, mtu: int = 1500, congestion: str = ""
    ):
        self.link = Link(profile(link) if isinstance(link, str) else link)
        """The emulated link; ``cut``, ``mend``, ``change`` and ``stats`` work while it runs."""
        self.hosts: dict[str, Host] = {}
        self._seed, self._mtu, self._congestion = seed, mtu, congestion
        if not 576 <= mtu <= 1500:
            raise ConfigError("MTU of a link", got=mtu, allowed="576 to 1500")

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def head(self) -> Host:
        """The server side."""
        return self.hosts["head"]

    @property
    def edge(self) -> Host:
        """The robot host, the first where there are several."""
        return self.hosts["edge"]

    @property
    def congestion(self) -> str:
        """TCP's congestion control on the edge."""
        return self.edge.run(["cat", "/proc/sys/net/ipv4/tcp_congestion_control"]).strip()

    def close(self) -> None:
        """End everything that runs in the lab, and the lab; idempotent."""
        self.link.close()
        for host in self.hosts.values():
            host.reap()

    def _open(self, addresses: dict[str, str], ends: tuple[str, str], reason: str) -> None:
        if reason:
            raise MissingError("no network lab can be made here", got=reason)
        members.kill(members.leftovers())
        spaces = self.link.start(tuple(addresses), ends, self._seed)
        self.hosts = {name: Host(name, addresses[name], spaces[name]) for name in addresses}
        wan = {ends[0]: (OUTSIDE, HEAD), ends[1]: (HEAD, OUTSIDE)}
        for name, host in self.hosts.items():
            # One process per host: on a busy machine it is their number that takes time.
            host.ip("link set lo up", *(self._wan(*wan[name]) if name in wan else ()))
            if self._congestion:
                host.sysctl("net/ipv4/tcp_congestion_control", self._congestion)

    def _wan(self, mine: str, theirs: str) -> tuple[str, str]:
        return (
            # Without addrgenmode the kernel asks for IPv6 routers there, now and then.
            f"link set wan0 addrgenmode none mtu {self._mtu} txqueuelen {_QUEUE} up",
            f"address add {mine} peer {theirs} dev wan0",
        )


class Wire(_Site):
    """Edge and head at the two ends of the link, nothing between; both can dial."""

    def __enter__(self) -> "Wire":
        try:
            addresses = {"edge": OUTSIDE, "head": HEAD}
            self._open(addresses, ("edge", "head"), available(nat=False))
        except BaseException:
            self.close()
            raise
        return self


class Lab(_Site):
    """Edges with private addresses behind a router that translates them, and a head.

    The edges dial the head at ``lab.head.address``; nothing can be dialled inwards, though the head
    has a route to the edges, so that it is the router that refuses.

    Args:
        link: the profile of the link between router and head, or its name.
        edges: how many hosts are behind the router, each in a network of its own.
        seed: of what happens to packets.
        mtu: largest packet of the link, bytes.
        congestion: TCP's congestion control on all hosts; "": the kernel's default.

    Raises:
        ConfigError: so many hosts, or such packets, there cannot be.
    """

    def __init__(
        self,
        link: Profile | str,
        *,
        edges: int = 1,
        seed: int = 0,
        mtu: int = 1500,
        congestion: str = "",
    ):
        super().__init__(link, seed=seed, mtu=mtu, congestion=congestion)
        if not 1 <= edges <= MOST_EDGES:
            raise ConfigError("edges of a lab", got=edges, allowed=f"1 to {MOST_EDGES}")
        self._names = ["edge", *(f"edge-{i}" for i in range(2, edges + 1))]

    def __enter__(self) -> "Lab":
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    @property
    def edges(self) -> list[Host]:
        """All robot hosts."""
        return [self.hosts[name] for name in self._names]

    @property
    def nat(self) -> Host:
        """The router."""
        return self.hosts["nat"]

    @property
    def public(self) -> str:
        """The address under which the head sees all edges."""
        return OUTSIDE

    def _build(self) -> None:
        addresses = {name: f"10.77.{i}.2" for i, name in enumerate(self._names)}
        every = {**addresses, "nat": OUTSIDE, "head": HEAD}
        self._open(every, ("nat", "head"), available())
        for i, edge in enumerate(self.edges):
            self.nat.ip(
                f"link add site{i} type veth peer name site netns {edge.space}",
                f"link set site{i} up",
                f"address add 10.77.{i}.1/24 dev site{i}",
            )
            edge.ip(
                "link set site up",
                f"address add {edge.address}/24 dev site",
                f"route add default via 10.77.{i}.1",
            )
        self.head.ip(f"route add 10.77.0.0/16 via {OUTSIDE} dev wan0")
        self._translate()

    def _translate(self) -> None:
        """Have the router send out what the site sends, under its address, and only answers in."""
        self.nat.sysctl("net/ipv4/ip_forward", "1")
        self.nat.run(["iptables-restore"], input=_RULES)
