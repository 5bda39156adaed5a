"""Sensors at their own rates, as of the moment of an observation: fresh, stale, late, never future.

Observation ``n`` is made at ``n`` tenths of a second.
"""

import dataclasses

import numpy as np
import pytest

from user_system.core.draws import AsOf, Draw
from user_system.core.errors import SpecError
from user_system.core.interfaces import NotReady
from user_system.core.types import End, Segment, Stream
from user_system.replay.sampler import ReplayData

MS = 1_000_000


def felt(fragment, *samples, name="touch"):
    """Return a fragment with samples (ms, value) of a stream of two numbers."""
    stamps = np.array([ms * MS for ms, _ in samples], np.int64)
    values = np.array([[value, -value] for _, value in samples], np.float32).reshape(-1, 2)
    return dataclasses.replace(fragment, streams={**fragment.streams, name: Stream(stamps, values)})


def asked(store, max_age_s=1.0, samples=1, **request):
    data = ReplayData(store.env)
    streams = {"touch": AsOf(max_age_s, samples)}
    return data.consume(Draw(data.count(), streams=streams, **request))


def values(observation):
    """First numbers of the samples of each row; None where not valid."""
    found = np.where(observation["touch.valid"], observation["touch"][..., 0], np.nan)
    return [[None if np.isnan(v) else v for v in row] for row in found.tolist()]


def test_the_newest_sample_that_is_not_later_than_the_observation(store, recorder):
    robot = recorder()
    robot.step(3, end=End.NONE)
    robot.step(1, end=End.TERMINATED)
    store.append([felt(robot.flush(), (100, 1), (199, 2), (201, 3), (350, 4), (500, 5))])
    batch = asked(store)
    assert values(batch.observation) == [[1], [2], [3], [4]]
    assert values(batch.next_observation) == [[2], [3], [4], [5]]
    assert batch.observation["touch.age"].ravel() == pytest.approx([0, 0.001, 0.099, 0.05])
    assert batch.next_observation["touch.age"].ravel() == pytest.approx([0.001, 0.099, 0.05, 0])
    assert batch.observation["touch"].shape == (4, 1, 2)


def test_several_samples_come_oldest_first(store, recorder):
    robot = recorder()
    robot.step(2)
    first = felt(robot.flush(), (40, 1), (80, 2), (150, 3))
    robot.step(1, end=End.TERMINATED)
    store.append([first, felt(robot.flush(), (260, 4), (280, 5))])
    batch = asked(store, samples=3)
    assert values(batch.observation) == [[None, 1, 2], [1, 2, 3], [3, 4, 5]]
    assert batch.observation["touch.age"][0].tolist() == pytest.approx([0, 0.06, 0.02])


def test_stale_and_missing_samples_are_zeros_that_say_so(store, recorder):
    robot = recorder()
    robot.step(4)
    robot.step(1, end=End.TERMINATED)
    store.append([felt(robot.flush(), (140, 1), (200, 2))])
    batch = asked(store, max_age_s=0.15, samples=2)
    assert values(batch.observation) == [
        [None, None],
        [1, 2],
        [None, 2],
        [None, None],
        [None, None],
    ]
    gone = ~batch.observation["touch.valid"]
    assert not batch.observation["touch"][gone].any()
    assert not batch.observation["touch.age"][gone].any()


def test_samples_of_another_robot_or_episode_are_never_taken(store, recorder):
    a, b = recorder("a"), recorder("b")
    a.step(2)  # 1, 2
    b.step(2)  # 3, 4
    store.append([felt(a.flush(), (90, 1)), felt(b.flush(), (210, 2))])
    a.begin()
    a.step(2)  # 5, 6
    b.step(1, end=End.TERMINATED)  # 7
    a.step(1, end=End.TERMINATED)  # 8
    store.append([a.flush(), b.flush()])
    batch = asked(store, max_age_s=9.0)
    seen = dict(zip(batch.observation["flag"].tolist(), values(batch.observation), strict=True))
    assert seen == {1: [1], 3: [2], 4: [2], 5: [None], 6: [None], 7: [2], 8: [None]}


def test_a_sample_that_came_with_the_next_fragment_is_not_the_past_of_an_earlier_one(
    store, recorder
):
    """Stamps decide, not which fragment a sample came with."""
    robot = recorder()
    robot.step(2)  # at 100, 200
    first = felt(robot.flush(), (50, 1), (250, 2), (330, 3))
    robot.step(2, end=End.NONE)  # at 300, 400
    second = felt(robot.flush(), (150, 4), (290, 5), (310, 6))
    robot.step(1, end=End.TERMINATED)  # at 500, 600
    third = felt(robot.flush(), (180, 7))
    store.append([first, second, third])
    batch = asked(store, samples=2)
    assert values(batch.observation) == [[None, 1], [4, 7], [2, 5], [6, 3], [6, 3]]
    ages = batch.observation["touch.age"][batch.observation["touch.valid"]]
    assert (ages >= 0).all()


def test_what_came_early_is_not_yet_known_to_the_next_fragment(store, recorder):
    """The newest sample there is lies in this fragment's future, so an older one is the newest."""
    robot = recorder()
    robot.step(1)  # at 100
    first = felt(robot.flush(), (60, 1), (390, 2))
    robot.step(2)  # at 200, 300
    second = robot.flush()
    robot.step(1, end=End.TERMINATED)  # at 400
    store.append([first, second, robot.flush()])
    assert values(asked(store, samples=2).observation) == [[None, 1], [None, 1], [None, 1], [1, 2]]


@pytest.mark.parametrize("together", [True, False])
def test_readers_that_follow_see_what_fresh_ones_see(store, recorder, together):
    robot, rng = recorder(), np.random.default_rng(3)
    follower = ReplayData(store.env)
    for number in range(12):
        robot.step(3)
        now = robot.counter[0] * 100
        samples = sorted((int(now + rng.integers(-700, 200)), number + k / 8) for k in range(4))
        store.append([felt(robot.flush(), *[s for s in samples if s[0] > 0])])
        if not together:
            follower.count()
    request = Draw(follower.count(), streams={"touch": AsOf(0.4, 3)})
    ours, theirs = follower.consume(request), ReplayData(store.env).consume(request)
    for name in ("touch", "touch.age", "touch.valid"):
        assert (ours.observation[name] == theirs.observation[name]).all()
        assert (ours.next_observation[name] == theirs.next_observation[name]).all()


def test_windows_and_histories_have_samples_of_each_observation(store, recorder):
    robot = recorder()
    robot.step(2)
    robot.step(1, end=End.TERMINATED)
    store.append([felt(robot.flush(), (100, 1), (200, 2), (300, 3), (400, 4))])
    window = asked(store, unit="window", length=2)
    assert window.observation["touch"].shape == (3, 2, 1, 2)
    assert window.observation["touch"][..., 0, 0].tolist() == [[1, 2], [2, 3], [3, 0]]
    assert window.observation["touch.valid"][..., 0].tolist() == [[True] * 2] * 2 + [[True, False]]
    assert window.next_observation["touch"][..., 0, 0].tolist() == [3, 4, 4]
    history = asked(store, history=2)
    assert history.observation["touch"][..., 0, 0].tolist() == [[0, 1], [1, 2], [2, 3]]
    assert history.next_observation["touch"][..., 0, 0].tolist() == [[1, 2], [2, 3], [3, 4]]


def test_a_stream_that_begins_late_is_missing_before(store, recorder):
    robot = recorder()
    robot.step(2)
    store.append([robot.flush()])
    robot.step(2, segment=Segment.CORRECTION)
    robot.step(1, end=End.TERMINATED)
    store.append([felt(robot.flush(), (310, 1))])
    assert values(asked(store).observation) == [[None], [None], [None], [1], [1]]


def test_a_sensor_without_samples_is_waited_for_and_named(store, data, recorder):
    robot = recorder()
    robot.step(3)
    store.append([felt(robot.flush())])
    batch = asked(store)
    assert values(batch.observation) == [[None], [None]]
    with pytest.raises(NotReady, match="no sample of 'tuch' is here yet; there are: touch"):
        data.draw(Draw(1, streams={"tuch": AsOf(1.0)}))


def test_another_robots_sensor_of_another_form_is_not_mixed_in(store, recorder):
    a, b = recorder("a"), recorder("b")
    a.step(2, end=End.NONE)
    b.step(2, end=End.NONE)
    other = dataclasses.replace(
        b.flush(), streams={"touch": Stream(np.array([1]), np.zeros((1, 5), np.float64))}
    )
    store.append([felt(a.flush(), (90, 1)), other])
    assert values(asked(store).observation) == [[1], [None]]


@pytest.mark.parametrize(
    ("streams", "match"),
    [
        ({"touch": AsOf(-1.0)}, "stream 'touch'"),
        ({"touch": AsOf(float("nan"))}, "stream 'touch'"),
        ({"touch": AsOf(1.0, samples=0)}, "samples >= 1"),
        ({"o": AsOf(1.0)}, "has the name of an observation"),
    ],
)
def test_what_makes_no_sense_is_named(store, data, recorder, streams, match):
    store.append(recorder().run_episode(4))
    with pytest.raises(SpecError, match=match):
        data.draw(Draw(1, streams=streams))
