import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comms.mailbox import KINDS, Mailbox, decode, encode, key_of
from comms.pb import fresh_pb2 as pb


def state(robot: str, sequence: int) -> pb.RobotState:
    return pb.RobotState(robot=robot, sequence=sequence)


def test_all_kinds_have_a_class_and_come_back() -> None:
    fields = pb.Fresh.DESCRIPTOR.oneofs_by_name["message"].fields
    assert {field.name for field in fields} == set(KINDS)
    for kind in KINDS.values():
        key, content = encode(kind())
        assert decode(content) == kind()
        assert key.decode() == key_of(kind())


@given(st.binary(max_size=200))
def test_noise_is_no_message(noise: bytes) -> None:
    message = decode(noise)
    assert message is None or type(message) in KINDS.values()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans())))
def test_the_newest_of_each_stream_is_taken_in_the_order_of_the_oldest(
    script: list[tuple[str, bool]],
) -> None:
    """Against a model: a dict, in which a key keeps its place until it is taken."""
    mailbox, model = Mailbox(), {}
    for number, (robot, take) in enumerate(script):
        if take and model:
            key = next(iter(model))
            message = mailbox.first()
            assert message == state(key, model.pop(key))
            mailbox.done(message)
        else:
            mailbox.put(state(robot, number))
            model[robot] = number
    assert mailbox.take_all(0) == [state(robot, number) for robot, number in model.items()]
    assert mailbox.first() is None
    assert len(mailbox) == 0


def test_done_leaves_what_came_meanwhile() -> None:
    mailbox = Mailbox()
    mailbox.put(state("a", 1))
    first = mailbox.first()
    assert first is not None
    mailbox.put(state("a", 2))
    mailbox.done(first)
    assert mailbox.take_all(0) == [state("a", 2)]


def test_stops_go_first_and_are_never_replaced() -> None:
    mailbox = Mailbox(limit=3)
    stops = [pb.Stop(robot="a", operator=name) for name in ("x", "y", "z")]
    mailbox.put(state("a", 0))
    for stop in stops:
        mailbox.put(stop)
    for number in range(100):
        mailbox.put(state(f"r{number}", 0))
    mailbox.put(stops[1])  # it waits already: once is enough
    taken = mailbox.take_all(0)
    assert taken[:3] == stops
    assert taken[3:] == [state(f"r{number}", 0) for number in (97, 98, 99)]
    assert mailbox.stats()["pushed_out"] == 98


def test_commands_of_two_operators_do_not_replace_each_other() -> None:
    mailbox = Mailbox()
    for operator in ("x", "y"):
        for sequence in range(3):
            mailbox.put(
                pb.OperatorCommand(robot="a", operator=operator, sequence=sequence, valid_ms=60_000)
            )
    taken: list[Any] = mailbox.take_all(0)
    assert [(c.operator, c.sequence) for c in taken] == [("x", 2), ("y", 2)]


def test_a_command_that_waited_too_long_is_not_delivered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0
    clock: Callable[[], int] = lambda: now  # noqa: E731
    monkeypatch.setattr(time, "monotonic_ns", clock)
    mailbox = Mailbox()
    mailbox.put(pb.OperatorCommand(robot="a", valid_ms=200))
    mailbox.put(state("a", 1))
    now = 199_999_999
    assert isinstance(mailbox.first(), pb.OperatorCommand)
    now = 200_000_000
    assert mailbox.take_all(0) == [state("a", 1)]
    assert mailbox.stats()["expired"] == 1


def test_the_urgent_goes_before_states_and_pictures_come_last() -> None:
    mailbox = Mailbox()
    sent = [
        pb.Preview(robot="a", camera="c"),
        state("a", 1),
        pb.Announcement(policy="p"),
        pb.OperatorCommand(robot="a", valid_ms=60_000),
        pb.Ping(),
        pb.Stop(robot="a"),
    ]
    for message in sent:
        mailbox.put(message)
    kinds = [type(message).__name__ for message in mailbox.take_all(0.0)]
    assert kinds == ["Stop", "OperatorCommand", "Ping", "RobotState", "Announcement", "Preview"]


def test_what_may_not_go_stays_and_holds_up_nothing_else() -> None:
    mailbox = Mailbox()
    mailbox.put(state("a", 1))
    mailbox.put(pb.Preview(robot="a", camera="c"))
    found = mailbox.first(lambda message: isinstance(message, pb.Preview))
    assert isinstance(found, pb.Preview)
    assert mailbox.first(lambda message: False) is None
    assert len(mailbox) == 2


def test_a_full_mailbox_lets_go_of_pictures_first() -> None:
    mailbox = Mailbox(limit=2)
    mailbox.put(pb.Preview(robot="a", camera="c"))
    for robot in "abc":
        mailbox.put(state(robot, 1))
    left = [message.robot for message in mailbox.take_all(0.0)]
    assert left == ["b", "c"], "then of what waited longest"
