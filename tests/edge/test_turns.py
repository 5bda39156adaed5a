"""Whose action answers a period of a fast clock."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_system.edge import turns
from user_system.edge.turns import Turn

MS = 1_000_000
PATIENCE_MS = 40


class Clock:
    """Wall time in the test's hands, ms."""

    def __init__(self, monkeypatch):
        self.ms = 1000
        monkeypatch.setattr(turns.time, "monotonic", lambda: self.ms / 1000)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def begin(turn, clock, **more):
    turn.begin(clock.ms * MS, **more)


def hear(turn, clock, name, old_ms=0):
    turn.hear(np.array([name], float), (clock.ms - old_ms) * MS, 0.2)


def test_the_answer_to_this_period_is_taken_at_once(clock):
    turn = Turn(PATIENCE_MS / 1000)
    assert not turn.due, "no period has begun"
    begin(turn, clock)
    assert (turn.open, turn.due) == (True, False)
    clock.ms += 5
    hear(turn, clock, 1)
    assert turn.due
    assert turn.take().tolist() == [1]
    assert (turn.open, turn.due) == (False, False)
    clock.ms += 1000
    assert not turn.due, "it was answered"


def test_an_action_that_is_too_old_to_move_anything_is_not_taken(clock):
    turn = Turn(PATIENCE_MS / 1000)
    hear(turn, clock, 1)
    clock.ms += 300
    begin(turn, clock)
    clock.ms += PATIENCE_MS
    assert turn.due
    assert turn.take() is None


def test_nobody_is_waited_for_in_a_hurry_or_once_dropped(clock):
    turn = Turn(PATIENCE_MS / 1000)
    begin(turn, clock, hurry=True)
    assert turn.due
    hear(turn, clock, 1)
    turn.drop()
    assert (turn.open, turn.due, turn.take()) == (False, False, None)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from(["begin", "hear", "old"])), max_size=60)
)
def test_no_action_twice_one_per_period_and_no_period_unanswered_for_long(deeds):
    now = 1000
    turns.time, real = type("T", (), {"monotonic": staticmethod(lambda: now / 1000)}), turns.time
    try:
        turn = Turn(PATIENCE_MS / 1000)
        names, taken, begun, unanswered_since = 0, [], 0, None
        for wait_ms, deed in deeds:
            now += wait_ms
            if deed == "begin":
                turn.begin(now * MS)
                begun += 1
                unanswered_since = now if unanswered_since is None else unanswered_since
            else:
                names += 1
                turn.hear(np.array([names]), (now - (50 if deed == "old" else 0)) * MS, 9.0)
            if turn.due:
                action = turn.take()
                taken.append(None if action is None else int(action[0]))
                unanswered_since = None
            late = unanswered_since is not None and now >= unanswered_since + PATIENCE_MS
            assert not late
        assert len(taken) <= begun
        acted = [name for name in taken if name is not None]
        assert acted == sorted(set(acted)), "each once, in order"
    finally:
        turns.time = real
