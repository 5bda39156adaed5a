"""Windows that are served to others: draws are taken back, and measured before they are made."""

import dataclasses
import json
from collections.abc import Mapping

import numpy as np
import pytest

from user_system.core.errors import SpecError
from user_system.core.interfaces import Draw
from user_system.replay.sampler import ReplayData
from user_system.replay.served import ServedData

REQUESTS = [
    Draw(16),
    Draw(16, observations=("o",)),
    Draw(7, unit="nstep", length=3),
    Draw(5, unit="window", length=9, columns=("reward", "proposed", "logp")),
    Draw(3, unit="episode"),
]


@pytest.fixture
def filled(store, recorder):
    robot = recorder(cameras={"cam": (6, 8, 3)}, extras=True)
    for length in (5, 9, 30, 2):
        store.append(robot.run_episode(length))
    return store


def size_of(batch) -> int:
    values = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    groups = [list(v.values()) if isinstance(v, Mapping) else [v] for v in values]
    return sum(array.nbytes for group in groups for array in group)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: request.unit)
def test_a_batch_is_about_as_large_as_was_said(filled, request_):
    data = ServedData(filled.env)
    said = data.bytes_of(request_)
    if request_.unit == "episode":
        request_ = dataclasses.replace(request_, n=50)
        said = data.bytes_of(request_)  # the longest one is among them
    size = size_of(data.draw(request_))
    assert 0.8 * said <= size <= 1.1 * said


def test_what_nobody_could_hold_is_measured_without_being_made(filled):
    data = ServedData(filled.env)
    assert data.bytes_of(Draw(1 << 60)) > 1 << 60
    assert data.bytes_of(Draw(1, unit="window", length=1 << 60)) > 1 << 60
    assert data.bytes_of(Draw(1, history=1 << 60)) > 1 << 60


def test_nothing_stored_is_nothing_to_measure(store):
    assert ServedData(store.env).bytes_of(Draw(1 << 60)) == 0


def test_draws_that_were_taken_back_were_never_made(filled, recorder):
    local, served = ReplayData(filled.env, seed=2), ServedData(filled.env, seed=2)
    for data in (local, served):
        data.consume(Draw(3))
    before = served.bookmark()
    served.draw(Draw(9))
    served.consume(Draw(5))
    served.consume(Draw(1, unit="episode"))
    filled.append(recorder("other", cameras={"cam": (6, 8, 3)}, extras=True).run_episode(3))
    served.rewind(before)
    assert served.count() == local.count() == 49
    for take in ("consume", "draw", "consume"):
        mine, theirs = getattr(served, take)(Draw(4)), getattr(local, take)(Draw(4))
        assert mine.ids.tolist() == theirs.ids.tolist()
    assert json.dumps(served.state_dict()) == json.dumps(local.state_dict())


@pytest.mark.parametrize(
    "change",
    [
        {"consumed": [[0, 1 << 50]]},
        {"consumed": [[5, 3]]},
        {"consumed": [[-4, 3]]},
        {"consumed": [7]},
        {"consumed_episodes": [[0, 1 << 63]]},
        {"rng": {"bit_generator": "MT19937"}},
        {"rng": None},
        {"mark": [1 << 40, 0, 0, 0]},
        {"mark": "soon"},
        {"damaged": {"s": ["x"]}},
        {"format": 99},
    ],
)
def test_a_state_that_is_none_is_refused(filled, change):
    data = ServedData(filled.env)
    data.consume(Draw(3))
    good = data.state_dict()
    data.load_state_dict(good)
    with pytest.raises(SpecError):
        data.load_state_dict({**good, **change})


def test_a_state_that_lacks_something_is_refused(filled):
    data = ServedData(filled.env)
    data.consume(Draw(3))
    good = data.state_dict()
    for name in good:
        with pytest.raises(SpecError):
            data.load_state_dict({k: v for k, v in good.items() if k != name})
    data.load_state_dict(good)
    assert np.array_equal(data.consume(Draw(2)).observation["o"][:, 0], [4, 5])
