"""The fresh lane's table: every kind of message, as every role, and as somebody else."""

from typing import Any

import pytest

from comms.credentials import Peer, Role
from comms.mailbox import KINDS, MAX_BYTES, Mailbox
from comms.pb import fresh_pb2 as pb
from comms.switchboard import (
    MAX_CAMERAS,
    MAX_HELD,
    MAX_PICTURE,
    MAX_SESSIONS,
    RULES,
    Switchboard,
)
from user_system.core.errors import SecurityError

ONEOF = [field.name for field in pb.Fresh.DESCRIPTOR.oneofs_by_name["message"].fields]
OWNERS = {"arm-1": "host-1", "arm-2": "host-2"}
NAMES = dict.fromkeys(Role, "somebody") | {Role.ROBOT: "host-1"}


def message(kind: str, role: Role) -> Any:
    """Return a message of a kind that says nothing wrong but, perhaps, who says it."""
    fields: dict[str, Any] = {
        "hello": {"role": "robot" if role is Role.ROBOT else "viewer", "robots": ["arm-1"]},
        "command": {"robot": "arm-1", "operator": NAMES[role], "valid_ms": 100, "action": [0.0]},
        "state": {"robot": "arm-1"},
        "preview": {"robot": "arm-1", "camera": "wrist", "jpeg": b"x"},
        "announcement": {"policy": "p", "version": 1, "hash": "h"},
        "stop": {"robot": "arm-1", "operator": NAMES[role]},
        "ping": {"sent_s": 1.0},
        "pong": {"sent_s": 1.0},
    }
    return KINDS[kind](**fields[kind])


@pytest.fixture
def board() -> Switchboard:
    return Switchboard(OWNERS.get, None)


def test_kinds_and_rules_are_the_same() -> None:
    assert set(ONEOF) == RULES.keys() == KINDS.keys()
    assert all(roles <= set(Role) for roles in RULES.values())


@pytest.mark.parametrize("kind", ONEOF)
@pytest.mark.parametrize("role", list(Role))
def test_every_role_with_every_kind(kind: str, role: Role, board: Switchboard) -> None:
    peer = Peer(NAMES[role], role)
    if role in RULES[kind]:
        board.receive(b"1", peer, message(kind, role))
        return
    with pytest.raises(SecurityError, match=f"may not send a {kind}"):
        board.receive(b"1", peer, message(kind, role))
    assert not board.sessions
    assert board.stats()["held_stops"] == board.stats()["undeliverable"] == 0


def test_a_kind_without_a_rule_is_refused_to_everybody(
    board: Switchboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(RULES, "stop")  # type: ignore[arg-type]
    for role in Role:
        with pytest.raises(SecurityError):
            board.receive(b"1", Peer(NAMES[role], role), message("stop", role))


def test_a_stop_is_in_the_name_of_whoever_sends_it(board: Switchboard) -> None:
    """It is never refused for its name, and nobody is written down for another's."""
    board.receive(b"h", Peer("host-1", Role.ROBOT), message("hello", Role.ROBOT))
    board.receive(b"1", Peer("eve", Role.VIEWER), pb.Stop(robot="arm-1", operator="kim"))
    assert board.sessions[b"h"].mailbox.first() == pb.Stop(robot="arm-1", operator="eve")


@pytest.mark.parametrize("kind", [k for k in ONEOF if Role.ROBOT in RULES[k] and k != "ping"])
def test_a_host_speaks_for_no_robot_of_another(kind: str, board: Switchboard) -> None:
    with pytest.raises(SecurityError, match="is not the host of"):
        board.receive(b"2", Peer("host-2", Role.ROBOT), message(kind, Role.ROBOT))
    board.receive(b"1", Peer("somebody", Role.OPERATOR), message("command", Role.OPERATOR))
    assert board.stats()["robots"] == 0, "no command goes to it"


def test_a_hello_of_the_other_role_is_refused(board: Switchboard) -> None:
    for role, claims in ((Role.OPERATOR, "robot"), (Role.ROBOT, "viewer")):
        with pytest.raises(SecurityError):
            board.receive(b"1", Peer("x", role), pb.FreshHello(role=claims, robots=["arm-1"]))


# --- what one peer may take -----------------------------------------------------------------------


def test_connections_of_one_peer_push_out_its_own_only(board: Switchboard) -> None:
    board.receive(b"kim", Peer("kim", Role.ENGINEER), pb.FreshHello(role="viewer"))
    for number in range(1000):
        board.receive(b"%d" % number, Peer("eve", Role.VIEWER), pb.FreshHello(role="viewer"))
    assert len(board.sessions) == MAX_SESSIONS + 1
    assert b"kim" in board.sessions
    assert b"999" in board.sessions, "the newest is the one that works"


def test_stops_of_one_peer_push_out_its_own_only(board: Switchboard) -> None:
    board.receive(b"1", Peer("ada", Role.OPERATOR), pb.Stop(robot="arm-1", operator="ada"))
    for number in range(1000):
        stop = pb.Stop(robot=f"arm-{number + 10}", operator="eve")
        board.receive(b"2", Peer("eve", Role.VIEWER), stop)
    assert board.stats()["held_stops"] == MAX_HELD + 1
    board.receive(b"h", Peer("host-1", Role.ROBOT), pb.FreshHello(role="robot", robots=["arm-1"]))
    assert board.sessions[b"h"].mailbox.first() == pb.Stop(robot="arm-1", operator="ada")


@pytest.mark.parametrize(
    ("role", "said"),
    [
        (Role.VIEWER, pb.Stop(robot="a" * 1000)),
        (Role.VIEWER, pb.FreshHello(role="viewer", robots=["a" * 1000])),
        (Role.VIEWER, pb.FreshHello(role="viewer", previews=["a"] * 5000)),
        (Role.ROBOT, pb.Preview(robot="arm-1", camera="c" * 1000)),
        (Role.ROBOT, pb.RobotState(robot="arm-1", help="h" * 200_000)),
        (Role.SERVICE, pb.OperatorCommand(robot="arm-1", operator="o" * 1000)),
        (Role.SERVICE, pb.OperatorCommand(robot="arm-1", action=[0.0] * 1000)),
    ],
)
def test_names_and_actions_have_an_end(role: Role, said: Any, board: Switchboard) -> None:
    with pytest.raises(SecurityError):
        board.receive(b"1", Peer(NAMES[role], role), said)
    assert not board.sessions
    assert board.stats()["held_stops"] == 0


def test_pictures_that_nobody_reads_have_an_end() -> None:
    board = Switchboard({f"arm-{number}": "host-1" for number in range(200)}.get, None)
    board.receive(b"v", Peer("eve", Role.VIEWER), pb.FreshHello(role="viewer", previews=["*"]))
    for number in range(200):
        picture = pb.Preview(robot=f"arm-{number}", camera="c", jpeg=bytes(500_000))
        board.receive(b"h", Peer("host-1", Role.ROBOT), picture)
    waiting = board.sessions[b"v"].mailbox.take_all(0.0)
    assert sum(m.ByteSize() for m in waiting) <= MAX_BYTES
    assert waiting[-1] == picture, "the newest is there"


def test_a_robot_has_so_many_cameras_and_no_more(board: Switchboard) -> None:
    """Whoever looks keeps the newest picture of each: names without end would be one of them."""
    board.receive(b"v", Peer("eve", Role.VIEWER), pb.FreshHello(role="viewer", previews=["*"]))
    host, refused = Peer("host-1", Role.ROBOT), 0
    for number in range(1000):
        try:
            board.receive(b"h", host, pb.Preview(robot="arm-1", camera=f"{number}", jpeg=b"x"))
        except SecurityError:
            refused += 1
    assert refused == 1000 - MAX_CAMERAS
    with pytest.raises(SecurityError):
        board.receive(
            b"h", host, pb.Preview(robot="arm-1", camera="0", jpeg=bytes(MAX_PICTURE + 1))
        )


def test_a_mailbox_keeps_count_of_its_bytes() -> None:
    box = Mailbox(max_bytes=1000)
    for number in range(50):
        for camera in "abc":
            box.put(pb.Preview(robot="r", camera=camera, jpeg=bytes(100 + number)))
        if number % 3 == 0:
            box.take_all(0.0)
    assert len(box.take_all(0.0)) == 3
    assert box._bytes == 0
