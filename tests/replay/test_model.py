"""Every possible draw against a model in plain Python: lists, dictionaries and one link per step.

Robots are interleaved, people step in, rewinds void, episodes are truncated, fragments are refused
or repeated, labels come late or early, the store is reopened; then all views are emptied by
``consume`` in every unit, so that each draw that can happen is compared.
"""

import dataclasses
import math
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from user_system.core.interfaces import Draw
from user_system.core.types import End, Purpose, Segment
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store
from user_system.replay.views import View, with_views

ACTING = {Segment.DEMO, Segment.AUTO, Segment.RECOVERY, Segment.CORRECTION, Segment.SYNTHETIC}
HUMAN = {Segment.DEMO, Segment.RECOVERY, Segment.CORRECTION}
SHOWN = {
    "all": lambda s, _: s.segment in ACTING,
    "online": lambda s, _: s.segment in ACTING - {Segment.DEMO},
    "human": lambda s, _: s.segment in HUMAN,
    "auto": lambda s, _: s.segment is Segment.AUTO,
    "won": lambda s, success: s.segment in ACTING and success.get(s.episode) is True,
}
VIEWS = with_views({"won": View(success=True)})
ROBOTS = ("a", "b")


class Model:
    """What must be drawable: stored steps in log order, each with its recorded successor."""

    def __init__(self):
        self.stored, self.last, self.success, self.rewards = [], {}, {}, {}

    def store(self, steps, fragment):
        header = fragment.header
        numbers = fragment.observation["flag"].tolist()
        for i, step in enumerate(steps):
            if i + 1 < len(numbers):
                step.after = numbers[i + 1]
            if i + 1 < len(steps):
                step.follower = steps[i + 1]
        before = self.last.get(header.episode)
        if before is not None and before.k + 1 == header.start and before.end is End.NONE:
            before.after, before.follower = steps[0].o, steps[0]
        self.last[header.episode] = steps[-1]
        if header.void_from is not None:
            for step in self.stored:
                if step.episode == header.episode and header.void_from <= step.k < header.start:
                    step.void = True
        self.stored += steps
        self.relabel()

    def relabel(self):
        for step in self.stored:
            values = self.rewards.get(step.episode, [])
            late = values[step.k] if step.k < len(values) else math.nan
            step.reward = step.recorded if math.isnan(late) else late

    def drawable(self, step):
        return step.after is not None and not math.isnan(step.reward)

    def view(self, name, *, void):
        return [
            step
            for step in self.stored
            if self.drawable(step)
            and (void or not step.void)
            and step.purpose is not Purpose.EVAL
            and SHOWN[name](step, self.success)
        ]

    def walk(self, step, length, *, cross):
        walk = [step]
        while len(walk) < length:
            following = walk[-1].follower
            if following is None or not self.drawable(following):
                break
            if following.void != walk[-1].void:
                break
            if cross and following.segment not in ACTING:
                break
            if not cross and following.segment is not walk[-1].segment:
                break
            walk.append(following)
        return walk


class World:
    """Two robots, one store, one model, and a reader that looks now and then."""

    def __init__(self, path, recorder):
        self.path = path
        self.store = Store(path).open(create=True)
        self.model = Model()
        self.robots = {n: recorder(n, cameras={"cam": (2, 3, 1)}) for n in ROBOTS}
        self.sent = []
        self.follower = ReplayData(self.store.env, views=VIEWS)

    def begin(self, name, purpose):
        robot = self.robots[name]
        if robot.pending:
            self.flush(name)
        robot.begin(purpose)

    def step(self, name, n, segment, recorded):
        self.robots[name].step(n, segment=segment, recorded=recorded)

    def flush(self, name, *, spoil=False):
        robot = self.robots[name]
        if not robot.pending:
            return
        steps = list(robot.pending)
        fragment = robot.flush()
        if spoil:
            spoiled = {**fragment.observation, "o": fragment.observation["o"] * np.nan}
            fragment = dataclasses.replace(fragment, observation=spoiled)
            assert len(self.store.append([fragment])) == 1
            return
        assert self.store.append([fragment]) == []
        self.sent.append(fragment)
        self.model.store(steps, fragment)

    def spoil(self, name):
        self.flush(name, spoil=True)

    def stumble(self, name):
        """Lose one fragment in the middle of an episode."""
        for spoil in (False, True, False):
            self.step(name, 2, Segment.AUTO, 1.0)
            self.flush(name, spoil=spoil)

    def take_over(self, name):
        """A person holds, rewinds what was seen already, recovers and corrects."""
        self.flush(name)
        self.look()
        self.step(name, 2, Segment.HOLD, 0.0)
        self.rewind(name, 4)
        self.step(name, 2, Segment.RECOVERY, 0.0)
        self.step(name, 2, Segment.HOLD, 0.0)
        self.step(name, 2, Segment.CORRECTION, 1.0)

    def revise(self, name, number):
        """Judge and score an episode twice, with a look in between; the second says less."""
        for success, values in ((True, [5.0] * 6), (False, [7.0] * 2)):
            self.label_success(name, number, success)
            self.label_reward(name, number, values)
            self.look()

    def end(self, name, end):
        robot = self.robots[name]
        if robot.episode:
            robot.step(1, end=end)
            self.flush(name)

    def rewind(self, name, back):
        self.flush(name)
        robot = self.robots[name]
        if robot.episode:
            robot.void_from = max(0, robot.k - back)
            robot.step(1, segment=Segment.REWIND)

    def repeat(self, which):
        if self.sent:
            assert self.store.append([self.sent[which % len(self.sent)]]) == []

    def label_success(self, name, number, success):
        episode = f"{name}-1-{number}"
        self.store.label(episode, "success", "v", success, None)
        self.model.success[episode] = success

    def label_reward(self, name, number, values):
        episode = f"{name}-1-{number}"
        self.store.label(episode, "reward", "v", None, np.array(values, np.float32))
        self.model.rewards[episode] = values
        self.model.relabel()

    def look(self):
        self.follower.count("all")

    def reopen(self):
        self.store.close()
        self.store = Store(self.path).open()
        self.follower = ReplayData(self.store.env, views=VIEWS)

    def check(self):
        assert self.store.append(self.sent) == []
        for view in SHOWN:
            expected = self.model.view(view, void=False)
            assert self.follower.count(view) == len(expected)
            for unit, cross in [("step", True), ("nstep", True), ("window", False)]:
                self.compare(view, unit, cross, expected)
        self.compare("all", "window", True, self.model.view("all", void=True), void=True)

    def compare(self, view, unit, cross, expected, void=False):
        if not expected:
            return
        length = 1 if unit == "step" else 3
        request = Draw(
            len(expected),
            unit=unit,
            length=length,
            gamma=0.5,
            mix={view: 1.0},
            cross_segments=cross,
            include_void=void,
        )
        # A reader that saw the store grow, and one that reads it now, must be the same function.
        for data in (self.follower, ReplayData(self.store.env, views=VIEWS)):
            data._consumed.load([])
            same(data.consume(request), expected, self.model, unit, length, cross)


def same(batch, expected, model, unit, length, cross):
    assert batch.observation["flag"].shape[0] == len(expected)
    for row, step in enumerate(expected):
        walk = model.walk(step, length, cross=cross)
        seen = batch.observation["flag"][row]
        if unit == "window":
            assert batch.valid[row].tolist() == [i < len(walk) for i in range(length)]
            assert seen[: len(walk)].tolist() == [s.o for s in walk]
            assert not seen[len(walk) :].any()
            assert batch.reward[row, : len(walk)].tolist() == [s.reward for s in walk]
            assert batch.action[row, : len(walk), 0].tolist() == [s.o for s in walk]
        else:
            assert seen == step.o
            assert batch.action[row].tolist() == [step.o, step.k, 0.5]
            total = sum(0.5**i * s.reward for i, s in enumerate(walk))
            assert batch.reward[row] == pytest.approx(total)
        assert batch.next_observation["flag"][row] == walk[-1].after
        assert batch.next_observation["o"][row].tolist() == [walk[-1].after, -walk[-1].after]
        assert (batch.next_observation["cam"][row] == model_picture(walk[-1].after)).all()
        alive = walk[-1].end is not End.TERMINATED
        assert batch.discount[row] == pytest.approx(0.5 ** len(walk) * alive)
        assert batch.end[row] == walk[-1].end


def model_picture(number):
    return np.random.default_rng(number).integers(0, 256, (2, 3, 1), np.uint8)


robots = st.sampled_from(ROBOTS)
number = st.integers(1, 2)
reward = st.sampled_from([0.0, 1.0, -2.0, 3.0, math.nan])
late = st.lists(reward, min_size=1, max_size=9)
ends = st.sampled_from([end for end in End if end is not End.NONE])
acting = st.sampled_from([Segment.AUTO, Segment.AUTO, Segment.CORRECTION, Segment.DEMO])
segments = st.one_of(acting, acting, acting, st.sampled_from(list(Segment)))
steps = st.tuples(st.just("step"), robots, st.integers(1, 3), segments, reward)
flush = st.tuples(st.just("flush"), robots)
rare = st.one_of(
    st.tuples(st.just("end"), robots, ends),
    st.tuples(st.just("begin"), robots, st.sampled_from(list(Purpose))),
    st.tuples(st.just("spoil"), robots),
    st.tuples(st.just("stumble"), robots),
    st.tuples(st.just("repeat"), st.integers(0, 99)),
    st.tuples(st.just("label_success"), robots, number, st.booleans() | st.none()),
    st.tuples(st.just("label_reward"), robots, number, late),
    st.tuples(st.just("reopen")),
)
told = st.one_of(
    st.tuples(st.just("take_over"), robots),
    st.tuples(st.just("revise"), robots, number),
)
rewind = st.tuples(st.just("rewind"), robots, st.integers(0, 5))
look = st.tuples(st.just("look"))
actions = st.one_of(steps, steps, steps, flush, flush, rewind, look, rare, told)


runs = [0]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(script=st.lists(actions, min_size=20, max_size=60))
def test_every_possible_draw_is_the_models(recorder, quick_path, script):
    counter = recorder().counter
    counter[0] = 0
    runs[0] += 1
    world = World(quick_path / f"{runs[0]}", recorder)
    try:
        for verb, *arguments in script:
            getattr(world, verb)(*arguments)
        for name in ROBOTS:
            world.flush(name)
        world.check()
    finally:
        world.store.close()
        shutil.rmtree(world.path)
