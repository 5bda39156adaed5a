"""Several stores as one: the draws that a single store would give, whatever lies where."""

from collections import Counter

import numpy as np
import pytest
from replay_checks import fits

from user_system.core.draws import Draw, Weigh
from user_system.core.errors import ConfigError, LinkError, SpecError
from user_system.core.interfaces import Data, NotReady, Priorities
from user_system.core.types import End, Purpose, Segment
from user_system.replay.sampler import ReplayData
from user_system.replay.shards import ShardedData
from user_system.replay.store import Store

DRAWN = 20_000


class Site:
    """One store, all that one store would hold, and a window on each."""

    def __init__(self, path, names):
        self.stores = {name: Store(path / name).open(create=True) for name in names}
        self.whole = Store(path / "whole").open(create=True)

    def put(self, name, fragments):
        assert not self.stores[name].append(fragments)
        assert not self.whole.append(fragments)

    def sharded(self, seed=1, **windows):
        shards = {
            name: windows.get(name, ReplayData(store.env, seed=seed + k))
            for k, (name, store) in enumerate(self.stores.items())
        }
        return ShardedData(shards, seed=seed)

    def close(self):
        for store in (*self.stores.values(), self.whole):
            store.close()


@pytest.fixture
def site(tmp_path):
    site = Site(tmp_path, ("here", "there", "nowhere"))
    yield site
    site.close()


@pytest.fixture
def filled(site, recorder):
    """Two stores of different sizes and makes; the third is empty."""
    arm, ben = recorder("arm"), recorder("ben", epoch=2)
    for k in range(4):
        site.put("here", arm.run_episode(5 + k))
    ben.begin()
    ben.step(7)
    ben.step(6, segment=Segment.CORRECTION, operator="ann")
    ben.step(2, segment=Segment.DEMO)
    ben.step(1, end=End.TERMINATED)
    site.put("there", [ben.flush()])
    site.put("there", ben.run_episode(20))
    return site


def chances(site, weigh, view):
    """Return how often a store that holds everything draws each step, from its own importance."""
    one = ReplayData(site.whole.env, seed=9)
    weigh = weigh or Weigh("k", power=0.0)
    beta_one = Weigh(**{**{f: getattr(weigh, f) for f in weigh.__slots__}, "beta": 1.0})
    batch = one.draw(Draw(DRAWN, mix={view: 1.0}, weigh=beta_one))
    steps = one.count(view)
    # Importance with beta 1 is 1 / (N p).
    return dict(
        zip(
            batch.observation["flag"].tolist(),
            (DRAWN / (steps * batch.extras["importance"])).tolist(),
            strict=True,
        )
    )


@pytest.mark.parametrize("view", ["all", "auto"])
@pytest.mark.parametrize(
    "weigh",
    [
        None,
        Weigh("k", power=1.0, floor=0.5),
        Weigh("segment", power=1.0),
        Weigh("segment", power=0.5),
        Weigh("robot", power=1.0),
        Weigh("segment", shares={"CORRECTION": 0.5}, rest="AUTO"),
    ],
    ids=str,
)
def test_every_step_is_as_likely_as_in_one_store(filled, view, weigh):
    data = filled.sharded()
    drawn = Counter()
    for _ in range(10):
        batch = data.draw(Draw(DRAWN // 10, mix={view: 1.0}, weigh=weigh))
        drawn.update(batch.observation["flag"].tolist())
    fits(drawn, chances(filled, weigh, view))


@pytest.mark.parametrize("weigh", [Weigh("k", floor=1.0, beta=0.6), Weigh("segment", beta=0.6)])
def test_importance_is_that_of_one_store(filled, weigh):
    request = Draw(500, mix={"all": 0.5, "auto": 0.5}, weigh=weigh)
    batch = filled.sharded().draw(request)
    one = ReplayData(filled.whole.env, seed=2).draw(request)

    def found(batch):
        view = np.arange(500) < 250
        key = zip(view.tolist(), batch.observation["flag"].tolist(), strict=True)
        return dict(zip(key, batch.extras["importance"].tolist(), strict=True))

    mine, theirs = found(batch), found(one)
    both = mine.keys() & theirs.keys()
    assert len(both) > 20
    assert {key: pytest.approx(theirs[key], rel=1e-5) for key in both} == {
        key: mine[key] for key in both
    }


def test_counts_of_views_are_exact_and_in_their_order(filled):
    data = filled.sharded()
    for n, people in ((4, 1), (10, 3), (64, 16), (257, 64)):
        batch = data.draw(Draw(n, mix={"human": 0.25, "auto": 0.75}, columns=("segment",)))
        auto = batch.extras["segment"] == Segment.AUTO
        assert auto.tolist() == [False] * people + [True] * (n - people)


def test_the_next_observation_is_the_one_recorded_after(filled):
    data = filled.sharded()
    batch = data.draw(Draw(400))
    assert (batch.next_observation["flag"] == batch.observation["flag"] + 1).all()
    assert (batch.action[:, 0] == batch.observation["flag"]).all()


@pytest.mark.parametrize(
    "request_",
    [
        Draw(40, unit="nstep", length=3),
        Draw(40, unit="window", length=6, columns=("segment", "robot")),
        Draw(12, unit="episode"),
        Draw(40, history=3),
        Draw(40, mix={"auto": 0.5, "human": 0.5}, unit="window", length=4),
    ],
    ids=lambda r: f"{r.unit}-{r.history}",
)
def test_rows_of_any_unit_are_those_of_one_store(filled, request_):
    """Each row equals the row of one store that begins with the same step."""
    data, one = filled.sharded(), ReplayData(filled.whole.env, seed=4)
    names, theirs = None, {}
    for _ in range(60):
        batch = one.draw(request_)
        for row in range(len(batch)):
            theirs[first(batch, row)] = cells(batch, row, one.names())
    seen = 0
    for _ in range(5):
        batch = data.draw(request_)
        names = data.names()
        for row in range(len(batch)):
            if first(batch, row) in theirs:
                assert cells(batch, row, names) == theirs[first(batch, row)]
                seen += 1
    assert seen > 20


def first(batch, row):
    flags = batch.observation["flag"][row]
    return int(flags if np.ndim(flags) == 0 else flags[-1] if batch.valid.ndim == 1 else flags[0])


def cells(batch, row, names):
    """Return what a row says, without what it says of places that are not valid."""
    valid = batch.valid[row]
    length = int(np.sum(valid)) if np.ndim(valid) else None
    said = [
        batch.action[row][:length].tolist(),
        batch.reward[row : row + 1].ravel()[:length].tolist(),
    ]
    said += [float(batch.discount[row]), int(batch.end[row])]
    said.append(np.ravel(batch.observation["flag"][row])[:length].tolist())
    if "robot" in batch.extras:
        codes = np.ravel(batch.extras["robot"][row])[:length]
        said.append([names[code] for code in codes])
    return said


def test_codes_of_names_mean_the_same_in_all_stores(filled):
    data = filled.sharded()
    batch = data.draw(Draw(300, columns=("robot", "operator")))
    names = data.names()
    robots = [names[code] for code in batch.extras["robot"].tolist()]
    assert set(robots) == {"arm", "ben"}
    people = [names[code] for code in batch.extras["operator"].tolist()]
    assert "ann" in people
    assert {robot for robot, who in zip(robots, people, strict=True) if who == "ann"} == {"ben"}


def test_draws_repeat_from_a_state(filled):
    data = filled.sharded()
    data.draw(Draw(50))
    state = data.state_dict()
    request = Draw(30, mix={"all": 0.5, "auto": 0.5})
    first_ones = [data.draw(request).ids.tolist() for _ in range(20)]
    again = filled.sharded(seed=77)
    again.load_state_dict(state)
    assert [again.draw(request).ids.tolist() for _ in range(20)] == first_ones


def test_a_state_of_other_stores_is_refused(filled):
    state = filled.sharded().state_dict()
    only = ShardedData({"here": ReplayData(filled.stores["here"].env)})
    with pytest.raises(SpecError, match="several stores; got here, there, nowhere; allowed: here"):
        only.load_state_dict(state)


def test_everything_is_consumed_once(filled):
    data = filled.sharded()
    taken = []

    def take_all():
        while True:
            taken.extend(data.consume(Draw(4)).ids.tolist())

    with pytest.raises(NotReady, match=r"here: view 'all' has \d of 4"):
        take_all()
    assert len(taken) == len(set(taken))
    assert data.count() - len(taken) < 2 * 4


def test_stores_take_turns_to_be_consumed(filled):
    data = filled.sharded()
    stores = [set((data.consume(Draw(3)).ids >> np.uint64(56)).tolist()) for _ in range(4)]
    assert stores == [{0}, {1}, {0}, {1}]


def test_what_steps_are_worth_is_told_to_the_store_that_has_them(filled):
    data = filled.sharded()
    batch = data.draw(Draw(400))
    wanted = batch.observation["flag"] == 3
    other = batch.observation["flag"] == batch.observation["flag"].max()
    values = np.where(wanted, 3.0, np.where(other, 1.0, 0.0)).astype(np.float32)
    data.prioritise(batch.ids, values)
    drawn = Counter()
    for _ in range(5):
        got = data.draw(Draw(400, weigh=Weigh("priority", missing=0.0)))
        drawn.update(got.observation["flag"].tolist())
    worth = {3: 3.0, int(batch.observation["flag"].max()): 1.0}
    fits(drawn, {key: 2000 * value / 4 for key, value in worth.items()})


def test_ids_that_are_of_no_store_are_refused(filled):
    with pytest.raises(SpecError, match="of 3 stores"):
        filled.sharded().prioritise(np.array([7 << 56], np.uint64), np.ones(1, np.float32))


class Flaky:
    """A store behind a link that may be down."""

    def __init__(self, window):
        self.window, self.down, self.asked = window, False, 0

    def __getattr__(self, name):
        what = getattr(self.window, name)

        def ask(*args):
            self.asked += 1
            if self.down:
                raise LinkError("the link is down")
            return what(*args)

        return ask


def test_a_store_that_is_away_stops_nobody_and_comes_back(filled, monkeypatch):
    there = Flaky(ReplayData(filled.stores["there"].env, seed=3))
    data = filled.sharded(there=there)

    def robots():
        batch = data.draw(Draw(200, columns=("robot",)))
        return {data.names()[code] for code in batch.extras["robot"].tolist()}

    assert robots() == {"arm", "ben"}
    there.down = True
    assert robots() == {"arm"}
    assert data.stats()["away"] == 1
    with pytest.raises(LinkError):
        data.count()
    asked = there.asked
    data.draw(Draw(10))
    assert there.asked == asked, "it is not asked at every draw"
    there.down = False
    data._away["there"] = 0.0  # as if the time had passed
    assert robots() == {"arm", "ben"}
    assert data.stats()["away"] == 0


def test_without_any_store_it_says_so(site):
    down = Flaky(ReplayData(site.stores["here"].env))
    down.down = True
    data = ShardedData({"here": down})
    with pytest.raises(LinkError, match="no store of this learner answers; got here"):
        data.draw(Draw(1))


def test_a_view_that_is_empty_everywhere_is_named(filled):
    with pytest.raises(NotReady, match="view 'eval' is empty in all stores"):
        filled.sharded().draw(Draw(4, mix={"eval": 1.0}))


def test_one_store_that_is_empty_gives_nothing(site, recorder):
    site.put("there", recorder().run_episode(5))
    batch = site.sharded().draw(Draw(50))
    assert set((batch.ids >> np.uint64(56)).tolist()) == {1}


@pytest.mark.parametrize("weigh", [Weigh("return")])
def test_what_one_store_cannot_know_is_refused(filled, weigh):
    with pytest.raises(SpecError, match="weights over several stores; got return"):
        filled.sharded().draw(Draw(4, weigh=weigh))


def test_there_is_at_least_one_store():
    with pytest.raises(ConfigError, match=r"got 0; allowed: 1\.\.255"):
        ShardedData({})


def test_it_is_a_window_like_any_other(filled):
    data = filled.sharded()
    assert isinstance(data, Data)
    assert isinstance(data, Priorities)
    assert data.count() == ReplayData(filled.whole.env).count()
    assert data.refresh() is False or data.refresh() is False


def test_what_is_new_is_drawn(filled, recorder):
    data = filled.sharded()
    data.draw(Draw(10))
    filled.put("nowhere", recorder("new", epoch=7).run_episode(40, purpose=Purpose.COLLECT))
    data.draw(Draw(10))
    batch = data.draw(Draw(300))
    assert 2 in set((batch.ids >> np.uint64(56)).tolist())
