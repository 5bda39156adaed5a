"""What is drawn: successors, ends, borders, shares, order. Includes the peers' buffer defects."""

import dataclasses
import json

import numpy as np
import pytest

from user_system.core.errors import ConfigError, SpecError
from user_system.core.interfaces import Data, Draw, NotReady
from user_system.core.types import End, Purpose, Segment
from user_system.replay.choosing import Chooser
from user_system.replay.sampler import ReplayData
from user_system.replay.views import View, with_views


def everything(data, **request):
    """Return all that a view offers, oldest first, by consuming it."""
    view = next(iter(request.get("mix", {"all": 1.0})))
    return data.consume(Draw(data.count(view), **request))


def pairs(batch):
    return list(
        zip(
            batch.observation["flag"].tolist(), batch.next_observation["flag"].tolist(), strict=True
        )
    )


# --- defects of the peers, each once ---


def test_last_step_of_an_intervention_is_not_followed_by_the_next_intervention(
    store, data, recorder
):
    robot = recorder()  # observations 1, 2, ...
    robot.step(9)
    robot.step(3, segment=Segment.CORRECTION)
    robot.step(37)
    robot.step(3, segment=Segment.CORRECTION)
    robot.step(2, end=End.NONE)
    store.append([robot.flush()])
    batch = everything(data, mix={"interventions": 1.0})
    assert pairs(batch) == [(10, 11), (11, 12), (12, 13), (50, 51), (51, 52), (52, 53)]


def test_images_of_an_intervention_are_its_own(store, data, recorder):
    robot = recorder(cameras={"cam": (4, 4, 3)})
    robot.step(5)
    robot.step(2, segment=Segment.CORRECTION)
    robot.step(5)
    robot.step(2, segment=Segment.CORRECTION)
    robot.step(1)
    fragment = robot.flush()
    store.append([fragment])
    batch = everything(data, mix={"interventions": 1.0})
    for row, (now, then) in enumerate(pairs(batch)):
        assert (batch.observation["cam"][row] == fragment.observation["cam"][now - 1]).all()
        assert (batch.next_observation["cam"][row] == fragment.observation["cam"][then - 1]).all()


def test_a_timeout_bootstraps_from_its_own_last_observation(store, data, recorder):
    robot = recorder()
    store.append(robot.run_episode(3, end=End.TIMEOUT))
    store.append(robot.run_episode(3, end=End.TERMINATED))
    batch = everything(data, gamma=0.5)
    assert pairs(batch) == [(1, 2), (2, 3), (3, 4), (5, 6), (6, 7), (7, 8)]
    assert batch.discount.tolist() == [0.5, 0.5, 0.5, 0.5, 0.5, 0.0]
    assert batch.end.tolist() == [0, 0, End.TIMEOUT, 0, 0, End.TERMINATED]


@pytest.mark.parametrize("end", [End.TIMEOUT, End.HANDBACK, End.FAULT, End.ABORT])
def test_only_terminated_stops_bootstrapping(store, data, recorder, end):
    store.append(recorder().run_episode(2, end=end))
    assert everything(data, gamma=0.9).discount.tolist() == pytest.approx([0.9, 0.9])


def test_the_newest_step_is_not_followed_by_the_oldest(store, data, recorder):
    robot = recorder()
    robot.step(8)
    store.append([robot.flush()])
    assert pairs(everything(data)) == [(k, k + 1) for k in range(1, 8)]


def test_the_border_comes_from_the_next_fragment_when_that_arrives(store, data, recorder):
    robot, other = recorder("a"), recorder("b")
    robot.step(2)
    store.append([robot.flush()])
    other.step(2)
    store.append([other.flush()])
    assert pairs(everything(data)) == [(1, 2), (3, 4)]
    robot.step(1)
    store.append([robot.flush()])
    assert pairs(everything(ReplayData(store.env))) == [(1, 2), (2, 5), (3, 4)]


def test_nothing_joins_an_episode_that_has_ended(store, data, recorder):
    robot = recorder()
    ended = robot.run_episode(2, end=End.TIMEOUT)
    robot.episode, robot.k = ended[0].header.episode, 2
    robot.step(2)
    store.append([*ended, robot.flush()])
    assert pairs(everything(data)) == [(1, 2), (2, 3), (4, 5)]


def test_two_episodes_of_one_robot_do_not_join_without_an_end(store, data, recorder):
    robot = recorder()
    robot.step(2)
    store.append([robot.flush()])
    robot.begin()
    robot.step(2)
    store.append([robot.flush()])
    assert pairs(everything(data)) == [(1, 2), (3, 4)]


def test_a_second_actor_starts_from_nothing_and_loses_nothing(store, data, recorder):
    """A restarted actor's first steps were dropped, and a restarted learner got all twice."""
    first, second = recorder(epoch=1), recorder(epoch=2)
    sent = first.run_episode(8)
    store.append(sent)
    store.append(sent)
    store.append(second.run_episode(5))
    store.append(sent)
    assert data.count() == 13
    assert len({*everything(data).ids.tolist()}) == 13


# --- n-step and windows ---


def test_nstep_sums_discounts_and_stops_at_the_end(store, data, recorder):
    robot = recorder()
    robot.begin()
    for k in range(4):
        robot.step(1, recorded=10.0**k, end=End.TERMINATED if k == 3 else End.NONE)
    store.append([robot.flush()])
    batch = everything(data, unit="nstep", length=3, gamma=0.5)
    assert batch.reward.tolist() == [1 + 5 + 25, 10 + 50 + 250, 100 + 500, 1000]
    assert batch.discount.tolist() == [0.125, 0.0, 0.0, 0.0]
    assert pairs(batch) == [(1, 4), (2, 5), (3, 5), (4, 5)]
    assert batch.valid.all()


def test_nstep_of_a_timeout_bootstraps_with_the_steps_it_has(store, data, recorder):
    store.append(recorder().run_episode(3, end=End.TIMEOUT, recorded=1.0))
    batch = everything(data, unit="nstep", length=2, gamma=0.5)
    assert batch.reward.tolist() == [1.5, 1.5, 1.0]
    assert batch.discount.tolist() == [0.25, 0.25, 0.5]


def test_windows_carry_valid_and_no_neighbours_data(store, data, recorder):
    robot = recorder(cameras={"cam": (4, 4, 3)})
    store.append(robot.run_episode(3))
    store.append(robot.run_episode(3))
    batch = everything(data, unit="window", length=4)
    flags = batch.observation["flag"].tolist()
    assert flags[1] == [2, 3, 0, 0]
    assert flags[3] == [5, 6, 7, 0]
    assert batch.valid[1].tolist() == [True, True, False, False]
    assert not batch.action[~batch.valid].any()
    assert not batch.observation["cam"][~batch.valid].any()
    assert batch.observation["cam"][batch.valid].any()
    assert batch.action.shape == (6, 4, 3)
    assert batch.next_observation["flag"].tolist() == [4, 4, 4, 8, 8, 8]


@pytest.mark.parametrize("cross", [True, False])
def test_windows_cross_segments_only_when_asked(store, data, recorder, cross):
    robot = recorder()
    robot.step(2)
    robot.step(2, segment=Segment.CORRECTION)
    robot.step(1, end=End.TERMINATED)
    store.append([robot.flush()])
    batch = everything(data, unit="window", length=3, cross_segments=cross)
    assert batch.valid.sum(1).tolist() == ([3, 3, 3, 2, 1] if cross else [2, 1, 2, 1, 1])


def test_holding_and_resetting_are_neither_drawn_nor_crossed(store, data, recorder):
    robot = recorder()
    robot.step(1, segment=Segment.RESET)
    robot.step(2)
    robot.step(2, segment=Segment.HOLD)
    robot.step(2, end=End.NONE)
    robot.step(1, end=End.TERMINATED)
    store.append([robot.flush()])
    batch = everything(data, unit="nstep", length=5, gamma=1.0)
    assert pairs(batch) == [(2, 4), (3, 4), (6, 9), (7, 9), (8, 9)]


# --- voids, labels, purposes ---


def test_a_rewind_voids_and_nothing_crosses_it(store, data, recorder):
    robot = recorder()
    robot.step(6)
    store.append([robot.flush()])
    assert data.count() == 5
    robot.step(2, segment=Segment.REWIND)
    robot.void_from = 3
    store.append([robot.flush()])
    robot.step(2, segment=Segment.RECOVERY)
    robot.step(1, end=End.TERMINATED)
    store.append([robot.flush()])
    batch = everything(data, unit="nstep", length=9, gamma=1.0)
    assert pairs(batch) == [(1, 4), (2, 4), (3, 4), (9, 12), (10, 12), (11, 12)]
    asked = everything_void(store)
    assert pairs(asked)[3:6] == [(4, 5), (5, 6), (6, 7)]
    assert asked.extras["void"].tolist() == [False] * 3 + [True] * 3 + [False] * 3


def everything_void(store):
    return ReplayData(store.env).consume(Draw(9, include_void=True, columns=["void"]))


def test_evaluation_is_not_trained_on_unless_a_view_says_so(store, data, recorder):
    robot = recorder()
    store.append(robot.run_episode(4, purpose=Purpose.EVAL))
    store.append(robot.run_episode(4))
    assert data.count() == 4
    assert data.count("eval") == 4


def test_steps_without_a_reward_wait_for_their_label(store, data, recorder):
    robot = recorder()
    store.append(robot.run_episode(4, recorded=float("nan")))
    with pytest.raises(NotReady):
        data.draw(Draw(1))
    store.label("arm-1-1", "reward", "v1", None, np.array([1, np.nan, 3], np.float32))
    batch = everything(data, unit="nstep", length=3, gamma=1.0)
    assert batch.observation["flag"].tolist() == [1, 3]
    assert batch.reward.tolist() == [1, 3]


def test_success_is_a_late_label_too(store, recorder):
    robot = recorder()
    store.append(robot.run_episode(3))
    store.append(robot.run_episode(2))
    views = with_views({"won": View(success=True), "lost": View(success=False)})
    data = ReplayData(store.env, views=views)
    assert (data.count("won"), data.count("lost")) == (0, 0)
    store.label("arm-1-1", "success", "", True, None)
    store.label("arm-1-2", "success", "", False, None)
    assert (data.count("won"), data.count("lost")) == (3, 2)
    store.label("arm-1-1", "success", "judge 2", False, None)
    assert (data.count("won"), data.count("lost")) == (0, 5)


def test_success_in_the_last_fragment_tells_of_the_whole_episode(store, recorder):
    first, last = recorder().run_episode(8)
    data = ReplayData(store.env, views=with_views({"won": View(success=True)}))
    store.append([first])
    assert data.count("won") == 0
    header = dataclasses.replace(last.header, success=True)
    store.append([dataclasses.replace(last, header=header)])
    assert data.count("won") == 8


def test_a_label_may_come_before_its_episode_and_wins_over_the_record(store, recorder):
    store.label("arm-1-1", "success", "", True, None)
    store.label("arm-1-1", "progress", "", None, np.linspace(0, 1, 3, dtype=np.float32))
    store.append(recorder().run_episode(3))
    data = ReplayData(store.env, views=with_views({"won": View(success=True)}))
    batch = data.consume(Draw(3, mix={"won": 1.0}, columns=["progress", "success"]))
    assert batch.extras["progress"].tolist() == [0, 0.5, 1]
    assert batch.extras["success"].tolist() == [1, 1, 1]


# --- views and mixes ---


def test_mixes_are_exact_counts_in_the_order_of_the_mix(store, data, recorder):
    robot = recorder()
    robot.step(20)
    robot.step(3, segment=Segment.DEMO)
    robot.step(1)
    store.append([robot.flush()])
    mix = {"online": 0.5, "prior": 0.5}
    for _ in range(20):
        batch = data.draw(Draw(256, mix=mix, columns=["segment"]))
        demos = batch.extras["segment"] == Segment.DEMO
        assert not demos[:128].any()
        assert demos[128:].all()


@pytest.mark.parametrize(
    ("n", "mix", "counts"),
    [
        (7, {"online": 0.5, "demos": 0.5}, [4, 3]),
        (5, {"demos": 1, "online": 1, "all": 1}, [2, 2, 1]),
        (10, {"online": 0.1, "demos": 0.2, "all": 0.7}, [1, 2, 7]),
        (3, {"online": 0.0, "demos": 2.0}, [3]),
        (1, {"online": 0.3, "demos": 0.7}, [1]),
    ],
)
def test_odd_sizes_go_to_the_largest_remainder(store, data, recorder, n, mix, counts):
    robot = recorder()
    robot.step(20)
    robot.step(20, segment=Segment.DEMO)
    robot.step(1)
    store.append([robot.flush()])
    drawn, shown = [], []
    pick = Chooser.pick

    def counted(self, rng, view, size, request):
        drawn.append(size)
        shown.append(view)
        return pick(self, rng, view, size, request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Chooser, "pick", counted)
        assert len(data.draw(Draw(n, mix=mix))) == n
    assert drawn == counts
    assert shown == [view for view in mix if view in shown]


def test_each_view_shows_what_its_name_says(store, data, recorder):
    robot = recorder()
    for segment in Segment:
        robot.step(1, segment=segment)
    robot.step(1, segment=Segment.HOLD)
    store.append([robot.flush()])
    shown = {
        view: {Segment(s).name for s in everything_in(store, view)}
        for view in ("all", "online", "demos", "human", "prior", "interventions", "auto")
    }
    human = {"DEMO", "RECOVERY", "CORRECTION"}
    assert shown == {
        "all": human | {"AUTO", "SYNTHETIC"},
        "online": {"AUTO", "RECOVERY", "CORRECTION", "SYNTHETIC"},
        "demos": {"DEMO"},
        "human": human,
        "prior": human,
        "interventions": {"RECOVERY", "CORRECTION"},
        "auto": {"AUTO"},
    }


def everything_in(store, view):
    data = ReplayData(store.env)
    return everything(data, mix={view: 1.0}, columns=["segment"]).extras["segment"]


def test_a_view_of_the_manifest_filters_by_every_clause(store, recorder):
    left, right = recorder("left"), recorder("right")
    left.task = "push"
    store.append(left.run_episode(4, version=3, operator="ann"))
    store.append(right.run_episode(4, version=5))
    for clauses, count in [
        ({"robots": ["left"]}, 4),
        ({"robots": ["nobody"]}, 0),
        ({"tasks": ["push"]}, 4),
        ({"operators": ["ann"]}, 4),
        ({"runs": ["run"]}, 8),
        ({"purposes": ["COLLECT"]}, 0),
        ({"segments": ["AUTO", "HOLD"], "min_version": 4}, 4),
        ({"max_version": 3}, 4),
        ({"min_version": 4, "max_version": 4}, 0),
    ]:
        data = ReplayData(store.env, views=with_views({"mine": View.parse("mine", clauses)}))
        assert data.count("mine") == count, clauses


@pytest.mark.parametrize(
    ("clauses", "match"),
    [
        ({"segmens": ["AUTO"]}, "Did you mean 'segments'"),
        ({"segments": ["BANANA"]}, "some of"),
        ({"robots": "left"}, "a list of names"),
        ({"success": "yes"}, "true or false"),
        ({"min_version": 1.5}, "a whole number"),
    ],
)
def test_a_wrong_clause_is_named(clauses, match):
    with pytest.raises(ConfigError, match=match):
        View.parse("mine", clauses)


def test_unknown_names_list_what_exists(store, data, recorder):
    with pytest.raises(ConfigError, match="allowed: all, online"):
        data.count("al")
    store.append(recorder().run_episode(3))
    with pytest.raises(ConfigError, match="allowed: all, online"):
        data.draw(Draw(1, mix={"al": 1.0}))
    with pytest.raises(SpecError, match="allowed: \\['flag', 'o'\\]"):
        data.draw(Draw(1, observations=["x"]))
    with pytest.raises(SpecError, match="column 'x' is not recorded"):
        data.draw(Draw(1, columns=["x"]))


def test_rows_of_two_schemas_are_not_stacked(store, data, recorder):
    store.append(recorder("a", schema="s1").run_episode(3))
    store.append(recorder("b", schema="s2").run_episode(4))
    with pytest.raises(SpecError, match="several schemas"):
        data.count()
    assert ReplayData(store.env, schema="s1").count() == 3
    assert ReplayData(store.env, schema="s2").count() == 4


# --- consume, episodes, repeatability ---


def test_consume_gives_each_row_once_oldest_first_also_late_ones(store, data, recorder):
    robot = recorder()
    robot.step(4)
    store.append([robot.flush()])
    assert data.consume(Draw(2)).observation["flag"].tolist() == [1, 2]
    with pytest.raises(NotReady, match="1 of 2"):
        data.consume(Draw(2))
    robot.step(3, end=End.NONE)
    store.append([robot.flush()])
    assert data.consume(Draw(3)).observation["flag"].tolist() == [3, 4, 5]


def test_consume_over_views_that_overlap_gives_each_row_once(store, data, recorder):
    robot = recorder()
    robot.step(3, segment=Segment.CORRECTION)
    robot.step(4)
    store.append([robot.flush()])
    batch = data.consume(Draw(4, mix={"online": 0.5, "interventions": 0.25, "all": 0.25}))
    assert sorted(batch.observation["flag"].tolist()) == [1, 2, 3, 4]


def test_episodes_come_whole_and_only_when_complete(store, data, recorder):
    robot, other = recorder("a"), recorder("b")
    store.append(robot.run_episode(5))
    other.step(3)
    store.append([other.flush()])
    store.append(robot.run_episode(2))
    batch = data.consume(Draw(2, unit="episode"))
    assert batch.observation["flag"].tolist() == [[1, 2, 3, 4, 5], [10, 11, 0, 0, 0]]
    assert batch.valid.sum(1).tolist() == [5, 2]
    assert batch.next_observation["flag"].tolist() == [6, 12]
    with pytest.raises(NotReady):
        data.consume(Draw(1, unit="episode"))
    other.step(1, end=End.TIMEOUT)
    store.append([other.flush()])
    late = data.consume(Draw(1, unit="episode"))
    assert late.observation["flag"].tolist() == [[7, 8, 9, 13]]


def test_draws_repeat_with_the_seed_and_differ_without(store, recorder):
    store.append(recorder().run_episode(50))
    a, b, c = (ReplayData(store.env, seed=s) for s in (1, 1, 2))
    for _ in range(5):
        assert a.draw(Draw(8)).ids.tolist() == b.draw(Draw(8)).ids.tolist()
    assert a.draw(Draw(8)).ids.tolist() != c.draw(Draw(8)).ids.tolist()


def test_the_next_batches_after_a_resume_are_those_of_the_uninterrupted_run(store, recorder):
    robot, requests = recorder(), [Draw(16), Draw(8, unit="nstep", length=3)]
    for _ in range(4):
        store.append(robot.run_episode(12))
    store.label("arm-1-2", "reward", "v", None, np.ones(12, np.float32))
    data = ReplayData(store.env, seed=5, follow=False)
    data.refresh()
    for request in requests:
        data.draw(request)
    data.consume(Draw(7))
    state = json.loads(json.dumps(data.state_dict()))
    store.append(robot.run_episode(30))
    store.label("arm-1-1", "reward", "v", None, np.full(12, 9, np.float32))
    resumed = ReplayData(store.env, seed=99, follow=False)
    resumed.load_state_dict(state)
    for _ in range(20):
        for request in requests:
            ours, theirs = data.draw(request), resumed.draw(request)
            assert ours.ids.tolist() == theirs.ids.tolist()
            assert ours.reward.tolist() == theirs.reward.tolist()
    assert data.consume(Draw(5)).ids.tolist() == resumed.consume(Draw(5)).ids.tolist()
    assert resumed.refresh()
    assert resumed.count() == 4 * 12 + 30


def test_a_resume_with_another_store_is_refused(store, tmp_path, recorder):
    store.append(recorder().run_episode(5))
    data = ReplayData(store.env)
    data.count()
    state = data.state_dict()
    from user_system.replay.store import Store

    with (
        Store(tmp_path / "other").open(create=True) as other,
        pytest.raises(SpecError, match="holds less than the learner had seen"),
    ):
        ReplayData(other.env).load_state_dict(state)


def test_replay_data_is_a_data(data):
    assert isinstance(data, Data)


def test_what_policies_recorded_comes_with_the_steps_that_have_it(store, data, recorder):
    with_extra, without = recorder("a", extras=True), recorder("b")
    store.append(without.run_episode(2))
    store.append(with_extra.run_episode(2))
    logp = everything(data, columns=["logp"]).extras["logp"]
    assert np.isnan(logp[:2]).all()
    assert logp[2:].tolist() == [4, 5]


def test_a_window_may_take_in_what_is_new_now_and_then_only(store, data, recorder, monkeypatch):
    """What is held back is drawn later, and never lost; by default nothing is."""
    now = [100.0]
    monkeypatch.setattr("user_system.replay.sampler.time.monotonic", lambda: now[0])
    robot = recorder()
    data.follow_s = 0.5
    store.append(robot.run_episode(4))
    assert data.count() == 4
    store.append(robot.run_episode(4))
    assert data.count() == 4
    now[0] += 0.5
    assert data.count() == 8
    data.follow_s = 0.0
    now[0] += 0.5
    for total in (12, 16):
        store.append(robot.run_episode(4))
        assert data.count() == total
