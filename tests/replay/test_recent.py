"""Blocks made of what was just appended say what the log says, whatever happened in between."""

import numpy as np
import pytest

from user_system.codec import fragments as codec
from user_system.replay import keeper, recent, tables
from user_system.replay.blocks import Block
from user_system.replay.filling import Filling
from user_system.replay.index import read_fragments
from user_system.replay.recent import Recent, Stored
from user_system.replay.store import Store

STEPS = 16
"""Steps of a block here; an episode of twelve is three fragments."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An open store that makes blocks only when it is told to."""
    monkeypatch.setattr(keeper, "BLOCK_STEPS", STEPS)
    monkeypatch.setattr(keeper.Keeper, "_run", lambda self: None)
    with Store(tmp_path / "replay").open(create=True) as store:
        yield store


def blocks(store):
    """Return the bytes of all blocks, and what the log makes of the same fragments."""
    made, wanted, start = [], [], 0
    with store.env.read() as txn:
        while place := next(tables.blocks(txn, store.env, start), None):
            made.append(bytes(store.env.file.read(place.position, place.length)))
            wanted.append((start, place.end))
            start = place.end
    again = [list(read_fragments(store.env, *limits, Filling())) for limits in wanted]
    return made, [Block.of(entries).encode() for entries in again]


def unread(monkeypatch):
    """Fail where the log is read to make a block."""

    def never(*_):
        raise AssertionError("the log was read")

    monkeypatch.setattr(keeper, "read_fragments", never)


def test_a_block_of_what_was_just_appended_is_the_one_of_the_log(here, recorder, monkeypatch):
    robots = [recorder(name, extras=name == "b") for name in ("a", "b")]
    with monkeypatch.context() as patch:
        unread(patch)
        for _ in range(5):
            for robot in robots:
                here.append(robot.run_episode(12))
        here.tend()
    made, wanted = blocks(here)
    assert len(made) >= 6
    assert made == wanted


def test_who_appended_may_use_the_arrays_again(here, recorder):
    robot = recorder()
    given = [f for _ in range(3) for f in robot.run_episode(12)]
    here.append(given)
    for fragment in given:
        fragment.executed[:] = 77.0
        fragment.observation["flag"][:] = 7
    here.tend()
    made, wanted = blocks(here)
    assert made == wanted
    assert made
    assert 77.0 not in Block.decode(made[0]).steps["executed"]


def test_what_was_removed_before_its_block_was_made_is_not_in_it(here, recorder):
    robot = recorder()
    episodes = [robot.run_episode(12) for _ in range(3)]
    for fragments in episodes:
        here.append(fragments)
    here.delete(episodes[0][0].header.episode, who="ann", why="a face in the picture")
    here.tend()
    (made, *_), (wanted, *_) = blocks(here)
    assert made == wanted
    names = {episode for _, _, episode in Block.decode(made).episodes}
    assert episodes[0][0].header.episode not in names


def test_a_store_that_was_opened_again_reads_its_log(tmp_path, recorder, monkeypatch):
    monkeypatch.setattr(keeper, "BLOCK_STEPS", 1000)
    robot = recorder()
    with Store(tmp_path / "replay").open(create=True) as store:
        store.append(robot.run_episode(12))
    monkeypatch.setattr(keeper, "BLOCK_STEPS", STEPS)
    with Store(tmp_path / "replay").open() as store:
        store.append(robot.run_episode(12))
        store.tend()
        made, wanted = blocks(store)
    assert len(made) == 1
    assert made == wanted


def test_more_than_it_may_hold_is_read_from_the_log(here, recorder, monkeypatch):
    monkeypatch.setattr(recent, "MAX_BYTES", 4096)
    robot = recorder()
    for _ in range(6):
        here.append(robot.run_episode(12))
    here.tend()
    made, wanted = blocks(here)
    assert len(made) == 4
    assert made == wanted


def test_what_came_out_of_order_waits_for_what_is_missing(recorder):
    """Two threads append: the later transaction may be heard of first."""
    kept = Recent()
    parts = [codec.low(f) for f in recorder().run_episode(12)]
    stored = [Stored(i, fragment, 100) for i, fragment in enumerate(parts)]
    kept.add(stored[2:])
    assert kept.since(0, 3, Filling(4)) is None
    kept.add(stored[:2])
    assert [offset for offset, _ in kept.since(0, 3, Filling(12))] == [0, 1, 2]
    assert kept.since(0, 3, Filling(13)) == [], "too few, which the log would not change"
    kept.forget(2)
    assert kept.since(0, 3, Filling(4)) is None
    ((offset, fragment),) = kept.since(2, 3, Filling(4))
    assert offset == 2
    assert np.array_equal(fragment.executed, parts[2].executed)
