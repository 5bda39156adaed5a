import contextlib

import numpy as np
import pytest

from robots.gate import Command, CommandGate
from robots.gymnasium import (
    GymnasiumConfig,
    GymnasiumRobot,
    GymnasiumTask,
    GymnasiumTaskConfig,
)
from robots.testing import RobotContract
from user_system.core.clock import SECOND
from user_system.core.errors import ConfigError
from user_system.core.interfaces import Robot
from user_system.core.specs import validate_observation
from user_system.core.types import Purpose

gymnasium = pytest.importorskip("gymnasium")

PENDULUM = GymnasiumConfig(env="Pendulum-v1", control_hz=50.0, rate=20.0)


class TestPendulumContract(RobotContract):
    scene_s = 0.0

    def make(self) -> Robot:
        return GymnasiumRobot(PENDULUM)


class FakeTime:
    """Replaces the module's clock, so that a test decides when a period is over."""

    def __init__(self):
        self.ns = 1_000_000_000

    def monotonic_ns(self) -> int:
        return self.ns


@pytest.fixture
def clock(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr("robots.gymnasium.time", fake)
    return fake


def test_steps_once_per_period_with_the_newest_target(clock):
    reference = gymnasium.make("Pendulum-v1")
    config = GymnasiumConfig(env="Pendulum-v1", control_hz=10.0)
    with contextlib.closing(GymnasiumRobot(config)) as robot:
        robot.connect()
        robot.reset_scene(3, {})
        expected, _ = reference.reset(seed=3)
        np.testing.assert_allclose(robot.read().fields["observation"], expected, rtol=1e-6)
        for k, torque in enumerate((1.5, -2.0, 0.3)):
            robot.apply(np.array([-torque]))
            robot.apply(np.array([torque]))
            clock.ns += SECOND // 20
            robot.read()  # half a period: nothing happens
            clock.ns += SECOND // 20
            reading = robot.read()
            expected, reward, *_ = reference.step(np.array([torque], np.float32))
            np.testing.assert_allclose(reading.fields["observation"], expected, rtol=1e-5)
            assert reading.fields["reward"][0] == pytest.approx(reward, rel=1e-5)
            assert reading.robot_ns == (k + 1) * SECOND // 10
            validate_observation(robot.spec.fields, reading.fields)


def test_a_late_host_slows_the_clock_instead_of_skipping_steps(clock):
    config = GymnasiumConfig(env="Pendulum-v1", control_hz=10.0)
    with contextlib.closing(GymnasiumRobot(config)) as robot:
        robot.connect()
        assert robot.read().robot_ns == 0
        clock.ns += 10 * SECOND
        assert robot.read().robot_ns == SECOND // 10
        assert robot.stats()["steps"] == 1
        robot.pace(5.0)
        clock.ns += SECOND // 50
        assert robot.read().robot_ns == 2 * SECOND // 10
        assert robot.read().rate == 5.0


@pytest.mark.parametrize("late_s", [0.0, 0.07, 0.13, 10.0])
def test_an_episode_begins_when_it_is_first_seen(clock, late_s):
    """However late the host is, nobody acts in an observation that nobody saw."""
    config = GymnasiumConfig(env="Pendulum-v1", control_hz=10.0)
    with contextlib.closing(GymnasiumRobot(config)) as robot:
        robot.connect()
        before = robot.read().robot_ns
        for seed in (1, 2, 1):
            expected, _ = gymnasium.make("Pendulum-v1").reset(seed=seed)
            clock.ns += int(0.06 * SECOND)
            robot.read()
            robot.reset_scene(seed, {})
            robot.pace(1.0)
            clock.ns += int(late_s * SECOND)
            first = robot.read()
            np.testing.assert_allclose(first.fields["observation"], expected, rtol=1e-6)
            clock.ns += SECOND // 10 - 1
            assert robot.read().fields is first.fields, "the first step takes a whole period"
            clock.ns += 1
            second = robot.read()
            assert second.fields is not first.fields
            assert second.robot_ns == first.robot_ns + SECOND // 10
            assert before <= first.robot_ns, "time goes on"
            before = second.robot_ns


@pytest.mark.parametrize("seed", range(8))
def test_the_contract_holds_on_a_host_that_comes_at_odd_times(clock, monkeypatch, seed):
    odd = np.random.default_rng(seed)

    def monotonic_ns():
        clock.ns += int(odd.choice([0, 3]) * SECOND / PENDULUM.control_hz / PENDULUM.rate)
        return clock.ns

    monkeypatch.setattr(clock, "monotonic_ns", monotonic_ns)
    TestPendulumContract().test_scene_follows_from_its_seed()


def test_gate_lets_any_target_through_within_one_tick():
    spec = GymnasiumRobot(PENDULUM).spec
    gate = CommandGate(
        spec.limits,
        tick_hz=spec.tick_hz,
        hold_after_ms=spec.hold_after_ms,
        stop_after_ms=spec.stop_after_ms,
        boot="b",
    )
    gate.start(np.array([-2.0]))
    gate.offer(Command(0, "b", 0, SECOND, np.array([2.0])), 0)
    assert gate.tick(0).setpoint == 2.0


def test_task_hands_on_reward_and_ends(clock):
    task = GymnasiumTask(GymnasiumTaskConfig(max_steps=1000, success_return=-1e9))
    config = GymnasiumConfig(env="Pendulum-v1", control_hz=10.0, kwargs={"max_episode_steps": 3})
    with contextlib.closing(GymnasiumRobot(config)) as robot:
        robot.connect()
        plan = task.reset(seed=7, purpose=Purpose.TRAIN)
        assert plan.waypoints == ()
        robot.reset_scene(7, plan.scene)
        seen = [robot.read().fields]
        judgements = []
        for k in range(3):
            clock.ns += SECOND // 10
            seen.append(robot.read().fields)
            judgements.append(task.judge(seen[-2], np.zeros(1, np.float32), seen[-1], k))
        assert [j.timeout for j in judgements] == [False, False, True]
        assert [j.success for j in judgements] == [None, None, True]
        assert not any(j.terminated for j in judgements)
        assert all(j.reward < 0 for j in judgements)
        over = robot.read().fields
        clock.ns += SECOND
        assert robot.read().fields is over  # stands still until the next reset


def test_time_limit_and_termination():
    task = GymnasiumTask(GymnasiumTaskConfig(max_steps=2))
    base = {"reward": np.ones(1), "terminated": np.zeros(1), "truncated": np.zeros(1)}
    assert not task.judge(base, np.zeros(1), base, 0).timeout
    assert task.judge(base, np.zeros(1), base, 1).timeout
    over = base | {"terminated": np.ones(1)}
    judged = task.judge(base, np.zeros(1), over, 1)
    assert judged.terminated
    assert not judged.timeout
    assert judged.success is None


@pytest.mark.parametrize(
    ("env", "said"),
    [("NoSuchEnv-v0", "cannot make"), ("CartPole-v1", "Box"), ("", "missing")],
)
def test_unusable_environments_are_named(env, said):
    with pytest.raises(ConfigError, match=said):
        GymnasiumRobot(GymnasiumConfig(env=env))
