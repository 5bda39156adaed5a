"""The hub behind the real doors: gRPC over mutual TLS, the fresh lane with CURVE."""

import threading
import time
from contextlib import closing

import numpy as np
import pytest

from comms.authority import Authority
from comms.credentials import AllowList, Credentials, Role
from comms.fresh import FreshPeer
from comms.fresh_hub import FreshHub
from comms.hub_client import HubAttachment, HubClient
from comms.hub_service import HubService
from comms.pb import fresh_pb2, hub_pb2
from comms.serving import serve
from comms.tunnel import Endpoints, open_tunnel
from comms.weight_publisher import WeightPublisher
from comms.weight_puller import Wanted, WeightPuller
from comms.weight_service import WeightService
from comms.weights import list_versions, roll_back
from comms.wire_specs import spec_to_proto
from user_system.core.clock import WallClock
from user_system.core.errors import ConfigError, LeaseError, SecurityError
from user_system.core.schedule import ScheduleConfig
from user_system.core.specs import ActionSpec, Field, Limits, RobotSpec
from user_system.hub.service import Hub, HubConfig

pytestmark = pytest.mark.system


SPEC = RobotSpec(
    kind="sim.fake",
    observation={"q": Field((2,), unit="rad")},
    action=ActionSpec(("dx",), ("m",), (-1.0,), (1.0,), (True,), (0,)),
    limits=Limits(("x",), ("m",), (-1.0,), (1.0,), (1.0,), (1.0,), (1.0,)),
)


class Head:
    """A hub with its servers, ticking; may die and come back on the same ports."""

    def __init__(self, directory, pki):
        self.directory, self.pki = directory, pki
        self.grpc_port = self.fresh_port = 0
        self.start()

    def start(self):
        me, allow = Credentials.load(self.pki, "hub"), AllowList(self.pki)
        self.hub = Hub(
            self.directory,
            HubConfig(
                run="t",
                schedule=ScheduleConfig(run="t", demos=1),
                publishers={"p": "learner", "q": "learner-q"},
            ),
            WallClock(),
            stop=lambda message: self.fresh.send(message),
            announce=lambda now: self.fresh.announce(now.policy, now.version, now.hash, now.age_s),
        )
        self.fresh = FreshHub(
            me,
            allow,
            f"127.0.0.1:{self.fresh_port}",
            owner=self.hub.owner,
            on_message=self.hub.heard,
        )
        self.fresh.start()
        self.hub.open()
        self.server = serve(
            [
                HubService(self.hub),
                WeightService(self.hub.weights, self.hub.roll_back, self.hub.check_publisher),
            ],
            credentials=me,
            allow=allow,
            address=f"127.0.0.1:{self.grpc_port}",
        )
        self.grpc_port, self.fresh_port = self.server.port, self.fresh.port
        self.over = threading.Event()
        self.ticker = threading.Thread(target=self.tick, daemon=True)
        self.ticker.start()

    def tick(self):
        while not self.over.wait(0.05):
            self.hub.tick()

    def stop(self):
        self.over.set()
        self.ticker.join()
        self.server.stop(0.2)
        self.fresh.close()
        self.hub.close()

    def tunnel(self, name):
        endpoints = Endpoints(
            hub=f"127.0.0.1:{self.grpc_port}", fresh=f"127.0.0.1:{self.fresh_port}"
        )
        return open_tunnel("direct", endpoints, Credentials.load(self.pki, name))


@pytest.fixture
def head(tmp_path):
    pki = tmp_path / "pki"
    authority = Authority.open(pki)
    authority.issue("hub", Role.SERVICE)
    authority.issue("teleop", Role.SERVICE)
    authority.issue("edge-1", Role.ROBOT)
    authority.issue("learner", Role.LEARNER)
    authority.issue("learner-q", Role.LEARNER)
    authority.issue("kim", Role.ENGINEER)
    opened = Head(tmp_path / "hub", pki)
    yield opened
    opened.stop()


class Edge:
    """A robot host that answers every wish."""

    def __init__(self, head):
        self.tunnel = head.tunnel("edge-1")
        self.events, self.lock = [], threading.Lock()
        self.link = HubAttachment(self.tunnel, self.hello, self.on_event)
        self.fresh = FreshPeer(self.tunnel, role="robot", robots=("arm-1",))
        self.fresh.start()
        self.link.start()

    def hello(self):
        entry = hub_pb2.RobotEntry(name="arm-1", spec=spec_to_proto(SPEC), task="t", policy="p")
        return hub_pb2.HostHello(host="edge-1", boot="boot-1", robots=[entry])

    def on_event(self, event):
        with self.lock:
            self.events.append(event)
        if event.WhichOneof("event") == "request":
            request = event.request
            self.link.answer(
                hub_pb2.Answer(id=request.id, robot=request.robot, ok=True, mode="hold")
            )

    def of(self, kind):
        with self.lock:
            return [getattr(e, kind) for e in self.events if e.WhichOneof("event") == kind]

    def close(self):
        self.link.close()
        self.fresh.close()
        self.tunnel.close()


@pytest.fixture
def edge(head):
    opened = Edge(head)
    yield opened
    opened.close()


def until(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_a_takeover_lives_through_the_death_of_the_hub(head, edge):
    with closing(head.tunnel("teleop")) as tunnel:
        client = HubClient(tunnel)
        until(lambda: edge.of("grant"))
        lease = client.claim("arm-1", "ann", realtime=True)
        until(lambda: edge.of("grant")[-1].holder == "ann")
        assert client.ask("arm-1", "hold", "ann", token=lease.token).ok
        with pytest.raises(LeaseError, match="held by ann"):
            client.claim("arm-1", "bob")
        head.stop()
        head.start()
        seen = len(edge.of("grant"))
        until(lambda: len(edge.of("grant")) > seen)
        assert client.renew(lease).token == lease.token
        client.yield_(lease)
        until(lambda: edge.of("grant")[-1].holder == "")
        assert edge.of("grant")[-1].token > lease.token


def test_work_weights_and_states_find_their_way(head, edge):
    with closing(head.tunnel("learner")) as learner, closing(head.tunnel("teleop")) as viewer:
        edge.link.want("arm-1")
        until(lambda: edge.of("assignment"))
        modules = {"policy": {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}}
        assert WeightPublisher(learner).publish("p", modules) == 1
        heard = []
        until(
            lambda: (
                heard.extend(edge.fresh.receive(0.1))
                or any(isinstance(m, fresh_pb2.Announcement) and m.version == 1 for m in heard)
            )
        )
        puller = WeightPuller(edge.tunnel)
        transfer = puller.pull(Wanted("p"))
        assert transfer.manifest.version == 1
        assert b"".join(transfer) == modules["policy"]["w"].tobytes()
        puller.close()
        edge.fresh.send(fresh_pb2.RobotState(robot="arm-1", mode="demo", sequence=1))
        until(lambda: HubClient(viewer).status().robots[0].mode == "demo")


def test_a_learner_that_was_started_again_publishes_where_it_shares_the_disk(head):
    """It does not know yet what the store has, lays down all, and sends what that was too much."""
    near, still = head.directory / "weights", {"b": np.zeros(3, np.float32)}
    for value in (1.0, 2.0):
        modules = {"policy": {"w": np.full(6, value, np.float32), **still}}
        with closing(head.tunnel("learner")) as tunnel:
            assert WeightPublisher(tunnel, near=near).publish("p", modules) == int(value)


@pytest.mark.parametrize(
    ("who", "policy", "allowed"),
    [
        ("learner", "q", "allowed: learner-q"),
        ("learner-q", "p", "allowed: learner"),
        ("learner-q", "r", "names no learner for it"),
    ],
)
def test_a_learner_publishes_no_policy_but_its_own(head, who, policy, allowed):
    weights = {"policy": {"w": np.zeros(6, np.float32)}}
    with closing(head.tunnel(who)) as tunnel:
        with pytest.raises(
            SecurityError, match=rf"'{who}' may not publish .*'{policy}'.*{allowed}"
        ):
            WeightPublisher(tunnel).publish(policy, weights)
        assert not head.hub.weights.versions()
        assert WeightPublisher(tunnel).publish({"learner": "p"}.get(who, "q"), weights) == 1
    until(lambda: "to publish" in (log := (head.directory / "audit.jsonl").read_text())
          and f'"who": "{who}"' in log)  # fmt: skip


def test_who_joins_late_has_the_current_version_within_a_second(head, edge):
    with closing(head.tunnel("learner")) as learner:
        WeightPublisher(learner).publish("p", {"policy": {"w": np.zeros(6, np.float32)}})
        time.sleep(0.3)  # whatever was said at once has been said
        began = time.monotonic()
        puller = WeightPuller(edge.tunnel)
        assert puller.pull(Wanted("p")).manifest.version == 1
        assert time.monotonic() - began < 1.0
        puller.close()


def test_going_back_is_audited_and_reaches_the_robots(head, edge):
    with closing(head.tunnel("learner")) as learner:
        publisher = WeightPublisher(learner)
        for value in (1.0, 2.0):
            publisher.publish("p", {"policy": {"w": np.full(6, value, np.float32)}})
    puller = WeightPuller(edge.tunnel)
    with closing(head.tunnel("kim")) as engineer:
        assert [v.version for v in list_versions(engineer)] == [1, 2]
        assert roll_back(engineer, "p", 1) == 3
        with pytest.raises(ConfigError, match="no version 7 to go back to; allowed: 1, 2, 3"):
            roll_back(engineer, "p", 7)
        transfer = puller.pull(Wanted("p", newer_than=2))
        assert transfer.manifest.version == 3
        assert b"".join(transfer) == np.full(6, 1.0, np.float32).tobytes()
    puller.close()
    lines = (head.directory / "audit.jsonl").read_text().splitlines()
    (deed,) = [line for line in lines if "rollback" in line]
    assert "kim" in deed
    assert '"back_to":"1"' in deed.replace(" ", "")


def test_a_stop_reaches_the_host_on_both_lanes(head, edge):
    until(lambda: edge.of("grant"))
    with closing(head.tunnel("teleop")) as tunnel:
        assert HubClient(tunnel).ask("arm-1", "estop", "vic").ok
    assert edge.of("request")[0].event == "estop"
    heard = []
    until(
        lambda: (
            heard.extend(edge.fresh.receive(0.1))
            or any(isinstance(m, fresh_pb2.Stop) for m in heard)
        )
    )
