"""Messages that were good once, sent again: by whom, when and how often somebody likes.

Below TLS and CURVE nothing can be replayed: both number and authenticate what they carry. So these
are messages of peers that are enrolled: sent again by themselves, by others, later, over another
connection, under another lease, and after hub, agent or driver were started anew. From the page's
message to the gate: the hub's lane and leases, the robot's session, the gate in front of the motor.
"""

import random
from typing import Any

import numpy as np
import pytest

from comms.credentials import Peer, Role
from comms.pb import fresh_pb2, hub_pb2
from comms.switchboard import Switchboard
from robots.gate import Command, CommandGate
from user_system.core.clock import MS, SECOND
from user_system.core.errors import LeaseError, LinkError, SecurityError
from user_system.core.interfaces import ResetPlan
from user_system.core.modes import HUMAN_MODES, Mode
from user_system.core.specs import Limits
from user_system.core.types import Purpose, Reading
from user_system.edge.leases import Leases as HeldLeases
from user_system.edge.messages import Assignment, Grant, Request
from user_system.edge.patience import SessionConfig
from user_system.edge.session import Session
from user_system.edge.uplink import _command
from user_system.edge.wire import Telemetry
from user_system.hub.leases import Holding, Leases

COUNT = 1000
PAGE, BOB = Peer("teleop", Role.SERVICE), Peer("bob", Role.OPERATOR)
HOST = Peer("host-1", Role.ROBOT)
LIMITS = Limits(
    names=("x", "y"), units=("m", "m"), low=(-1.0, -1.0), high=(1.0, 1.0),
    velocity=(1.0, 1.0), acceleration=(5.0, 5.0), jerk=(50.0, 50.0),
)  # fmt: skip


class ManualClock:
    now = 10**12

    def now_ns(self) -> int:
        return self.now

    def sleep_until(self, deadline_ns: int) -> None:
        self.now = max(self.now, deadline_ns)


class System:
    """One robot from the page's messages to its gate, with time in the test's hands."""

    def __init__(self, tmp_path: Any):
        self.clock = ManualClock()
        self.path = tmp_path / "tokens.json"
        self.facts: dict[str, Any] = {}
        self.agent_lives = self.driver_lives = 0
        self.refusals: list[str] = []
        self.at_gate: list[Command] = []
        self.start_hub()
        self.start_agent()
        self.start_driver()
        self.lease = self.claim("ann")

    # --- lives -----------------------------------------------------------------------------------

    def start_hub(self) -> None:
        self.leases = Leases(self.path, self.clock, ttl_s=1e6, changed=self.granted)
        self.leases.open()
        self.board = Switchboard(lambda robot: "host-1", None)
        self.connect()

    def connect(self) -> None:
        hello = fresh_pb2.FreshHello(role="robot", robots=["arm-1"])
        self.board.receive(b"host", HOST, hello)

    def start_agent(self) -> None:
        self.agent_lives += 1
        held = HeldLeases(self.clock, self.facts, self.facts.update)
        boot = f"agent-{self.agent_lives}"
        self.session = Session("arm-1", SessionConfig(), held, self.clock, boot)
        self.granted(self.leases.current("arm-1"))
        self.session.worker_ready()
        self.see()
        self.clock.now += MS
        self.session.tick()
        self.session.assign(Assignment("arm-1", Purpose.TRAIN, "t", 1, f"e{self.agent_lives}"))
        self.session.tick()
        self.session.begun(ResetPlan(((0.0, 0.0),), {}))
        self.session.reset_reached()
        self.see()
        self.session.tick()
        assert self.session.mode is Mode.AUTO

    def start_driver(self) -> None:
        self.driver_lives += 1
        fence = self.gate.fence if self.driver_lives > 1 else 0
        self.gate = CommandGate(
            LIMITS, tick_hz=100.0, hold_after_ms=200.0, stop_after_ms=1e6,
            boot=f"driver-{self.driver_lives}", fence=fence,
        )  # fmt: skip
        self.gate.start(np.zeros(2))

    def see(self) -> None:
        scene = 0
        for effect in self.session.effects:
            if type(effect).__name__ == "Scene":
                scene = 1
                self.session.scene_as(1)
        self.session.effects.clear()
        reading = Reading({}, np.zeros(2), self.clock.now, self.clock.now, 1.0, "")
        self.session.seen(Telemetry(reading, np.zeros(2), "b", released=0, scene=scene))

    def granted(self, holding: Holding) -> None:
        if hasattr(self, "session"):
            ttl = holding.ttl_ms(self.clock.now)
            self.session.grant(Grant("arm-1", holding.token, holding.holder, ttl, False))

    # --- people ----------------------------------------------------------------------------------

    def claim(self, operator: str) -> Holding:
        lease, _ = self.leases.claim("arm-1", operator, realtime=False, force=True)
        return lease

    def drive(self) -> None:
        """Bring the robot into the hands of whoever holds its lease."""
        for event in ("hold", "recover"):
            answer = self.session.request(
                Request("arm-1", event, self.lease.holder, self.lease.token, "", None)
            )
            assert answer.ok, answer
        assert self.session.mode in HUMAN_MODES

    def command(self, sequence: int) -> fresh_pb2.OperatorCommand:
        return fresh_pb2.OperatorCommand(
            robot="arm-1", operator=self.lease.holder, token=self.lease.token,
            boot=self.session.boot, sequence=sequence, valid_ms=10_000, action=[0.1, 0.1],
            seen_s=self.clock.now / SECOND,
        )  # fmt: skip

    # --- the way of a message --------------------------------------------------------------------

    def send(
        self, message: fresh_pb2.OperatorCommand, peer: Peer = PAGE, identity: bytes = b"1"
    ) -> bool:
        """Send a command; return whether the gate took it."""
        try:
            self.board.receive(identity, peer, fresh_pb2.OperatorCommand.FromString(
                message.SerializeToString()
            ))  # fmt: skip
        except SecurityError as error:
            self.refusals.append(type(error).__name__)
            return False
        taken = False
        for delivered in self.board.sessions[b"host"].mailbox.take_all(0.0):
            try:
                counts = self.session.command(_command(delivered))
            except (LeaseError, LinkError) as error:
                self.refusals.append(type(error).__name__)
                continue
            if not counts:
                self.refusals.append("sequence")
                continue
            self.at_gate.append(
                Command(
                    self.session.leases.token,
                    self.gate.boot,
                    len(self.at_gate),
                    self.clock.now + SECOND,
                    np.zeros(2),
                )
            )
            taken |= self.gate.offer(self.at_gate[-1], self.clock.now).accepted
        return taken


@pytest.fixture
def system(tmp_path):
    return System(tmp_path)


@pytest.fixture
def recorded(system):
    """A thousand commands that somebody wrote down when they were good."""
    system.drive()
    said = []
    for sequence in range(1, COUNT + 1):
        system.clock.now += 20 * MS
        said.append(system.command(sequence))
        assert system.send(said[-1])
    assert len(system.at_gate) == COUNT
    assert not system.refusals
    return said


def replay(system, said, **how) -> int:
    """Send all again, in any order; return how many the gate took. What is new goes on working."""
    before = len(system.refusals)
    shuffled = random.Random(1).sample(said, len(said))
    taken = sum(system.send(message, **how) for message in shuffled)
    assert len(system.refusals) - before == len(said) - taken, "each is counted"
    return taken


@pytest.mark.parametrize("pause_s", [0.0, 0.1, 3600.0])
def test_in_the_same_session(system, recorded, pause_s):
    system.clock.now += int(pause_s * SECOND)
    assert replay(system, recorded) == 0
    assert set(system.refusals) == {"sequence"}
    assert system.send(system.command(COUNT + 1))


@pytest.mark.parametrize(
    "peer",
    [
        BOB,
        Peer("ann2", Role.OPERATOR),
        Peer("eve", Role.VIEWER),
        Peer("host-2", Role.ROBOT),
        Peer("learner", Role.LEARNER),
        Peer("rogue", Role.SERVICE),
        Peer("kim", Role.ENGINEER),
    ],
)
def test_by_another_peer(system, recorded, peer):
    assert replay(system, recorded, peer=peer, identity=b"other") == 0


def test_by_another_peer_before_the_first_one_could(system):
    """Whoever is faster than the page with its own words is no other than it; or is refused."""
    system.drive()
    fresh = system.command(1)
    assert not system.send(fresh, peer=BOB, identity=b"other")
    assert system.send(fresh)


def test_after_a_reconnect(system, recorded):
    system.board.forget(system.board.sessions[b"host"])
    system.connect()
    assert replay(system, recorded, identity=b"new connection") == 0
    assert system.send(system.command(COUNT + 1), identity=b"new connection")


@pytest.mark.parametrize("who", ["ann", "bob"])
def test_under_a_new_lease(system, recorded, who):
    system.lease = system.claim(who)
    if system.session.mode not in HUMAN_MODES:
        system.session.request(Request("arm-1", "recover", who, system.lease.token, "", None))
    assert replay(system, recorded) == 0
    assert set(system.refusals) == {"LeaseError"}
    assert system.send(system.command(1))


def test_after_the_lease_was_given_back(system, recorded):
    system.leases.release("arm-1", "ann", system.lease.token)
    assert replay(system, recorded) == 0


def test_after_a_new_life_of_the_hub(system, recorded):
    system.start_hub()
    system.granted(system.leases.current("arm-1"))
    assert system.leases.holder("arm-1") == "ann", "a takeover outlives it"
    assert replay(system, recorded) == 0
    assert system.send(system.command(COUNT + 1))


def test_after_a_hub_that_lost_everything(system, recorded):
    system.path.unlink()
    floor = system.lease.token + 1000  # the wall time in seconds, see ``HubConfig.token_floor``
    system.leases = Leases(system.path, system.clock, ttl_s=1e6, floor=floor)
    system.leases.open()
    system.granted(system.leases.current("arm-1"))
    assert replay(system, recorded) == 0


def test_after_a_new_life_of_the_agent(system, recorded):
    """The lease lives on, with its token: it is the boot id that tells the lives apart."""
    system.start_agent()
    system.drive()
    assert replay(system, recorded) == 0
    assert set(system.refusals) == {"LeaseError"}
    assert system.send(system.command(1))


def test_at_the_gate_itself(system, recorded):
    """Even who could speak to a driver: same life, next life, and with the newest token."""
    offer = system.gate.offer
    assert not any(offer(command, system.clock.now).accepted for command in system.at_gate)
    system.start_driver()
    offer = system.gate.offer
    assert not any(offer(command, system.clock.now).accepted for command in system.at_gate)
    stolen = [
        Command(10**9, command.boot, command.sequence, command.deadline_ns, command.target)
        for command in system.at_gate
    ]
    assert not any(offer(command, system.clock.now).accepted for command in stolen)


def test_commands_that_were_held_back_and_come_late(system):
    """A line that stalls and then delivers all at once moves nothing."""
    system.drive()
    system.clock.now += 20 * MS
    assert system.send(system.command(1))
    held = []
    for sequence in range(2, 100):
        system.clock.now += 20 * MS
        held.append(system.command(sequence))
    system.clock.now += 3 * SECOND
    assert sum(system.send(message) for message in held) == 0


# --- requests, leases and stops -------------------------------------------------------------------


def test_requests_of_a_lease_that_is_over(system):
    system.drive()
    old = system.lease
    wishes = [
        Request("arm-1", event, "ann", old.token, f"id-{event}-{n}", None)
        for n in range(50)
        for event in ("hold", "recover", "correct", "rewind", "hand_back", "release", "reset")
    ]
    system.lease = system.claim("bob")
    mode = system.session.mode
    assert not any(system.session.request(wish).ok for wish in wishes)
    assert system.session.mode is mode
    for wish in wishes:
        with pytest.raises(LeaseError):
            system.leases.check(wish.robot, wish.operator, wish.token)
        with pytest.raises(LeaseError):
            system.leases.renew(wish.robot, wish.operator, wish.token)
        with pytest.raises(LeaseError):
            system.leases.release(wish.robot, wish.operator, wish.token)
    assert system.leases.holder("arm-1") == "bob"


def test_a_request_with_an_id_that_was_answered_does_nothing_again(system):
    system.drive()
    wish = Request("arm-1", "hold", "ann", system.lease.token, "id-1", None)
    first = system.session.request(wish)
    system.session.request(Request("arm-1", "recover", "ann", system.lease.token, "", None))
    mode = system.session.mode
    assert {system.session.request(wish) for _ in range(COUNT)} == {first}
    assert system.session.mode is mode


def test_grants_that_are_older_than_the_newest(system):
    """As a hub that was restored from a backup would send them."""
    old = [Grant("arm-1", token, "eve", 60_000, False) for token in range(system.lease.token)]
    for grant in old * 100:
        system.session.grant(grant)
    assert system.session.leases.holder == "ann"
    assert system.session.leases.stale == len(old) * 100


def test_stops_again_stop_again_and_nothing_else(system):
    """The safe side: a stop needs no freshness. Who may not stop is refused, however often."""
    stop = fresh_pb2.Stop(robot="arm-1", operator="ann")
    for peer in (HOST, Peer("learner", Role.LEARNER), Peer("host-2", Role.ROBOT)):
        for _ in range(COUNT):
            with pytest.raises(SecurityError):
                system.board.receive(b"x", peer, stop)
    for _ in range(COUNT):
        system.board.receive(b"1", PAGE, stop)
    assert system.board.sessions[b"host"].mailbox.take_all(0.0) == [stop]


def test_an_answer_of_another_robot_is_no_answer():
    """A host that knows the id of a request to another one cannot answer in its place."""
    import threading

    from user_system.hub.commands import Wishes

    asked = threading.Event()
    wishes = Wishes(lambda request: asked.set())
    request = hub_pb2.Request(id="i", robot="arm-1", event="release")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(wishes.ask(request, 60.0)))
    thread.start()
    assert asked.wait(60.0)
    wishes.answer(hub_pb2.Answer(id="i", robot="arm-2", ok=True))
    right = hub_pb2.Answer(id="i", robot="arm-1", ok=False)
    wishes.answer(right)
    thread.join(60.0)
    assert answers == [right]
