"""Episodes read back whole: joined only where steps follow each other, labelled, never made up."""

import dataclasses

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from user_system.codec import fragments as codec
from user_system.core.errors import DamageError, SpecError
from user_system.core.types import End, Purpose, Segment, Stream
from user_system.replay import images
from user_system.replay.episodes import Episodes
from user_system.replay.order import Order
from user_system.replay.store import Store

CAMERAS = {"a": (6, 5, 3), "b": (4, 4, 1)}


def interleaved(*lives):
    """Take one fragment of each in turn."""
    longest = max(map(len, lives))
    return [life[i] for i in range(longest) for life in lives if i < len(life)]


def replaced(fragment, **header):
    return dataclasses.replace(fragment, header=dataclasses.replace(fragment.header, **header))


def same_rows(episode, fragments):
    for name in codec.COLUMNS.keys() - {"policy", "operator", "robot_ns", "reward"}:
        written = np.concatenate([getattr(f, name) for f in fragments])
        np.testing.assert_array_equal(episode.columns[name], written, strict=True)
    for name in ("policy", "operator"):
        written = [f.header.names[i] for f in fragments for i in getattr(f, name)]
        assert [episode.names[i] for i in episode.columns[name]] == written
    written = np.concatenate([f.robot_ns for f in fragments])
    np.testing.assert_array_equal(episode.robot_ns, written, strict=True)
    for name in ("o", "flag"):
        written = np.concatenate([f.observation[name] for f in fragments])
        np.testing.assert_array_equal(episode.observation[name], written, strict=True)
    for camera in episode.cameras:
        written = np.concatenate([f.observation[camera] for f in fragments])
        np.testing.assert_array_equal(np.stack(list(episode.frames(camera))), written, strict=True)


def test_interleaved_robots_come_apart_again(store, recorder):
    left, right = recorder("left", cameras=CAMERAS), recorder("right", cameras=CAMERAS)
    lives = [left.run_episode(11), right.run_episode(6, operator="eve")]
    store.append(interleaved(*lives))
    found = list(Episodes(store.env))
    assert [e.header.robot for e in found] == ["left", "right"]
    assert [e.number for e in found] == [0, 1]
    assert [len(e) for e in found] == [11, 6]
    for episode, life in zip(found, lives, strict=True):
        same_rows(episode, life)
        assert episode.complete
        assert not episode.void.any()
        assert episode.cameras == CAMERAS


def test_only_the_end_brings_the_last_observation(store, recorder):
    robot = recorder()
    first, *_ = robot.run_episode(8)
    store.append([first])
    (episode,) = Episodes(store.env)
    assert not episode.complete
    assert len(episode.robot_ns) == len(episode.observation["o"]) == len(episode) == 4


def test_a_missing_fragment_is_never_joined_over(store, recorder):
    fragments = recorder().run_episode(12)
    bad = dataclasses.replace(fragments[1], reward=np.zeros(3, np.float32))
    assert len(store.append([fragments[0], bad, fragments[2]])) == 1
    episodes = Episodes(store.env)
    before, after = episodes
    assert (before.header.start, len(before), before.complete) == (0, 4, False)
    assert (after.header.start, len(after), after.complete) == (8, 4, True)
    assert before.key == after.key
    assert episodes.stats()["gaps"] == 1
    same_rows(after, fragments[2:])


def test_an_episode_whose_beginning_is_missing_is_a_gap(store, recorder):
    fragments = recorder().run_episode(8)
    store.append([dataclasses.replace(fragments[0], reward=np.zeros(3, np.float32)), fragments[1]])
    episodes = Episodes(store.env)
    (episode,) = episodes
    assert episode.header.start == 4
    assert episodes.stats()["gaps"] == 1


def test_a_damaged_record_is_counted_and_ends_what_is_joined(store, recorder, monkeypatch):
    store.append(recorder().run_episode(12))
    decode = codec.decode

    def damaged(value, **options):
        fragment = decode(value, **options)
        if fragment.header.sequence == 1:
            raise DamageError("flipped")
        return fragment

    monkeypatch.setattr(codec, "decode", damaged)
    episodes = Episodes(store.env)
    assert [(e.header.start, len(e)) for e in episodes] == [(0, 4), (8, 4)]
    assert episodes.stats()["damaged_records"] == 1


def test_damaged_images_are_left_out_or_raised_but_never_replaced(store, recorder, monkeypatch):
    robot = recorder(cameras=CAMERAS)
    fragments = robot.run_episode(12)
    store.append(fragments)
    read = images.read_stack

    def damaged(txn, table, offset, camera, count, shape):
        if (offset, camera) == (1, 1):
            raise DamageError("flipped")
        return read(txn, table, offset, camera, count, shape)

    monkeypatch.setattr(images, "read_stack", damaged)
    (trusting,) = Episodes(store.env)
    assert len(list(trusting.frames("a"))) == 13
    with pytest.raises(DamageError):
        list(trusting.frames("b"))
    checked = Episodes(store.env, check_images=True)
    before, after = checked
    same_rows(before, fragments[:1])
    same_rows(after, fragments[2:])
    assert checked.stats()["damaged_images"] == 1


@pytest.mark.parametrize(
    "change",
    [{"task": "other"}, {"purpose": Purpose.EVAL}],
    ids=lambda change: next(iter(change)),
)
def test_what_does_not_fit_is_not_joined(store, recorder, change):
    first, second = recorder().run_episode(8)
    store.append([first, replaced(second, **change)])
    episodes = Episodes(store.env)
    assert [len(e) for e in episodes] == [4, 4]
    assert episodes.stats()["breaks"] == 1
    assert episodes.stats()["gaps"] == 0


def test_a_clock_that_goes_back_is_not_joined(store, recorder, monkeypatch):
    monkeypatch.setattr(Order, "refusal", lambda *_: "")  # as stores from before did
    first, second = recorder().run_episode(8)
    store.append([first, dataclasses.replace(second, robot_ns=second.robot_ns - 10**9)])
    assert [len(e) for e in Episodes(store.env)] == [4, 4]


def test_nothing_is_joined_to_an_end(store, recorder):
    robot = recorder()
    (ended,) = robot.run_episode(4)
    robot.begin()
    robot.step(2)
    more = robot.flush()
    more = replaced(more, episode=ended.header.episode, start=4)
    store.append([ended, more])
    episodes = Episodes(store.env)
    assert [(len(e), e.complete) for e in episodes] == [(4, True), (2, False)]
    assert episodes.stats()["breaks"] == 1


def test_a_rewind_voids_what_was_before_it_not_what_comes_again(store, recorder):
    robot = recorder()
    robot.begin()
    parts = []
    for _ in range(3):
        robot.step(4)
        parts.append(robot.flush())
    parts[1] = replaced(parts[1], void_from=0)
    parts[2] = replaced(parts[2], start=0)
    store.append(parts)
    before, again = Episodes(store.env)
    assert before.void.tolist() == [True] * 4 + [False] * 4
    assert again.void.tolist() == [False] * 4


def test_rewinds_void_what_they_undid(store, recorder):
    robot = recorder()
    robot.begin()
    robot.step(6)
    first = robot.flush()
    robot.void_from = 2
    robot.step(3, segment=Segment.RECOVERY)
    second = robot.flush()
    store.append([first, second])
    (episode,) = Episodes(store.env)
    assert np.flatnonzero(episode.void).tolist() == [2, 3, 4, 5]
    assert [piece.header.void_from for piece in episode.pieces] == [None, 2]


def test_a_rewind_behind_a_gap_voids_before_it(store, recorder):
    robot = recorder()
    robot.begin()
    parts = []
    for _ in range(3):
        robot.step(4)
        parts.append(robot.flush())
    parts[2] = replaced(parts[2], void_from=3)
    parts[1] = dataclasses.replace(parts[1], reward=np.zeros(3, np.float32))
    store.append(parts)
    before, after = Episodes(store.env)
    assert np.flatnonzero(before.void).tolist() == [3]
    assert not after.void.any()


def test_the_newest_label_wins_over_what_was_recorded(store, recorder):
    robot = recorder()
    fragments = robot.run_episode(6, recorded=0.5)
    store.label("arm-1-1", "reward", "v1", None, np.ones(6, np.float32))
    store.append([replaced(fragments[0], success=True), *fragments[1:]])
    store.label("arm-1-1", "reward", "v2", None, np.array([7, np.nan, 8], np.float32))
    store.label("arm-1-1", "value", "v9", None, np.arange(9, dtype=np.float32))
    store.label("arm-1-1", "success", "judge", False, None)
    (episode,) = Episodes(store.env)
    assert episode.columns["reward"].tolist() == [7, 0.5, 8, 0.5, 0.5, 0.5]
    assert episode.columns["recorded_reward"].tolist() == [0.5] * 6
    assert episode.labels["reward"].version == "v2"
    assert episode.labels["value"] == ("v9", pytest.approx(np.arange(6)))
    assert episode.success is False
    assert episode.verdict == ("judge", False)


def test_success_may_stand_in_any_fragment_and_may_be_unknown(store, recorder):
    robot = recorder()
    fragments = robot.run_episode(8)
    store.append([fragments[0], replaced(fragments[1], success=True), *robot.run_episode(4)])
    assert [(e.success, e.verdict) for e in Episodes(store.env)] == [(True, None), (None, None)]


def test_labels_of_a_later_part_begin_at_its_first_step(store, recorder):
    fragments = recorder().run_episode(12)
    bad = dataclasses.replace(fragments[1], reward=np.zeros(3, np.float32))
    store.append([fragments[0], bad, fragments[2]])
    store.label("arm-1-1", "value", "v", None, np.arange(12, dtype=np.float32))
    assert [e.labels["value"].values.tolist() for e in Episodes(store.env)] == [
        [0, 1, 2, 3],
        [8, 9, 10, 11],
    ]


def test_extras_say_where_they_are_known(store, recorder):
    first, second = recorder(extras=True).run_episode(8)
    store.append([first, dataclasses.replace(second, extras={"n": np.arange(4)})])
    (episode,) = Episodes(store.env)
    np.testing.assert_array_equal(episode.extras["logp"][:4], first.extras["logp"])
    assert np.isnan(episode.extras["logp"][4:]).all()
    assert episode.extras["n"].tolist() == [0, 0, 0, 0, 0, 1, 2, 3]
    assert episode.known("n").tolist() == [False] * 4 + [True] * 4


def test_an_extra_of_another_form_is_not_joined(store, recorder):
    first, second = recorder(extras=True).run_episode(8)
    store.append([first, dataclasses.replace(second, extras={"logp": np.zeros((4, 2))})])
    assert [e.extras["logp"].shape for e in Episodes(store.env)] == [(4,), (4, 2)]


def test_streams_are_joined_in_time(store, recorder):
    fragments = [
        dataclasses.replace(f, streams={"ft": Stream(stamps, np.ones((len(stamps), 2)) * i)})
        for i, (f, stamps) in enumerate(
            zip(recorder().run_episode(12), map(np.array, ([1, 2, 2], [2, 5], [4])), strict=True)
        )
    ]
    store.append(fragments)
    # The third runs backwards against the second, so it begins a part of its own.
    before, after = Episodes(store.env)
    assert before.streams["ft"].stamps.tolist() == [1, 2, 2, 2, 5]
    assert before.streams["ft"].values[:, 0].tolist() == [0, 0, 0, 1, 1]
    assert after.streams["ft"].stamps.tolist() == [4]
    assert [piece.streams for piece in before.pieces] == [{"ft": 3}, {"ft": 2}]


def test_filters_choose_by_name(store, recorder):
    left, right = recorder("left"), recorder("right", task="push", run="other")
    store.append([*left.run_episode(4), *right.run_episode(4)])

    def robots(**names):
        return [e.header.robot for e in Episodes(store.env, **names)]

    assert robots() == ["left", "right"]
    assert robots(robots=("right",)) == robots(tasks={"push"}) == robots(runs=["other"])
    assert robots(robots=("left",), tasks=("push",)) == []


def test_what_comes_later_does_not_change_what_was_looked_up(store, recorder):
    robot = recorder()
    store.append(robot.run_episode(4))
    episodes = Episodes(store.env)
    assert len(episodes) == 1
    store.append(robot.run_episode(4))
    store.label("arm-1-1", "success", "v", True, None)
    assert [e.success for e in episodes] == [None]
    assert [e.success for e in Episodes(store.env)] == [True, None]


def test_an_unknown_camera_is_named(store, recorder):
    store.append(recorder(cameras=CAMERAS).run_episode(4))
    (episode,) = Episodes(store.env)
    with pytest.raises(SpecError, match="allowed: a, b"):
        next(episode.frames("c"))


@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(data=st.data())
def test_any_interleaving_gives_back_each_episode(quick_path, recorder, data):
    """Robots, lives and lost fragments in any order, against the lists they were made from."""
    robots = [recorder(p, epoch=e, cameras={"c": (2, 3, 1)}) for p in "ab" for e in (1, 2)]
    queues = []
    for robot in robots:
        lives = [
            robot.run_episode(data.draw(st.integers(1, 9)), data.draw(st.integers(1, 4)))
            for _ in range(data.draw(st.integers(0, 3)))
        ]
        queues.append([fragment for life in lives for fragment in life])
    parts: dict[tuple, list[list]] = {}
    order = []
    with Store(quick_path / f"s{len(list(quick_path.iterdir()))}").open(create=True) as store:
        lost = set()
        while left := [queue for queue in queues if queue]:
            fragment = data.draw(st.sampled_from(left)).pop(0)
            header = fragment.header
            key = header.producer, header.epoch, header.episode
            if data.draw(st.integers(0, 5)) == 0:
                store.append([dataclasses.replace(fragment, reward=np.zeros(0, np.float32))])
                lost.add(key)
                continue
            assert store.append([fragment]) == []
            if key not in parts:
                order.append(key)
            runs = parts.setdefault(key, [])
            if not runs or key in lost:
                runs.append([])
            lost.discard(key)
            runs[-1].append(fragment)
        found = list(Episodes(store.env, check_images=True))
        wanted = [(key, run) for key in order for run in parts[key]]
        assert [e.key for e in found] == [key for key, _ in wanted]
        for episode, (_, run) in zip(found, wanted, strict=True):
            same_rows(episode, run)
            assert episode.complete == (run[-1].end[-1] != End.NONE)
