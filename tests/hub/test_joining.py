"""From an invitation's line to a call to the hub: page, hub and host as they are, on loopback."""

import json
import threading
import time
from contextlib import closing

import pytest

from comms import admission, ssh_keys, wireguard
from comms.authority import Authority
from comms.credentials import AllowList, Role
from comms.enrolment import EnrolmentClient, EnrolmentService
from comms.fresh_hub import FreshHub
from comms.hub_client import HubClient
from comms.hub_service import HubService
from comms.invitations import Invitations
from comms.joining import join
from comms.serving import serve
from comms.tunnel import Endpoints, open_tunnel
from comms.wallet import DiskWallet
from user_system.core.clock import WallClock
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
        self.hub.also(enrolments.tick, enrolments.figures)
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
