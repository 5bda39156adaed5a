"""Every possible draw against a model in plain Python: lists, dictionaries and one link per step.

Robots are interleaved, people step in, rewinds void, episodes are truncated, fragments are refused
or repeated, sensors are late, labels come late or early, episodes are deleted or go by quota, the
log is put into blocks, the store is reopened, readers resume; then all views are emptied by
``consume`` in every unit, so that each draw that can happen is compared, and what is random is
compared with the chances that it should have.
"""

import math
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from replay_checks import Checker
from replay_world import ROBOTS, World

from user_system.core.types import End, Purpose, Segment
from user_system.replay import keeper

QUOTA = 125_000
"""Bytes; some thirty fragments."""

robots = st.sampled_from(ROBOTS)
number = st.integers(1, 2)
reward = st.sampled_from([0.0, 1.0, -2.0, 3.0, math.nan])
late = st.lists(reward, min_size=1, max_size=9)
ends = st.sampled_from([end for end in End if end is not End.NONE])
acting = st.sampled_from([Segment.AUTO, Segment.AUTO, Segment.CORRECTION, Segment.DEMO])
segments = st.one_of(acting, acting, acting, st.sampled_from(list(Segment)))
steps = st.tuples(st.just("step"), robots, st.integers(1, 3), segments, reward)
flush = st.tuples(st.just("flush"), robots)
columns = st.sampled_from(["reward", "reward", "progress"])
versions = st.sampled_from(["v", "w"])
rare = st.one_of(
    st.tuples(st.just("end"), robots, ends),
    st.tuples(st.just("end"), robots, ends),
    st.tuples(st.just("begin"), robots, st.sampled_from(list(Purpose))),
    st.tuples(st.just("spoil"), robots),
    st.tuples(st.just("stumble"), robots),
    st.tuples(st.just("repeat"), st.integers(0, 99)),
    st.tuples(st.just("label_success"), robots, number, st.booleans() | st.none()),
    st.tuples(st.just("label"), robots, number, columns, versions, late),
    st.tuples(st.just("delete"), robots, number),
    st.tuples(st.just("reopen")),
)
told = st.one_of(
    st.tuples(st.just("take_over"), robots),
    st.tuples(st.just("revise"), robots, number),
    st.tuples(st.just("prioritise"), st.lists(st.floats(0, 4, width=32), min_size=1, max_size=5)),
)
rewind = st.tuples(st.just("rewind"), robots, st.integers(0, 5))
feel = st.tuples(st.just("feel"), robots, st.integers(-40, 20).map(lambda n: n * 13_000_000))
reader = st.one_of(st.tuples(st.just("look")), st.tuples(st.just("resume")))
tend = st.tuples(st.just("tend"))
actions = st.one_of(steps, steps, steps, flush, flush, rewind, feel, reader, tend, rare, told)


runs = [0]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(keeper, "BLOCK_STEPS", 8)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    script=st.lists(actions, min_size=20, max_size=60), quota=st.sampled_from([None, None, QUOTA])
)
def test_every_possible_draw_is_the_models(recorder, quick_path, script, quota):
    counter = recorder().counter
    counter[0] = 0
    runs[0] += 1
    world = World(quick_path / f"{runs[0]}", recorder, quota)
    try:
        for verb, *arguments in script:
            getattr(world, verb)(*arguments)
        world.finish()
        Checker(world).everything()
    finally:
        world.store.close()
        shutil.rmtree(world.path)
