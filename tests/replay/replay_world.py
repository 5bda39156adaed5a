"""Robots, people, a store with blocks and a quota, readers that follow, and the model of it all."""

import dataclasses
import json
from contextlib import suppress

import numpy as np
from replay_model import CLAUSES, NS, Model, achieved

from user_system.core.draws import Draw, Weigh
from user_system.core.errors import SpecError, StoreError
from user_system.core.interfaces import NotReady
from user_system.core.types import Segment, Stream
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store
from user_system.replay.views import View, with_views

VIEWS = with_views({name: View.parse(name, said) for name, said in CLAUSES.items()})
ROBOTS = ("a", "b")
SHAPE = (2, 3, 1)
SIRIUS = Weigh("segment", shares={"RECOVERY|CORRECTION": 0.5}, rest="AUTO", beta=1.0)
WEIGHTS = (
    Weigh("segment", beta=1.0),
    Weigh("success", power=0.5, beta=1.0),
    SIRIUS,
    Weigh("return", floor=0.1, missing=0.3, beta=1.0),
    Weigh("priority", power=0.6, missing=2.0, beta=1.0),
    Weigh("progress", floor=0.05, missing=0.0, beta=1.0),
    Weigh("version", power=2.0, beta=1.0),
)


class World:
    """Two robots, one store, one model, and readers that look now and then."""

    def __init__(self, path, recorder, quota=None):
        self.path, self.quota = path, quota
        self.store = Store(path, quota_bytes=quota).open(create=True)
        self.model = Model()
        self.robots = {n: recorder(n, cameras={"cam": SHAPE}) for n in ROBOTS}
        self.felt = {name: [] for name in ROBOTS}
        self.sent = []
        self.priorities = {}
        self.feelings = 0
        self.follower = ReplayData(self.store.env, seed=1, views=VIEWS)

    # --- what robots and people do ---

    def begin(self, name, purpose):
        robot = self.robots[name]
        if robot.pending:
            self.flush(name)
        robot.begin(purpose)

    def step(self, name, n, segment, recorded):
        version = self.robots[name].counter[0] // 7
        self.robots[name].step(n, segment=segment, recorded=recorded, version=version)

    def feel(self, name, offset):
        """A sensor's sample, some time before or after the newest observation."""
        self.feelings += 1
        stamp = max(self.robots[name].counter[0] * NS + offset, 0)
        self.felt[name].append((stamp, float(self.feelings)))

    def flush(self, name, *, spoil=False):
        robot = self.robots[name]
        if not robot.pending:
            return
        steps = list(robot.pending)
        felt, self.felt[name] = sorted(self.felt[name], key=lambda s: s[0]), []
        fragment = enriched(robot.flush(), felt, len(self.sent))
        if spoil:
            spoiled = {**fragment.observation, "o": fragment.observation["o"] * np.nan}
            fragment = dataclasses.replace(fragment, observation=spoiled)
            assert len(self.append(fragment)) == 1
            return
        assert self.append(fragment) == []
        self.sent.append(fragment)
        self.model.store(steps, fragment, felt)
        self.notice()

    def append(self, fragment):
        try:
            return self.store.append([fragment])
        except StoreError:  # all that is left is being recorded
            self.store._retention._quota = None
            return self.store.append([fragment])

    def notice(self):
        """Learn from the store's books what its quota removed; episodes go whole."""
        with self.store.env.read() as txn:
            held = {h.episode for h in self.store._retention._ledger.held(txn)}
        for episode in {step.episode for step in self.model.stored} - held:
            self.model.delete(episode)

    def spoil(self, name):
        self.flush(name, spoil=True)

    def stumble(self, name):
        """Lose one fragment in the middle of an episode."""
        for spoil in (False, True, False):
            self.step(name, 2, Segment.AUTO, 1.0)
            self.flush(name, spoil=spoil)

    def take_over(self, name):
        """A person holds, rewinds what was seen already, recovers and corrects."""
        self.step(name, 4, Segment.AUTO, 0.0)
        self.flush(name)
        self.look()
        self.step(name, 2, Segment.HOLD, 0.0)
        self.rewind(name, 4)
        self.step(name, 2, Segment.RECOVERY, 0.0)
        self.step(name, 2, Segment.HOLD, 0.0)
        self.step(name, 2, Segment.CORRECTION, 1.0)

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
            assert self.append(self.sent[which % len(self.sent)]) == []
            self.notice()

    def finish(self):
        """Record what is left, and send everything once more."""
        for name in ROBOTS:
            self.flush(name)
        for number in range(len(self.sent)):
            self.repeat(number)

    # --- what is said of it later ---

    def revise(self, name, number):
        """Judge and score an episode twice, with a look in between; the second says less."""
        for success, values in ((True, [5.0] * 6), (False, [7.0] * 2)):
            self.label_success(name, number, success)
            self.label(name, number, "reward", "v", values)
            self.look()

    def label_success(self, name, number, success):
        episode = f"{name}-1-{number}"
        self.store.label(episode, "success", "v", success, None)
        self.model.success[episode] = success

    def label(self, name, number, column, version, values):
        episode = f"{name}-1-{number}"
        self.store.label(episode, column, version, None, np.array(values, np.float32))
        self.model.label(episode, column, version, values)

    def prioritise(self, values):
        with suppress(NotReady):
            batch = self.follower.draw(Draw(len(values)))
            values = np.array(values, np.float32)
            self.follower.prioritise(batch.ids, values)
            self.priorities |= dict(
                zip(batch.observation["flag"].tolist(), values.tolist(), strict=True)
            )

    # --- what happens to stores and readers ---

    def delete(self, name, number):
        episode = f"{name}-1-{number}"
        with suppress(SpecError):  # not there, or being recorded
            self.store.delete(episode, who="ann", why="test")
            self.model.delete(episode)

    def tend(self):
        self.store.tend()

    def look(self):
        for view in ("all", "clean", "clear"):
            self.follower.count(view)
        with suppress(NotReady):
            self.follower.draw(Draw(4, weigh=WEIGHTS[3]))

    def resume(self):
        """Go on with a fresh reader and the state of the one that followed."""
        state = dict(self.follower.state_dict())
        priorities = state.pop("priorities", None)
        state = json.loads(json.dumps(state))
        if priorities is not None:
            state["priorities"] = priorities
        self.follower = ReplayData(self.store.env, seed=99, views=VIEWS)
        self.follower.load_state_dict(state)

    def reopen(self):
        self.store.close()
        self.store = Store(self.path, quota_bytes=self.quota).open()
        self.priorities = {}
        self.follower = ReplayData(self.store.env, seed=2, views=VIEWS)


def enriched(fragment, felt, number):
    """Return a fragment with goals, what was achieved, a sensor, and a time."""
    numbers = fragment.observation["flag"].tolist()
    more = {
        "reached": np.array([achieved(o) for o in numbers], np.float32),
        "goal": np.full((len(numbers), 2), 9, np.float32),
    }
    stamps = np.array([stamp for stamp, _ in felt], np.int64)
    values = np.array([[value, -value] for _, value in felt], np.float32).reshape(-1, 2)
    return dataclasses.replace(
        fragment,
        header=dataclasses.replace(fragment.header, wall_ns=number),
        observation={**fragment.observation, **more},
        streams={"touch": Stream(stamps, values)} if felt else {},
    )
