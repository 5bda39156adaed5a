"""Each draw that can happen, compared with the model, and many draws with their chances."""

import dataclasses
import math
from contextlib import suppress
from functools import lru_cache

import numpy as np
import pytest
from replay_model import SHOWN, achieved, distance
from replay_world import SHAPE, VIEWS, WEIGHTS

from user_system.core.draws import AsOf, Draw, Hindsight
from user_system.core.interfaces import NotReady
from user_system.core.types import End
from user_system.replay.sampler import ReplayData


class Checker:
    """Empties every view in every way, and compares with the model."""

    def __init__(self, world):
        self.model, self.world = world.model, world
        # A reader that saw the store grow, and one that reads it now, must be the same function.
        self.readers = (world.follower, ReplayData(world.store.env, views=VIEWS))

    def everything(self):
        assert self.world.follower.refresh() in (True, False)
        for view in SHOWN:
            expected = self.model.view(view)
            assert self.world.follower.count(view) == len(expected), view
            self.steps(view)
        for cross in (True, False):
            self.walks("all", cross)
            self.histories("all", cross)
        self.walks("helped", cross=True)
        self.walks("human", cross=True, cross_views=False)
        self.walks("all", cross=True, void=True)
        self.histories("all", cross=True, void=True)
        self.episodes("online")
        for reward in ("recorded_reward", "progress", "reward@v", "progress@w"):
            self.walks("all", cross=True, reward=reward)
        self.sensors()
        self.hindsight()
        for weigh in WEIGHTS:
            self.weights("all", weigh)
        self.weights("helped", WEIGHTS[0])
        self.twins()

    def batches(self, expected, **request):
        """Yield what each reader gives when it is emptied."""
        if expected:
            for data in self.readers:
                data._consumed.load([])
                data._consumed_episodes.load([])
                yield data.consume(Draw(len(expected), **request))

    def steps(self, view):
        expected = self.model.view(view)
        for batch in self.batches(expected, mix={view: 1.0}, gamma=0.5, columns=["k"]):
            assert flags(batch) == [s.o for s in expected]
            assert batch.next_observation["flag"].tolist() == [s.after for s in expected]
            assert batch.reward.tolist() == [s.reward for s in expected]
            assert batch.extras["k"].tolist() == [s.k for s in expected]
            assert batch.action.tolist() == [[s.o, s.k, 0.5] for s in expected]
            alive = [s.end is not End.TERMINATED for s in expected]
            assert batch.discount.tolist() == [0.5 * a for a in alive]
            for row, step in enumerate(expected):
                assert (batch.observation["cam"][row] == picture(step.o)).all()
                assert (batch.next_observation["cam"][row] == picture(step.after)).all()

    def walks(self, view, cross, *, cross_views=True, void=False, reward=""):
        expected = self.model.view(view, void=void, reward=reward)
        shown = None if cross_views else {id(s) for s in expected}
        paths = [self.model.walk(s, 3, cross=cross, reward=reward, shown=shown) for s in expected]
        request = {
            "mix": {view: 1.0},
            "length": 3,
            "gamma": 0.5,
            "include_void": void,
            "cross_segments": cross,
            "cross_views": cross_views,
            "reward": reward,
        }
        for batch in self.batches(expected, unit="nstep", **request):
            assert flags(batch) == [s.o for s in expected]
            for row, path in enumerate(paths):
                self.ends(batch, row, path)
                total = sum(0.5**i * self.model.reward(s, reward) for i, s in enumerate(path))
                assert batch.reward[row] == pytest.approx(total)
        for batch in self.batches(expected, unit="window", **request):
            for row, path in enumerate(paths):
                self.ends(batch, row, path)
                assert batch.valid[row].tolist() == [i < len(path) for i in range(3)]
                rest = [0] * (3 - len(path))
                assert batch.observation["flag"][row].tolist() == [s.o for s in path] + rest
                assert batch.action[row, :, 0].tolist() == [s.o for s in path] + rest
                rewards = [self.model.reward(s, reward) for s in path]
                assert batch.reward[row].tolist() == rewards + rest
                for i in range(3):
                    seen = picture(path[i].o) if i < len(path) else 0
                    assert (batch.observation["cam"][row, i] == seen).all()

    def ends(self, batch, row, path):
        after = path[-1].after
        assert batch.next_observation["flag"][row] == after
        assert batch.next_observation["o"][row].tolist() == [after, -after]
        assert (batch.next_observation["cam"][row] == picture(after)).all()
        alive = path[-1].end is not End.TERMINATED
        assert batch.discount[row] == pytest.approx(0.5 ** len(path) * alive)
        assert batch.end[row] == path[-1].end

    def histories(self, view, cross, *, void=False):
        expected = self.model.view(view, void=void)
        request = {"mix": {view: 1.0}, "include_void": void, "cross_segments": cross}
        for unit, length in (("step", 1), ("nstep", 2), ("window", 2)):
            for batch in self.batches(expected, unit=unit, length=length, history=3, **request):
                for row, step in enumerate(expected):
                    path = self.model.walk(step, length, cross=cross)
                    now = self.model.history(step, 3, cross=cross)
                    then = [*self.model.history(path[-1], 2, cross=cross), path[-1].after]
                    shown(batch.observation, batch.extras["history_valid"], row, now)
                    shown(batch.next_observation, batch.extras["next_history_valid"], row, then)
                    if unit == "window":
                        acted = [s.o for s in path] + [0] * (2 - len(path))
                        assert batch.action[row, :, 0].tolist() == acted

    def episodes(self, view):
        members = self.model.view(view)
        whole = {}
        for step in members:
            if step.episode in self.model.complete:
                whole.setdefault(step.episode, []).append(step)
        firsts = {}
        for i, step in enumerate(self.model.stored):
            firsts.setdefault(step.episode, i)
        order = sorted(whole, key=firsts.get)
        for batch in self.batches(order, unit="episode", mix={view: 1.0}):
            for row, episode in enumerate(order):
                seen = [s.o for s in whole[episode]]
                assert batch.observation["flag"][row][: len(seen)].tolist() == seen
                assert batch.valid[row].sum() == len(seen)
                assert batch.next_observation["flag"][row] == whole[episode][-1].after

    def sensors(self):
        expected = self.model.view("all")
        if not any(fragment.streams for fragment in self.world.sent):
            return
        wanted = {"touch": AsOf(max_age_s=0.35, samples=2)}
        with suppress(NotReady):  # all that was felt was removed since
            for batch in self.batches(expected, streams=wanted):
                for row, step in enumerate(expected):
                    for part, o in (
                        (batch.observation, step.o),
                        (batch.next_observation, step.after),
                    ):
                        felt = self.model.sensed(step.episode, o, 2, 0.35)
                        assert part["touch.valid"][row].tolist() == [f is not None for f in felt]
                        values = [[f[0], -f[0]] if f else [0.0, 0.0] for f in felt]
                        assert part["touch"][row].tolist() == values
                        ages = [f[1] if f else 0.0 for f in felt]
                        assert part["touch.age"][row].tolist() == pytest.approx(ages)

    def hindsight(self):
        for strategy in ("future", "final"):
            for length, terminate in ((1, True), (3, True), (3, False)):
                wanted = Hindsight("goal", "reached", 1.0, strategy, 0.15, 1.0, -1.0, terminate)
                expected = self.model.view("all")
                request = {"unit": "window", "length": length, "gamma": 0.5, "hindsight": wanted}
                for batch in self.batches(expected, **request):
                    for row, step in enumerate(expected):
                        self.relabelled(batch, row, step, wanted, length)

    def relabelled(self, batch, row, step, wanted, length):
        goal = batch.next_observation["goal"][row].tolist()
        goals = self.model.goals(step)
        goals = goals[-1:] if wanted.strategy == "final" else goals
        assert min(distance(goal, g) for g in goals) < 1e-6
        path = self.model.walk(step, length)
        hit = [distance(achieved(s.after), goal) <= 0.15 for s in path]
        if wanted.terminate and any(hit):
            path = path[: hit.index(True) + 1]
        rewards = [1.0 if h else -1.0 for h in hit[: len(path)]]
        assert batch.reward[row].tolist() == rewards + [0.0] * (length - len(path))
        assert batch.valid[row].sum() == len(path)
        ended = wanted.terminate and any(hit)
        over = ended or path[-1].end is End.TERMINATED
        assert batch.discount[row] == pytest.approx(0.0 if over else 0.5 ** len(path))
        assert batch.end[row] == (End.TERMINATED if ended else path[-1].end)
        assert batch.next_observation["flag"][row] == path[-1].after
        for i in range(length):
            seen = goal if i < len(path) else [0.0, 0.0]
            assert batch.observation["goal"][row, i].tolist() == seen

    def weights(self, view, weigh):
        expected = self.model.view(view)
        chances = self.model.chances(expected, weigh, self.world.priorities)
        chances = {step.o: chance for step, chance in zip(expected, chances, strict=False)}
        request = Draw(40, mix={view: 1.0}, weigh=weigh)
        for data in self.readers[:1] if weigh.by == "priority" else self.readers:
            if not any(chances.values()):
                with pytest.raises(NotReady):
                    data.draw(request)
                continue
            batch = data.draw(request)
            for o, importance in zip(flags(batch), batch.extras["importance"], strict=True):
                assert chances[o] > 0
                assert importance == pytest.approx(1 / (len(expected) * chances[o]), rel=1e-4)

    def twins(self):
        """A fresh reader with the same random state draws the same, bit for bit."""
        first, fresh = self.readers
        if not self.model.view("all"):
            return
        fresh._rng.bit_generator.state = first._rng.bit_generator.state
        requests = [
            Draw(16),
            Draw(16, mix={"all": 0.5, "either": 0.5}, unit="nstep", length=4),
            Draw(16, unit="window", length=3, history=2, columns=["version", "success"]),
            Draw(16, hindsight=Hindsight("goal", "reached", 0.5), unit="nstep", length=3),
            *(Draw(16, weigh=weigh) for weigh in WEIGHTS if weigh.by != "priority"),
        ]
        for request in requests:
            ours, theirs = (attempt(data, request) for data in (first, fresh))
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                same(ours, theirs)


def fits(counts, expected):
    """Whether counts are a likely sample of expected ones (chi-square, p > 1e-4)."""
    assert counts.keys() <= expected.keys()
    df = len(expected) - 1
    statistic = sum((counts.get(key, 0) - e) ** 2 / e for key, e in expected.items())
    # Wilson and Hilferty: the cube root of chi-square over df is nearly normal.
    z = ((statistic / df) ** (1 / 3) - (1 - 2 / (9 * df))) / math.sqrt(2 / (9 * df))
    assert z < 3.72, (statistic, df)


def attempt(data, request):
    try:
        return data.draw(request)
    except NotReady:
        return None


def same(ours, theirs):
    for field in dataclasses.fields(ours):
        one, two = getattr(ours, field.name), getattr(theirs, field.name)
        one, two = (x if isinstance(x, dict) else {"": x} for x in (one, two))
        assert one.keys() == two.keys()
        for key in one:
            assert np.array_equal(one[key], two[key], equal_nan=one[key].dtype.kind == "f"), (
                field.name,
                key,
            )


def shown(observation, valid, row, numbers):
    assert valid[row].tolist() == [n is not None for n in numbers]
    assert observation["flag"][row].tolist() == [n or 0 for n in numbers]
    for i, number in enumerate(numbers):
        seen = 0 if number is None else picture(number)
        assert (observation["cam"][row, i] == seen).all()


@lru_cache(maxsize=1024)
def picture(number):
    return np.random.default_rng(number).integers(0, 256, SHAPE, np.uint8)


def flags(batch):
    return batch.observation["flag"].tolist()
