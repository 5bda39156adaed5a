"""Which action a step executes, against a plain model: whatever is late, lost or out of order."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_system.core.specs import ActionSpec, PolicySpec
from user_system.core.types import Plan
from user_system.edge.chunks import IN_FLIGHT, MARGIN_MS, Ages, Chunks, Latency

ACTION = ActionSpec(("a",), ("m",), (-1e6,), (1e6,), (True,), (0,))
PERIOD_MS = 100.0


def spec(horizon=8, execute=8, budget_ms=20.0):
    return PolicySpec({}, ACTION, 10.0, horizon=horizon, execute=execute, budget_ms=budget_ms)


def plan(step, horizon):
    """A plan whose action for step s of the episode is 1000 * step + s."""
    return Plan(np.arange(step, step + horizon, dtype=np.float32)[:, None] + 1000 * step, 1)


class World:
    """A robot's loop and a policy that answers when it wants to, on a clock of its own."""

    def __init__(self, made):
        self.now_ms = 0.0
        self.chunks = Chunks(lambda: self.now_ms / 1000)
        self.chunks.follow(made)
        self.chunks.restart()
        self.spec = made
        self.under_way = []
        self.asks, self.executed, self.came = [], {}, []

    def run(self, steps, delay_ms, until=None):
        """Make ``steps`` periods; ``delay_ms(k)``: of the plan for step k, None: it is lost."""
        for step in range(steps):
            self.now_ms = step * PERIOD_MS
            if self.chunks.due(step, PERIOD_MS):
                self.asks.append(step)
                self.chunks.asked(step, captured_ns=step)
                took = delay_ms(step)
                if took is not None:
                    self.under_way.append((self.now_ms + took, step, took))
            self.arrive(step)
            proposal = self.chunks.at(step)
            if proposal is None:
                self.chunks.stall(step)
            self.executed[step] = proposal

    def arrive(self, now):
        # Those within the budget are waited for in the step that asked.
        until = self.now_ms + (self.spec.budget_ms if self.chunks.prompt else 0.0)
        ready = sorted(item for item in self.under_way if item[0] <= until)
        self.under_way = [item for item in self.under_way if item[0] > until]
        for _, step, took in ready:
            self.chunks.latency.note(took)
            self.came.append((now, step))
            self.chunks.take(step, plan(step, self.spec.horizon), now)


def model(world):
    """What each step executes: the newest plan that is there, reaches it, and is no stall's."""
    horizon, best, floor, stalled, result = world.spec.horizon, None, 0, False, {}
    for step in range(len(world.executed)):
        for k in [k for now, k in world.came if now == step]:
            if k >= floor and step - k < horizon and (best is None or k > best):
                best, stalled = k, False
        if best is not None and step - best < horizon:
            result[step] = (best, step - best)
            continue
        result[step] = None
        if not stalled:
            floor, stalled = (step if best is None else step + 1), True
            best = None
    return result


@settings(deadline=None, max_examples=150)
@given(
    horizon=st.integers(1, 12),
    execute=st.integers(1, 12),
    base=st.floats(0, 700),
    jitter=st.lists(st.floats(0, 400), min_size=60, max_size=60),
    lost=st.sets(st.integers(0, 59), max_size=20),
)
def test_each_step_executes_its_own_action_of_the_newest_plan(horizon, execute, base, jitter, lost):
    world = World(spec(horizon, min(execute, horizon)))
    order = [0.0]

    def delay(step):
        if step in lost:
            return None
        # Answers come in the order of their questions, as on a stream.
        order[0] = max(order[0], world.now_ms + base + jitter[step])
        return order[0] - world.now_ms

    world.run(60, delay)
    wanted = model(world)
    for step, proposal in world.executed.items():
        if wanted[step] is None:
            assert proposal is None
            continue
        k, position = wanted[step]
        assert proposal.position == position == step - k
        assert proposal.action[0] == 1000 * k + step
        assert proposal.captured_ns == k
    numbers = [p.chunk for p in world.executed.values() if p]
    assert sorted(set(numbers)) == list(range(len(set(numbers))))
    assert numbers == sorted(numbers)
    assert np.diff(world.asks, prepend=-execute).min(initial=execute) >= 1


@settings(deadline=None, max_examples=60)
@given(horizon=st.integers(2, 16), latency=st.floats(0, 1200))
def test_plans_of_a_steady_delay_never_run_out_where_they_can_be_in_time(horizon, latency):
    world = World(spec(horizon, horizon))
    world.run(80, lambda _: latency)
    lead = 0 if latency <= world.spec.budget_ms else math.ceil((latency + MARGIN_MS) / PERIOD_MS)
    first = math.ceil(latency / PERIOD_MS) if lead else 0
    starved = [step for step, proposal in world.executed.items() if proposal is None]
    if lead < horizon / 2:
        # Nothing but the first plan is waited for.
        assert [step for step in starved if step > first] == []
        gaps = np.diff(world.asks[1:])
        assert gaps.min(initial=horizon) >= horizon - lead, "no oftener than needed"


def test_the_next_plan_is_asked_for_once_per_execute_or_as_late_as_it_comes_in_time():
    world = World(spec(horizon=16, execute=5))
    world.run(40, lambda _: 120.0)
    assert world.asks[1:] == list(range(world.asks[1], 40, 5))
    world = World(spec(horizon=8, execute=8))
    world.run(40, lambda _: 120.0)  # comes in the second period after the question
    assert np.diff(world.asks).tolist()[1:] == [6] * (len(world.asks) - 2)


def test_a_prompt_policy_is_asked_when_its_actions_are_used_as_ever():
    world = World(spec(horizon=8, execute=3))
    world.run(20, lambda _: 5.0)
    assert world.asks == list(range(0, 20, 3))
    assert [p.position for p in world.executed.values()] == [0, 1, 2] * 6 + [0, 1]


def test_nothing_from_before_a_stall_is_used_after_it():
    world = World(spec(horizon=4, execute=4))
    # The plan for step 2 comes in step 5: it reaches as far as that, but the robot rested in 4.
    chunks = world.chunks
    chunks.asked(0, 0)
    assert chunks.take(0, plan(0, 4), 0)
    assert [chunks.at(step).position for step in range(4)] == [0, 1, 2, 3]
    chunks.asked(2, 2)
    assert chunks.at(4) is None
    chunks.stall(4)
    assert not chunks.take(2, plan(2, 4), 5)
    chunks.asked(4, 4)
    assert not chunks.take(4, plan(4, 4), 5), "seen when the robot still moved"
    chunks.asked(5, 5)
    assert chunks.take(5, plan(5, 4), 6)
    assert chunks.at(6).position == 1


def test_what_was_planned_before_somebody_stepped_in_is_dropped():
    chunks = World(spec()).chunks
    chunks.asked(0, 0)
    chunks.asked(3, 3)
    assert chunks.take(0, plan(0, 8), 1)
    chunks.flush(4)
    assert chunks.at(4) is None
    assert not chunks.take(3, plan(3, 8), 5)
    assert chunks.due(4, PERIOD_MS)


def test_questions_under_way_are_bounded_and_lost_ones_forgotten():
    world = World(spec(horizon=4, execute=1))
    world.run(12, lambda _: None)
    assert len(world.asks) == IN_FLIGHT
    world.now_ms += 5000
    assert world.chunks.due(12, PERIOD_MS)


def test_a_plan_of_one_action_is_waited_for_however_late_others_were():
    for horizon in (1, 2):
        chunks = World(spec(horizon)).chunks
        chunks.latency.note(500.0)
        assert chunks.prompt == (horizon == 1)


def test_an_older_plan_never_takes_the_place_of_a_newer_one():
    chunks = World(spec()).chunks
    for step in (0, 3):
        chunks.asked(step, step)
    assert chunks.take(3, plan(3, 8), 4)
    assert not chunks.take(0, plan(0, 8), 5)
    assert chunks.at(5).position == 2


def test_a_plan_that_nobody_asked_for_is_not_used():
    chunks = World(spec()).chunks
    assert not chunks.take(0, plan(0, 8), 0)


def test_latency_is_a_quantile_of_the_newest():
    latency = Latency()
    assert latency.expected_ms == 0.0
    for took in [100.0] * 60 + [500.0] * 2:
        latency.note(took)
    assert latency.expected_ms == 100.0
    latency.note(500.0)
    latency.note(500.0)
    assert latency.expected_ms == 500.0


def test_ages_are_in_milliseconds():
    ages = Ages()
    assert ages.stats() == {}
    for ns in range(1, 101):
        ages.note(ns * 1_000_000)
    assert ages.stats() == {
        "action_age_p50_ms": pytest.approx(50, abs=2),
        "action_age_p99_ms": pytest.approx(100, abs=2),
    }
