import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_system.core.clock import MS, SECOND, RobotClock, WallClock, span


class FakeWall:
    """A wall clock that only the test moves."""

    def __init__(self, now: int = 1000 * SECOND):
        self.now = now
        self.slept: list[int] = []

    def now_ns(self) -> int:
        return self.now

    def sleep_until(self, deadline_ns: int) -> None:
        self.slept.append(deadline_ns)
        self.now = max(self.now, deadline_ns)


def test_follows_the_robot_at_its_rate():
    wall = FakeWall()
    clock = RobotClock(wall)
    clock.sync(robot_ns=5 * SECOND, wall_ns=wall.now, rate=4.0)
    wall.now += SECOND
    assert clock.now_ns() == 9 * SECOND


def test_an_old_reading_is_extrapolated():
    wall = FakeWall()
    clock = RobotClock(wall)
    clock.sync(robot_ns=5 * SECOND, wall_ns=wall.now - 10 * MS, rate=2.0)
    assert clock.now_ns() == 5 * SECOND + 20 * MS


def test_sleeping_lasts_robot_time():
    wall = FakeWall()
    clock = RobotClock(wall)
    begin = wall.now
    clock.sync(robot_ns=0, wall_ns=begin, rate=4.0)
    clock.sleep_until(2 * SECOND)
    assert wall.slept == [begin + SECOND // 2]
    assert clock.now_ns() == 2 * SECOND


@given(
    st.lists(
        st.tuples(
            st.integers(0, SECOND),
            st.integers(-SECOND, SECOND),
            st.floats(0.1, 50.0),
            st.booleans(),
        )
    )
)
def test_never_runs_backwards(steps):
    """Whatever the readings say: late, early, slower, jumping."""
    wall = FakeWall()
    clock = RobotClock(wall)
    latest = clock.now_ns()
    for elapsed, jump, rate, read in steps:
        wall.now += elapsed
        clock.sync(max(0, latest + jump), wall.now, rate)
        if read:
            now = clock.now_ns()
            assert now >= latest
            latest = now


@given(st.integers(0, 10**14), st.floats(0.1, 50.0), st.integers(0, 10**14))
def test_wall_time_of_a_robot_time_is_when_the_clock_shows_it(anchor, rate, later):
    wall = FakeWall()
    clock = RobotClock(wall)
    clock.sync(anchor, wall.now, rate)
    wall.now = clock.wall_ns(anchor + later)
    assert abs(clock.now_ns() - (anchor + later)) <= max(1000, 2 * rate)


def test_wall_clock_never_returns_early():
    clock = WallClock()
    deadline = clock.now_ns() + 5 * MS
    clock.sleep_until(deadline)
    assert clock.now_ns() >= deadline
    before = clock.now_ns()
    clock.sleep_until(before - SECOND)


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (0.4, "0 s"),
        (-40, "40 s"),
        (59.9, "1 min"),
        (3599.96, "1 h"),
        (-5400, "1.5 h"),
        (1e5, "1.2 d"),
    ],
)
def test_a_span_is_said_as_people_say_it(seconds, says):
    assert span(seconds) == says
