"""The tunnel as an interface: kinds, settings, and connections that are not shared."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from comms.credentials import AllowList, Credentials
from comms.hub_client import HubClient
from comms.serving import serve
from comms.tunnel import BULK, KINDS, URGENT, DirectTunnel, Endpoints, open_tunnel
from comms.weights import list_versions
from user_system.core.errors import ConfigError, UserSystemError

GENEROUS_S = 60.0


def connections(port: int) -> int:
    """Return how many connections this process holds to a port of its own."""
    own = psutil.Process(os.getpid()).net_connections("tcp")
    return sum(c.status == psutil.CONN_ESTABLISHED and c.raddr[1:] == (port,) for c in own)


def test_weights_and_hub_calls_never_share_a_connection(
    credentials: Callable[[str], Credentials], allow: AllowList
) -> None:
    with serve([], credentials=credentials("hub"), allow=allow) as server:
        tunnel = DirectTunnel(Endpoints(hub=f"127.0.0.1:{server.port}"), credentials("host-1"))
        with pytest.raises(UserSystemError):
            HubClient(tunnel, timeout_s=GENEROUS_S).status()
        assert connections(server.port) == 1
        with pytest.raises(UserSystemError):
            list_versions(tunnel)
        assert connections(server.port) == 2
        tunnel.close()
        deadline = time.monotonic() + GENEROUS_S
        while connections(server.port):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_channel_is_one_and_the_same(credentials: Callable[[str], Credentials]) -> None:
    tunnel = DirectTunnel(Endpoints(), credentials("host-1"))
    assert tunnel.channel("hub") is tunnel.channel("hub")
    assert tunnel.channel("hub") is not tunnel.channel("weights")
    assert (tunnel.trouble(), tunnel.stats()) == ("", {})
    tunnel.close()


def test_urgent_and_bulk_are_apart_and_all_there_is() -> None:
    assert not set(URGENT) & set(BULK)
    assert {*URGENT, *BULK} == {"hub", "fresh", "weights", "replay", "behind", "reader"}


def test_another_name_than_the_certificates_is_not_believed(
    credentials: Callable[[str], Credentials], allow: AllowList
) -> None:
    """The name that a tunnel expects inside is really looked at."""
    with serve([], credentials=credentials("hub"), allow=allow) as server:
        for name, believed in (("localhost", True), ("head.example.org", False)):
            at = Endpoints(hub=f"127.0.0.1:{server.port}")
            tunnel = DirectTunnel(at, credentials("host-1"), name)
            ready = grpc.channel_ready_future(tunnel.channel("hub"))
            if believed:
                ready.result(GENEROUS_S)
            else:
                with pytest.raises(grpc.FutureTimeoutError):
                    ready.result(1.0)
            ready.cancel()
            tunnel.close()


@pytest.mark.parametrize(
    ("kind", "settings", "text"),
    [
        ("carrier pigeon", {}, f"allowed: {', '.join(KINDS)}"),
        ("direct", {"host": "x"}, "takes no settings; got host"),
        ("ssh", {"host": "x"}, "a setting of the ssh tunnel is missing; allowed: ['user']"),
        ("ssh", {"host": "x", "user": "y", "key": "z"}, "no setting of an ssh tunnel; got ['key']"),
        ("wireguard", {}, "interface is no name of one"),
    ],
)
def test_what_does_not_fit_a_kind_is_refused(
    credentials: Callable[[str], Credentials], kind: str, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises(ConfigError) as found:
        open_tunnel(kind, Endpoints(), credentials("host-1"), settings, Path("/nowhere"))
    assert text in str(found.value)
