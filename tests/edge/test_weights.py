import threading
from pathlib import Path

import numpy as np
import pytest

from user_system.codec import weights as codec
from user_system.core.errors import LinkError, MissingError
from user_system.core.types import Weights
from user_system.edge.acting import ActingWeights
from user_system.edge.messages import WeightsReady
from user_system.edge.weight_client import WeightClient
from user_system.edge.worker_client import Loaded


def weights(version, value=1.0, broken_hash=False):
    modules = {"policy": {"w": np.full(3, value * version, np.float32)}}
    statistics = {"mean": np.zeros(2, np.float32)}
    identity = "0" if broken_hash else codec.weights_hash(modules, statistics)
    return Weights("p", version, identity, modules, statistics)


class Store:
    """Gives what ``make`` makes, after ``failures`` broken tries."""

    def __init__(self, make=weights, failures=0):
        self.make, self.failures = make, failures
        self.asked = []

    def fetch(self, policy, version=0):
        self.asked.append(version)
        if self.failures:
            self.failures -= 1
            raise LinkError("cut")
        return self.make(version)


@pytest.fixture
def client(tmp_path):
    made = []

    def make(store, keep=8):
        ready = []
        client = WeightClient(store, tmp_path / "w", lambda p, r: ready.append((p, r)), keep)
        client.ready = ready
        client.start()
        made.append(client)
        return client

    yield make
    for one in made:
        one.close()


def versions(client):
    return [r.version for _, r in client.ready]


def test_the_newest_announced_version_is_laid_down(client, wait_for):
    store = Store()
    c = client(store)
    c.announce("p", 3, age_s=0.5)
    wait_for(lambda: versions(c) == [3], "version 3")
    c.announce("p", 3, 0.0)
    c.announce("p", 2, 0.0)
    c.announce("p", 4, 0.0)
    wait_for(lambda: versions(c) == [3, 4], "version 4")
    assert store.asked == [3, 4]
    loaded = Weights(**codec.load(Path(c.ready[0][1].path)))
    assert loaded.version == 3
    assert loaded.modules["policy"]["w"].tolist() == [3, 3, 3]


def test_a_broken_link_is_tried_again(client, wait_for):
    c = client(Store(failures=2))
    c.announce("p", 1, 0.0)
    wait_for(lambda: versions(c) == [1], "version 1")


@pytest.mark.parametrize(
    "make",
    [
        lambda v: weights(v, np.nan) if v == 1 else weights(v),
        lambda v: weights(v, broken_hash=v == 1),
        lambda v: weights(9) if v == 1 else weights(v),
    ],
    ids=["nan", "hash", "other"],
)
def test_bad_weights_reach_no_robot(client, wait_for, make):
    store = Store(make)
    c = client(store)
    c.announce("p", 1, 0.0)
    wait_for(lambda: c.stats()["weights_bad"] == 1, "a refusal")
    c.announce("p", 2, 0.0)
    wait_for(lambda: versions(c) == [2], "version 2")
    assert store.asked == [1, 2]


def test_a_pinned_version_is_fetched_whatever_its_age(client, wait_for):
    c = client(Store())
    c.announce("p", 8, 0.0)
    wait_for(lambda: versions(c) == [8], "version 8")
    c.need("p", 5)
    wait_for(lambda: versions(c) == [8, 5], "version 5")


def test_a_version_that_is_gone_does_not_block_others(client, wait_for):
    def make(version):
        if version == 5:
            raise MissingError("no such version")
        return weights(version)

    c = client(Store(make))
    c.need("p", 5)
    c.announce("p", 8, 0.0)
    wait_for(lambda: versions(c) == [8], "version 8")


def test_only_some_files_are_kept(client, wait_for, tmp_path):
    c = client(Store(), keep=2)
    for version in range(1, 6):
        c.announce("p", version, 0.0)
        wait_for(lambda v=version: versions(c)[-1:] == [v], f"version {version}")
    wait_for(lambda: len(list((tmp_path / "w").iterdir())) == 2, "two files")


def test_a_pinned_version_stays_while_newer_ones_come(client, wait_for):
    """An evaluation names an old version; its file must be there when the robot hears of it."""
    c = client(Store(), keep=2)
    for version in range(5, 9):
        c.announce("p", version, 0.0)
        wait_for(lambda v=version: versions(c)[-1:] == [v], f"version {version}")
    c.need("p", 1)
    wait_for(lambda: versions(c)[-1:] == [1], "version 1")
    assert Path(c.ready[-1][1].path).exists()
    c.announce("p", 9, 0.0)
    wait_for(lambda: versions(c)[-1:] == [9], "version 9")
    assert Path(c.ready[-2][1].path).exists()


# --- which of them act --------------------------------------------------------------------------


def found(acting, *numbers):
    for number in numbers:
        acting.found(WeightsReady(number, f"/w/{number}", 0.0))


def test_what_acts_moves_forward():
    acting = ActingWeights()
    assert acting.due(0) is None
    found(acting, 3)
    assert acting.due(0).version == 3
    assert acting.due(0) is None  # under way
    acting.loaded(Loaded(3, ""))
    found(acting, 2)
    assert acting.due(0) is None
    found(acting, 5)
    assert acting.due(0).version == 5
    acting.loaded(Loaded(5, ""))
    assert acting.version == 5
    assert "weights_age_p99_s" in acting.stats()


def test_a_pin_is_the_one_exception_and_ends():
    acting = ActingWeights()
    found(acting, 3, 5)
    acting.due(0)
    acting.loaded(Loaded(5, ""))
    assert not acting.knows(4)
    assert acting.due(4) is None
    assert acting.due(3).version == 3
    acting.loaded(Loaded(3, ""))
    assert acting.due(3) is None
    assert acting.due(0).version == 5


def test_what_an_evaluation_kept_waiting_is_not_late(monkeypatch):
    """The age is that of the way from the learner; a pin is no part of it."""
    now = 1000.0
    monkeypatch.setattr("user_system.edge.acting.time.monotonic", lambda: now)
    acting = ActingWeights()
    acting.found(WeightsReady(3, "3", 999.5))
    acting.due(0)
    acting.loaded(Loaded(3, ""))
    assert acting.stats()["weights_age_s"] == pytest.approx(0.5)
    acting.found(WeightsReady(4, "4", 1000.0))
    for later in (1000.0, 1010.0, 1020.0):
        now = later
        assert acting.due(3) is None
    now = 1020.25
    assert acting.due(0).version == 4
    acting.loaded(Loaded(4, ""))
    assert acting.stats()["weights_age_s"] == pytest.approx(0.25)
    assert acting.stats()["weights_age_p99_s"] == pytest.approx(0.5)


def test_loading_what_is_pinned_says_nothing_about_the_way(monkeypatch):
    acting = ActingWeights()
    found(acting, 3)
    acting.due(3)
    acting.loaded(Loaded(3, ""))
    assert "weights_age_s" not in acting.stats()


def test_an_old_pin_is_found_behind_many_newer_ones():
    acting = ActingWeights()
    found(acting, *range(10, 40), 3)
    assert acting.knows(3)
    assert acting.due(3).version == 3
    acting.loaded(Loaded(3, ""))
    assert acting.due(0).version == 39


def test_the_newest_is_known_however_many_pins_came():
    acting = ActingWeights()
    found(acting, 40, *range(1, 20))
    assert acting.due(0).version == 40


def test_refused_weights_are_not_tried_again():
    acting = ActingWeights()
    found(acting, 3)
    acting.due(0)
    acting.loaded(Loaded(3, "plugin 'p' could not load"))
    assert acting.version == 0
    assert acting.due(0) is None
    found(acting, 4)
    assert acting.due(0).version == 4


def test_a_new_worker_gets_them_again():
    acting = ActingWeights()
    found(acting, 3)
    acting.due(0)
    acting.loaded(Loaded(3, ""))
    acting.worker_lost()
    assert acting.due(0).version == 3


def test_calls_from_other_threads(client, wait_for):
    c = client(Store())
    threads = [threading.Thread(target=c.announce, args=("p", n, 0.0)) for n in range(1, 20)]
    for thread in threads:
        thread.start()
    wait_for(lambda: versions(c)[-1:] == [19], "the newest")
    assert versions(c) == sorted(versions(c))


def test_where_the_head_chooses_weights_nothing_is_loaded_or_asked_for_here():
    weights = ActingWeights()
    assert not weights.knows(9)
    weights.acts(5)
    weights.found(WeightsReady(7, "7", 0.0))  # of another actor with the same learner
    assert weights.due(0) is None
    assert weights.due(7) is None
    assert weights.knows(9), "an evaluation's version is the head's to find"
    weights.acts(4)
    assert weights.version == 4, "an evaluation pins an older one"
