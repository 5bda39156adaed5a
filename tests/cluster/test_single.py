"""The single-process reference loop follows the schedule and repeats from its seed."""

from itertools import pairwise

import numpy as np
import pytest

from learners.rlpd import RlpdConfig
from user_system.cluster.bench.single import SingleConfig, SingleLoop
from user_system.core.helping import HelpConfig
from user_system.core.schedule import ScheduleConfig
from user_system.core.types import End, Segment

pytest.importorskip("mujoco")

CONFIG = SingleConfig(
    seed=3,
    learner=RlpdConfig(hidden=(16,), batch=32, start_after=10, publish_every=20),
    schedule=ScheduleConfig(seed=3, demos=2, eval_episodes=1, eval_pass=1, give_up_steps=150),
    help=HelpConfig(patience=5, fade_steps=10_000),
)


@pytest.fixture(scope="module")
def loops() -> list[tuple[SingleLoop, dict]]:
    loops = [SingleLoop(CONFIG), SingleLoop(CONFIG)]
    return [(loop, loop.run()) for loop in loops]


def test_it_repeats_from_its_seed(loops) -> None:
    (one, report), (other, again) = loops
    times = {"wall_s", "freeze_wall_s", "evaluations"}
    assert {k: v for k, v in report.items() if k not in times} == {
        k: v for k, v in again.items() if k not in times
    }
    np.testing.assert_equal(one._learner.weights(), other._learner.weights())


def test_steps_are_counted_and_kept_as_the_schedule_says(loops) -> None:
    loop, report = loops[0]
    assert report["baseline_rate"] == 0.0
    assert loop._schedule.env_steps == loop._data.count("all") >= 150
    assert loop._data.count("demos") > 0
    assert loop._data.count("interventions") > 0
    assert loop.stats()["demos"] == 2.0


def test_the_ratio_of_updates_to_steps_is_kept(loops) -> None:
    loop, report = loops[0]
    online = loop._data.count("online")
    assert online - 1 <= report["updates"] / CONFIG.learner.updates_per_step <= online


def test_what_follows_a_step_is_where_the_next_one_begins(loops) -> None:
    steps = loops[0][0]._data._steps
    for before, after in pairwise(steps):
        if before.end is End.NONE:
            np.testing.assert_equal(dict(before.next_observation), dict(after.observation))
    corrected = [k for k, s in enumerate(steps) if s.segment is Segment.CORRECTION]
    assert steps[corrected[0] - 1].segment is Segment.AUTO
