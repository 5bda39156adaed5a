import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_system.codec.fragments import check
from user_system.core.specs import Field, PolicySpec
from user_system.core.types import End, Purpose, Segment, Stream
from user_system.edge.adder import Adder, Producer
from user_system.edge.arbiter import Proposal
from user_system.edge.messages import Assignment

PERIOD = 100_000_000


@pytest.fixture
def spec(processes):
    return processes.SPEC


def make(spec, extras=None):
    adder = Adder(Producer("arm", 3, "boot", "run", spec, "pilot"), utc_offset_ns=10**18)
    policy = PolicySpec(spec.observation, spec.action, spec.control_hz, extras=extras or {})
    adder.begin(Assignment("arm", Purpose.TRAIN, "reach", 1, "e1"), policy)
    return adder


def observe(n):
    return {
        "position": np.full(2, n, np.float32),
        "goal": np.zeros(2, np.float32),
    }


def proposal(n, version=7):
    return Proposal(np.full(2, n, np.float32), version, n // 2, n % 2, {})


def drive(adder, steps, segment=Segment.AUTO, begin=0, judged=True):
    """Make ``steps`` steps as a loop would; the last one stays closed, none open."""
    out = []
    for n in range(begin, begin + steps):
        adder.open(observe(n), n * PERIOD + 1, n * PERIOD, segment, proposal(n), "")
        out += adder.ready()
        adder.close(np.full(2, n + 0.5, np.float32))
        if judged:
            adder.judge(n, float(n))
    return out


def finish(adder, n, end=End.TERMINATED, **more):
    arguments = {"success": True, "reward": None, "index": None} | more
    return adder.finish(end, last=(observe(n), n * PERIOD + 1), **arguments)


@given(steps=st.integers(1, 30))
@settings(max_examples=40)
def test_every_step_and_observation_once_in_order(processes, steps):
    adder = make(processes.SPEC)
    fragments = drive(adder, steps)
    last, totals = finish(adder, steps)
    fragments += last
    for fragment in fragments:
        check(fragment)
    assert [f.header.start for f in fragments] == list(
        np.cumsum([0] + [len(f) for f in fragments[:-1]])
    )
    assert [f.header.sequence for f in fragments] == list(range(len(fragments)))
    rows = np.concatenate([f.observation["position"][:, 0] for f in fragments])
    assert rows.tolist() == list(range(steps + 1))
    executed = np.concatenate([f.executed[:, 0] for f in fragments])
    assert executed.tolist() == [n + 0.5 for n in range(steps)]
    proposed = np.concatenate([f.proposed[:, 0] for f in fragments])
    assert proposed.tolist() == list(range(steps))
    rewards = np.concatenate([f.reward for f in fragments])
    assert rewards.tolist() == list(range(steps))
    assert [f.final for f in fragments] == [False] * (len(fragments) - 1) + [True]
    assert [f.header.success for f in fragments] == [None] * (len(fragments) - 1) + [True]
    assert totals.steps == steps
    assert totals.reward == sum(range(steps))
    assert totals.version == 7
    assert sum(totals.segments.values()) == steps


def test_never_more_than_the_bound_unspooled(spec):
    adder, spooled = make(spec), 0
    for n in range(50):
        adder.open(observe(n), n * PERIOD + 1, n * PERIOD, Segment.AUTO, None, "")
        spooled += sum(len(f) for f in adder.ready())
        # n steps are closed, one is open.
        assert (n - spooled) * PERIOD < 0.4e9
        adder.close(np.zeros(2, np.float32))


def test_the_border_observation_is_stored_once(spec):
    adder = make(spec)
    fragments = drive(adder, 9)
    assert all(len(f.observation["position"]) == len(f) == len(f.robot_ns) for f in fragments)
    (last,), _ = finish(adder, 9)
    assert len(last.observation["position"]) == len(last) + 1 == len(last.robot_ns)


def test_takeover_keeps_executed_and_proposed_apart(spec):
    adder = make(spec)
    adder.open(observe(0), 1, 0, Segment.AUTO, proposal(3), "")
    adder.close(np.array([0.25, 0.0], np.float32))
    adder.open(observe(1), 2, 1, Segment.RECOVERY, None, "ann")
    adder.close(np.array([0.75, 0.0], np.float32))
    (fragment,), totals = finish(adder, 2)
    assert fragment.executed[:, 0].tolist() == [0.25, 0.75]
    assert fragment.proposed[0].tolist() == [3.0, 3.0]
    assert np.isnan(fragment.proposed[1]).all()
    names = [fragment.header.names[i] for i in fragment.operator]
    assert names == ["", "ann"]
    assert [fragment.header.names[i] for i in fragment.policy] == ["pilot", ""]
    assert totals.human_steps == 1


def test_a_late_end_drops_what_came_after_it(spec):
    adder = make(spec)
    drive(adder, 3, judged=False)
    adder.judge(1, 1.0)
    (fragment,), totals = finish(adder, 3, index=1)
    assert len(fragment) == totals.steps == 2
    assert fragment.observation["position"][:, 0].tolist() == [0, 1, 2]
    assert fragment.end.tolist() == [End.NONE, End.TERMINATED]
    assert np.isnan(fragment.reward[0])
    assert fragment.reward[1] == 1.0


def test_a_fault_within_a_step_ends_with_the_last_whole_one(spec):
    adder = make(spec)
    drive(adder, 2)
    adder.open(observe(2), 2 * PERIOD + 1, 0, Segment.AUTO, None, "")
    (fragment,), totals = adder.finish(End.FAULT, None, None, None, None)
    check(fragment)
    assert totals.steps == 2
    assert fragment.observation["position"][-1, 0] == 2


def test_an_episode_without_a_whole_step_leaves_nothing(spec):
    adder = make(spec)
    adder.open(observe(0), 1, 0, Segment.AUTO, None, "")
    fragments, totals = adder.finish(End.ABORT, None, None, None, None)
    assert fragments == []
    assert totals.steps == 0
    assert not adder.recording


def test_a_persons_reward_replaces_the_last(spec):
    adder = make(spec)
    drive(adder, 2)
    (fragment,), _ = finish(adder, 2, reward=5.0)
    assert fragment.reward.tolist() == [0.0, 5.0]


@given(before=st.integers(1, 9), rewind=st.integers(1, 9), after=st.integers(0, 9), data=st.data())
@settings(max_examples=60)
def test_a_rewind_voids_exactly_what_it_undid(processes, before, rewind, after, data):
    adder = make(processes.SPEC)
    first = data.draw(st.integers(0, before))
    fragments = drive(adder, before)
    fragments += drive(adder, rewind, Segment.REWIND, before)
    adder.void(first)
    border = before + rewind
    fragments += drive(adder, after, Segment.CORRECTION, border)
    fragments += finish(adder, border + after)[0]
    carriers = [f.header for f in fragments if f.header.void_from is not None]
    for fragment in fragments:
        check(fragment)
    assert len(carriers) == 1
    assert carriers[0].void_from == min(first, carriers[0].start)
    # Without a step after it, the last step of the rewind carries it.
    assert carriers[0].start == (border if after else border - 1)


def test_two_rewinds_do_not_void_what_lies_between(spec):
    adder = make(spec)
    fragments = drive(adder, 2)
    adder.void(1)
    fragments += drive(adder, 2, begin=2)
    adder.void(3)
    fragments += drive(adder, 2, begin=4)
    fragments += finish(adder, 6)[0]
    voids = [(f.header.void_from, f.header.start) for f in fragments if f.header.void_from]
    assert voids == [(1, 2), (3, 4)]


def test_declared_extras_fill_every_row(spec):
    extras = {"value": Field((), "float32"), "tag": Field((2,), "int32")}
    adder = make(spec, extras)
    known = {"value": np.float32(0.5), "tag": np.array([1, 2], np.int32)}
    adder.open(observe(0), 1, 0, Segment.AUTO, dataclasses.replace(proposal(0), extras=known), "")
    adder.close(np.zeros(2, np.float32))
    adder.open(observe(1), 2, 0, Segment.HOLD, None, "")
    adder.close(np.zeros(2, np.float32))
    (fragment,), _ = finish(adder, 2)
    assert fragment.extras["value"][0] == 0.5
    assert np.isnan(fragment.extras["value"][1])
    assert fragment.extras["tag"].tolist() == [[1, 2], [0, 0]]


def touch(stamps):
    stamps = np.array(stamps, np.int64)
    return {"touch": Stream(stamps, stamps[:, None].astype(np.float64))}


@given(steps=st.integers(1, 20), stamps=st.sets(st.integers(0, 21 * 100), max_size=200))
@settings(max_examples=60)
def test_every_sample_once_in_the_fragment_of_its_time(processes, steps, stamps):
    adder = make(processes.SPEC)
    stamps = [stamp * 1_000_000 for stamp in sorted(stamps)]
    fragments, begun = [], -1
    for n in range(steps + 1):
        now = n * PERIOD + 1
        adder.sense(touch([stamp for stamp in stamps if begun < stamp <= now]))
        begun = now
        if n < steps:
            fragments += drive(adder, 1, begin=n)
    fragments += finish(adder, steps)[0]
    came = []
    for fragment, then in zip(fragments, [*fragments[1:], None], strict=True):
        check(fragment)
        if "touch" not in fragment.streams:
            continue
        part = fragment.streams["touch"]
        assert (part.values[:, 0] == part.stamps).all()
        first = fragment.robot_ns[0] if came or fragment.header.start else 0
        until = fragment.robot_ns[-1] + 1 if then is None else then.robot_ns[0]
        assert ((first <= part.stamps) & (part.stamps < until)).all()
        came += part.stamps.tolist()
    assert came == [stamp for stamp in stamps if stamp <= steps * PERIOD + 1]


def test_samples_end_with_the_episode(spec):
    adder = make(spec)
    adder.sense(touch([1, 2]))
    drive(adder, 3)
    adder.sense(touch([PERIOD, 2 * PERIOD + 5]))
    # The second step was the last one: what came after its next observation is of no episode.
    fragments, _ = finish(adder, 3, index=1)
    assert fragments[-1].robot_ns[-1] == 2 * PERIOD + 1
    assert fragments[-1].streams["touch"].stamps.tolist() == [1, 2, PERIOD]
    adder.begin(Assignment("arm", Purpose.TRAIN, "reach", 1, "e2"), None)
    drive(adder, 2)
    fragments, _ = finish(adder, 2)
    assert not fragments[0].streams
