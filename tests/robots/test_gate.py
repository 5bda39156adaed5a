import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from robots.gate import HOLD_AFTER_MS_MAX, Command, CommandGate
from user_system.core.clock import MS, SECOND
from user_system.core.errors import ConfigError, SpecError
from user_system.core.specs import Limits

BOOT = "boot"
LIMITS = Limits(
    names=("x", "y", "turn"),
    units=("m", "m", "rad"),
    low=(0.3, -0.3, -1.0),
    high=(0.7, 0.3, 2.0),
    velocity=(0.5, 0.25, 2.0),
    acceleration=(5.0, 1.0, 10.0),
    jerk=(500.0, 20.0, 400.0),
)
MIDDLE = np.array([0.5, 0.0, 0.5])


def make_gate(limits: Limits = LIMITS, tick_hz: float = 100.0, **kwargs) -> CommandGate:
    options = {"hold_after_ms": 200.0, "stop_after_ms": 1000.0, "boot": BOOT} | kwargs
    return CommandGate(limits, tick_hz=tick_hz, **options)


class Bench:
    """A started gate with a clock; keeps every set-point it emitted."""

    def __init__(self, limits: Limits = LIMITS, tick_hz: float = 100.0, start=None, **kwargs):
        self.gate = make_gate(limits, tick_hz, **kwargs)
        self.period = round(SECOND / tick_hz)
        self.now, self.sequence = 0, 0
        start = (np.array(limits.low) + limits.high) / 2 if start is None else start
        self.gate.start(start)
        self.emitted = [np.asarray(start, float)]

    def offer(self, target, *, token=1, boot=BOOT, sequence=None, late_ns=-SECOND):
        self.sequence = self.sequence + 1 if sequence is None else sequence
        command = Command(token, boot, self.sequence, self.now - late_ns, target)
        return self.gate.offer(command, self.now)

    def tick(self, n: int = 1):
        for _ in range(n):
            self.now += self.period
            tick = self.gate.tick(self.now)
            self.emitted.append(tick.setpoint)
        return tick


def assert_within_limits(emitted, limits: Limits, tick_hz: float, start=None) -> None:
    """Every set-point is finite and in the box, every finite difference within the limits.

    Differences of a motion sampled every ``dt`` are averages of its derivatives, so they obey the
    limits exactly; what remains is rounding. Ruckig solves its profiles to about 1e-9 of the size
    of the motion; a third difference multiplies that by at most 8 / dt³.
    """
    p, dt = np.asarray(emitted), 1.0 / tick_hz
    assert np.isfinite(p).all()
    low, high = np.asarray(limits.low), np.asarray(limits.high)
    if start is not None:
        low, high = np.minimum(low, start), np.maximum(high, start)
    rounding = 1e-9 * np.maximum(high - low, np.abs(p).max(0)) + 1e-12
    assert (p >= low - 10 * rounding).all()
    assert (p <= high + 10 * rounding).all()
    p = np.vstack((p[0], p[0], p[0], p))  # at rest before the start
    for order, limit in enumerate((limits.velocity, limits.acceleration, limits.jerk), start=1):
        p = np.diff(p, axis=0) / dt
        excess = np.abs(p) - limit
        assert (excess <= 2**order * rounding / dt**order).all(), (order, excess.max(0))


def test_first_tick_repeats_the_measured_setpoint():
    bench = Bench(start=MIDDLE)
    tick = bench.tick(5)
    np.testing.assert_array_equal(tick.setpoint, MIDDLE)
    np.testing.assert_array_equal(tick.target, MIDDLE)
    assert not tick.moving
    assert not tick.stopped


def test_reaches_the_target_and_rests_there():
    bench = Bench()
    target = np.array([0.69, -0.29, 1.5])
    for _ in range(30):
        assert bench.offer(target).accepted
        tick = bench.tick(10)
    np.testing.assert_array_equal(tick.setpoint, target)
    assert not tick.moving
    assert_within_limits(bench.emitted, LIMITS, 100.0)


def test_target_outside_is_clipped_and_reported():
    bench = Bench()
    offered = bench.offer(np.array([1e300, 0.0, -1e300]))
    assert offered.accepted
    assert offered.clipped
    tick = bench.tick()
    assert tick.clipped
    np.testing.assert_array_equal(tick.target, [0.7, 0.0, -1.0])
    assert not bench.offer(MIDDLE).clipped
    assert bench.gate.stats()["clipped"] == 1


@pytest.mark.parametrize(
    "target",
    [
        np.array([0.5, np.nan, 0.0]),
        np.array([np.inf, 0.0, 0.0]),
        np.array([0.5, 0.0]),
        np.zeros((3, 1)),
        np.array(["0.5", "0", "0"]),
        np.array([0.5, 0.0, None], dtype=object),
        np.array([1j, 0.0, 0.0]),
        [0.5, 0.0, 0.0],
        None,
    ],
)
def test_nonsense_is_refused_without_raising_and_raises_no_fence(target):
    bench = Bench()
    bench.offer(np.array([0.6, 0.1, 1.0]))
    offered = bench.offer(target, token=99)
    assert not offered.accepted
    assert offered.reason in ("shape", "not finite")
    assert bench.gate.fence == 1
    np.testing.assert_array_equal(bench.tick().target, [0.6, 0.1, 1.0])


def test_checks_come_in_order():
    bench = Bench()
    assert bench.offer(MIDDLE, token=5, sequence=7).accepted
    nan = np.full(3, np.nan)
    assert bench.offer(nan, token=4, boot="other", sequence=0, late_ns=1).reason == "not finite"
    assert bench.offer(MIDDLE, token=4, boot="x", sequence=0, late_ns=1).reason == "fenced"
    assert bench.offer(MIDDLE, token=5, boot="x", sequence=0, late_ns=1).reason == "boot"
    assert bench.offer(MIDDLE, token=5, sequence=7, late_ns=1).reason == "sequence"
    assert bench.offer(MIDDLE, token=5, sequence=8, late_ns=1).reason == "late"
    assert bench.offer(MIDDLE, token=5, sequence=8, late_ns=0).accepted
    stats = bench.gate.stats()
    assert stats["accepted"] == 2
    for reason in ("not_finite", "fenced", "boot", "sequence", "late"):
        assert stats[f"refused_{reason}"] == 1, reason


def test_higher_token_raises_the_fence_even_when_refused():
    bench = Bench(fence=3)
    assert bench.offer(MIDDLE, token=2).reason == "fenced"
    assert bench.offer(MIDDLE, token=9, boot="earlier life").reason == "boot"
    assert bench.gate.fence == 9
    assert bench.offer(MIDDLE, token=8).reason == "fenced"


def test_sequence_starts_again_under_a_new_token():
    bench = Bench()
    assert bench.offer(MIDDLE, token=1, sequence=1000).accepted
    assert bench.offer(MIDDLE, token=2, sequence=0).accepted
    assert bench.offer(MIDDLE, token=2, sequence=0).reason == "sequence"


def test_silence_brakes_holds_and_resumes():
    bench = Bench()
    bench.offer(np.array([0.69, 0.29, 1.9]))
    assert not bench.tick(20).holding
    tick = bench.tick()
    assert tick.holding
    assert tick.moving
    tick = bench.tick(60)
    assert not tick.moving
    assert not tick.stopped
    np.testing.assert_array_equal(tick.setpoint, tick.target)  # executed actions start from here
    assert tick.setpoint[1] < 0.29
    assert bench.offer(np.array([0.31, 0.29, 1.9])).accepted
    assert not bench.tick().holding
    assert bench.tick(10).setpoint[0] < tick.setpoint[0]
    assert bench.gate.stats()["holds"] == 1
    assert_within_limits(bench.emitted, LIMITS, 100.0)


def test_long_silence_latches_until_release():
    bench = Bench()
    bench.offer(np.array([0.69, 0.29, 1.9]))
    tick = bench.tick(101)
    assert tick.stopped
    assert not tick.moving
    assert bench.offer(MIDDLE).reason == "stopped"
    bench.tick(50)
    assert bench.gate.stopped
    bench.gate.release()
    assert bench.offer(MIDDLE).reason == "idle"  # nobody said where the robot is
    bench.gate.start(tick.setpoint)
    assert bench.offer(MIDDLE).accepted
    assert not bench.tick().stopped
    assert_within_limits(bench.emitted, LIMITS, 100.0)


def test_before_the_first_command_silence_is_not_missed():
    tick = Bench().tick(500)
    assert not tick.holding
    assert not tick.stopped


def test_halt_brakes_at_once_and_latches():
    bench = Bench()
    bench.offer(np.array([0.69, 0.29, 1.9]))
    moving = bench.tick(15)
    bench.gate.halt()
    tick = bench.tick()
    assert tick.stopped
    assert tick.holding
    tick = bench.tick(80)
    assert not tick.moving
    assert tick.setpoint[0] - moving.setpoint[0] < 0.08
    assert bench.offer(MIDDLE).reason == "stopped"
    assert_within_limits(bench.emitted, LIMITS, 100.0)


def test_start_forgets_a_target_that_was_pending():
    bench = Bench()
    bench.offer(np.array([0.69, 0.29, 1.9]))
    bench.gate.start(MIDDLE)
    np.testing.assert_array_equal(bench.tick(20).setpoint, MIDDLE)


def test_start_outside_the_box_moves_nothing_and_comes_back_on_command():
    start = np.array([0.8, 0.0, 0.0])
    bench = Bench(start=start)
    np.testing.assert_array_equal(bench.tick(10).setpoint, start)
    for _ in range(20):
        bench.offer(np.array([0.9, 0.0, 0.0]))
        tick = bench.tick(10)
    np.testing.assert_array_equal(tick.setpoint, [0.7, 0.0, 0.0])
    assert_within_limits(bench.emitted, LIMITS, 100.0, start)


def test_ticks_that_a_driver_missed_do_not_make_the_setpoint_jump():
    bench = Bench()
    bench.offer(np.array([0.69, 0.0, 0.5]))
    before = bench.tick(15).setpoint
    bench.now += 30 * MS
    after = bench.tick().setpoint
    assert 0 < after[0] - before[0] <= 0.5 * 2 * 0.01 + 1e-9
    assert bench.gate.stats()["stalls"] == 0


def test_after_a_stall_the_motion_sets_out_from_rest():
    """The robot came to rest at the last set-point; at the speed of before it would be pulled."""
    bench = Bench()
    bench.offer(np.array([0.69, 0.0, 0.5]))
    fast = -bench.tick(14).setpoint[0]
    before = bench.tick().setpoint
    fast += before[0]
    bench.offer(np.array([0.69, 0.0, 0.5]))
    bench.now += 150 * MS
    after = bench.tick().setpoint
    slow = after[0] - before[0]
    assert 0 < slow < fast / 4
    assert bench.gate.stats()["stalls"] == 1
    for _ in range(30):
        bench.offer(np.array([0.69, 0.0, 0.5]))
        bench.tick(10)
    assert bench.emitted[-1][0] == pytest.approx(0.69), "and leads where it was to lead"


def test_a_robot_that_was_braking_when_its_driver_stalled_stays():
    bench = Bench()
    bench.offer(np.array([0.69, 0.0, 0.5]))
    bench.tick(15)
    bench.gate.halt()
    before = bench.tick().setpoint
    bench.now += 500 * MS
    np.testing.assert_allclose(bench.tick(50).setpoint, before, atol=1e-12)


def test_time_that_runs_backwards_advances_nothing():
    bench = Bench()
    bench.offer(np.array([0.69, 0.0, 0.5]))
    before = bench.tick(10).setpoint
    np.testing.assert_array_equal(bench.gate.tick(bench.now - SECOND).setpoint, before)


def test_emitted_setpoints_cannot_be_changed_by_the_caller():
    bench = Bench()
    bench.offer(np.array([0.6, 0.0, 0.5]))
    for tick in (bench.tick(5), bench.tick(200)):
        with pytest.raises(ValueError, match="read-only"):
            tick.setpoint[0] = 5.0


@pytest.mark.parametrize("start", [np.array([0.5, np.nan, 0.0]), np.zeros(2)])
def test_start_refuses_nonsense(start):
    with pytest.raises(SpecError):
        make_gate().start(start)


def test_tick_before_start_is_an_error():
    with pytest.raises(SpecError):
        make_gate().tick(0)


@pytest.mark.parametrize(
    "options",
    [
        {"hold_after_ms": HOLD_AFTER_MS_MAX + 1, "stop_after_ms": 5000.0},
        {"hold_after_ms": 0.0},
        {"hold_after_ms": 300.0, "stop_after_ms": 300.0},
        {"tick_hz": 4.0},
    ],
)
def test_unsafe_times_are_refused(options):
    with pytest.raises(ConfigError):
        make_gate(**options)


# --- any limits, any targets ---------------------------------------------------------------------


def magnitudes(low: float, high: float):
    return st.floats(np.log(low), np.log(high)).map(lambda v: float(np.exp(v)))


@st.composite
def any_limits(draw) -> Limits:
    n = draw(st.integers(1, 3))
    low = [draw(st.floats(-2.0, 2.0)) for _ in range(n)]
    size = [draw(magnitudes(1e-2, 5.0)) for _ in range(n)]
    return Limits(
        names=tuple(f"c{i}" for i in range(n)),
        units=("m",) * n,
        low=tuple(low),
        high=tuple(a + b for a, b in zip(low, size, strict=True)),
        velocity=tuple(draw(magnitudes(1e-2, 5.0)) for _ in range(n)),
        acceleration=tuple(draw(magnitudes(1e-1, 50.0)) for _ in range(n)),
        jerk=tuple(draw(magnitudes(1.0, 5000.0)) for _ in range(n)),
    )


@settings(max_examples=60, deadline=None)
@given(
    limits=any_limits(),
    tick_hz=st.sampled_from([50.0, 100.0, 500.0]),
    moves=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 2**32 - 1)), max_size=30),
)
def test_any_motion_stays_within_any_limits(limits, tick_hz, moves):
    bench = Bench(limits, tick_hz)
    for ticks, seed in moves:
        rng = np.random.default_rng(seed)
        reach = np.subtract(limits.high, limits.low)
        bench.offer(rng.uniform(limits.low - 0.2 * reach, limits.high + 0.2 * reach))
        bench.tick(ticks)
    bench.tick(5)
    assert_within_limits(bench.emitted, limits, tick_hz)


# --- everything at once --------------------------------------------------------------------------


def adversary(bench: Bench, rng: np.random.Generator) -> None:
    """One hostile or ordinary action."""
    limits, gate = LIMITS, bench.gate
    target = rng.uniform(limits.low, limits.high)
    match rng.integers(14):
        case 0:
            target = np.where(rng.random(3) < 0.5, limits.low, limits.high)
        case 1:
            target = rng.normal(size=3) * 10.0 ** rng.integers(-12, 300)
        case 2:
            target = bench.emitted[-1] + rng.normal(size=3) * 10.0 ** rng.integers(-15, -1)
        case 3:
            target[rng.integers(3)] = rng.choice([np.nan, np.inf, -np.inf])
        case 4:
            bench.offer(target, token=gate.fence - int(rng.integers(1, 5)))
            return
        case 5:
            bench.offer(target, token=gate.fence, sequence=int(rng.integers(-(2**62), 2**62)))
            return
        case 6:
            bench.offer(target, token=gate.fence, boot="earlier")
            return
        case 7:
            bench.offer(target, token=gate.fence, late_ns=int(rng.integers(1, SECOND)))
            return
        case 8:
            bench.offer(target, token=gate.fence + 1, sequence=0)
            return
        case 9:
            bench.tick(int(rng.integers(1, 40)))  # silence, sometimes long enough to hold
        case 10 if rng.random() < 0.05:
            gate.halt()
        case 11 if rng.random() < 0.05:
            bench.tick(110)  # long enough to latch
        case 12 if gate.stopped and not bench.tick().moving:
            gate.release()
            gate.start(bench.emitted[-1])
        case _:
            pass
    bench.offer(target, token=gate.fence, sequence=bench.sequence + 1)


@pytest.mark.parametrize(("tick_hz", "seed"), [(50.0, 0), (100.0, 1)])
def test_two_hundred_thousand_hostile_actions(tick_hz, seed):
    rng = np.random.default_rng(seed)
    bench = Bench(LIMITS, tick_hz, stop_after_ms=1000.0)
    for _ in range(100_000):
        adversary(bench, rng)
        if rng.random() < 0.5:
            bench.tick()
    assert_within_limits(bench.emitted, LIMITS, tick_hz)
    stats = bench.gate.stats()
    assert min(stats[k] for k in ("accepted", "clipped", "holds", "stops", "halts")) > 50, stats
    refused = {k: v for k, v in stats.items() if k.startswith("refused_")}
    del refused["refused_shape"], refused["refused_idle"]
    assert min(refused.values()) > 500, refused


class GateMachine(RuleBasedStateMachine):
    """The gate's decisions against a model that keeps no motion at all."""

    def __init__(self):
        super().__init__()
        self.bench = Bench()
        self.fence, self.last, self.heard, self.stopped = 0, -1, None, False

    @rule(
        token=st.integers(0, 4),
        sequence=st.integers(0, 30),
        boot=st.sampled_from([BOOT, BOOT, BOOT, "other"]),
        late=st.sampled_from([-SECOND, -SECOND, 0, 1]),
        finite=st.sampled_from([True, True, True, False]),
    )
    def offer(self, token, sequence, boot, late, finite):
        target = np.array([0.4 if finite else np.nan, 0.1, 0.0])
        got = self.bench.offer(target, token=token, boot=boot, sequence=sequence, late_ns=late)
        assert got.reason == self._expect(finite, token, boot, sequence, late)
        assert got.accepted == (got.reason is None)
        if got.accepted:
            self.last, self.heard = sequence, self.bench.now

    def _expect(self, finite, token, boot, sequence, late):
        if not finite:
            return "not finite"
        if token < self.fence:
            return "fenced"
        if token > self.fence:
            self.fence, self.last = token, -1
        if boot != BOOT:
            return "boot"
        if sequence <= self.last:
            return "sequence"
        if late > 0:
            return "late"
        return "stopped" if self.stopped else None

    @rule(n=st.integers(1, 120))
    def tick(self, n):
        tick = self.bench.tick(n)
        if self.heard is not None:
            silence = self.bench.now - self.heard
            self.stopped |= silence > 1000 * MS
            if not self.stopped:
                assert tick.holding == (silence > 200 * MS)
        assert tick.stopped == self.stopped

    @rule()
    def release(self):
        if self.stopped and not self.bench.tick(1).moving:
            self.bench.gate.release()
            self.bench.gate.start(self.bench.emitted[-1])
            self.stopped, self.heard = False, None

    @invariant()
    def fence_is_the_highest_seen(self):
        assert self.bench.gate.fence == self.fence

    def teardown(self):
        assert_within_limits(self.bench.emitted, LIMITS, 100.0)


TestGateMachine = GateMachine.TestCase
TestGateMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
