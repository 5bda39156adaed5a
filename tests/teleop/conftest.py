"""A hub and a fresh lane that live in the test, with robots that move a little."""

import threading
import time
from collections import deque

import numpy as np
import pytest

from comms.pb import fresh_pb2, hub_pb2, types_pb2
from comms.wire import named_to_proto
from user_system.core.errors import LeaseError, LinkError, TransitionError
from user_system.core.modes import Event, Mode, Who, follow
from user_system.teleop.app import TeleopConfig, make_app
from user_system.teleop.auth import Accounts, Role
from user_system.teleop.page import Page

SECRETS = {
    "vic": (Role.VIEWER, "vic-secret"),
    "ann": (Role.OPERATOR, "ann-secret"),
    "bob": (Role.OPERATOR, "bob-secret"),
    "eng": (Role.ENGINEER, "eng-secret"),
}


def spec():
    return types_pb2.RobotSpec(
        kind="sim.fake",
        observation=[types_pb2.FieldSpec(name="q", shape=[3], dtype="float32", unit="m")],
        cameras=[types_pb2.FieldSpec(name="front", shape=[96, 128, 3], dtype="uint8")],
        action=types_pb2.ActionSpec(
            names=["dx", "dy", "dz", "gripper"],
            units=["m"] * 4,
            low=[-0.04, -0.04, -0.04, 0.0],
            high=[0.04, 0.04, 0.04, 0.08],
            delta=[True, True, True, False],
            coordinate=[0, 1, 2, 3],
        ),
        control_hz=10.0,
    )


class FakeWorld:
    """Implements both ports of the page: robots that obey, a hub that grants."""

    def __init__(self, robots=("arm-1", "arm-2")):
        self.lock = threading.RLock()
        self.modes = dict.fromkeys(robots, Mode.AUTO)
        self.purposes = dict.fromkeys(robots, types_pb2.PURPOSE_TRAIN)
        self.helps = dict.fromkeys(robots, "")
        self.left_by = {}
        self.steps = dict.fromkeys(robots, 0)
        self.episodes = dict.fromkeys(robots, 0)
        self.sequences = dict.fromkeys(robots, 0)
        self.positions = {name: np.zeros(4) for name in robots}
        self.leases = {}
        self.token = 100
        self.commands, self.stops, self.asked, self.yielded = [], [], [], []
        self.outbox = deque()
        self.fresh_event = threading.Event()
        self.away = False
        self.stale_s = 0.0
        self.figures = {"env_steps": 1240.0, "success_rate": 0.65, "intervention_rate": 0.12}
        self.curve = []
        self.on_command = lambda command: None

    # --- HubPort ---------------------------------------------------------------------------------

    def claim(self, robot, operator, *, realtime=False, force_reason=""):
        with self.lock:
            self._reachable(robot)
            held = self.leases.get(robot)
            if held and held.operator != operator and not force_reason:
                raise LeaseError(f"{robot} is held by {held.operator}")
            self.token += 1
            lease = hub_pb2.Lease(
                robot=robot, operator=operator, token=self.token, ttl_ms=2000, boot="boot-1"
            )
            self.leases[robot] = lease
            return lease

    def renew(self, lease):
        with self.lock:
            self._reachable(lease.robot)
            if self.leases.get(lease.robot) != lease:
                raise LeaseError(f"{lease.operator} does not hold {lease.robot}")
            return lease

    def yield_(self, lease):
        with self.lock:
            if self.leases.get(lease.robot) == lease:
                del self.leases[lease.robot]
            self.yielded.append(lease.robot)

    def ask(self, robot, event, operator, *, token=0, success=None, id="", timeout_s=5.0):
        with self.lock:
            self._reachable(robot)
            self.asked.append((robot, event, operator, success))
            who = Who.ANYONE if event == Event.ESTOP else Who.OPERATOR
            try:
                self.modes[robot] = follow(self.modes[robot], Event(event), who)
            except TransitionError as error:
                return hub_pb2.Answer(
                    robot=robot, ok=False, mode=self.modes[robot].value, error=str(error)
                )
            if self.modes[robot] is Mode.HANDBACK:
                self.modes[robot] = Mode.AUTO
            if event in (Event.HAND_BACK, Event.DONE):
                self.helps[robot] = ""
            return hub_pb2.Answer(
                robot=robot, ok=True, mode=self.modes[robot].value, answered_s=time.monotonic()
            )

    def status(self):
        with self.lock:
            self._reachable("arm-1")
            robots = [
                hub_pb2.RobotStatus(
                    name=name,
                    host="edge-1",
                    kind="sim.fake",
                    task="pick a cube",
                    online=True,
                    mode=mode.value,
                    holder=self.leases[name].operator if name in self.leases else "",
                    help=self.helps[name],
                    version=7,
                    spec=spec(),
                )
                for name, mode in self.modes.items()
            ]
            return hub_pb2.SystemStatus(
                run="demo",
                phase="train",
                robots=robots,
                policy_version=7,
                figures=self.figures | {"updates_per_s": 31.0, "weights_age_s": 0.4},
                curve=[
                    hub_pb2.CurvePoint(env_steps=s, success_rate=a, intervention_rate=b)
                    for s, a, b in self.curve
                ],
                evaluations=[hub_pb2.Evaluation(version=0, episodes=20, successes=1)],
            )

    # --- FreshPort -------------------------------------------------------------------------------

    def send(self, message):
        with self.lock:
            if isinstance(message, fresh_pb2.Stop):
                self.stops.append(message)
                self.modes[message.robot] = Mode.ESTOP
                return
            self.commands.append(message)
            moved = np.nan_to_num(np.asarray(message.action))
            self.positions[message.robot][: len(moved)] += moved
            self.on_command(message)

    def receive(self, timeout_s):
        self.fresh_event.wait(timeout_s)
        with self.lock:
            self.fresh_event.clear()
            messages = list(self.outbox)
            self.outbox.clear()
            return messages

    # --- the robots ------------------------------------------------------------------------------

    def show(self, *messages):
        with self.lock:
            self.outbox.extend(messages)
            self.fresh_event.set()

    def state(self, robot):
        with self.lock:
            self.sequences[robot] += 1
            holder = self.leases[robot].operator if robot in self.leases else ""
            return fresh_pb2.RobotState(
                robot=robot,
                boot="boot-1",
                sequence=self.sequences[robot],
                mode=self.modes[robot].value,
                holder=holder,
                purpose=self.purposes[robot],
                episode=f"demo-{self.episodes[robot]:06d}",
                step=self.steps[robot],
                help=self.helps[robot],
                rate=1.0,
                version=7,
                observation=named_to_proto({"q": self.positions[robot][:3].astype(np.float32)}),
                figures={
                    "spool_fragments": 3.0,
                    "sent_s": time.monotonic(),
                    "weights_stale_s": self.stale_s,
                },
                left_by=self.left_by.get(robot, ""),
            )

    def _reachable(self, robot):
        if self.away:
            raise LinkError("the hub does not answer")
        if robot not in self.modes:
            raise LinkError(f"no robot is called {robot!r}")


@pytest.fixture
def world():
    return FakeWorld()


@pytest.fixture
def make_page(world):
    def make(**options):
        return make_app(
            TeleopConfig(run="demo", **options), accounts=Accounts(SECRETS), hub=world, fresh=world
        )

    return make


@pytest.fixture
def page(make_page):
    """A served page without anybody moving the robots."""
    served = Page(make_page(), port=0)
    served.start()
    yield served
    served.close()


def wait_until(condition, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("it did not happen in time")
        time.sleep(0.01)


@pytest.fixture
def until():
    return wait_until
