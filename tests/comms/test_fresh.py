"""The fresh lane: the newest wins, stops arrive, nobody says what is not theirs to say."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from comms import fresh_hub
from comms.authority import Authority
from comms.credentials import AllowList, Credentials, Peer, Role
from comms.fresh import FreshPeer
from comms.fresh_hub import FreshHub
from comms.link import Link
from comms.mailbox import encode
from comms.pb import fresh_pb2 as pb
from comms.switchboard import Switchboard
from comms.tunnel import DirectTunnel, Endpoints
from user_system.core.errors import MissingError, SecurityError

GENEROUS_S = 60.0


def wait_until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + GENEROUS_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def command(sequence: int = 0, operator: str = "ada", robot: str = "arm-1") -> pb.OperatorCommand:
    return pb.OperatorCommand(
        robot=robot, operator=operator, sequence=sequence, valid_ms=60_000, action=[0.1, 0.2]
    )


@pytest.fixture
def heard() -> list[tuple[Peer, Any]]:
    return []


@pytest.fixture
def hub(
    credentials: Callable[[str], Credentials], allow: AllowList, heard: list[tuple[Peer, Any]]
) -> Iterator[FreshHub]:
    hub = FreshHub(
        credentials("hub"), allow, on_message=lambda peer, message: heard.append((peer, message))
    )
    hub.start()
    yield hub
    hub.close()


@pytest.fixture
def dial(
    hub: FreshHub, credentials: Callable[[str], Credentials]
) -> Iterator[Callable[..., FreshPeer]]:
    peers = []

    def dial(name: str, role: Any, port: int = 0, **wants: Any) -> FreshPeer:
        tunnel = DirectTunnel(Endpoints(fresh=f"127.0.0.1:{port or hub.port}"), credentials(name))
        peers.append(FreshPeer(tunnel, role=role, **wants))
        peers[-1].start()
        return peers[-1]

    yield dial
    for peer in peers:
        peer.close()


@pytest.fixture
def robot(hub: FreshHub, dial: Callable[..., FreshPeer]) -> FreshPeer:
    robot = dial("host-1", "robot", robots=["arm-1"])
    wait_until(lambda: hub.stats()["robots"] == 1)
    return robot


@pytest.fixture
def operator(hub: FreshHub, robot: FreshPeer, dial: Callable[..., FreshPeer]) -> FreshPeer:
    operator = dial("ada", "viewer", robots=["*"], previews=["arm-1"])
    wait_until(lambda: hub.stats()["peers"] == 2)
    return operator


def next_of(peer: FreshPeer, kind: type) -> Any:
    deadline = time.monotonic() + GENEROUS_S
    while time.monotonic() < deadline:
        for message in peer.receive(0.5):
            if isinstance(message, kind):
                return message
    raise AssertionError(f"no {kind.__name__} came")


def test_commands_states_and_previews_find_their_way(
    robot: FreshPeer, operator: FreshPeer, heard: list[tuple[Peer, Any]]
) -> None:
    operator.send(command(7))
    got = next_of(robot, pb.OperatorCommand)
    assert (got.sequence, list(got.action)) == (7, pytest.approx([0.1, 0.2]))
    robot.send(pb.RobotState(robot="arm-1", mode="auto", sequence=3))
    assert next_of(operator, pb.RobotState).mode == "auto"
    robot.send(pb.Preview(robot="arm-1", camera="wrist", jpeg=b"x" * 30_000))
    assert len(next_of(operator, pb.Preview).jpeg) == 30_000
    operator.send(pb.Stop(robot="arm-1", operator="ada"))
    assert next_of(robot, pb.Stop).operator == "ada"
    assert [(peer.name, type(message)) for peer, message in heard] == [
        ("ada", pb.OperatorCommand),
        ("host-1", pb.RobotState),
        ("ada", pb.Stop),
    ]


def test_a_robot_host_measures_its_link_and_shows_pictures_whole(
    hub: FreshHub, dial: Callable[..., FreshPeer]
) -> None:
    link = Link()
    robot = dial("host-1", "robot", robots=["arm-1"], link=link)
    wait_until(lambda: "rtt_ms" in link.stats())
    operator = dial("ada", "viewer", robots=["*"], previews=["arm-1"])
    wait_until(lambda: hub.stats()["peers"] == 2)
    data = bytes(range(256)) * 400
    robot.send(pb.Preview(robot="arm-1", camera="wrist", sequence=4, wall_ns=9, jpeg=data))
    got = next_of(operator, pb.Preview)
    assert (got.jpeg, got.sequence, got.wall_ns, got.parts) == (data, 4, 9, 0)
    assert robot.stats()["sent"] > 20, "it went in pieces, on a link of which little is known"
    wait_until(lambda: not link.up.busy)
    assert 0 < link.stats()["base_rtt_ms"] < 1000 * GENEROUS_S
    assert link.stats()["rate_mbit_s"] > 0
    operator.send(command(1))
    assert next_of(robot, pb.OperatorCommand).sequence == 1, "an echo is no message"


def test_a_ping_is_answered_to_whoever_is_known_and_nobody_else() -> None:
    board = Switchboard(None, None)
    peer = Peer("host-1", Role.ROBOT)
    board.receive(b"x", peer, pb.Ping(sent_s=1.5, bytes=7))
    assert board.stats()["undeliverable"] == 1
    board.receive(b"x", peer, pb.FreshHello(role="robot", robots=["arm-1"]))
    before = time.monotonic()
    board.receive(b"x", peer, pb.Ping(sent_s=1.5, bytes=7))
    (pong,) = board.sessions[b"x"].mailbox.take_all(0.0)
    assert isinstance(pong, pb.Pong)
    assert (pong.sent_s, pong.bytes) == (1.5, 7)
    assert pong.there_s >= before
    with pytest.raises(SecurityError, match="may not send a pong"):
        board.receive(b"x", peer, pb.Pong())


def test_parts_of_pictures_reach_nobody_before_the_picture_is_whole() -> None:
    board = Switchboard(None, None)
    host, viewer = Peer("host-1", Role.ROBOT), Peer("eve", Role.VIEWER)
    part = pb.Preview(robot="arm-1", camera="c", sequence=1, part=0, parts=2, jpeg=b"a")
    last = pb.Preview(robot="arm-1", camera="c", sequence=1, part=1, parts=2, jpeg=b"b")
    board.receive(b"v", viewer, pb.FreshHello(role="viewer", previews=["*"]))
    mailbox = board.sessions[b"v"].mailbox
    board.receive(b"h", host, part)
    board.receive(b"h", host, last)
    assert mailbox.take_all(0.0) == [], "it has not said hello: nothing of it is kept"
    board.receive(b"h", host, pb.FreshHello(role="robot", robots=["arm-1"]))
    board.receive(b"h", host, part)
    assert mailbox.take_all(0.0) == []
    board.receive(b"h", host, last)
    (whole,) = mailbox.take_all(0.0)
    assert isinstance(whole, pb.Preview)
    assert (whole.jpeg, whole.parts) == (b"ab", 0)


def test_viewers_hear_what_they_asked_for(
    hub: FreshHub, robot: FreshPeer, dial: Callable[..., FreshPeer]
) -> None:
    one = dial("eve", "viewer", robots=["arm-1"])
    other = dial("kim", "viewer", robots=["arm-2"], previews=["*"])
    wait_until(lambda: hub.stats()["peers"] == 3)
    for sequence in range(5):
        robot.send(pb.RobotState(robot="arm-1", sequence=sequence))
        robot.send(pb.Preview(robot="arm-1", camera="wrist", sequence=sequence))
    assert next_of(one, pb.RobotState)
    assert next_of(other, pb.Preview)
    other.subscribe(robots=["*"], previews=[])
    deadline = time.monotonic() + GENEROUS_S
    got: list[Any] = []
    while not any(isinstance(message, pb.RobotState) for message in got):
        assert time.monotonic() < deadline
        robot.send(pb.RobotState(robot="arm-1"))
        got = other.receive(0.05)
    assert not any(isinstance(message, pb.Preview) for message in one.receive(0.05))


def test_versions_are_announced_at_once_and_again(
    hub: FreshHub, robot: FreshPeer, operator: FreshPeer, dial: Callable[..., FreshPeer]
) -> None:
    hub.announce("p", 3, "abc", age_s=5.0)
    for peer in (robot, operator):
        first = next_of(peer, pb.Announcement)
        assert (first.policy, first.version, first.hash) == ("p", 3, "abc")
        assert first.age_s >= 5.0
    again = next_of(robot, pb.Announcement)
    assert again.version == 3
    assert again.age_s > first.age_s
    late = dial("host-2", "robot", robots=["arm-2"])
    assert next_of(late, pb.Announcement).version == 3
    hub.announce("p", 4, "def")
    wait_until(lambda: next_of(robot, pb.Announcement).version == 4)


def test_the_newest_wins_on_a_link_that_does_not_move(
    hub: FreshHub, cutter: Any, operator: FreshPeer, dial: Callable[..., FreshPeer]
) -> None:
    """The operator never waits, hardly anything queues, and what comes last arrives."""
    cutter.target = hub.port
    slow = dial("teleop", "viewer", cutter.port, robots=["*"])
    robot = dial("host-1", "robot", robots=["arm-1"])
    wait_until(lambda: hub.stats()["peers"] == 4)
    cutter.moving.clear()
    for sequence in range(10_000):
        slow.send(command(sequence, operator="x" * 100))
    assert slow.stats()["out_waiting"] <= 2
    cutter.moving.set()
    got = 0
    while next_of(robot, pb.OperatorCommand).sequence != 9_999:
        got += 1
    # What had left the mailbox was in queues of ZeroMQ and the kernel, which are kept short.
    assert got < 5_000
    assert slow.stats()["out_replaced"] > 5_000


def test_a_viewer_that_does_not_read_slows_nobody(
    hub: FreshHub,
    robot: FreshPeer,
    operator: FreshPeer,
    credentials: Callable[[str], Credentials],
) -> None:
    """A connection whose bytes nobody takes: its previews are replaced, others' arrive."""
    context = zmq.Context()
    tunnel = DirectTunnel(Endpoints(fresh=f"127.0.0.1:{hub.port}"), credentials("eve"))
    socket = tunnel.fresh(context)
    socket.setsockopt(zmq.RCVHWM, 1)
    socket.send_multipart(encode(pb.FreshHello(role="viewer", previews=["*"])))
    wait_until(lambda: hub.stats()["peers"] == 3)
    hello = encode(pb.FreshHello(role="viewer", previews=["*"]))
    last = 300
    for sequence in range(last + 1):
        robot.send(
            pb.Preview(robot="arm-1", camera="wrist", sequence=sequence, jpeg=bytes(200_000))
        )
        if sequence % 50 == 0:
            socket.send_multipart(hello)
        next_of(operator, pb.Preview)
    assert hub.stats()["replaced"] > 0
    assert hub.stats()["waiting"] <= 4
    operator.send(pb.Stop(robot="arm-1"))
    assert next_of(robot, pb.Stop)
    socket.close(linger=0)
    context.term()


def test_stops_are_not_lost_among_commands(
    robot: FreshPeer, dial: Callable[..., FreshPeer]
) -> None:
    operator = dial("teleop", "viewer")  # who speaks for many people
    names = [f"op{k}" for k in range(50)]
    for k, name in enumerate(names):
        for sequence in range(20):
            operator.send(command(20 * k + sequence))
        operator.send(pb.Stop(robot="arm-1", operator=name))
    got: list[str] = []
    while len(got) < len(names):
        got += [m.operator for m in robot.receive(GENEROUS_S) if isinstance(m, pb.Stop)]
    assert got == names


def test_a_stop_waits_for_a_host_that_is_away(
    hub: FreshHub, dial: Callable[..., FreshPeer]
) -> None:
    operator = dial("ada", "viewer")
    operator.send(pb.Stop(robot="arm-1", operator="ada"))
    operator.send(command())
    wait_until(lambda: hub.stats()["held_stops"] == 1 and hub.stats()["undeliverable"] == 1)
    robot = dial("host-1", "robot", robots=["arm-1"])
    assert [type(m) for m in robot.receive(GENEROUS_S)] == [pb.Stop]


def test_the_hubs_own_stop(hub: FreshHub, robot: FreshPeer) -> None:
    hub.send(pb.Stop(robot="arm-1", operator="hub"))
    assert next_of(robot, pb.Stop).operator == "hub"


def test_links_break_and_come_back(
    hub: FreshHub, cutter: Any, dial: Callable[..., FreshPeer], operator: FreshPeer
) -> None:
    cutter.target = hub.port
    robot = dial("host-1", "robot", cutter.port, robots=["arm-1"])
    for sequence in range(1, 4):
        deadline = time.monotonic() + GENEROUS_S
        got: list[Any] = []
        while not any(getattr(m, "sequence", 0) == sequence for m in got):
            assert time.monotonic() < deadline
            operator.send(command(sequence))
            got = robot.receive(0.05)
        cutter.cut()


def test_the_hub_restarts(
    credentials: Callable[[str], Credentials], allow: AllowList, cutter: Any
) -> None:
    tunnel = DirectTunnel(Endpoints(fresh=f"127.0.0.1:{cutter.port}"), credentials("host-1"))
    robot = FreshPeer(tunnel, role="robot", robots=["arm-1"])
    robot.start()
    for version in (1, 2):
        hub = FreshHub(credentials("hub"), allow)
        hub.start()
        cutter.target = hub.port
        hub.announce("p", version, "h")
        wait_until(lambda version=version: next_of(robot, pb.Announcement).version == version)
        hub.close()
        cutter.cut()
    robot.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("eve", command(operator="eve")),
        ("host-2", command(operator="host-2")),
        ("learner", command(operator="learner")),
        ("ada", command(operator="bob")),
        ("host-2", pb.Stop(robot="arm-1")),
        ("learner", pb.Stop(robot="arm-1")),
        ("host-2", pb.RobotState(robot="arm-1")),
        ("host-2", pb.Preview(robot="arm-1")),
        ("teleop", pb.RobotState(robot="arm-1")),
        ("kim", pb.Announcement(policy="p", version=99)),
        ("host-1", pb.Announcement(policy="p", version=99)),
        ("host-2", pb.FreshHello(role="robot", robots=["arm-1"])),
        ("kim", pb.FreshHello(role="robot", robots=["arm-9"])),
        ("host-1", pb.FreshHello(role="viewer", robots=["*"])),
        ("learner", pb.FreshHello(role="viewer", robots=["*"])),
    ],
)
def test_what_is_not_theirs_to_say_is_not_passed_on(
    name: str,
    message: Any,
    hub: FreshHub,
    robot: FreshPeer,
    operator: FreshPeer,
    credentials: Callable[[str], Credentials],
    heard: list[tuple[Peer, Any]],
) -> None:
    context = zmq.Context()
    tunnel = DirectTunnel(Endpoints(fresh=f"127.0.0.1:{hub.port}"), credentials(name))
    socket = tunnel.fresh(context)
    assert socket.poll(GENEROUS_S * 1000, zmq.POLLOUT)
    socket.send_multipart(encode(message))
    wait_until(lambda: hub.stats()["denied"] == 1)
    operator.send(command(5))
    assert next_of(robot, pb.OperatorCommand).sequence == 5, "the robot still has its host"
    assert [peer.name for peer, _ in heard] == ["ada"]
    assert operator.receive(0.01) == []
    socket.close(linger=0)
    context.term()


def test_roles_that_may_command(
    hub: FreshHub, robot: FreshPeer, dial: Callable[..., FreshPeer]
) -> None:
    for name in ("teleop", "kim"):
        dial(name, "viewer").send(command(operator="bob"))
        assert next_of(robot, pb.OperatorCommand).operator == "bob"
    dial("eve", "viewer").send(pb.Stop(robot="arm-1", operator="eve"))
    assert next_of(robot, pb.Stop).operator == "eve"


def test_strangers_do_not_get_through_the_handshake(
    hub: FreshHub, tmp_path: Path, credentials: Callable[[str], Credentials]
) -> None:
    stranger = Authority.open(tmp_path).issue("ada", Role.OPERATOR)
    for named in (True, False):
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IMMEDIATE, 1)
        if named:
            socket.setsockopt(zmq.CURVE_SERVERKEY, credentials("hub").curve_public)
            socket.setsockopt(zmq.CURVE_PUBLICKEY, stranger.curve_public)
            socket.setsockopt(zmq.CURVE_SECRETKEY, stranger.curve_secret)
        socket.connect(f"tcp://127.0.0.1:{hub.port}")
        if named:
            wait_until(lambda: hub.stats()["strangers"] >= 1)
        assert not socket.poll(500, zmq.POLLOUT), "the handshake went through"
        socket.close(linger=0)
        context.term()
    assert hub.stats()["received"] == 0


def test_a_revoked_key_is_refused_on_a_connection_that_stands(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path)
    hub = FreshHub(authority.issue("hub", Role.SERVICE), AllowList(tmp_path))
    hub.start()
    endpoints = Endpoints(fresh=f"127.0.0.1:{hub.port}")
    peer = FreshPeer(DirectTunnel(endpoints, authority.issue("bob", Role.OPERATOR)), role="viewer")
    peer.start()
    wait_until(lambda: hub.stats()["peers"] == 1)
    authority.revoke("bob")
    peer.send(pb.Stop(robot="arm-1"))
    wait_until(lambda: hub.stats()["denied"] >= 1)
    assert hub.stats()["held_stops"] == 0
    peer.close()
    hub.close()


class Failing(AllowList):
    """An allow-list that cannot be looked at while ``broken``."""

    broken = False

    def version(self) -> object:
        return self._only_if_whole(super().version())

    def lookup(self, public: bytes) -> Peer | None:
        return self._only_if_whole(super().lookup(public))

    def _only_if_whole(self, found: Any) -> Any:
        if self.broken:
            raise RuntimeError("nobody foresaw this")
        return found


def test_the_lane_outlives_errors_that_nobody_foresaw(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path)
    allow = Failing(tmp_path)
    hub = FreshHub(authority.issue("hub", Role.SERVICE), allow)
    hub.start()
    endpoints = Endpoints(fresh=f"127.0.0.1:{hub.port}")
    host = DirectTunnel(endpoints, authority.issue("host-1", Role.ROBOT))
    robot = FreshPeer(host, role="robot", robots=["arm-1"])
    robot.start()
    wait_until(lambda: hub.stats()["robots"] == 1)
    allow.broken = True
    wait_until(lambda: hub.stats()["errors"] >= 2)
    hub.send(pb.Stop(robot="arm-1"))
    assert next_of(robot, pb.Stop).robot == "arm-1"
    late = FreshPeer(DirectTunnel(endpoints, authority.issue("bob", Role.OPERATOR)), role="viewer")
    late.start()
    wait_until(lambda: hub.stats()["strangers"] >= 1)
    allow.broken = False
    wait_until(lambda: hub.stats()["peers"] == 2)
    for part in (late, robot, hub):
        part.close()


def test_what_cannot_be_written_holds_up_nothing_else(
    hub: FreshHub, robot: FreshPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode_some(message: Any) -> list[bytes]:
        if getattr(message, "operator", "") == "poison":
            raise RuntimeError("nobody foresaw this")
        return encode(message)

    monkeypatch.setattr(fresh_hub, "encode", encode_some)
    hub.send(pb.Stop(robot="arm-1", operator="poison"))
    hub.send(pb.Stop(robot="arm-1", operator="ada"))
    assert next_of(robot, pb.Stop).operator == "ada"
    assert hub.stats()["errors"] == 1


def test_an_impostor_of_the_hub_is_not_believed(
    tmp_path: Path, credentials: Callable[[str], Credentials], allow: AllowList
) -> None:
    """It knows the allow-list, but not the hub's secret."""
    impostor = FreshHub(Authority.open(tmp_path).issue("hub", Role.SERVICE), allow)
    impostor.start()
    tunnel = DirectTunnel(Endpoints(fresh=f"127.0.0.1:{impostor.port}"), credentials("host-1"))
    peer = FreshPeer(tunnel, role="robot", robots=["arm-1"])
    peer.start()
    time.sleep(0.5)
    assert impostor.stats()["received"] == 0
    assert peer.stats()["sent"] == 0
    peer.close()
    impostor.close()


def test_noise_is_counted_and_harmless(
    hub: FreshHub, robot: FreshPeer, credentials: Callable[[str], Credentials]
) -> None:
    context = zmq.Context()
    tunnel = DirectTunnel(Endpoints(fresh=f"127.0.0.1:{hub.port}"), credentials("kim"))
    socket = tunnel.fresh(context)
    assert socket.poll(GENEROUS_S * 1000, zmq.POLLOUT)
    for frames in ([b""], [b"k", b"\xff\xff"], [b"k", b""], [b"a", b"b", b"c"]):
        socket.send_multipart(frames)
    socket.send_multipart(encode(pb.Stop(robot="arm-1")))
    assert next_of(robot, pb.Stop)
    assert hub.stats()["malformed"] == 4
    socket.close(linger=0)
    context.term()


def test_a_port_in_use_is_said_clearly(
    hub: FreshHub, credentials: Callable[[str], Credentials], allow: AllowList
) -> None:
    other = FreshHub(credentials("hub"), allow, f"127.0.0.1:{hub.port}")
    with pytest.raises(MissingError, match="in use"):
        other.start()
    other.close()


def test_who_owns_a_robot_can_be_told_from_outside() -> None:
    board = Switchboard({"arm-1": "host-1"}.get, None)
    one, two = Peer("host-1", Role.ROBOT), Peer("host-2", Role.ROBOT)
    with pytest.raises(SecurityError, match="is not the host"):
        board.receive(b"2", two, pb.FreshHello(role="robot", robots=["arm-1"]))
    board.receive(b"1", one, pb.FreshHello(role="robot", robots=["arm-1"]))
    with pytest.raises(SecurityError, match="not the host of 'arm-1'"):
        board.receive(b"2", two, pb.RobotState(robot="arm-1"))
    board.receive(b"1", one, pb.RobotState(robot="arm-1"))


def test_a_connection_taken_over_by_another_peer_loses_its_session() -> None:
    board = Switchboard(None, None)
    one, two = Peer("host-1", Role.ROBOT), Peer("host-2", Role.ROBOT)
    board.receive(b"x", one, pb.FreshHello(role="robot", robots=["arm-1"]))
    board.receive(b"x", two, pb.FreshHello(role="robot", robots=["arm-2"]))
    board.own(pb.OperatorCommand(robot="arm-1", valid_ms=1000))
    assert len(board.sessions[b"x"].mailbox) == 0
    assert board.stats()["robots"] == 1


def test_there_is_a_limit_to_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comms.switchboard.MAX_PEERS", 2)
    board = Switchboard(None, None)
    for k in range(2):
        board.receive(bytes([k]), Peer("kim", Role.ENGINEER), pb.FreshHello(role="viewer"))
    with pytest.raises(SecurityError, match="no room"):
        board.receive(b"z", Peer("kim", Role.ENGINEER), pb.FreshHello(role="viewer"))


def test_silent_peers_are_forgotten_but_not_the_stops_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    board = Switchboard(None, None)
    one = Peer("host-1", Role.ROBOT)
    board.receive(b"1", one, pb.FreshHello(role="robot", robots=["arm-1"]))
    board.own(pb.Stop(robot="arm-1"))
    now = 106.0
    board.tick()
    assert board.stats()["peers"] == board.stats()["robots"] == 0
    board.receive(b"2", one, pb.FreshHello(role="robot", robots=["arm-1"]))
    assert board.sessions[b"2"].mailbox.take_all(0) == [pb.Stop(robot="arm-1")]


def test_it_is_fast_enough_to_drive(robot: FreshPeer, operator: FreshPeer) -> None:
    """Operator -> hub -> robot -> hub -> operator; printed, bounded only against polling loops."""
    stop = threading.Event()

    def echo() -> None:
        while not stop.is_set():
            for message in robot.receive(0.2):
                if isinstance(message, pb.OperatorCommand):
                    robot.send(pb.RobotState(robot="arm-1", sequence=message.sequence))

    thread = threading.Thread(target=echo)
    thread.start()
    times = []
    for sequence in range(300):
        started = time.perf_counter()
        operator.send(command(sequence))
        while next_of(operator, pb.RobotState).sequence != sequence:
            pass
        times.append(1000 * (time.perf_counter() - started) / 2)
    stop.set()
    thread.join()
    print(f"one way through the hub: median {statistics.median(times):.2f} ms")
    assert statistics.median(times) < 50
