"""The quality report against stores whose truth is known."""

import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from user_system.codec import fragments as codec
from user_system.core.errors import ConfigError, DamageError, SpecError
from user_system.core.types import End, Fragment, FragmentHeader, Purpose, Segment
from user_system.replay.episodes import Episodes
from user_system.replay.quality import Options, estimates, examine
from user_system.replay.quality import options as bounds
from user_system.replay.quality.clocks import Clock
from user_system.replay.quality.samples import Reservoir
from user_system.replay.quality.survey import Survey

PERIOD = 100_000_000
QUICK = Options(steps=500, resamples=300)


class Writer:
    """One robot that writes whole episodes as it is told."""

    def __init__(self, store, robot="arm"):
        self.store, self.robot, self.sequence, self.ns = store, robot, 0, 0

    def write(self, states, actions, who="ann", segment=Segment.DEMO, **values):
        """Store an episode; states ``[T + 1, Ds]`` or by field, actions ``[T, Da]``."""
        fragment = self.fragment(states, actions, who, segment, **values)
        assert not self.store.append([fragment])
        return fragment.header.episode

    def fragment(self, states, actions, who="ann", segment=Segment.DEMO, **values):
        steps = len(actions)
        fields = states if isinstance(states, dict) else {"x": states}
        end = np.zeros(steps, np.uint8)
        end[-1] = values.pop("end", End.TERMINATED)
        reward = np.zeros(steps, np.float32)
        reward[-1] = values.pop("reward", 1.0)
        gaps = np.asarray(values.pop("gaps", np.ones(steps)), np.float64)
        stamps = self.ns + np.concatenate([[0], np.cumsum(gaps * PERIOD)]).astype(np.int64)
        self.ns = int(stamps[-1]) + PERIOD
        header = FragmentHeader(
            producer=self.robot,
            epoch=1,
            sequence=self.sequence,
            run="run",
            task=values.pop("task", "task"),
            episode=values.pop("episode", f"{self.robot}-{self.sequence}"),
            start=values.pop("start", 0),
            purpose=values.pop("purpose", Purpose.COLLECT),
            schema=values.pop("schema", "s"),
            robot=self.robot,
            embodiment="e",
            boot="b",
            wall_ns=1_790_000_000_000_000_000 + self.sequence,
            wall_bound_ns=1,
            names=("", who) if who else ("",),
            success=values.pop("success", True),
            void_from=values.pop("void_from", None),
        )
        assert not values
        self.sequence += 1
        segments = np.broadcast_to(np.asarray(segment, np.uint8), steps)
        auto = segments == Segment.AUTO
        actions = np.asarray(actions, np.float32)
        index = np.full(steps, len(header.names) - 1, np.uint16)
        final = end[-1] != End.NONE
        return Fragment(
            header=header,
            observation={n: np.asarray(v)[: steps + final] for n, v in fields.items()},
            executed=actions,
            proposed=np.full_like(actions, np.nan),
            reward=reward,
            segment=segments.copy(),
            end=end,
            robot_ns=stamps[: steps + final],
            policy=np.where(auto, index, 0).astype(np.uint16),
            version=np.zeros(steps, np.int64),
            operator=np.where(auto, 0, index).astype(np.uint16),
            chunk=np.zeros(steps, np.int32),
            position=np.zeros(steps, np.int32),
        )


def steer(rng, noise, shake=0.02, shift=0.0, steps=40):
    """Return states and actions of somebody who goes to the middle: ``a = -0.2 x + noise``."""
    x = rng.normal(0, 1, 2)
    states, actions = [x], []
    for _ in range(steps):
        a = -0.2 * x + shift + rng.normal(0, noise, 2)
        x = x + a + rng.normal(0, shake, 2)
        states.append(x)
        actions.append(a)
    return np.array(states), np.array(actions)


def look(store, options=QUICK, **chosen):
    return examine(Episodes(store.env, **chosen), options)


def group(report, actor, segment="DEMO", task=0):
    (found,) = [g for g in report.tasks[task].groups if (g.actor, g.segment) == (actor, segment)]
    return found.measures


def near(estimate, truth, within=0.12):
    """Assert that an estimate is near the truth, and has an interval around itself."""
    assert estimate.low - 1e-9 <= estimate.value <= estimate.high + 1e-9
    assert estimate.value == pytest.approx(truth, rel=within)


class TestTruth:
    def test_a_shaky_operator_diverges_more_and_by_how_much(self, store):
        rng, robot = np.random.default_rng(1), Writer(store)
        acted = []
        for _ in range(40):
            for who, noise in (("ann", 0.03), ("ben", 0.12)):
                states, actions = steer(rng, noise)
                robot.write(states, actions, who)
                acted.append(actions)
        report = look(store)
        spread = np.concatenate(acted).std(0).mean()
        ann, ben = (group(report, who)["divergence"] for who in ("ann", "ben"))
        assert ben.above(ann)
        near(ann, 0.03 / spread)
        near(ben, 0.12 / spread)
        texts = [f.text for f in report.findings]
        assert any("ben acts less consistently than ann" in text for text in texts)

    def test_labels_that_mean_nothing_make_no_difference(self, tmp_path):
        """Of five such stores at most one may say something: intervals hold 95 %, not all."""
        said = []
        for seed in range(5):
            rng = np.random.default_rng((2, seed))
            with made(tmp_path / str(seed)) as store:
                robot = Writer(store)
                for i in range(60):
                    who = str(rng.choice(["ann", "ben"]))
                    robot.write(*steer(rng, (0.03, 0.12)[i % 2]), who=who)
                report = look(store)
            ann, ben = group(report, "ann"), group(report, "ben")
            differ = [m for m in ann if ann[m].above(ben[m]) or ben[m].above(ann[m])]
            said.append(bool(differ or report.findings))
        assert sum(said) <= 1

    def test_who_does_it_another_way_is_far_from_the_others(self, store):
        rng, robot = np.random.default_rng(3), Writer(store)
        acted = []
        for _ in range(25):
            for who, shift in (("ann", 0.0), ("ben", 0.0), ("cleo", 0.1)):
                states, actions = steer(rng, 0.1, shift=shift)
                robot.write(states, actions, who)
                acted.append(actions)
        report = look(store)
        # Everybody else is shift 0 for cleo; for the others it is the mean of 0 and 0.1.
        truth = 0.1 / np.concatenate(acted).std(0).mean()
        near(group(report, "cleo")["disagreement"], truth, 0.25)
        assert group(report, "cleo")["disagreement"].low > 0.3
        own = [group(report, who)["divergence"].value for who in ("ann", "ben", "cleo")]
        assert max(own) < 1.15 * min(own)
        assert any("the usual action of cleo" in f.text for f in report.findings)

    def test_one_trajectory_again_and_again_is_not_diverse(self, store):
        rng, robot = np.random.default_rng(4), Writer(store)
        rut = steer(rng, 0.05, shake=0.1)
        for _ in range(25):
            robot.write(*rut, who="rut")
            robot.write(*steer(rng, 0.05, shake=0.1), who="free")
        report = look(store)
        rut, free = group(report, "rut"), group(report, "free")
        assert free["diversity"].above(rut["diversity"])
        assert rut["diversity"].value < 0.6 * free["diversity"].value
        assert free["situations"].above(rut["situations"])

    def test_the_noise_of_the_world_is_what_diversity_says(self, store):
        rng = np.random.default_rng(5)
        changes = []
        for robot, shake in ((Writer(store, "tight"), 0.02), (Writer(store, "loose"), 0.2)):
            for _ in range(30):
                states, actions = steer(rng, 0.1, shake)
                robot.write(states, actions)
                changes.append(np.diff(states, axis=0))
        report = look(store)
        spread = np.concatenate(changes).std(0).mean()
        tight, loose = (dict(report.tasks[0].robots)[name] for name in ("tight", "loose"))
        near(loose, 0.2 / spread)
        near(tight, 0.02 / spread)
        assert any("loose goes to less predictable states" in f.text for f in report.findings)

    def test_situations_count_the_places_that_are_visited(self, store):
        rng, robot = np.random.default_rng(6), Writer(store)
        places = rng.normal(0, 10, (20, 3))
        for _ in range(60):
            robot.write(places[rng.integers(0, 20, 31)], rng.normal(size=(30, 2)))
        near(group(look(store), "ann")["situations"], 20)

    def test_absolute_targets_do_not_hide_how_people_differ(self, store):
        """Similar states are so far apart here that targets differ by ten times the noise."""
        rng, robot = np.random.default_rng(7), Writer(store)
        targets = []
        for _ in range(30):
            for who, noise in (("ann", 0.01), ("ben", 0.04)):
                states, actions = steer(rng, noise)
                targets.append(states[:-1] + actions)
                robot.write(states, targets[-1], who)
        report = look(store, dataclasses.replace(QUICK, neighbours=100))
        spread = np.concatenate(targets).std(0).mean()
        assert report.tasks[0].state_radius > 5 * 0.04
        near(group(report, "ann")["divergence"], 0.01 / spread, 0.3)
        near(group(report, "ben")["divergence"], 0.04 / spread, 0.3)

    def test_one_episode_on_another_planet_changes_no_scale(self, tmp_path):
        values = []
        for strange in (False, True):
            rng = np.random.default_rng(30)
            with made(tmp_path / str(strange)) as store:
                robot = Writer(store)
                for _ in range(30):
                    robot.write(*steer(rng, 0.1), who="ann")
                if strange:
                    states, _ = steer(rng, 0.1)
                    robot.write(states * 1e4, rng.normal(0, 1e4, (40, 2)), who="eve")
                values.append(group(look(store), "ann"))
        for measure in ("divergence", "diversity", "jerkiness", "situations"):
            near(values[1][measure], values[0][measure].value, 0.2)

    def test_what_is_still_until_it_is_touched_has_the_scale_of_the_touch(self, store):
        """Else a force would be a thousand deviations away from nothing, and drown all else."""
        rng, robot = np.random.default_rng(34), Writer(store)
        for _ in range(30):
            states, actions = steer(rng, 0.1)
            force = rng.normal(0, 0.001, (41, 1))
            force[rng.integers(15, 25) :] += 5
            robot.write({"x": states, "force": force}, actions)
        found = group(look(store), "ann")
        assert 0.3 < found["diversity"].value < 1.2
        assert found["divergence"].value < 1.1

    def test_motion_of_known_kinds(self, store):
        rng, robot = np.random.default_rng(8), Writer(store)
        for _ in range(30):
            wander = rng.normal(0, 1, (41, 2)).cumsum(0)
            robot.write(wander, rng.normal(0, 1, (40, 2)), "jerky")
            robot.write(wander, np.broadcast_to(rng.normal(0, 1, 2), (40, 2)), "steady")
            frozen = np.repeat(wander[:11], 4, axis=0)[:41]
            robot.write(frozen, np.full((40, 2), 3.0) * rng.choice([-1, 1], (40, 2)), "idle")
        report = look(store)
        jerky, steady, idle = (group(report, who) for who in ("jerky", "steady", "idle"))
        assert steady["jerkiness"].value == 0
        assert idle["jerkiness"].above(jerky["jerkiness"])
        near(idle["idle"], 0.75, 0.02)
        assert jerky["idle"].value < 0.02
        # Root mean squares 1, 1 and 3; the usual one is that of all.
        usual = np.sqrt((1 + 1 + 9) / 3)
        near(idle["magnitude"], 3 / usual, 0.05)
        near(jerky["magnitude"], 1 / usual, 0.05)

    def test_the_odd_episodes_are_found(self, store):
        rng, robot = np.random.default_rng(9), Writer(store)
        for _ in range(30):
            robot.write(*steer(rng, 0.03))
        states, actions = steer(rng, 0.03)
        wrong = robot.write(states, actions + 0.4, success=False)
        states, actions = steer(rng, 0.03)
        away = robot.write(states + 30, actions)
        task = look(store).tasks[0]
        assert task.outliers[0].episode == wrong
        assert task.outliers[0].times > 3
        assert [o.episode for o in task.elsewhere] == [away]
        assert task.elsewhere[0].divergence is None
        assert task.scored == 32


class TestLeftOut:
    def fill(self, store, wild):
        """Write episodes whose middle was undone; ``wild`` says what was done there."""
        rng, robot = np.random.default_rng(10), Writer(store)
        other = np.random.default_rng(11)
        for i in range(20):
            states, actions = steer(rng, 0.05)
            actions[10:20] = actions[10:20] + wild * other.normal(0, 5, (10, 2))
            name = f"e{i}"
            first = robot.fragment(states, actions[:20], episode=name, end=End.NONE)
            rest = robot.fragment(states[20:], actions[20:], episode=name, start=20, void_from=10)
            assert not store.append([first, rest])

    def test_voids_change_nothing(self, tmp_path):
        reports = []
        for wild in (0, 1):
            with made(tmp_path / str(wild)) as store:
                self.fill(store, wild)
                reports.append(look(store).plain() | {"store": ""})
        assert reports[0] == reports[1]
        assert reports[0]["read"]["voids"] == 200
        assert reports[0]["steps"] == [{"segment": "DEMO", "actor": "ann", "steps": 600}]

    def test_episodes_that_judge_a_policy_are_counted_only(self, store):
        rng, robot = np.random.default_rng(12), Writer(store)
        for _ in range(6):
            robot.write(*steer(rng, 0.05), who="p", segment=Segment.AUTO, purpose=Purpose.EVAL)
        report = look(store)
        assert report.read["purposes"] == {"EVAL": 6}
        assert not report.tasks
        assert not report.steps
        assert not report.crews

    def test_what_nobody_chose_is_counted_and_not_judged(self, store):
        rng, robot = np.random.default_rng(13), Writer(store)
        segments = np.array([Segment.HOLD] * 10 + [Segment.CORRECTION] * 30)
        for _ in range(6):
            robot.write(*steer(rng, 0.05), segment=segments)
        report = look(store)
        assert report.steps == (("HOLD", "robot", 60), ("CORRECTION", "ann", 180))
        assert [(g.segment, g.actor, g.steps) for g in report.tasks[0].groups] == [
            ("CORRECTION", "ann", 180)
        ]

    def test_a_damaged_record_is_said(self, store, monkeypatch):
        rng, robot = np.random.default_rng(14), Writer(store)
        for _ in range(6):
            robot.write(*steer(rng, 0.05))
        decode = codec.decode

        def damaged(value, **options):
            fragment = decode(value, **options)
            if fragment.header.sequence == 2:
                raise DamageError("flipped")
            return fragment

        monkeypatch.setattr(codec, "decode", damaged)
        report = look(store)
        assert (report.read["damaged_records"], report.read["episodes"]) == (1, 5)
        assert report.findings[0].about == "data"
        assert "Damaged and left out, in records: 1" in report.findings[0].text


class TestHonesty:
    def test_an_empty_store_has_nothing_to_say(self, store):
        report = look(store)
        assert report.read["episodes"] == 0
        assert not report.tasks
        assert not report.findings
        assert report.help_rate.value is None
        json.dumps(report.plain(), allow_nan=False)

    def test_one_episode_gives_no_number(self, store):
        rng = np.random.default_rng(15)
        Writer(store).write(*steer(rng, 0.05))
        report = look(store)
        for name, estimate in group(report, "ann").items():
            assert estimate.value is None, name
            assert estimate.why
        assert report.crews[0].success.value is None
        assert report.crews[0].steps is None
        assert not report.findings
        json.dumps(report.plain(), allow_nan=False)

    def test_numbers_begin_with_the_fifth_episode(self, store):
        rng, robot = np.random.default_rng(31), Writer(store)
        for count in range(1, 6):
            robot.write(*steer(rng, 0.05))
            found = group(look(store), "ann")
            for measure in ("divergence", "diversity", "situations", "jerkiness", "idle"):
                assert (found[measure].value is None) == (count < 5), (count, found[measure])

    def test_others_are_those_of_the_same_segment(self, store):
        rng, robot = np.random.default_rng(32), Writer(store)
        for _ in range(6):
            robot.write(*steer(rng, 0.05), who="ann")
            robot.write(*steer(rng, 0.05), who="ben", segment=Segment.CORRECTION)
        report = look(store)
        assert "nobody else" in group(report, "ann")["disagreement"].why
        assert "nobody else" in group(report, "ben", "CORRECTION")["disagreement"].why

    def test_steps_without_similar_ones_give_no_number(self, store):
        rng, robot = np.random.default_rng(16), Writer(store)
        for i in range(8):
            states, actions = steer(rng, 0.05)
            robot.write(states + 1000 * i * np.array([1, -1]), actions)
        found = group(look(store, dataclasses.replace(QUICK, neighbours=100)), "ann")
        assert "similar" in found["divergence"].why or found["divergence"].value is not None
        assert found["jerkiness"].value is not None

    def test_without_numbers_in_the_state_there_is_no_divergence(self, store):
        robot = Writer(store)
        rng = np.random.default_rng(17)
        for _ in range(6):
            images = rng.integers(0, 256, (21, 4, 4, 3), np.uint8)
            robot.write({"front": images}, rng.normal(size=(20, 2)))
        report = look(store)
        found = group(report, "ann")
        for name in ("divergence", "diversity", "situations"):
            assert "no number that" in found[name].why
        assert report.tasks[0].cloud is None
        assert found["jerkiness"].value is not None

    def test_unknown_outcomes_and_rewards_stay_unknown(self, store):
        rng, robot = np.random.default_rng(18), Writer(store)
        for success, reward in [(True, 1.0)] * 6 + [(False, 0.0)] * 4 + [(None, np.nan)] * 2:
            robot.write(*steer(rng, 0.05), success=success, reward=reward)
        report = look(store)
        (crew,) = report.crews
        assert (crew.episodes, crew.success_unknown, crew.returns_unknown) == (12, 2, 2)
        assert crew.success.value == pytest.approx(0.6)
        assert crew.returns.count == 10
        assert len([f for f in report.findings if "not known" in f.text]) == 2

    def test_an_episode_that_breaks_off_is_not_a_whole_one(self, store):
        rng, robot = np.random.default_rng(19), Writer(store)
        for _ in range(5):
            robot.write(*steer(rng, 0.05))
        robot.write(*steer(rng, 0.05), end=End.NONE)
        report = look(store)
        assert report.read["incomplete"] == 1
        assert report.crews[0].episodes == 5
        # The last step of what broke off has no observation after it.
        assert report.tasks[0].groups[0].steps == 6 * 40 - 1

    def test_fields_too_wide_are_named_and_fields_can_be_chosen(self, store):
        rng, robot = np.random.default_rng(20), Writer(store)
        for _ in range(6):
            states, actions = steer(rng, 0.05)
            wide = rng.normal(size=(41, bounds.WIDEST + 1))
            robot.write({"x": states, "skin": wide, "y": states + 1}, actions)
        task = look(store).tasks[0]
        assert (task.fields, task.skipped, task.numbers) == (("x", "y"), ("skin",), 4)
        task = look(store, dataclasses.replace(QUICK, fields=("x",))).tasks[0]
        assert (task.fields, task.numbers) == (("x",), 2)
        with pytest.raises(SpecError, match="z"):
            look(store, dataclasses.replace(QUICK, fields=("x", "z")))

    def test_tasks_are_never_compared_with_each_other(self, store):
        rng, robot = np.random.default_rng(21), Writer(store)
        for i in range(12):
            robot.write(*steer(rng, 0.05), who="ann", task=f"t{i % 2}")
        report = look(store)
        assert [t.task for t in report.tasks] == ["t0", "t1"]
        assert [len(t.groups) for t in report.tasks] == [1, 1]
        assert "nobody else" in group(report, "ann", task=0)["disagreement"].why

    @pytest.mark.parametrize(
        "wrong", [{"steps": 10}, {"neighbours": 0}, {"resamples": 1}, {"seed": -1}], ids=str
    )
    def test_impossible_options_are_refused(self, wrong):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Options(**wrong)


class TestHelp:
    def test_how_much_people_helped(self, store):
        rng, robot = np.random.default_rng(22), Writer(store)
        half = np.array([Segment.AUTO] * 20 + [Segment.CORRECTION] * 20)
        for i in range(20):
            helped = half if i < 10 else Segment.AUTO
            robot.write(*steer(rng, 0.05), segment=helped, success=i % 2 == 0)
        report = look(store)
        assert report.help_rate.value == pytest.approx(0.25)
        assert [mean for _, _, mean in report.help] == [0.5] * 10 + [0.0] * 10
        assert [mean for _, _, mean in report.solved] == [0.0] * 10 + [1.0, 0.0] * 5
        assert {c.actors: c.episodes for c in report.crews} == {
            "policy ann + ann": 10,
            "policy ann": 10,
        }

    def test_success_that_is_not_known_is_no_failure(self, store):
        rng, robot = np.random.default_rng(33), Writer(store)
        for i in range(6):
            robot.write(*steer(rng, 0.05), segment=Segment.AUTO, success=(True, None)[i % 2])
        report = look(store)
        assert report.solved == ((0, 0, 1.0), (2, 2, 1.0), (4, 4, 1.0))
        assert len(report.help) == 6


class TestBounds:
    def test_the_same_seed_gives_the_same_report_and_another_does_not(self, store):
        rng, robot = np.random.default_rng(23), Writer(store)
        for _ in range(12):
            robot.write(*steer(rng, 0.05))
        few = Options(steps=100, resamples=200)
        first, again = look(store, few), look(store, few)
        assert first.plain() == again.plain()
        np.testing.assert_array_equal(first.tasks[0].cloud.dots, again.tasks[0].cloud.dots)
        other = look(store, dataclasses.replace(few, seed=1))
        assert other.tasks[0].groups[0].sampled == 100
        assert group(other, "ann")["divergence"] != group(first, "ann")["divergence"]

    def test_groups_beyond_the_limit_are_counted(self, store, monkeypatch):
        monkeypatch.setattr(bounds, "GROUPS", 2)
        rng, robot = np.random.default_rng(24), Writer(store)
        for i in range(15):
            robot.write(*steer(rng, 0.05), who=f"p{i % 3}")
        report = look(store)
        assert len(report.tasks[0].groups) == 2
        assert report.unsampled == 5 * 40
        assert sum(count for *_, count in report.steps) == 15 * 40

    def test_memory_does_not_grow_with_the_store(self, store, monkeypatch):
        monkeypatch.setattr(bounds, "SCORED_EPISODES", 20)
        rng, robot = np.random.default_rng(25), Writer(store)
        robot.write(*steer(rng, 0.05, steps=100))
        (episode,) = Episodes(store.env)
        survey = Survey(Options(steps=100))
        tracemalloc.start()
        try:
            kept = []
            for count in (200, 1000):
                for number in range(count):
                    survey.add(dataclasses.replace(episode, number=number))
                kept.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        # 1,000 episodes of 100 steps, whose states and actions alone are 5 MB.
        assert kept[1] - kept[0] < 400_000
        assert survey.steps[Segment.DEMO, "ann"] == 120_000

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 30))
    def test_a_reservoir_keeps_the_smallest_keys_however_they_come(self, sizes, capacity):
        rng = np.random.default_rng(sum(sizes))
        reservoir, keys = Reservoir(capacity), rng.random(sum(sizes))
        for low, size in zip(np.cumsum([0, *sizes]), sizes, strict=False):
            rows = np.arange(low, low + size)
            reservoir.offer(keys[rows], {"row": rows})
        kept = reservoir.rows().get("row", np.zeros(0))
        np.testing.assert_array_equal(kept, np.argsort(keys, kind="stable")[:capacity])
        assert reservoir.seen == sum(sizes)


class TestEstimates:
    def test_wilson_of_a_textbook(self):
        found = estimates.share(8, 10)
        assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
        assert estimates.share(0, 4).value is None
        assert estimates.share(0, 5).low == 0

    def test_intervals_hold_the_truth_about_as_often_as_they_say(self):
        """Steps of an episode share most of their noise: drawing steps would miss by far."""
        rng = np.random.default_rng(26)
        hits = 0
        for _ in range(200):
            values = np.repeat(rng.normal(0, 1, 30), 20) + rng.normal(0, 0.3, 600)
            found = estimates.mean(values, np.repeat(np.arange(30), 20), 200, rng)
            hits += found.low <= 0 <= found.high
        assert 170 <= hits <= 198

    def test_blocks_have_no_gaps_and_keep_episodes_whole(self):
        episodes = np.repeat(np.random.default_rng(27).permutation(350), 3)
        found = estimates.blocks(episodes)
        assert sorted(set(found.tolist())) == list(range(estimates.BLOCKS))
        assert len({*zip(episodes.tolist(), found.tolist(), strict=True)}) == 350

    def test_a_clock_counts_what_was_missed(self):
        clock = Clock()
        gaps = np.ones(999)
        gaps[[5, 50, 500]] = 2, 4, 1.4
        clock.offer(np.concatenate([[0], np.cumsum(gaps * PERIOD)]).astype(np.int64))
        timing = clock.timing()
        assert timing.missed == 1 + 3
        assert timing.p50_ms == pytest.approx(100)
        assert timing.p99_ms == pytest.approx(100)
        assert timing.longest_ms == pytest.approx(400)
        assert Clock().timing() is None

    def test_gaps_between_episodes_are_no_gaps(self, store):
        rng, robot = np.random.default_rng(28), Writer(store)
        for _ in range(3):
            robot.write(*steer(rng, 0.05))
            robot.ns += 50 * PERIOD
        timing = look(store).clocks["arm"]
        assert (timing.intervals, timing.missed) == (120, 0)


def made(path):
    from user_system.replay.store import Store

    return Store(path).open(create=True)
