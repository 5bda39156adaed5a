"""Hindsight: goals from later in the same walk, rewards that follow from them, nothing else."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from user_system.core.draws import Draw, Hindsight
from user_system.core.errors import SpecError
from user_system.core.types import End, Segment
from user_system.replay.sampler import ReplayData

FAR = Hindsight("goal", "place", share=1.0, tolerance=0.4)


def placed(fragment):
    """Return a fragment whose place is a tenth of the observation's number, whose goal is -1."""
    numbers = fragment.observation["flag"].astype(np.float32)[:, None]
    more = {"place": numbers / 10, "goal": np.full_like(numbers, -1)}
    observation = {**fragment.observation, **more}
    return dataclasses.replace(fragment, observation=observation)


def write(store, fragments):
    assert store.append([placed(f) for f in fragments]) == []


def goal_of(batch, row):
    """The number of the observation that became the goal."""
    return round(float(np.ravel(batch.next_observation["goal"][row])[-1]) * 10)


def test_a_goal_is_what_was_achieved_later_in_the_same_episode(store, data, recorder):
    a, b = recorder("a"), recorder("b")
    mixed = [f for pair in zip(a.run_episode(12), b.run_episode(12), strict=True) for f in pair]
    write(store, mixed)
    of = {n: f.header.episode for f in mixed for n in f.observation["flag"].tolist()}
    last = {e: max(n for n in of if of[n] == e) for e in set(of.values())}
    batch = data.draw(Draw(4000, hindsight=FAR))
    goals = {}
    for row, flag in enumerate(batch.observation["flag"].tolist()):
        goal = goal_of(batch, row)
        assert of[goal] == of[flag]
        assert flag < goal <= last[of[flag]]
        assert batch.observation["goal"][row] == batch.next_observation["goal"][row]
        goals.setdefault(flag, set()).add(goal)
    # Every later state comes up, the step's own successor and the last one included.
    assert goals[1] == {n for n in of if of[n] == of[1] and n > 1}


def test_later_states_are_equally_likely(store, data, recorder):
    write(store, recorder().run_episode(8, flush_every=3))
    batch = data.draw(Draw(40_000, hindsight=FAR))
    first = [goal_of(batch, r) for r in np.flatnonzero(batch.observation["flag"] == 1)]
    counts = Counter(first)
    assert counts.keys() == set(range(2, 10))
    for n in counts.values():
        assert n == pytest.approx(len(first) / 8, rel=0.15)


def test_final_is_the_last_state_of_the_walk(store, data, recorder):
    write(store, recorder().run_episode(9))
    final = dataclasses.replace(FAR, strategy="final")
    batch = data.draw(Draw(200, hindsight=final))
    assert {goal_of(batch, row) for row in range(200)} == {10}


def test_voids_and_holds_are_never_goals_nor_passed(store, data, recorder):
    robot = recorder()
    robot.step(6)
    fragments = [robot.flush()]
    robot.void_from = 3
    robot.step(2, segment=Segment.REWIND)
    robot.step(2, segment=Segment.RECOVERY)
    robot.step(1, segment=Segment.HOLD)
    robot.step(2, segment=Segment.CORRECTION)
    robot.step(1, end=End.TERMINATED)
    write(store, [*fragments, robot.flush()])
    batch = data.draw(Draw(3000, hindsight=FAR))
    goals = {}
    for row, flag in enumerate(batch.observation["flag"].tolist()):
        goals.setdefault(flag, set()).add(goal_of(batch, row))
    assert goals == {
        1: {2, 3, 4},
        2: {3, 4},
        3: {4},
        9: {10, 11},
        10: {11},
        12: {13, 14, 15},
        13: {14, 15},
        14: {15},
    }
    apart = data.draw(Draw(3000, hindsight=FAR, cross_segments=False))
    rows = np.flatnonzero(apart.observation["flag"] == 12)
    assert {goal_of(apart, row) for row in rows} == {13, 14}


def test_reward_and_end_follow_from_the_goal(store, data, recorder):
    write(store, recorder().run_episode(9, recorded=7.0, end=End.TIMEOUT))
    near = dataclasses.replace(FAR, tolerance=0.05, reached=2.0, missed=-1.0)
    batch = data.draw(Draw(2000, gamma=0.9, hindsight=near))
    reached = np.array([goal_of(batch, r) for r in range(2000)]) == batch.next_observation["flag"]
    assert reached.any()
    assert not reached.all()
    assert batch.reward.tolist() == np.where(reached, 2.0, -1.0).tolist()
    assert batch.discount[reached].tolist() == [0.0] * reached.sum()
    assert batch.discount[~reached].tolist() == pytest.approx([0.9] * (~reached).sum())
    assert (batch.end[reached] == End.TERMINATED).all()
    assert set(batch.end[~reached].tolist()) <= {End.NONE, End.TIMEOUT}
    going = data.draw(Draw(500, gamma=0.9, hindsight=dataclasses.replace(near, terminate=False)))
    assert going.discount.tolist() == pytest.approx([0.9] * 500)


def test_a_failure_that_ended_the_task_still_ends_it(store, data, recorder):
    write(store, recorder().run_episode(3, end=End.TERMINATED))
    never = dataclasses.replace(FAR, tolerance=0.0, terminate=False)
    batch = data.draw(Draw(100, hindsight=never))
    ended = batch.observation["flag"] == 3
    assert (batch.discount[ended] == 0).all()
    assert (batch.discount[~ended] > 0).all()


def test_only_the_share_is_changed_and_extras_say_which(store, data, recorder):
    robot = recorder()
    robot.begin()
    robot.step(20, recorded=7.0)
    robot.step(10, segment=Segment.DEMO, recorded=7.0)
    robot.step(1, recorded=7.0, end=End.TIMEOUT)
    write(store, [robot.flush()])
    part = dataclasses.replace(FAR, share=0.3, reached=-5.0, missed=-5.0)
    mix = {"online": 0.5, "demos": 0.5}
    for n, changed in ((10, 3), (7, 2), (3, 0), (100, 30)):
        batch = data.draw(Draw(n, mix=mix, gamma=0.9, hindsight=part))
        flags = batch.extras["relabelled"]
        assert flags.sum() == changed, "an exact count, rounded down"
        assert (batch.reward[flags] == -5.0).all()
        assert (batch.reward[~flags] == 7.0).all()
        assert (batch.observation["goal"][~flags] == -1).all()
        assert (batch.next_observation["goal"][~flags] == -1).all()
        assert (batch.observation["goal"][flags] > 0).all()
        assert batch.discount[~flags].tolist() == pytest.approx([0.9] * (n - changed))
    # Spread over the batch: both views of the mix have theirs.
    assert flags[:50].sum() == flags[50:].sum() == 15


def test_the_other_rows_are_those_of_a_draw_without_hindsight(store, recorder):
    write(store, recorder().run_episode(30))
    plain, other = (ReplayData(store.env, seed=3) for _ in range(2))
    without = plain.draw(Draw(64, unit="nstep", length=3))
    batch = other.draw(
        Draw(64, unit="nstep", length=3, hindsight=dataclasses.replace(FAR, share=0.5))
    )
    kept = ~batch.extras["relabelled"]
    assert batch.ids.tolist() == without.ids.tolist()
    assert batch.reward[kept].tolist() == without.reward[kept].tolist()
    assert batch.observation["place"].tolist() == without.observation["place"].tolist()


def test_sums_and_windows_end_where_the_goal_is_reached(store, data, recorder):
    write(store, recorder().run_episode(12))
    near = dataclasses.replace(FAR, tolerance=0.05, reached=1.0, missed=-1.0)
    window = Draw(500, unit="window", length=5, gamma=0.5, history=0, hindsight=near)
    batch = data.draw(window)
    for row, flag in enumerate(batch.observation["flag"][:, 0].tolist()):
        goal, steps = goal_of(batch, row), int(batch.valid[row].sum())
        whole = min(5, 13 - flag)
        reaches = goal - flag <= whole
        assert steps == (goal - flag if reaches else whole)
        rewards = [-1.0] * steps
        rewards[-1] = 1.0 if reaches else -1.0
        assert batch.reward[row].tolist() == rewards + [0.0] * (5 - steps)
        assert batch.discount[row] == (0 if reaches or flag + steps == 13 else 0.5**steps)
        assert not batch.action[row, steps:].any()
    sums = data.draw(dataclasses.replace(window, unit="nstep"))
    for row, flag in enumerate(sums.observation["flag"].tolist()):
        steps = sums.next_observation["flag"][row] - flag
        total = sum(-(0.5**i) for i in range(steps))
        reached = goal_of(sums, row) == sums.next_observation["flag"][row]
        assert sums.reward[row] == pytest.approx(total + reached * 2 * 0.5 ** (steps - 1))


def test_histories_see_the_new_goal_where_they_see_anything(store, data, recorder):
    write(store, recorder().run_episode(6))
    batch = data.draw(Draw(50, history=3, hindsight=FAR))
    for row in range(50):
        goal = goal_of(batch, row) / 10
        valid = batch.extras["history_valid"][row]
        assert batch.observation["goal"][row, valid].ravel() == pytest.approx([goal] * valid.sum())
        assert not batch.observation["goal"][row, ~valid].any()


def test_new_steps_open_new_goals(store, data, recorder):
    """The walk from a step grows as its episode does, for a reader that follows."""
    robot = recorder()
    robot.step(4)
    write(store, [robot.flush()])
    final = dataclasses.replace(FAR, strategy="final")
    assert {goal_of(b, 0) for b in [data.draw(Draw(1, hindsight=final)) for _ in range(9)]} == {4}
    robot.step(4)
    write(store, [robot.flush()])
    robot.step(1, end=End.TERMINATED)
    write(store, [robot.flush()])
    batch = data.draw(Draw(50, hindsight=final))
    assert {goal_of(batch, row) for row in range(50)} == {10}


def test_a_rewind_closes_goals_for_a_reader_that_follows(store, data, recorder):
    robot = recorder()
    robot.step(6)
    write(store, [robot.flush()])
    final = dataclasses.replace(FAR, strategy="final")
    data.draw(Draw(1, hindsight=final))
    robot.void_from = 3
    robot.step(1, segment=Segment.REWIND)
    robot.step(1, segment=Segment.RECOVERY, end=End.HANDBACK)
    write(store, [robot.flush()])
    batch = data.draw(Draw(200, hindsight=final))
    goals = {flag: goal_of(batch, r) for r, flag in enumerate(batch.observation["flag"].tolist())}
    assert goals == {1: 4, 2: 4, 3: 4, 8: 9}


def test_consumed_rows_may_be_relabelled_too(store, data, recorder):
    write(store, recorder().run_episode(6))
    batch = data.consume(Draw(6, hindsight=dataclasses.replace(FAR, strategy="final")))
    assert batch.observation["flag"].tolist() == [1, 2, 3, 4, 5, 6]
    assert [goal_of(batch, row) for row in range(6)] == [7] * 6


def test_it_repeats_with_the_state(store, data, recorder):
    write(store, recorder().run_episode(40))
    request = Draw(32, unit="nstep", length=2, hindsight=FAR)
    data.draw(request)
    resumed = ReplayData(store.env, seed=50)
    resumed.load_state_dict(data.state_dict())
    for _ in range(4):
        ours, theirs = data.draw(request), resumed.draw(request)
        assert ours.observation["goal"].tolist() == theirs.observation["goal"].tolist()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"goal": "gaol"}, "unknown field for hindsight"),
        ({"achieved": "cam"}, "or an image"),
        ({"achieved": "o"}, "cannot be a goal; got o: float64"),
        ({"strategy": "past"}, "allowed: future, final"),
        ({"share": 1.5}, "share in"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"reached": float("inf")}, "finite rewards"),
    ],
)
def test_what_makes_no_sense_is_named(store, data, recorder, change, match):
    write(store, recorder(cameras={"cam": (4, 4, 3)}).run_episode(4))
    with pytest.raises(SpecError, match=match):
        data.draw(Draw(4, hindsight=dataclasses.replace(FAR, **change)))


def test_whole_episodes_have_no_hindsight(store, data, recorder):
    write(store, recorder().run_episode(4))
    with pytest.raises(SpecError, match="whole episodes with hindsight"):
        data.draw(Draw(1, unit="episode", hindsight=FAR))
