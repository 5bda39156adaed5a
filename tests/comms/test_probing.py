"""The way to the head, broken in each of its steps: what is said is the cause and what to do."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from comms import authority, probing
from comms.authority import Authority
from comms.credentials import AllowList, Credentials, Peer, Role
from comms.fresh_hub import FreshHub
from comms.hub_client import HubClient
from comms.hub_service import HubService
from comms.pb import hub_pb2 as pb
from comms.probing import ProbeError
from comms.serving import Server, serve
from comms.tunnel import DirectTunnel, Endpoints
from user_system.core.errors import SecurityError, SpecError

SHORT_S = 1.0
"""Patience with what never comes."""


class Hub:
    """Answers probes, an hour ahead of us."""

    def probe(self, peer: Peer, query: pb.ProbeQuery) -> pb.ProbeReply:
        wall = datetime.now(UTC) + timedelta(hours=1)
        return pb.ProbeReply(
            payload=bytes(query.want), wall_s=wall.timestamp(), protocol=1, version="0.1.0"
        )


@pytest.fixture
def server(credentials: Callable[[str], Credentials], allow: AllowList) -> Iterator[Server]:
    service = HubService(Hub())  # type: ignore[arg-type]  # nothing else is asked
    with serve([service], credentials=credentials("hub"), allow=allow) as server:
        yield server


def said(caught: "pytest.ExceptionInfo[ProbeError]") -> str:
    assert caught.value.todo, "what to do next is always said"
    return str(caught.value)


def test_a_name_that_does_not_exist() -> None:
    with pytest.raises(ProbeError) as caught:
        probing.resolve("no-such-host.invalid")
    assert "no-such-host.invalid has no address here" in said(caught)


def test_addresses_of_a_name() -> None:
    assert "127.0.0.1" in probing.resolve("localhost")


def test_a_port_on_which_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(ProbeError) as caught:
        probing.connect(f"127.0.0.1:{port}")
    assert f"nobody listens at 127.0.0.1:{port}" in said(caught)
    assert "tunnel.listen" in said(caught)


def test_a_port_that_a_firewall_swallows() -> None:
    """A full backlog drops what comes, as a firewall does."""
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        place = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        try:
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(place)
            with pytest.raises(ProbeError) as caught:
                probing.connect(f"127.0.0.1:{place[1]}", SHORT_S)
        finally:
            for one in waiting:
                one.close()
    assert f"Let TCP port {place[1]} through" in said(caught)


def test_both_sides_prove_themselves(server: Server, pki: Path) -> None:
    assert "TLSv1.3" in probing.handshake(f"127.0.0.1:{server.port}", pki, "host-1").what


def test_a_head_that_falls_silent_within_the_handshake(pki: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ProbeError) as caught:
        probing.handshake(f"127.0.0.1:{silent.getsockname()[1]}", pki, "host-1", SHORT_S)
    assert "silent in the midst of the TLS handshake" in said(caught)
    assert "MTU" in said(caught)


def test_another_head(server: Server, tmp_path: Path) -> None:
    Authority.open(tmp_path).issue("host-1", Role.ROBOT)
    with pytest.raises(ProbeError) as caught:
        probing.handshake(f"127.0.0.1:{server.port}", tmp_path, "host-1")
    assert "not the head that this host has joined" in said(caught)


def test_a_head_that_does_not_know_its_name(credentials, allow: AllowList, pki: Path) -> None:
    address = "127.0.0.2:0"
    with (
        serve([], credentials=credentials("hub"), allow=allow, address=address) as server,
        pytest.raises(ProbeError) as caught,
    ):
        probing.handshake(f"127.0.0.2:{server.port}", pki, "host-1")
    assert "not for 127.0.0.2" in said(caught)
    assert "set tunnel.host to 127.0.0.2" in said(caught)


class Clock(datetime):
    """A clock that is wrong."""

    off = timedelta()

    @classmethod
    def now(cls, tz: object = None) -> "datetime":  # type: ignore[override]
        return datetime.now(UTC) + cls.off


@pytest.mark.parametrize(("days", "says"), [(-400, "expired"), (3, "not valid yet")])
def test_clocks_that_differ_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int, says: str
) -> None:
    made = Authority.open(tmp_path)
    made.issue("host-1", Role.ROBOT)
    monkeypatch.setattr(Clock, "off", timedelta(days=days))
    monkeypatch.setattr(authority, "datetime", Clock)
    with suppress(SecurityError):  # it notices what it has made
        made.issue("odd", Role.SERVICE)
    monkeypatch.undo()
    odd = tmp_path / "odd.pem"
    with tls_server(tmp_path / "ca.crt", odd) as port, pytest.raises(ProbeError) as caught:
        probing.handshake(f"127.0.0.1:{port}", tmp_path, "host-1")
    assert f"certificate is {says}, by the clock of this host" in said(caught)
    assert "timedatectl" in said(caught)


class tls_server:  # noqa: N801 (reads as a function)
    """A server whose certificate our own code would refuse to load."""

    def __init__(self, ca: Path, bundle: Path):
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(bundle)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> int:
        self._thread.start()
        return int(self._listener.getsockname()[1])

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._thread.join(10.0)

    def _serve(self) -> None:
        try:
            near, _ = self._listener.accept()
            with near, self._context.wrap_socket(near, server_side=True):
                pass
        except OSError:
            pass  # the other side hung up: what is tested


def test_a_head_that_refuses_our_certificate(server: Server, pki: Path, tmp_path: Path) -> None:
    """Signed by another authority; we believe the head, it does not believe us."""
    Authority.open(tmp_path).issue("host-1", Role.ROBOT)
    (tmp_path / "ca.crt").write_bytes((pki / "ca.crt").read_bytes())
    with pytest.raises(ProbeError) as caught:
        probing.handshake(f"127.0.0.1:{server.port}", tmp_path, "host-1")
    assert "the head refuses the certificate of host-1" in said(caught)


# --- the fresh lane ------------------------------------------------------------------------------


@pytest.fixture
def lane(credentials: Callable[[str], Credentials], allow: AllowList) -> Iterator[FreshHub]:
    hub = FreshHub(credentials("hub"), allow)
    hub.start()
    yield hub
    hub.close()


def tunnel(credentials: Credentials, fresh: int, hub: int = 1) -> DirectTunnel:
    return DirectTunnel(Endpoints(hub=f"127.0.0.1:{hub}", fresh=f"127.0.0.1:{fresh}"), credentials)


def test_a_fresh_lane_that_works(lane: FreshHub, credentials) -> None:
    assert "CURVE" in probing.fresh_lane(tunnel(credentials("host-1"), lane.port)).what


def test_a_fresh_lane_whose_hub_has_other_keys(lane: FreshHub, tmp_path: Path) -> None:
    other = Authority.open(tmp_path).issue("host-1", Role.ROBOT)
    with pytest.raises(ProbeError) as caught:
        probing.fresh_lane(tunnel(other, lane.port), SHORT_S)
    assert "does not answer" in said(caught)
    assert "join again" in said(caught)


def test_a_fresh_lane_on_which_we_are_strangers(
    lane: FreshHub, credentials, tmp_path: Path
) -> None:
    other = Authority.open(tmp_path).issue("host-1", Role.ROBOT)
    stranger = replace(other, hub_curve=credentials("host-1").hub_curve)
    with pytest.raises(ProbeError) as caught:
        probing.fresh_lane(tunnel(stranger, lane.port), 5.0)
    assert "refuses the CURVE key" in said(caught)


# --- over the hub --------------------------------------------------------------------------------


def test_clocks_are_compared(server: Server, credentials) -> None:
    way = tunnel(credentials("host-1"), 1, server.port)
    found = probing.clocks(HubClient(way))
    way.close()
    assert abs(found.ahead_s - 3600) <= found.bound_s + 0.001
    assert (found.protocol, found.version) == (1, "0.1.0")


class Narrow:
    """A way on which full packets vanish in one direction, and nothing after them arrives."""

    SIZE = 8 << 10

    def __init__(self, port: int, towards: bool):
        self._port, self._towards = port, towards
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._port))
            self._ends += [near, far]
            for source, sink, narrow in (
                (near, far, self._towards), (far, near, not self._towards)
            ):  # fmt: skip
                pump = threading.Thread(target=self._pump, args=(source, sink, narrow))
                pump.daemon = True
                pump.start()

    def _pump(self, source: socket.socket, sink: socket.socket, narrow: bool) -> None:
        lost = False
        try:
            while data := source.recv(65536):
                lost = lost or (narrow and len(data) > self.SIZE)
                if not lost:
                    sink.sendall(data)
        except OSError:
            pass  # the test is over

    def close(self) -> None:
        self._listener.close()
        for end in self._ends:
            end.close()


@pytest.mark.parametrize("towards", [True, False])
def test_large_messages_that_do_not_get_through(server: Server, credentials, towards: bool) -> None:
    narrow = Narrow(server.port, towards)
    try:
        for direction in (True, False):
            way = tunnel(credentials("host-1"), 1, narrow.port)
            hub = HubClient(way)
            probing.clocks(hub)
            if direction is towards:
                with pytest.raises(ProbeError) as caught:
                    probing.large_messages(hub, direction, 2.0)
                assert ("to the head" if towards else "from the head") in said(caught)
                assert "MTU" in said(caught)
            else:
                assert "64 KiB pass" in probing.large_messages(hub, direction).what
            way.close()
    finally:
        narrow.close()


def test_a_probe_has_its_limits(server: Server, credentials) -> None:
    way = tunnel(credentials("host-1"), 1, server.port)
    for sent, wanted in ((300 << 10, 0), (0, 300 << 10), (0, 2**32 - 1)):
        with pytest.raises(SpecError, match="a probe is too large"):
            HubClient(way).probe(sent, wanted)
    way.close()


def test_life_of_a_certificate(credentials) -> None:
    left = probing.valid_until(credentials("host-1")) - datetime.now(UTC)
    assert timedelta(days=80) < left < timedelta(days=100)
