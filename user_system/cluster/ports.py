"""Which TCP ports a run listens on. All are chosen before anything starts."""

import contextlib
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

import psutil

from comms import wireguard_link
from user_system.cluster.manifest import EVERYWHERE, Manifest
from user_system.cluster.tree import Problems

LOOPBACK = "127.0.0.1"
HUB, REPLAY, FRESH, READER, POLICY = 7400, 7401, 7402, 7403, 7410
"""Where robot hosts of other machines look for the head, unless the manifest says otherwise."""


@dataclass(frozen=True)
class Ports:
    """One number per listener, on the hosts that the manifest names."""

    hub: int
    fresh: int
    replay: int
    reader: int
    page: int
    ray: int
    ray_client: int
    """Ray opens it on the head whether wanted or not."""
    sshd: int = 0
    """Only where the run has an sshd of its own."""
    policies: Mapping[str, int] = field(default_factory=dict)
    """Actor -> port of its policy at the head."""


def choose(manifest: Manifest, problems: Problems) -> Ports:
    """Return the ports of a run: those asked for where free, others anywhere free."""
    way = manifest.tunnel
    lasting = way.exposed or bool(manifest.remote_hosts)
    # The interface is made after this, with the run's keys: until then its address is nobody's.
    early = way.inside and not wireguard_link.is_up(way.wireguard.interface)
    listen = EVERYWHERE if early else way.listen

    def port(given: int | None, usual: int) -> int:
        return given if given is not None else usual if lasting else 0

    asked = {
        "hub": ("tunnel.hub_port", listen, port(way.hub_port, HUB)),
        "fresh": ("tunnel.fresh_port", listen, port(way.fresh_port, FRESH)),
        "replay": ("tunnel.replay_port", listen, port(way.replay_port, REPLAY)),
        "reader": (
            "tunnel.reader_port",
            listen,
            port(way.reader_port, READER) if manifest.draws_remotely else 0,
        ),
        "page": ("teleop.port", manifest.page_host, manifest.teleop.port),
        "ray": ("ray.port", LOOPBACK, manifest.ray.port),
        "ray_client": ("", LOOPBACK, 0),
    }
    if manifest.own_sshd:
        asked["sshd"] = ("tunnel.ssh.port", EVERYWHERE, way.ssh.port)
    with contextlib.ExitStack() as held:  # until all are chosen, so that none is chosen twice
        own = {
            name: _take(held, path, host, port, problems)
            for name, (path, host, port) in asked.items()
        }
        policies = {
            name: _take(held, f"actors.{name}.port", listen, port(entry.port, usual), problems)
            for usual, (name, entry) in enumerate(manifest.away.items(), POLICY)
        }
        return Ports(**own, policies=policies)


def _take(held: contextlib.ExitStack, path: str, host: str, port: int, problems: Problems) -> int:
    probe = held.enter_context(socket.socket())
    # As a server would, past connections that are only closing; and listening, so that the same
    # port is not given away twice.
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, port))
        probe.listen(1)
    except OSError as error:
        problems.add(
            "",
            path,
            f"port {port} of {host} cannot be used",
            got=_holder(port) or error.strerror,
            todo=f"End that process, or take any free port with --set {path}=0.",
        )
        return port
    return int(probe.getsockname()[1])


def _holder(port: int) -> str:
    """Return who listens on a port, where this user may know."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,):
                if connection.pid is None:
                    return "a process of another user"
                if connection.pid == os.getpid():
                    return "something else of this run"
                name = " ".join(psutil.Process(connection.pid).cmdline()[:3])
                return f"process {connection.pid} ({name})"
    return ""
