import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_system.core.errors import ConfigError
from user_system.core.interfaces import ResetPlan
from user_system.core.modes import Mode
from user_system.core.types import Reading
from user_system.edge.arbiter import Arbiter, ArbiterConfig
from user_system.edge.chunks import Proposal
from user_system.edge.messages import OperatorCommand
from user_system.edge.wire import Telemetry

PERIOD = 100_000_000


@pytest.fixture
def arbiter(processes):
    return Arbiter(processes.SPEC)


def seen(accepted, robot_ns=0, holding=False):
    at = np.array(accepted, np.float64)
    reading = Reading({}, at, robot_ns, 0)
    return Telemetry(reading=reading, accepted=at, boot="b", holding=holding)


def act(*values):
    return Proposal(np.array(values, np.float32), 1, 0, 0, {})


def command(*action, valid_ms=200.0):
    return OperatorCommand("arm", "ann", 1, "b", 1, valid_ms, np.array(action, np.float32), 0)


def test_the_policy_continues_from_the_accepted_target(arbiter):
    arbiter.enter(Mode.AUTO, seen((0.3, 0.1)))
    target = arbiter.choose(seen((0.3, 0.1)), 0, act(0.05, -0.01))
    assert np.allclose(target, (0.35, 0.09))
    # Without a plan it stays.
    assert np.allclose(arbiter.choose(seen(target), 1, None), target)


def test_targets_stay_in_the_box(arbiter):
    arbiter.enter(Mode.AUTO, seen((0.99, 0.0)))
    assert arbiter.choose(seen((0.99, 0.0)), 0, act(0.05, 0.0)).tolist() == [1.0, 0.0]


@given(
    modes=st.lists(st.sampled_from(list(Mode)), min_size=2, max_size=8),
    start=st.tuples(*[st.floats(-0.9, 0.9)] * 2),
)
def test_no_change_of_hands_moves_the_robot(processes, modes, start):
    """Whoever takes over, without a wish of theirs the target stays where it is."""
    arbiter = Arbiter(processes.SPEC)
    for n, mode in enumerate(modes):
        now = seen(start, n * PERIOD)
        arbiter.enter(mode, now)
        if mode is not Mode.REWIND:
            assert np.allclose(arbiter.choose(now, None, None), start)
        assert np.allclose(arbiter.drive(n * PERIOD + 1), start)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_a_persons_rate_is_applied_pro_rata(processes, waits_ms):
    """However often it is called, one command moves by its rate times the time it was valid."""
    arbiter = Arbiter(processes.SPEC)
    arbiter.enter(Mode.CORRECTION, seen((0.0, 0.0)))
    arbiter.steer(command(0.04, 0.0, valid_ms=200.0), 0)
    now = period = 0
    for wait in waits_ms:
        now += wait * 1_000_000
        target = arbiter.drive(now)
        if now // PERIOD > period:
            period = now // PERIOD
            arbiter.choose(seen(target, now), None, None)
    valid_s = min(now, 200_000_000) / 1e9
    # A period that is as much longer as two calls lie apart may be cut to one full action.
    assert np.allclose(target, (0.04 * valid_s / 0.1, 0.0), atol=0.04 * 0.4)
    assert target[0] <= 0.04 * valid_s / 0.1 + 1e-6


@given(st.lists(st.tuples(st.integers(0, 60), st.floats(-0.05, 0.05)), max_size=40))
def test_no_period_moves_more_than_one_action(processes, commands):
    arbiter = Arbiter(processes.SPEC)
    arbiter.enter(Mode.DEMO, seen((0.0, 0.0)))
    now, start = 0, np.zeros(2)
    for wait, rate in commands:
        now += wait * 1_000_000
        target = arbiter.steer(command(rate, -rate), now)
        assert np.abs(target - start).max() <= 0.05 + 1e-7


def test_a_script_at_a_fast_clock_acts_once_per_period(arbiter):
    def fast(at, ns):
        reading = Reading({}, np.array(at), ns, 0, rate=8.0)
        return Telemetry(reading=reading, accepted=np.array(at), boot="b")

    first = fast((0.0, 0.0), 0)
    arbiter.enter(Mode.DEMO, first)
    arbiter.choose(first, None, None)
    assert arbiter.stepwise
    arbiter.steer(command(0.05, 0.0), 1)
    assert arbiter.drive(PERIOD // 2).tolist() == [0.0, 0.0], "rates are for people in real time"
    assert np.allclose(arbiter.act(np.array([0.03, 0.0])), (0.03, 0.0))
    target = arbiter.act(np.array([0.02, 0.9]))
    assert np.allclose(target, (0.02, 0.05)), "one action of the period, within its bounds"
    assert np.allclose(arbiter.choose(fast(target, PERIOD), None, None), target)
    arbiter.rest()
    assert np.allclose(arbiter.act(np.array([0.03, 0.0])), target), "nobody drives any more"


def test_what_a_person_began_in_real_time_does_not_last_into_a_fast_clock(arbiter):
    def at(rate, ns):
        reading = Reading({}, np.zeros(2), ns, 0, rate=rate)
        return Telemetry(reading=reading, accepted=np.zeros(2), boot="b")

    arbiter.enter(Mode.DEMO, at(1.0, 0))
    arbiter.choose(at(1.0, 0), None, None)
    arbiter.steer(command(0.05, 0.0, valid_ms=150), 0)
    arbiter.choose(at(8.0, 1), None, None)
    arbiter.choose(at(1.0, 2), None, None)
    assert arbiter.drive(PERIOD // 2).tolist() == [0.0, 0.0]


def test_validity_is_capped_by_hold_after(arbiter, processes):
    arbiter.enter(Mode.DEMO, seen((0.0, 0.0)))
    arbiter.steer(command(0.05, 0.0, valid_ms=60_000), 0)
    for tick in range(1, 101):
        target = arbiter.drive(tick * 10_000_000)
        if tick % 10 == 0:
            arbiter.choose(seen(target, tick * 10_000_000), None, None)
    assert np.allclose(target[0], 0.05 * processes.SPEC.hold_after_ms / 100)


def test_nobody_steers_outside_human_modes(arbiter):
    arbiter.enter(Mode.AUTO, seen((0.2, 0.2)))
    arbiter.steer(command(0.05, 0.05), 0)
    assert arbiter.drive(PERIOD).tolist() == [0.2, 0.2]
    arbiter.enter(Mode.DEMO, seen((0.2, 0.2)))
    arbiter.steer(command(0.05, 0.05), PERIOD)
    arbiter.rest()
    assert arbiter.drive(2 * PERIOD).tolist() == [0.2, 0.2]


def test_rewind_runs_recorded_targets_backwards_within_its_speed(processes):
    spec = processes.SPEC
    arbiter = Arbiter(spec, ArbiterConfig(rewind_speed=0.1, rewind_steps=4))
    at = np.zeros(2)
    path = []
    for step in range(6):
        now = seen(at, step * PERIOD)
        arbiter.enter(Mode.AUTO, now)
        path.append(at.copy())
        at = arbiter.choose(now, step, act(0.05, 0.0)).copy()
    arbiter.enter(Mode.REWIND, seen(at))
    assert arbiter.rewound_to is None
    reach = 0.1 * spec.limits.velocity[0] / spec.control_hz
    for _ in range(100):
        if not arbiter.rewinding:
            break
        target = arbiter.choose(seen(at), None, None)
        assert np.abs(target - at).max() <= reach + 1e-12
        at = target.copy()
    assert arbiter.rewound_to == 2
    assert np.allclose(at, path[2])


def test_reset_goes_through_its_waypoints(processes):
    arbiter = Arbiter(processes.SPEC)
    plan = ResetPlan(((0.3, 0.0), (0.0, 0.3)), speed=0.2)
    at, visited = np.zeros(2), []
    arbiter.enter(Mode.RESET, seen(at))
    for n in range(200):
        now = seen(at, n * PERIOD)
        arbiter.choose(now, None, None)
        done = arbiter.reset(now, plan)
        assert np.abs(arbiter.target - at).max() <= 0.2 * 2.0 / 10 + 1e-12
        at = arbiter.target.copy()
        visited.append(tuple(at))
        if done:
            break
    assert done is True
    assert visited.index((0.3, 0.0)) < visited.index((0.0, 0.3))


@pytest.mark.parametrize("speed", [0.0, -0.5, 1.01, float("nan")])
def test_no_reset_is_faster_than_the_robot_may_be(speed):
    with pytest.raises(ConfigError, match="speed of a reset"):
        ResetPlan(((0.0, 0.0),), speed=speed)


def test_a_reset_that_does_not_arrive_is_given_up(processes):
    arbiter = Arbiter(processes.SPEC, ArbiterConfig(patience_s=1.0))
    arbiter.enter(Mode.RESET, seen((0.0, 0.0)))
    results = []
    for n in range(20):
        stuck = Reading({}, np.zeros(2), n * PERIOD, 0)
        now = Telemetry(reading=stuck, accepted=arbiter.target, boot="b")
        arbiter.choose(now, None, None)
        results.append(arbiter.reset(now, ResetPlan(((0.5, 0.0),))))
    assert results[0] is False
    assert results[-1] is None
