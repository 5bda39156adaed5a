"""The door counts kinds of extras and streams as readers do, and refuses what would be too many."""

import dataclasses

import numpy as np
import pytest

from user_system.core.draws import Draw
from user_system.core.errors import StoreError
from user_system.core.types import End, Stream
from user_system.replay import columns, keeper, rewrite, salvage, streams
from user_system.replay.books import Books
from user_system.replay.index import Index
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store, reader


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Readers that keep few kinds."""
    monkeypatch.setattr(columns, "MAX_EXTRAS", 4)
    monkeypatch.setattr(streams, "MAX_STREAMS", 3)


def bearing(robot, *names, dtype=np.float32, felt=(), end=End.NONE):
    """Return a fragment of one step with extras and streams of these names."""
    robot.step(1, end=end)
    fragment = robot.flush()
    one = Stream(fragment.robot_ns[:1], np.zeros((1, 2), np.float32))
    return dataclasses.replace(
        fragment,
        extras={name: np.ones(1, dtype) for name in names},
        streams=dict.fromkeys(felt, one),
    )


def episode(robot, *names, felt=()):
    robot.begin()
    return [bearing(robot, *names, felt=felt, end=End.TERMINATED)]


def kept_of(path):
    """Return what a reader keeps of a closed store, and how often it left something out."""
    with reader(path).open() as env:
        return kept(env)


def kept(env):
    index = Index(env)
    index.refresh()
    extras = {s: len([v for e in r.extras.values() for v in e]) for s, r in index.rows.items()}
    return extras, index.stats()["ignored_columns"]


def test_one_too_many_is_refused_and_nothing_else_is_disturbed(store, recorder):
    robot, other, apart = recorder(), recorder("leg"), recorder("head", schema="t")
    assert store.append([bearing(robot, "a", "b"), bearing(robot, "c", "a")]) == []
    refused = store.append(
        [
            bearing(robot, "d", "e"),
            bearing(other, "d"),
            bearing(robot, "a", "d"),
            bearing(apart, "e", "f", "g", "h"),
            bearing(other, "a", dtype=np.int16),
        ]
    )
    assert [(r.producer, r.sequence) for r in refused] == [("arm", 2), ("leg", 1)]
    for answer, said in zip(refused, ("'e' float32[]", "'a' int16[]"), strict=True):
        assert f"too many kinds of extras for schema 's'; got 5 with {said}" in answer.reason
        assert "allowed: 4 that differ in name, dtype or shape. Keep to the same" in answer.reason
    assert (store.expected("arm", 1), store.expected("leg", 1)) == (4, 2)
    assert store.stats()["refused"] == 2
    assert kept(store.env) == ({"s": 4, "t": 4}, 0)


def test_streams_are_counted_by_name(store, recorder):
    robot = recorder()
    assert store.append([bearing(robot, felt=("x", "y")), bearing(robot, felt=("y", "z"))]) == []
    (refused,) = store.append([bearing(robot, felt=("w",)), bearing(robot, felt=("x",))])
    assert "too many kinds of streams for schema 's'; got 4 with 'w'" in refused.reason
    assert "allowed: 3 that differ in name. Keep" in refused.reason


def test_a_fragment_that_brings_too_many_at_once_counts_for_none(store, recorder):
    robot = recorder()
    (refused,) = store.append([bearing(robot, *"abcde"), bearing(robot, *"vwxy")])
    assert "got 5" in refused.reason
    assert kept(store.env) == ({"s": 4}, 0)


def test_it_is_known_after_a_restart(tmp_path, recorder):
    robot = recorder()
    for names in ("ab", "cd"):
        with Store(tmp_path / "replay").open(create=True) as store:
            assert store.append([bearing(robot, *names)]) == []
    with Store(tmp_path / "replay").open() as store:
        assert len(store.append([bearing(robot, "e"), bearing(robot, "a")])) == 1


def test_what_was_rolled_back_is_not_counted(store, recorder, monkeypatch):
    robot = recorder()
    first = bearing(robot, *"abcd")

    def full(*_):
        raise StoreError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Books, "write", full)
        with pytest.raises(StoreError):
            store.append([first])
    assert store.append([bearing(recorder("leg"), *"wxyz")]) == []
    (refused,) = store.append([first])
    assert "got 8" in refused.reason


@pytest.mark.parametrize("blocks", [True, False])
def test_of_a_store_of_before_it_is_counted_once(tmp_path, recorder, monkeypatch, blocks):
    monkeypatch.setattr(keeper, "BLOCK_STEPS", 2 if blocks else 1 << 20)
    robot = recorder()
    with Store(tmp_path / "replay").open(create=True) as store:
        sent = [bearing(robot, "a", felt="x"), bearing(robot, "b"), bearing(robot, "a", "c")]
        sent += [bearing(recorder("head", schema="t"))]
        assert store.append([*sent, bearing(robot, "a", felt="y")]) == []
        store.tend()

        def forget(txn):
            for schema in (b"s", b"t"):
                assert txn.delete(b"kinds\0" + schema, db=store.env.table("meta"))

        store.env.write(forget)
    for _ in range(2):
        with Store(tmp_path / "replay").open() as store, store.env.read() as txn:
            known = store._kinds._stored(txn, "s")
            assert sorted(kind[0] for kind in known) == ["a", "b", "c", "x", "y"]
            assert store._kinds._stored(txn, "t") == frozenset()
    with Store(tmp_path / "replay").open() as store:
        assert store.append([bearing(robot, "d", felt="z")]) == []
        assert len(store.append([bearing(robot, "e"), bearing(robot, felt="w")])) == 2


def test_a_store_of_before_with_too_many_is_opened_read_and_compacted(
    tmp_path, recorder, monkeypatch, caplog
):
    """Robot time cannot be bought again: what is acknowledged stays, readers keep their bound."""
    path, robot = tmp_path / "replay", recorder()
    with monkeypatch.context() as patch:
        patch.setattr(columns, "MAX_EXTRAS", 100)
        with Store(path).open(create=True) as store:
            for n in range(9):
                assert store.append(episode(robot, f"x{n}")) == []
    done = rewrite.compact(path)
    assert (done.records, done.backwards) == (9, 0)
    assert "too many kinds of schema 's', readers leave some out; the first: 'x4'" in caplog.text
    assert kept_of(path) == ({"s": 4}, 5)
    with Store(path).open() as store:
        assert len(store.append([*episode(robot, "x8"), *episode(robot, "x0")])) == 1
        assert ReplayData(store.env).consume(Draw(10)).observation["flag"].shape == (10,)


def test_stores_are_merged_whole_and_then_full(tmp_path, recorder):
    for name, names in (("a", "abc"), ("b", "cde")):
        with Store(tmp_path / name).open(create=True) as store:
            assert store.append(episode(recorder(name), *names)) == []
    done = rewrite.rewrite([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert done.records == 2
    assert kept_of(tmp_path / "all") == ({"s": 4}, 1)
    with Store(tmp_path / "all").open() as store:
        robot = recorder("c")
        refused = store.append([*episode(robot, "e"), *episode(robot, "d")])
        assert [r.sequence for r in refused] == [0], "of e readers know nothing"


def test_what_is_left_is_counted_anew(tmp_path, recorder):
    """By compact, which takes removed episodes off the disk, and by salvage."""
    path, robot = tmp_path / "replay", recorder()
    with Store(path).open(create=True) as store:
        assert store.append([*episode(robot, "a", "b"), *episode(robot, "c", "d")]) == []
        store.delete("arm-1-1", who="ann", why="test")
        assert len(store.append(episode(robot, "e"))) == 1
    rewrite.compact(path)
    salvage.salvage(path, tmp_path / "saved")
    for place in (path, tmp_path / "saved"):
        with Store(place).open() as store:
            leg = recorder("leg")
            refused = store.append([*episode(leg, "e", "f"), *episode(leg, "g")])
            assert [r.sequence for r in refused] == [1]
