"""Histories to the left and action chunks to the right of a step, and where both end."""

import numpy as np
import pytest

from user_system.core.draws import Draw
from user_system.core.errors import SpecError
from user_system.core.types import End, Segment
from user_system.replay.sampler import ReplayData


def everything(store, **request):
    data = ReplayData(store.env)
    view = next(iter(request.get("mix", {"all": 1.0})))
    return data.consume(Draw(data.count(view), **request))


def past(batch, row):
    """Observation numbers of a history, None where not valid."""
    seen, valid = batch.observation["flag"][row], batch.extras["history_valid"][row]
    return [n if ok else None for n, ok in zip(seen.tolist(), valid.tolist(), strict=True)]


def later(batch, row):
    seen, valid = batch.next_observation["flag"][row], batch.extras["next_history_valid"][row]
    return [n if ok else None for n, ok in zip(seen.tolist(), valid.tolist(), strict=True)]


def test_a_window_has_a_history_and_an_action_chunk(store, recorder):
    robot = recorder(cameras={"cam": (4, 4, 3)})
    store.append(robot.run_episode(5, flush_every=2))
    store.append(robot.run_episode(2))
    batch = everything(store, unit="window", length=3, history=2, gamma=0.5)
    assert batch.observation["o"].shape == (7, 2, 2)
    assert batch.observation["cam"].shape == (7, 2, 4, 4, 3)
    assert batch.next_observation["cam"].shape == (7, 2, 4, 4, 3)
    assert batch.action.shape == (7, 3, 3)
    pasts = [past(batch, row) for row in range(7)]
    assert pasts == [[None, 1], [1, 2], [2, 3], [3, 4], [4, 5], [None, 7], [7, 8]]
    acted = [
        [int(a) for a, ok in zip(batch.action[r, :, 0], batch.valid[r], strict=True) if ok]
        for r in range(7)
    ]
    assert acted == [[1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5], [5], [7, 8], [8]]
    laters = [later(batch, row) for row in range(7)]
    assert laters == [[3, 4], [4, 5], [5, 6], [5, 6], [5, 6], [8, 9], [8, 9]]
    assert batch.discount.tolist() == [0.125, 0.125, 0, 0, 0, 0, 0]
    gone = ~batch.extras["history_valid"]
    assert not batch.observation["cam"][gone].any()
    assert batch.observation["cam"][~gone].any()


def test_a_history_of_a_step_is_stacked_before_and_after_it(store, recorder):
    store.append(recorder().run_episode(4))
    batch = everything(store, history=3)
    assert batch.action.shape == (4, 3)
    assert [past(batch, r) for r in range(4)] == [
        [None, None, 1],
        [None, 1, 2],
        [1, 2, 3],
        [2, 3, 4],
    ]
    assert [later(batch, r) for r in range(4)] == [
        [None, 1, 2],
        [1, 2, 3],
        [2, 3, 4],
        [3, 4, 5],
    ]


def test_a_history_of_one_is_an_axis(store, recorder):
    store.append(recorder().run_episode(3))
    batch = everything(store, history=1)
    assert batch.observation["flag"].tolist() == [[1], [2], [3]]
    assert batch.next_observation["flag"].tolist() == [[2], [3], [4]]
    assert batch.extras["next_history_valid"].all()


def test_a_history_never_crosses_an_episode_a_gap_or_a_void(store, recorder):
    robot = recorder()
    robot.step(4)
    first = robot.flush()  # 1..4
    robot.void_from = 2
    robot.step(2, segment=Segment.REWIND)  # 5, 6
    robot.step(2, segment=Segment.RECOVERY)  # 7, 8
    second = robot.flush()
    robot.step(2)
    robot.flush()  # lost: 9, 10
    robot.sequence -= 1
    robot.step(2)
    robot.step(1, end=End.TERMINATED)  # 11, 12, 13
    store.append([first, second, robot.flush()])
    batch = everything(store, history=3)
    assert [past(batch, r) for r in range(len(batch))] == [
        [None, None, 1],
        [None, 1, 2],
        [None, None, 7],
        [None, None, 11],
        [None, 11, 12],
        [11, 12, 13],
    ]
    void = everything(store, history=3, include_void=True)
    assert [past(void, r) for r in range(4)] == [
        [None, None, 1],
        [None, 1, 2],
        [None, None, 3],
        [None, 3, 4],
    ]


@pytest.mark.parametrize("cross", [True, False])
def test_a_history_crosses_segments_as_a_window_does(store, recorder, cross):
    robot = recorder()
    robot.step(2)
    robot.step(2, segment=Segment.CORRECTION)
    robot.step(1, segment=Segment.HOLD)
    robot.step(2, end=End.NONE)
    robot.step(1, end=End.TERMINATED)
    store.append([robot.flush()])
    batch = everything(store, history=3, cross_segments=cross)
    third = [1, 2, 3] if cross else [None, None, 3]
    assert past(batch, 2) == third
    assert [past(batch, r) for r in (4, 5)] == [[None, None, 6], [None, 6, 7]]


def test_a_damaged_frame_ends_no_history_with_it(store, recorder):
    robot = recorder(cameras={"cam": (4, 4, 3)})
    store.append(robot.run_episode(5))
    data = ReplayData(store.env)
    data.count()
    data._index.rows["s"].exclude(np.array([1]))  # as if the second image were damaged
    batch = data.consume(Draw(data.count(), history=3))
    assert [past(batch, r) for r in range(len(batch))] == [
        [None, None, 3],
        [None, 3, 4],
        [3, 4, 5],
    ]


def test_windows_may_be_kept_within_their_view(store, recorder):
    robot = recorder()
    robot.step(3, segment=Segment.CORRECTION)
    robot.step(2)
    robot.step(2, segment=Segment.RECOVERY)
    robot.step(1, segment=Segment.CORRECTION, end=End.TERMINATED)
    store.append([robot.flush()])
    human = {"human": 1.0}
    open_ = everything(store, unit="window", length=4, mix=human)
    kept = everything(store, unit="window", length=4, mix=human, cross_views=False)
    assert open_.valid.sum(1).tolist() == [4, 4, 4, 3, 2, 1]
    assert kept.valid.sum(1).tolist() == [3, 2, 1, 3, 2, 1]
    sums = everything(store, unit="nstep", length=4, gamma=1.0, mix=human, cross_views=False)
    assert sums.next_observation["flag"].tolist() == [4, 4, 4, 9, 9, 9]


def test_views_of_a_mix_walk_by_their_own_rules(store, recorder):
    """A view that shows HOLD may go on into it, the other one of the same batch may not."""
    from user_system.replay.views import View, with_views

    robot = recorder()
    robot.step(2)
    robot.step(2, segment=Segment.HOLD)
    robot.step(1, end=End.TERMINATED)
    store.append([robot.flush()])
    held = View.parse("held", {"segments": ["HOLD", "AUTO"]})
    data = ReplayData(store.env, seed=2, views=with_views({"held": held}))
    mix = {"all": 0.5, "held": 0.5}
    batch = data.draw(Draw(400, unit="window", length=5, history=5, mix=mix))
    flags, steps = batch.observation["flag"][:, -1], batch.valid.sum(1)
    reach = {n: set(steps[:200][flags[:200] == n].tolist()) for n in (1, 2, 5)}
    assert reach == {1: {2}, 2: {1}, 5: {1}}
    reach = {n: set(steps[200:][flags[200:] == n].tolist()) for n in (1, 2, 3, 4, 5)}
    assert reach == {1: {5}, 2: {4}, 3: {3}, 4: {2}, 5: {1}}


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        (Draw(1, history=-1), "history"),
        (Draw(1, unit="episode", history=2), "whole episodes with a history"),
        (Draw(1, unit="year"), "allowed: step, nstep"),
        (Draw(1, length=0), "length >= 1"),
        (Draw(1, gamma=float("nan")), "gamma"),
    ],
)
def test_what_makes_no_sense_is_named(store, data, recorder, request_, match):
    store.append(recorder().run_episode(3))
    with pytest.raises(SpecError, match=match):
        data.draw(request_)
