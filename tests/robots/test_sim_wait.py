"""A simulated robot can be waited for, so that a driver's ticks stand on its clock."""

import time

import pytest

pytest.importorskip("mujoco")

from robots.sim import SimFranka, SimFrankaConfig
from user_system.core.errors import LinkError

MS = 1_000_000

pytestmark = pytest.mark.system


@pytest.fixture
def world(make_world):
    return make_world(rate=1.0)


@pytest.fixture
def robot(world):
    robot = SimFranka(SimFrankaConfig(socket=world.socket))
    robot.connect()
    yield robot
    robot.close()


def test_waiting_ends_with_the_report_of_that_instant(robot):
    seen = robot.read().robot_ns
    for _ in range(20):
        seen += 20 * MS
        robot.wait(seen, 30.0)
        assert robot.read().robot_ns >= seen


def test_what_has_been_is_not_waited_for(robot):
    robot.wait(robot.read().robot_ns - 500 * MS, 0.0)


def test_waiting_ends_with_its_time(robot):
    began = time.monotonic()
    robot.wait(robot.read().robot_ns + 10**15, 0.2)
    assert time.monotonic() - began >= 0.2


def test_a_world_that_went_away_is_not_waited_for(world, robot):
    world.end()
    with pytest.raises(LinkError):
        robot.wait(10**18, 60.0)
