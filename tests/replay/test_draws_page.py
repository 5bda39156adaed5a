"""The examples of docs/draws.md run as they stand."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from user_system.core.draws import AsOf, Draw, Hindsight, Weigh
from user_system.core.types import Segment, Stream
from user_system.replay import clauses, presets
from user_system.replay.sampler import ReplayData
from user_system.replay.views import BUILT_IN, View, with_views

PAGE = (Path(__file__).parents[2] / "docs" / "draws.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def filled(store, recorder):
    robot = recorder()
    for number in range(6):
        segment = Segment.DEMO if number % 2 else Segment.AUTO
        for fragment in robot.run_episode(20, segment=segment, recorded=float(number)):
            rows = len(fragment.robot_ns)
            force = Stream(fragment.robot_ns, np.ones((rows, 6), np.float32))
            more = {
                "state": np.zeros((rows, 2), np.float32),
                "goal": np.zeros((rows, 2), np.float32),
                "place": np.ones((rows, 2), np.float32),
            }
            observation = {**fragment.observation, **more}
            whole = dataclasses.replace(fragment, observation=observation, streams={"force": force})
            assert store.append([whole]) == []
    return store


def test_there_are_examples():
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda e: e.strip().splitlines()[0][:40])
def test_an_example_runs(filled, example):
    names = {
        "np": np,
        "env": filled.env,
        "data": ReplayData(filled.env, seed=3),
        "ReplayData": ReplayData,
        "View": View,
        "with_views": with_views,
        "Draw": Draw,
        "Weigh": Weigh,
        "Hindsight": Hindsight,
        "AsOf": AsOf,
    }
    exec(compile(example, "docs/draws.md", "exec"), names)


def test_every_view_preset_and_clause_is_on_the_page():
    words = set(re.findall(r"[a-z_]+", PAGE))
    assert words >= {*BUILT_IN, *presets.PRESETS}
    assert words >= clauses._CLAUSES.keys()
    assert words >= {f.name for f in dataclasses.fields(Draw)}
