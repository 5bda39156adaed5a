"""Weighed draws: exact probabilities, compared by chi-square, and what makes up for them."""

import math
from collections import Counter

import numpy as np
import pytest
from replay_checks import fits

from user_system.core.draws import Draw, Weigh
from user_system.core.errors import SpecError
from user_system.core.interfaces import NotReady, Priorities
from user_system.core.types import End, Segment
from user_system.replay.sampler import ReplayData
from user_system.replay.weigh import _BLOCK

DRAWN = 40_000


def drawn(data, weigh, **request):
    batch = data.draw(Draw(DRAWN, weigh=weigh, **request))
    return batch, Counter(batch.observation["flag"].tolist())


def chances(masses):
    total = sum(masses.values())
    return {key: DRAWN * mass / total for key, mass in masses.items()}


def test_classes_have_equal_masses_and_share_them_equally(store, data, recorder):
    robot = recorder()
    robot.step(30)
    robot.step(6, segment=Segment.CORRECTION)
    robot.step(2, segment=Segment.DEMO)
    robot.step(1, end=End.TERMINATED)
    store.append([robot.flush()])
    _, counts = drawn(data, Weigh("segment"))
    masses = dict.fromkeys([*range(1, 31), 39], 1 / 31)
    masses |= dict.fromkeys(range(31, 37), 1 / 6) | dict.fromkeys((37, 38), 1 / 2)
    fits(counts, chances(masses))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_the_power_of_classes_goes_from_natural_to_equal(store, recorder, power):
    few, many = recorder("few"), recorder("many")
    store.append(few.run_episode(4))
    store.append(many.run_episode(36))
    data = ReplayData(store.env, seed=5)
    batch = data.draw(Draw(DRAWN, weigh=Weigh("robot", power=power), columns=["robot"]))
    names = Counter(data.names()[code] for code in batch.extras["robot"].tolist())
    fits(names, chances({"few": 0.1 ** (1 - power), "many": 0.9 ** (1 - power)}))


def test_shares_of_classes_are_masses_and_the_others_keep_their_proportions(store, recorder):
    robot = recorder()
    robot.step(10)
    robot.step(20, segment=Segment.DEMO)
    robot.step(5, segment=Segment.RECOVERY)
    robot.step(5, segment=Segment.CORRECTION, end=End.NONE)
    robot.step(1, segment=Segment.CORRECTION, end=End.TERMINATED)
    store.append([robot.flush()])
    data = ReplayData(store.env, seed=5)
    weigh = Weigh("segment", shares={"RECOVERY|CORRECTION": 0.7})
    batch = data.draw(Draw(DRAWN, weigh=weigh, columns=["segment"]))
    counts = Counter(Segment(s).name for s in batch.extras["segment"].tolist())
    masses = {"AUTO": 0.1, "DEMO": 0.2, "RECOVERY": 0.7 * 5 / 11, "CORRECTION": 0.7 * 6 / 11}
    fits(counts, chances(masses))


def test_a_label_weighs_to_its_power_above_its_floor(store, data, recorder):
    store.append(recorder().run_episode(6))
    values = np.array([0.0, 0.1, 1.0, 4.0, np.nan, 9.0], np.float32)
    store.label("arm-1-1", "quality", "v", None, values)
    _, counts = drawn(data, Weigh("quality", power=0.5, floor=0.25, missing=16.0))
    fits(counts, chances({1: 0.5, 2: 0.5, 3: 1.0, 4: 2.0, 5: 4.0, 6: 3.0}))


def test_returns_weigh_from_the_worst_episode_to_the_best(store, data, recorder):
    robot = recorder()
    for reward in (-3.0, 0.0, 3.0):
        store.append(robot.run_episode(4, recorded=reward))
    robot.step(4)  # not complete: its return is not known
    store.append([robot.flush()])
    _, counts = drawn(data, Weigh("return", floor=0.1, missing=0.3))
    masses = {1: 0.1, 6: 0.5, 11: 1.0, 16: 0.3}
    masses = {first + k: mass for first, mass in masses.items() for k in range(4)}
    del masses[19]  # what follows it is not known
    fits(counts, chances(masses))


def test_steps_without_weight_are_never_drawn(store, data, recorder):
    store.append(recorder().run_episode(2 * _BLOCK))
    values = np.zeros(2 * _BLOCK, np.float32)
    values[[5, 300, 2 * _BLOCK - 1]] = 1.0
    store.label("arm-1-1", "quality", "v", None, values)
    _, counts = drawn(data, Weigh("quality"))
    fits(counts, chances({6: 1.0, 301: 1.0, 2 * _BLOCK: 1.0}))
    store.label("arm-1-1", "quality", "w", None, values * 0)
    with pytest.raises(NotReady, match="no step has any weight"):
        data.draw(Draw(1, weigh=Weigh("quality")))


def test_what_nobody_said_is_not_weighed_by(store, data, recorder):
    store.append(recorder().run_episode(4))
    with pytest.raises(NotReady, match="no step has 'qualty'"):
        data.draw(Draw(1, weigh=Weigh("qualty")))
    store.append(recorder("b", extras=True).run_episode(4))
    _, counts = drawn(data, Weigh("logp", missing=0.0))
    fits(counts, chances({n: float(n) for n in range(6, 10)}))


def test_importance_makes_up_for_the_weights(store, data, recorder):
    store.append(recorder().run_episode(50))
    store.label("arm-1-1", "quality", "v", None, np.linspace(0.1, 3, 50, dtype=np.float32))
    batch, _ = drawn(data, Weigh("quality", beta=1.0))
    importance, flag = batch.extras["importance"], batch.observation["flag"]
    assert importance.dtype == np.float32
    assert importance.mean() == pytest.approx(1.0, abs=0.03)
    assert (importance * flag).mean() == pytest.approx(25.5, rel=0.03)
    half, _ = drawn(data, Weigh("quality", beta=0.5))
    expected = dict(zip(flag.tolist(), importance.tolist(), strict=True))
    for number, found in zip(half.observation["flag"], half.extras["importance"], strict=True):
        assert found == pytest.approx(math.sqrt(expected[int(number)]), rel=1e-4)


def test_each_view_of_a_mix_is_weighed_by_itself_and_keeps_its_count(store, data, recorder):
    robot = recorder()
    robot.step(8)
    robot.step(8, segment=Segment.DEMO)
    robot.step(1, end=End.TERMINATED)
    store.append([robot.flush()])
    store.label("arm-1-1", "quality", "v", None, np.arange(17, dtype=np.float32))
    mix = {"online": 0.25, "demos": 0.75}
    batch, counts = drawn(data, Weigh("quality"), mix=mix, columns=["segment"])
    assert (batch.extras["segment"][: DRAWN // 4] == Segment.AUTO).all()
    assert (batch.extras["segment"][DRAWN // 4 :] == Segment.DEMO).all()
    demos = {n + 1: float(n) for n in range(8, 16)}
    own = {n + 1: float(n) for n in [*range(1, 8), 16]}
    expected = {n: 0.75 * m / sum(demos.values()) for n, m in demos.items()}
    expected |= {n: 0.25 * m / sum(own.values()) for n, m in own.items()}
    fits(counts, chances(expected))


def test_importance_of_classes_makes_up_for_them_too(store, data, recorder):
    robot = recorder()
    robot.step(9)
    robot.step(1, segment=Segment.CORRECTION, end=End.TERMINATED)
    store.append([robot.flush()])
    batch = data.draw(Draw(200, weigh=Weigh("segment", beta=1.0)))
    helped = batch.observation["flag"] == 10
    assert batch.extras["importance"][helped].tolist() == pytest.approx([0.2] * helped.sum())
    assert batch.extras["importance"][~helped].tolist() == pytest.approx([1.8] * (~helped).sum())
    half = data.draw(Draw(200, weigh=Weigh("segment", power=0.0, beta=1.0)))
    assert half.extras["importance"].tolist() == pytest.approx([1.0] * 200)


def test_a_better_episode_makes_all_others_worse(store, data, recorder):
    """Returns are relative, so a reader that follows weighs everything anew."""
    robot, weigh = recorder(), Weigh("return", floor=0.2, beta=1.0)
    for reward in (1.0, 2.0, 8.0, -8.0):
        store.append(robot.run_episode(3, recorded=reward))
        data.draw(Draw(2, weigh=weigh))
    fresh = ReplayData(store.env, seed=3)
    worth = [
        dict(zip(b.ids.tolist(), b.extras["importance"].tolist(), strict=True))
        for b in (d.draw(Draw(4000, weigh=weigh)) for d in (data, fresh))
    ]
    assert worth[0] == worth[1]
    assert len(worth[0]) == 12


# --- priorities ---


def test_a_learner_says_what_steps_are_worth(store, data, recorder):
    assert isinstance(data, Priorities)
    store.append(recorder().run_episode(600))
    batch = data.consume(Draw(600))
    weigh = Weigh("priority", missing=0.5)
    _, counts = drawn(data, weigh)
    fits(counts, chances(dict.fromkeys(range(1, 601), 0.5)))
    data.prioritise(batch.ids[:2], np.array([30.0, 10.0]))
    data.prioritise(batch.ids[1:3], np.array([20.0, 10.0]))
    _, counts = drawn(data, weigh)
    fits(counts, chances(dict.fromkeys(range(1, 601), 0.5) | {1: 30.0, 2: 20.0, 3: 10.0}))


def test_priorities_survive_new_steps_labels_and_what_left_the_store(store, data, recorder):
    robot = recorder()
    store.append(robot.run_episode(300))
    store.append(robot.run_episode(300))
    ids = data.consume(Draw(600)).ids
    weigh = Weigh("priority", missing=0.0)
    data.prioritise(ids[[0, 299, 300, 599]], np.array([1.0, 2.0, 3.0, 4.0]))
    _, counts = drawn(data, weigh)
    fits(counts, chances({1: 1.0, 300: 2.0, 302: 3.0, 601: 4.0}))
    store.delete("arm-1-1", who="ann", why="test")
    store.append(robot.run_episode(10))
    store.label("arm-1-2", "reward", "v", None, np.ones(5, np.float32))
    _, counts = drawn(data, weigh)
    fits(counts, chances({302: 3.0, 601: 4.0}))
    data.prioritise(ids[[0, 301]], np.array([9.0, 5.0]))
    _, counts = drawn(data, weigh)
    fits(counts, chances({302: 3.0, 303: 5.0, 601: 4.0}))


def test_priorities_are_part_of_the_state(store, data, recorder):
    store.append(recorder().run_episode(700))
    weigh = Weigh("priority", power=0.7)
    batch = data.draw(Draw(64))
    data.prioritise(batch.ids, np.arange(64, dtype=np.float32))
    state = data.state_dict()
    resumed = ReplayData(store.env, seed=77)
    resumed.load_state_dict(state)
    for _ in range(5):
        ours, theirs = (d.draw(Draw(64, weigh=weigh)) for d in (data, resumed))
        assert ours.ids.tolist() == theirs.ids.tolist()
        assert ours.extras["importance"].tolist() == theirs.extras["importance"].tolist()
        for each in (data, resumed):
            each.prioritise(ours.ids, ours.reward + 2)
    assert "priorities" not in ReplayData(store.env).state_dict()


@pytest.mark.parametrize(
    ("ids", "values", "match"),
    [
        (np.zeros(2, np.int64), np.zeros(2), "ids"),
        (np.zeros(2, np.uint64), np.zeros(3), "ids"),
        (np.zeros(2, np.uint64), np.array([0.0, np.nan]), "finite"),
        (np.zeros(2, np.uint64), np.array(["a", "b"]), "finite"),
    ],
)
def test_priorities_that_are_none_are_refused(store, data, recorder, ids, values, match):
    store.append(recorder().run_episode(4))
    data.count()
    with pytest.raises(SpecError, match=match):
        data.prioritise(ids, values)


# --- the same for every reader ---


def test_sums_do_not_depend_on_the_steps_in_which_they_were_made(store, recorder):
    """Bit for bit: a follower that added up in pieces draws what a fresh reader draws."""
    follower, robot = ReplayData(store.env, seed=1), recorder()
    rng = np.random.default_rng(4)
    weighs = [Weigh("quality", power=0.3), Weigh("return", floor=0.01), Weigh("segment")]
    for number in range(1, 40):
        segment = Segment.CORRECTION if number % 3 else Segment.AUTO
        store.append(robot.run_episode(int(rng.integers(1, 60)), segment=segment))
        values = rng.random(60).astype(np.float32)
        store.label(f"arm-1-{number}", "quality", "v", None, values)
        if number % 4 == 0:
            store.label(f"arm-1-{number - 2}", "reward", "v", None, values)
            store.delete(f"arm-1-{number - 3}", who="ann", why="test")
        for weigh in weighs:
            follower.draw(Draw(3, weigh=weigh))
    fresh = ReplayData(store.env, seed=2)
    fresh._rng.bit_generator.state = follower._rng.bit_generator.state
    for weigh in weighs * 5:
        ours, theirs = (d.draw(Draw(2000, weigh=weigh)) for d in (follower, fresh))
        assert ours.ids.tolist() == theirs.ids.tolist()
        assert ours.extras["importance"].tolist() == theirs.extras["importance"].tolist()


@pytest.mark.parametrize(
    ("weigh", "match"),
    [
        (Weigh(""), "allowed: segment, success"),
        (Weigh("segment", power=-1.0), "power"),
        (Weigh("segment", beta=math.nan), "beta"),
        (Weigh("quality", floor=math.inf), "floor"),
        (Weigh("quality", shares={"AUTO": 0.5}), "only classes have shares"),
        (Weigh("segment", shares={"AUTO": 0.8, "DEMO": 0.3}), "masses of 1"),
        (Weigh("segment", shares={"AUTO|DEMO": 0.5, "DEMO": 0.3}), "twice"),
        (Weigh("segment", shares={"CORECTION": 0.5}), "Did you mean 'CORRECTION'"),
        (Weigh("segment", rest="AUTO"), "rest of nothing"),
        (Weigh("executed"), "no number to weigh by"),
        (Weigh("flag_", power=1.0), "no step has"),
    ],
)
def test_weights_that_make_no_sense_are_named(store, data, recorder, weigh, match):
    store.append(recorder().run_episode(4))
    with pytest.raises((SpecError, NotReady), match=match):
        data.draw(Draw(1, weigh=weigh))


def test_weights_that_overflow_are_named(store, data, recorder):
    store.append(recorder().run_episode(4))
    store.label("arm-1-1", "quality", "v", None, np.full(4, 1e30, np.float32))
    with pytest.raises(SpecError, match="too large to add up"):
        data.draw(Draw(1, weigh=Weigh("quality", power=20.0)))


def test_whole_episodes_and_consumption_know_no_weights(store, data, recorder):
    store.append(recorder().run_episode(4))
    with pytest.raises(SpecError, match="whole episodes with weigh"):
        data.draw(Draw(1, unit="episode", weigh=Weigh("segment")))
    with pytest.raises(SpecError, match="consumed in their order"):
        data.consume(Draw(1, weigh=Weigh("segment")))


def test_many_kinds_of_weights_are_not_kept_for_ever(store, data, recorder):
    store.append(recorder().run_episode(20))
    store.label("arm-1-1", "quality", "v", None, np.ones(20, np.float32))
    for i in range(300):
        data.draw(Draw(2, weigh=Weigh("quality", power=i / 100)))
        data.draw(Draw(2, weigh=Weigh("return", power=i / 100)))
    chooser = data._window.chooser
    assert len(chooser._weights) <= 64
    assert len(data._window.rows.watchers) <= 2 * 64
    assert len(chooser.priorities.watchers) <= 64
    store.append(recorder("b").run_episode(20))
    assert data.count() == 40
