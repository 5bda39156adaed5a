"""From an invitation's line to a call to the hub: page, hub and host as they are, on loopback."""

import json
import threading
import time
from contextlib import closing

import pytest

from comms import admission, ssh_keys, wireguard
from comms.authority import Authority
from comms.credentials import AllowList, Credentials, Peer, Role, parse, read_allowed
from comms.enrolment import EnrolmentClient, EnrolmentService
from comms.fresh import FreshPeer
from comms.fresh_hub import FreshHub
from comms.hub_client import HubAttachment, HubClient
from comms.hub_service import HubService
from comms.invitations import Invitations, Request
from comms.joining import join
from comms.keys import make_key, make_request
from comms.pb import fresh_pb2, hub_pb2
from comms.renewal import Renewer
from comms.serving import serve
from comms.tunnel import Endpoints, open_tunnel
from comms.wallet import DiskWallet
from user_system.core.clock import SECOND, WallClock
from user_system.core.errors import LinkError, SecurityError
from user_system.core.schedule import ScheduleConfig
from user_system.hub.audit import verify
from user_system.hub.enrolments import Enrolments
from user_system.hub.service import Hub, HubConfig
from user_system.teleop.app import TeleopConfig, make_app
from user_system.teleop.auth import Accounts
from user_system.teleop.page import Page

pytestmark = pytest.mark.system

FACTS = {"tunnel": "direct", "hub": "head.lab:7400"}
NAMES = ("localhost", "127.0.0.1")


class Clock:
    """Stands until it is moved."""

    now = 1_700_000_000 * SECOND

    def now_ns(self):
        return self.now


class Deaf:
    """A fresh lane that hears nothing, for a page without robots."""

    def send(self, message):
        raise AssertionError(message)

    def receive(self, timeout_s):
        time.sleep(timeout_s)
        return []


class Head:
    """Hub, fresh lane and page of one lab, wired as their processes do it."""

    def __init__(self, directory, lifetime_s=None):
        self.pki = directory / "pki"
        self.authority = Authority.open(self.pki, lifetime_s)
        for name in ("hub", "teleop"):
            self.authority.issue(name, Role.SERVICE, NAMES)
        self.invitations = Invitations(self.authority, by="kim")
        self.hub = Hub(
            directory / "hub", HubConfig("t", schedule=ScheduleConfig(run="t")), WallClock()
        )
        self.hub.open()
        enrolments = Enrolments(self.authority, self.hub.audit, WallClock(), FACTS)
        self.enrolments = enrolments
        self.hub.also(enrolments.figures, enrolments.tick)
        wallet, allow = DiskWallet(self.pki, "hub"), AllowList(self.pki)
        self.fresh = FreshHub(wallet(), allow)
        self.fresh.start()
        self.server = serve(
            [HubService(self.hub), EnrolmentService(enrolments)], credentials=wallet, allow=allow
        )
        self.endpoints = Endpoints(
            hub=f"127.0.0.1:{self.server.port}", fresh=f"127.0.0.1:{self.fresh.port}"
        )
        self.way = open_tunnel("direct", self.endpoints, DiskWallet(self.pki, "teleop"))
        self.page = Page(self.app(), port=0, certificate=self.pki / "teleop.pem")
        self.page.start()
        self.over = threading.Event()
        self.ticker = threading.Thread(target=self.tick, daemon=True)
        self.ticker.start()

    def app(self):
        config = TeleopConfig(run="t", hosts=NAMES, secure=True, authority=self.authority.pem)
        return make_app(
            config,
            accounts=Accounts({}),
            hub=HubClient(self.way),
            fresh=Deaf(),
            enrolment=EnrolmentClient(self.way),
        )

    def tick(self):
        while not self.over.wait(0.02):
            self.hub.tick()

    def invite(self, name="arm-1", role=Role.ROBOT, host="localhost", life_s=600.0):
        return self.invitations.create(name, role, host, self.page.port, life_s).line()

    def audited(self):
        verify(self.hub.audit._path)
        records = map(json.loads, self.hub.audit._path.read_text().splitlines())
        return [(record["action"], record["who"]) for record in records]

    def dial(self, pki, name):
        return closing(open_tunnel("direct", self.endpoints, DiskWallet(pki, name)))

    def stop(self):
        self.page.close()
        self.over.set()
        self.ticker.join()
        self.way.close()
        self.server.stop(0.2)
        self.fresh.close()
        self.hub.close()


def until(condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def head(tmp_path):
    opened = Head(tmp_path / "head")
    yield opened
    opened.stop()


@pytest.mark.parametrize("host", NAMES)
def test_one_line_makes_a_host_a_peer(head, tmp_path, host):
    joined = join(head.invite(host=host), tmp_path / "host")
    assert (joined.name, joined.role, joined.facts) == ("arm-1", Role.ROBOT, FACTS)
    with head.dial(tmp_path / "host", "arm-1") as way:
        assert HubClient(way).status().run == "t"
    assert joined.settings == {}, "a direct tunnel has none"
    until(lambda: ("invite", "kim") in head.audited())
    assert ("join", "arm-1") in head.audited()


def test_a_host_that_joins_comes_through_the_tunnel_until_it_is_revoked(head, tmp_path):
    settings = {"user": "lab", "host": "head.lab", "port": 2222}
    host_key = ssh_keys.make_key(tmp_path / "host.key")
    endpoints = [head.endpoints.hub, head.endpoints.fresh]
    admission.publish(head.pki, "ssh", {**settings, "host_key": host_key}, endpoints)
    joined = join(head.invite(), tmp_path / "host")
    assert joined.settings == settings
    assert joined.facts == FACTS
    assert host_key in (tmp_path / "host" / "ssh.known_hosts").read_text()
    line = (head.pki / ssh_keys.AUTHORIZED).read_text()
    assert ssh_keys.public_key(tmp_path / "host") in line
    assert f'permitopen="{head.endpoints.hub}"' in line
    head.invitations.revoke("arm-1")
    assert (head.pki / ssh_keys.AUTHORIZED).read_text() == ""


def test_who_is_revoked_while_it_joins_gets_no_way_through_the_tunnel(head, monkeypatch):
    """Signed, then revoked, and only then would its key have been let through: for good."""
    told = {"user": "us", "host": "head.lab", "host_key": ssh_keys.public_key(head.pki)}
    admission.publish(head.pki, "ssh", told, ["127.0.0.1:7400"])
    (head.pki / "of-lab-1").mkdir()
    keys = admission.prepare(head.pki / "of-lab-1")
    redeem = Invitations.redeem

    def slow(self, *args):
        signed = redeem(self, *args)
        head.invitations.revoke("lab-1")
        return signed

    monkeypatch.setattr(Invitations, "redeem", slow)
    invitation = head.invitations.create("lab-1", Role.ROBOT, "localhost", 1)
    csr = make_request(make_key()[0], Peer("lab-1", Role.ROBOT))
    request = Request(invitation.id, invitation.secret, csr, b"x" * 40, keys)
    with pytest.raises(SecurityError, match="revoked while it joined"):
        head.enrolments.join(request, "here")
    authorized = head.pki / ssh_keys.AUTHORIZED
    assert "lab-1" not in authorized.read_text()


def test_a_host_that_joins_gets_an_address_of_its_own(head, tmp_path):
    settings = {"host": "head.lab", "network": "10.9.0.0/24", "interface": "u7none"}
    admission.publish(head.pki, "wireguard", settings, [])
    for name in ("arm-1", "arm-2"):
        joined = join(head.invite(name), tmp_path / name)
        assert joined.settings == {"interface": "u7none"}
    confs = [(tmp_path / name / "u7none.conf").read_text() for name in ("arm-1", "arm-2")]
    assert "Address = 10.9.0.2/32" in confs[0]
    assert "Address = 10.9.0.3/32" in confs[1]
    head.invitations.revoke("arm-1")
    assert set(wireguard.read_peers(head.pki)) == {"arm-2"}


def test_what_is_refused_is_audited(head, tmp_path):
    line = head.invite()
    join(line, tmp_path / "first")
    with pytest.raises(SecurityError, match="the head refuses: the invitation has been used"):
        join(line, tmp_path / "second")
    revoked = head.invite("arm-2")
    head.invitations.revoke("arm-2")
    with pytest.raises(SecurityError, match="no such invitation"):
        join(revoked, tmp_path / "third")
    until(lambda: ("revoke", "kim") in head.audited())
    assert [action for action, _ in head.audited()].count("refuse") == 2


def test_nobody_gets_in_whom_the_audit_log_cannot_hold(head, tmp_path, monkeypatch):
    monkeypatch.setattr("comms.joining.WAIT_S", 0.01)
    line = head.invite()
    until(lambda: ("invite", "kim") in head.audited())

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("user_system.hub.audit.os.write", full)
        with pytest.raises(LinkError, match="audit log"):
            join(line, tmp_path / "host")
    assert not AllowList(head.pki).holds(Peer("arm-1", Role.ROBOT))
    assert join(line, tmp_path / "host").name == "arm-1"


# --- revocation --------------------------------------------------------------------------------


class Attached:
    """A host on both lanes."""

    def __init__(self, head, pki, name):
        self.way = open_tunnel("direct", head.endpoints, DiskWallet(pki, name))
        hello = hub_pb2.HostHello(host=name, boot="boot")
        self.link = HubAttachment(self.way, lambda: hello, lambda event: None)
        self.fresh = FreshPeer(self.way, role="robot", robots=())
        self.fresh.start()
        self.link.start()

    def heard(self):
        return [m for m in self.fresh.receive(0.05) if isinstance(m, fresh_pb2.Announcement)]

    def close(self):
        self.link.close()
        self.fresh.close()
        self.way.close()


def test_revocation_cuts_streams_and_the_fresh_lane_within_two_seconds(head, tmp_path):
    for name in ("arm-1", "arm-2"):
        join(head.invite(name), tmp_path / name)
    with closing(Attached(head, tmp_path / "arm-1", "arm-1")) as one:
        other = Attached(head, tmp_path / "arm-2", "arm-2")
        until(lambda: one.link.connected and other.link.connected)
        head.fresh.announce("p", 1, "hash")
        until(lambda: one.heard() and head.fresh.stats()["peers"] == 2)
        sessions = other.link.stats()["sessions"]
        head.invitations.revoke("arm-1")
        began = time.monotonic()
        until(lambda: not one.link.connected and head.fresh.stats()["peers"] == 1)
        assert time.monotonic() - began < 2.0
        one.fresh.receive(0.0)
        heard = time.monotonic()
        while time.monotonic() - heard < 2.5:  # announcements come every second
            assert not one.heard()
        assert not one.link.connected
        with pytest.raises(SecurityError, match="not enrolled"):
            HubClient(one.way).status()
        assert other.link.connected
        assert other.link.stats()["sessions"] == sessions
        assert head.server.stats()["cut"] == 1
        assert head.fresh.stats()["expelled"] == 1
        other.close()


def test_a_revoked_host_that_is_enrolled_again_is_let_in_only_as_new(head, tmp_path):
    join(head.invite(), tmp_path / "old")
    with closing(Attached(head, tmp_path / "old", "arm-1")) as old:
        until(lambda: old.link.connected and head.fresh.stats()["peers"] == 1)
        head.invitations.revoke("arm-1")
        join(head.invite(), tmp_path / "new")
        with closing(Attached(head, tmp_path / "new", "arm-1")) as new:
            until(lambda: new.link.connected and not old.link.connected)
            with pytest.raises(SecurityError, match="another certificate by now"):
                HubClient(old.way).status()
            until(lambda: head.fresh.stats()["peers"] == 1)
            until(lambda: head.fresh.stats()["denied"] > 0)  # the old one goes on saying hello
            assert new.link.connected


# --- renewal -----------------------------------------------------------------------------------


def test_a_running_client_renews_itself_and_no_stream_is_cut(head, tmp_path):
    join(head.invite(), tmp_path / "host")
    wallet = DiskWallet(tmp_path / "host", "arm-1")
    first = wallet()
    with closing(open_tunnel("direct", head.endpoints, wallet)) as way:
        hello = hub_pb2.HostHello(host="arm-1", boot="boot")
        link = HubAttachment(way, lambda: hello, lambda event: None)
        link.start()
        until(lambda: link.connected)
        before = way.channel("hub")
        # To this clock two thirds of its life are over.
        renewer = Renewer(wallet, EnrolmentClient(way).renew, lambda: time.time() + 61 * 86400)
        renewer.start()
        until(lambda: wallet() is not first)
        assert way.channel("hub") is not before
        assert HubClient(way).status().run == "t"
        assert link.connected
        assert link.stats()["sessions"] == 1
        renewer.close()
        link.close()
    assert wallet().peer == first.peer
    assert wallet().key != first.key
    assert wallet().curve_public == first.curve_public
    assert ("renew", "arm-1") in head.audited()


def test_a_running_server_shows_its_renewed_certificate_and_keeps_its_streams(head, tmp_path):
    join(head.invite(), tmp_path / "host")
    with closing(Attached(head, tmp_path / "host", "arm-1")) as host:
        until(lambda: host.link.connected)
        old = serial_shown(head.server.port, head.pki)
        for name in ("hub", "teleop"):
            assert head.authority.reissue(name, anew=True)
        assert serial_shown(head.server.port, head.pki) != old
        page = serial_shown(head.page.port, head.pki)
        head.page.renew()
        assert serial_shown(head.page.port, head.pki) != page
        assert host.link.connected
        assert host.link.stats()["sessions"] == 1


def serial_shown(port, pki):
    """Return the serial number of the certificate that a listener shows to a new connection."""
    import socket
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(pki / "ca.crt")
    context.load_cert_chain(pki / "hub.pem")
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port)) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        return tls.getpeercert()["serialNumber"]


def test_the_hub_renews_what_lies_beside_its_authority(tmp_path):
    head = Head(tmp_path / "head", lifetime_s=6.0)
    try:
        before = Credentials.load(head.pki, "teleop").certificate
        with closing(open_tunnel("direct", head.endpoints, DiskWallet(head.pki, "teleop"))) as way:
            assert HubClient(way).status().run == "t"
            time.sleep(4.2)
            head.enrolments.look_now()
            until(lambda: Credentials.load(head.pki, "teleop").certificate != before)
            time.sleep(2.2)  # the first one has run out by now
            assert HubClient(way).status().figures["certificate_left_s"] > 0
        assert ("renew", "teleop") in head.audited()
    finally:
        head.stop()


def test_one_renews_for_itself_only(head, tmp_path):
    join(head.invite(), tmp_path / "host")
    with head.dial(tmp_path / "host", "arm-1") as way:
        key, _ = make_key()
        for other in (Peer("arm-2", Role.ROBOT), Peer("arm-1", Role.SERVICE)):
            with pytest.raises(SecurityError, match="same name and role"):
                EnrolmentClient(way).renew(make_request(key, other))
        with pytest.raises(SecurityError, match="not a certificate signing request"):
            EnrolmentClient(way).renew(b"garbage")
        signed = EnrolmentClient(way).renew(make_request(key, Peer("arm-1", Role.ROBOT)))
    assert parse(signed).public_key() == key.public_key()
    assert ("refuse", "arm-1") in head.audited()


def test_a_host_leaves_and_takes_nobody_with_it(head, tmp_path):
    for name in ("arm-1", "arm-2"):
        join(head.invite(name), tmp_path / name)
    with head.dial(tmp_path / "arm-1", "arm-1") as way, head.dial(tmp_path / "arm-2", "arm-2") as b:
        EnrolmentClient(way).leave()
        assert "arm-1" not in read_allowed(head.pki)
        assert HubClient(b).status().run == "t"
    until(lambda: ("revoke", "arm-1") in head.audited())
    with head.dial(tmp_path / "arm-1", "arm-1") as way, pytest.raises((SecurityError, LinkError)):
        HubClient(way).status()
    with pytest.raises(SecurityError, match="may not call"):
        EnrolmentClient(head.way).leave()  # a part of the head


def test_who_leaves_hears_that_it_has_before_the_tunnel_is_shut(head, tmp_path, monkeypatch):
    """WireGuard takes no packet of a peer that is gone: the answer would never come."""
    settings = {"host": "head.lab", "network": "10.9.0.0/24", "interface": "u7none"}
    admission.publish(head.pki, "wireguard", settings, [])
    join(head.invite(), tmp_path / "arm-1")
    enrolments = Enrolments(head.authority, head.hub.audit, clock := Clock(), FACTS)
    leaver = Peer("arm-1", Role.ROBOT)
    enrolments.leave(leaver)
    assert "arm-1" not in read_allowed(head.pki)
    enrolments.tick()
    assert set(wireguard.read_peers(head.pki)) == {"arm-1"}
    clock.now += 2 * SECOND
    enrolments.tick()
    assert wireguard.read_peers(head.pki) == {}
    join(head.invite(), tmp_path / "new")
    enrolments.leave(leaver)
    join(head.invite(), tmp_path / "newer")
    clock.now += 2 * SECOND
    enrolments.tick()
    assert set(wireguard.read_peers(head.pki)) == {"arm-1"}, "it is back"


def test_a_host_cannot_join_others_through_the_hub(head, tmp_path):
    from comms.invitations import Request, parse_line

    join(head.invite(), tmp_path / "host")
    invitation = parse_line(head.invite("arm-2"))
    request = Request(invitation.id, invitation.secret, b"", b"")
    with (
        head.dial(tmp_path / "host", "arm-1") as way,
        pytest.raises(SecurityError, match="may not call"),
    ):
        EnrolmentClient(way).join(request, "")


def test_certificates_that_nobody_renews_raise_the_alarm(head, tmp_path, caplog):
    join(head.invite(), tmp_path / "host")
    allowed = json.loads((head.pki / "allow.json").read_text())
    for facts in allowed["arm-1"]["certificates"].values():
        facts["until"] -= 90 * 86400 - 3600
        facts["since"] -= 90 * 86400 - 3600
    (head.pki / "allow.json").write_text(json.dumps(allowed))
    head.enrolments.look_now()
    until(lambda: head.hub.status(Peer("kim", Role.ENGINEER)).figures["certificates_late"] == 1)
    assert "the certificate of arm-1 runs out in 1.0 h" in caplog.text
