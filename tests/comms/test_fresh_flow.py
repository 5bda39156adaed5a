"""Little is under way on the fresh lane, one picture per camera, and nothing for ever."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comms.fresh_flow import MOST_PARTS, Flow, Joiner, cut
from comms.lanes import LEAST
from comms.link import Link
from comms.mailbox import Mailbox
from comms.pb import fresh_pb2 as pb
from comms.tunnel import MAX_FRESH
from user_system.core.errors import SpecError

SIZE = 500
"""Bytes of a message here."""


def picture(camera: str = "wrist", size: int = 900, sequence: int = 0) -> pb.Preview:
    data = random.Random(1000 * size + sequence).randbytes(size)
    return pb.Preview(robot="arm", camera=camera, sequence=sequence, wall_ns=7, jpeg=data)


class Peer:
    """A flow with its mailbox, whose time and lane are moved by hand."""

    def __init__(self) -> None:
        self.now = 10.0
        self.link = Link(now=lambda: self.now)
        self.flow = Flow(self.link, now=lambda: self.now)
        self.outbox = Mailbox()
        self.pings: list[pb.Ping] = []

    def sends(self) -> list[str]:
        """Give all that may go to the lane; return what that was."""
        kinds = []
        while (message := self.flow.next(self.outbox)) is not None:
            kinds.append(type(message).__name__)
            size = len(message.jpeg) if isinstance(message, pb.Preview) else SIZE
            self.flow.sent(message, size)
            self.outbox.done(message)
            if isinstance(message, pb.Ping):
                self.pings.append(message)
        return kinds

    def echo(self) -> None:
        """Answer the newest ping."""
        ping = self.pings[-1]
        self.flow.echoed(pb.Pong(sent_s=ping.sent_s, bytes=ping.bytes, there_s=0.0))

    def later(self, seconds: float) -> None:
        self.now += seconds


def state(sequence: int, robot: str = "arm") -> pb.RobotState:
    return pb.RobotState(robot=robot, sequence=sequence)


def test_states_wait_where_the_newest_wins_until_an_echo_says_that_others_arrived():
    peer = Peer()
    for k in range(40):
        peer.outbox.put(state(k))
        peer.sends()
        peer.later(0.001)
    assert peer.flow.under_way <= 5000
    assert len(peer.outbox) == 1
    peer.outbox.put(pb.OperatorCommand(robot="arm", operator="ann", valid_ms=1000))
    peer.outbox.put(pb.Stop(robot="arm"))
    assert peer.sends()[:2] == ["Stop", "OperatorCommand"], "these wait for nothing"
    peer.later(0.2)
    assert "RobotState" not in peer.sends()
    peer.echo()
    assert "RobotState" in peer.sends()


def test_of_each_camera_one_picture_is_under_way_and_the_newest_follows():
    peer = Peer()
    peer.sends()
    for k in range(3):
        peer.outbox.put(picture("wrist", sequence=k))
        peer.outbox.put(picture("side", sequence=k))
        assert peer.sends().count("Preview") == (2 if k == 0 else 0)
        peer.later(0.03)
    peer.sends()
    peer.echo()
    assert peer.sends().count("Preview") == 2
    assert len(peer.outbox) == 0


def test_a_picture_goes_in_pieces_with_what_is_urgent_in_between():
    peer = Peer()
    peer.sends()
    peer.outbox.put(picture(size=20_000))
    kinds = peer.sends()
    assert 1 <= kinds.count("Preview") < 10_000 // LEAST, "what is under way is bounded"
    peer.outbox.put(state(1))
    peer.later(0.05)
    assert peer.sends()[0] in {"Ping", "RobotState"}
    for _ in range(100):
        peer.echo()
        peer.later(0.05)
        kinds += peer.sends()
    assert kinds.count("Preview") == 20_000 // LEAST + 1
    assert not peer.link.up.busy


def test_a_ping_says_how_much_went_before_it():
    peer = Peer()
    peer.sends()
    assert [ping.bytes for ping in peer.pings] == [0]
    peer.outbox.put(picture(size=700))
    peer.later(0.05)
    assert peer.sends() == ["Preview", "Ping"], "a picture is confirmed as soon as it may be"
    assert peer.pings[-1].bytes == 700 + SIZE
    assert peer.flow.due_s() == pytest.approx(0.1, abs=0.1)


def test_what_went_down_with_a_connection_does_not_block_the_next():
    peer = Peer()
    peer.sends()
    peer.outbox.put(picture())
    peer.sends()
    assert peer.link.up.busy
    peer.later(3.5)
    peer.outbox.put(picture())
    assert "Preview" in peer.sends()
    peer.flow.close()
    assert not peer.link.up.busy


def test_an_echo_of_more_than_was_sent_is_no_credit():
    peer = Peer()
    peer.sends()
    peer.flow.echoed(pb.Pong(sent_s=10.0, bytes=1 << 40))
    assert peer.flow.under_way == 0
    peer.outbox.put(state(1))
    peer.sends()
    assert peer.flow.under_way == SIZE


# --- parts ----------------------------------------------------------------------------------------


@given(size=st.integers(0, 5000), piece=st.integers(1, 3000))
def test_parts_make_the_picture_again(size, piece):
    joiner, whole = Joiner(), picture(size=size)
    found = [joiner.add(part) for part in cut(whole, piece)]
    assert found[:-1] == [None] * (len(found) - 1)
    assert found[-1] == whole


@given(st.data())
def test_whatever_is_missing_doubled_or_mixed_makes_no_wrong_picture(data):
    joiner = Joiner()
    sent = [picture(camera, 3000, k) for camera in ("a", "b") for k in range(3)]
    parts = [part for one in sent for part in cut(one, 1500)]
    for part in data.draw(st.lists(st.sampled_from(parts), max_size=60)):
        whole = joiner.add(part)
        assert whole is None or whole in sent


@pytest.mark.parametrize(("part", "parts"), [(5, 5), (9, 3), (0, MOST_PARTS + 1)])
def test_parts_that_are_none_are_refused(part, parts):
    with pytest.raises(SpecError, match="no part"):
        Joiner().add(pb.Preview(robot="a", camera="b", part=part, parts=parts, jpeg=b"x"))


def test_parts_take_no_more_memory_than_a_message_may():
    joiner = Joiner(cameras=4)
    parts = [pb.Preview(robot="a", part=k, parts=3, jpeg=b"x" * (MAX_FRESH // 2)) for k in range(3)]
    assert joiner.add(parts[0]) is joiner.add(parts[1]) is None
    with pytest.raises(SpecError, match="too large"):
        joiner.add(parts[2])
    for k in range(100):
        joiner.add(pb.Preview(robot=f"r{k}", part=0, parts=2, jpeg=b"x"))
    assert len(joiner._begun) == 4
