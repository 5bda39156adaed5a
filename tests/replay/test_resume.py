"""What a checkpoint of draws holds outlasts the index: rows are numbered anew, steps are not."""

import dataclasses
import json

import numpy as np
import pytest

from user_system.core.draws import Draw, Hindsight, Weigh
from user_system.core.errors import SpecError
from user_system.core.types import Segment
from user_system.replay import keeper, rewrite
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store


def saved(data):
    return json.loads(json.dumps(data.state_dict()))


def resumed(store, state):
    data = ReplayData(store.env, seed=1234)
    data.load_state_dict(state)
    return data


def flags(batch):
    return batch.observation["flag"].tolist()


@pytest.mark.parametrize("blocks", [True, False])
def test_what_was_consumed_is_known_after_others_left_the_store(
    store, recorder, monkeypatch, blocks
):
    if blocks:
        monkeypatch.setattr(keeper, "BLOCK_STEPS", 8)
    robot = recorder()
    for _ in range(4):
        store.append(robot.run_episode(5))  # 1.., 7.., 13.., 19..
    if blocks:
        store.tend()
    data = ReplayData(store.env)
    assert flags(data.consume(Draw(12))) == [*range(1, 6), *range(7, 12), 13, 14]
    state = saved(data)
    store.delete("arm-1-1", who="ann", why="test")
    store.delete("arm-1-2", who="ann", why="test")
    for each in (data, resumed(store, state)):
        assert flags(each.consume(Draw(8))) == [15, 16, 17, *range(19, 24)]


def test_what_was_consumed_late_in_the_middle_is_known_too(store, recorder):
    robot = recorder()
    store.append(robot.run_episode(4, recorded=float("nan")))
    store.append(robot.run_episode(4))
    data = ReplayData(store.env)
    assert flags(data.consume(Draw(2))) == [6, 7]
    state = saved(data)
    store.label("arm-1-1", "reward", "v", None, np.zeros(4, np.float32))
    assert flags(resumed(store, state).consume(Draw(6))) == [1, 2, 3, 4, 8, 9]


def test_whole_episodes_that_were_consumed_are_known_after_others_left(store, recorder):
    a, b = recorder("a"), recorder("b")
    a.step(2)
    store.append([a.flush()])  # begins first, ends last
    for _ in range(3):
        store.append(b.run_episode(2))
    request = Draw(1, unit="episode")
    data = ReplayData(store.env)
    seen = [flags(data.consume(request))[0] for _ in range(2)]
    assert seen == [[3, 4], [6, 7]]
    state = saved(data)
    a.step(1, end=1)
    store.append([a.flush()])
    store.delete("b-1-1", who="ann", why="test")
    again = resumed(store, state)
    assert flags(again.consume(request)) == [[1, 2, 12]]
    assert flags(again.consume(request)) == [[9, 10]]


def test_damage_that_was_found_is_known_after_others_left(store, recorder):
    robot = recorder(cameras={"cam": (4, 4, 3)})
    for _ in range(3):
        store.append(robot.run_episode(4))
    data = ReplayData(store.env)
    assert data.count() == 12
    data._index.rows["s"].exclude(np.array([11]))
    assert data.count() == 10
    state = saved(data)
    store.delete("arm-1-1", who="ann", why="test")
    after = resumed(store, state)
    assert after.count() == data.count() == 6
    assert flags(after.consume(Draw(6))) == flags(data.consume(Draw(6)))


def test_every_kind_of_draw_goes_on_bit_for_bit(store, recorder, monkeypatch):
    """Also where the state lies in the middle of a block, and some of it has left since."""
    monkeypatch.setattr(keeper, "BLOCK_STEPS", 64)
    robot = recorder(cameras={"cam": (4, 4, 3)}, extras=True)
    for n in (9, 12, 15, 18):
        segment = Segment.CORRECTION if n % 2 else Segment.AUTO
        store.append(robot.run_episode(n, recorded=float(n), segment=segment))
    store.label("arm-1-2", "quality", "v", None, np.linspace(0, 1, 12, dtype=np.float32))
    data = ReplayData(store.env, seed=5, follow=False)
    data.refresh()
    data.consume(Draw(7))
    requests = [
        Draw(16, columns=["logp"]),
        Draw(8, unit="nstep", length=3, mix={"online": 0.5, "interventions": 0.5}),
        Draw(8, unit="window", length=3, history=2, cross_segments=False),
        Draw(2, unit="episode"),
        Draw(16, weigh=Weigh("return", floor=0.1)),
        Draw(16, weigh=Weigh("quality", missing=0.5)),
        Draw(16, weigh=Weigh("segment"), hindsight=Hindsight("o", "o", 0.5)),
        Draw(8, preset="hil_serl"),
    ]
    for request in requests:
        data.draw(request)
    state = saved(data)
    for _ in range(8):
        store.append(robot.run_episode(30))
    store.tend()
    store.label("arm-1-1", "reward", "v", None, np.full(12, 9, np.float32))
    again = ReplayData(store.env, seed=99, follow=False)
    again.load_state_dict(state)
    for number in range(20):
        request = requests[number % len(requests)]
        same(data.draw(request), again.draw(request))
    same(data.consume(Draw(5)), again.consume(Draw(5)))
    assert again.refresh()
    assert again.count() == 54 + 240


def same(ours, theirs):
    for field in dataclasses.fields(ours):
        one, two = getattr(ours, field.name), getattr(theirs, field.name)
        for key in one if isinstance(one, dict) else [None]:
            a, b = (one, two) if key is None else (one[key], two[key])
            assert a.dtype == b.dtype
            assert a.tobytes() == b.tobytes(), (field.name, key)


@pytest.mark.parametrize(
    "ranges", [[[3, 2]], [[5, 9], [2, 3]], [[0, 4], [4, 8]], [[-1, 2]], [[0, 1 << 60]]]
)
def test_ranges_that_nobody_consumed_are_refused(store, recorder, ranges):
    store.append(recorder().run_episode(8))
    data = ReplayData(store.env)
    data.count()
    state = {**saved(data), "consumed": ranges}
    with pytest.raises(SpecError, match="ranges of what was consumed"):
        ReplayData(store.env).load_state_dict(state)


def test_a_state_from_before_anything_was_stored(store, recorder):
    state = saved(ReplayData(store.env, seed=3))
    store.append(recorder().run_episode(8))
    first, second = ReplayData(store.env, seed=3), resumed(store, state)
    same(first.draw(Draw(16)), second.draw(Draw(16)))


def test_a_store_that_was_written_anew_is_not_taken_for_the_old_one(tmp_path, recorder):
    """Compacting numbers what is left anew, so that a checkpoint would mean other steps."""
    robot, path = recorder(), tmp_path / "replay"
    with Store(path).open(create=True) as store:
        for _ in range(3):
            store.append(robot.run_episode(8))
        data = ReplayData(store.env)
        data.consume(Draw(3))
        state = saved(data)
        store.append(robot.run_episode(8))
        store.delete("arm-1-1", who="ann", why="test")
        resumed(store, state)
    rewrite.compact(path)
    with (
        Store(path).open() as store,
        pytest.raises(SpecError, match="written anew since"),
    ):
        resumed(store, state)


def test_a_resume_does_not_mind_that_its_newest_fragment_left_the_store(store, recorder):
    a, b = recorder("a"), recorder("b")
    store.append(a.run_episode(8))
    store.append(b.run_episode(8))
    data = ReplayData(store.env)
    data.consume(Draw(3))
    state = saved(data)
    store.delete("b-1-1", who="ann", why="test")
    assert len(resumed(store, state).consume(Draw(5))) == 5


# --- late labels, by version ---


def test_the_newest_label_wins_and_an_older_one_can_be_asked_for(store, data, recorder):
    robot = recorder()
    store.append(robot.run_episode(3, recorded=7.0))
    for version, values in (("v1", [1, 2, 3]), ("v2", [10, 20, np.nan])):
        store.label("arm-1-1", "reward", version, None, np.array(values, np.float32))
    assert data.count() == 3  # it has read the labels before a version is asked for
    rewards = {
        "": [10, 20, 7],
        "reward": [10, 20, 7],
        "recorded_reward": [7, 7, 7],
        "reward@v1": [1, 2, 3],
    }
    for name, expected in rewards.items():
        request = Draw(3, reward=name, columns=["reward@v1", "reward@v2"])
        batch = data.consume(request)
        data._consumed.load([])
        assert batch.reward.tolist() == expected, name
        assert batch.extras["reward@v1"].tolist() == [1, 2, 3]
        assert batch.extras["reward@v2"][:2].tolist() == [10, 20]
    # A step is drawn where the reward that was asked for is known.
    assert data.consume(Draw(2, reward="reward@v2")).reward.tolist() == [10, 20]


def test_a_version_that_comes_later_or_again_is_followed(store, data, recorder):
    robot = recorder()
    store.append(robot.run_episode(3))
    request = Draw(3, unit="nstep", length=2, gamma=1.0, reward="progress@judge 2")
    with pytest.raises(Exception, match=r"late labels: none"):
        data.draw(request)
    store.label("arm-1-2", "progress", "judge 2", None, np.array([5, 6], np.float32))
    store.label("arm-1-1", "progress", "judge 2", None, np.array([1, 2, 4], np.float32))
    store.label("arm-1-1", "progress", "judge 1", None, np.array([9, 9, 9], np.float32))
    store.append(robot.run_episode(2))
    for each in (data, ReplayData(store.env)):
        assert each.consume(dataclasses.replace(request, n=5)).reward.tolist() == [3, 6, 4, 11, 6]
        each._consumed.load([])
        newest = each.consume(Draw(3, reward="progress", columns=["progress"]))
        assert newest.reward.tolist() == [9, 9, 9]
        each._consumed.load([])
    store.label("arm-1-1", "progress", "judge 2", None, np.array([0, 0, 8], np.float32))
    for each in (data, ReplayData(store.env)):
        assert each.consume(dataclasses.replace(request, n=5)).reward.tolist() == [0, 8, 8, 11, 6]


def test_two_readers_of_one_store_may_read_different_versions(store, recorder):
    store.append(recorder().run_episode(3))
    for version, value in (("a", 1.0), ("b", 2.0)):
        store.label("arm-1-1", "reward", version, None, np.full(3, value, np.float32))
    one, two = ReplayData(store.env), ReplayData(store.env)
    assert one.draw(Draw(4, reward="reward@a")).reward.tolist() == [1.0] * 4
    assert two.draw(Draw(4, reward="reward@b")).reward.tolist() == [2.0] * 4


def test_versions_that_are_wanted_are_bounded(store, data, recorder):
    store.append(recorder().run_episode(3))
    for number in range(64):
        data._index.want(f"reward@{number}")
    with pytest.raises(SpecError, match="64 at a time"):
        data.draw(Draw(1, columns=["reward@64"]))


def test_what_is_shown_beside_a_batch_does_not_change_which_steps_are_drawn(store, recorder):
    store.append(recorder().run_episode(30))
    plain, other = ReplayData(store.env, seed=3), ReplayData(store.env, seed=3)
    assert plain.draw(Draw(9)).ids.tolist() == other.draw(Draw(9, history=4)).ids.tolist()
