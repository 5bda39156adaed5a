"""Whatever happens while blocks are made: who appends, closes or reads does not suffer from it."""

import dataclasses
import time

import numpy as np
import pytest

from user_system.codec import fragments
from user_system.core.errors import SpecError, StoreError
from user_system.core.types import Stream
from user_system.replay import columns, filling, joining, keeper, recent, streams, tables
from user_system.replay.blocks import Block
from user_system.replay.episodes import Episodes
from user_system.replay.index import Index, Mark
from user_system.replay.store import Store
from user_system.replay.values import Priorities, Values


def blocks(env):
    """Return the ends of all blocks, and what is in them."""
    with env.read() as txn:
        ends, made, start = [], [], 0
        while place := next(tables.blocks(txn, env, start), None):
            made.append(Block.decode(env.file.read(place.position, place.length)))
            ends.append(start := place.end)
    return ends, made


def wait_for(what, seconds=20.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def starved(monkeypatch):
    """Tries to make a block; each ends in an error that is none of ours."""
    tries = []

    def of(*_):
        tries.append(time.monotonic())
        raise MemoryError("no memory for a block")

    monkeypatch.setattr(keeper, "BLOCK_STEPS", 8)
    monkeypatch.setattr(keeper.Block, "of", of)
    return tries


def test_a_keeper_that_lacks_memory_goes_on_when_there_is_some(
    tmp_path, recorder, monkeypatch, starved, caplog
):
    monkeypatch.setattr(keeper, "_PERIOD_S", 0.01)
    monkeypatch.setattr(keeper, "_REST_S", 0.05)
    with Store(tmp_path / "replay").open(create=True) as store:
        store.append(recorder().run_episode(40))
        wait_for(lambda: len(starved) > 1)
        assert "could not be put into blocks" in caplog.text
        assert "no memory for a block" in caplog.text
        monkeypatch.undo()
        monkeypatch.setattr(keeper, "BLOCK_STEPS", 8)
        # Nobody appends any more: it tries by itself.
        wait_for(lambda: blocks(store.env)[0][-1:] == [10])


def test_who_appends_and_closes_does_not_hear_of_it(
    tmp_path, recorder, monkeypatch, starved, caplog
):
    monkeypatch.setattr(keeper, "_MOST_BEHIND", 8)
    robot, store = recorder(), Store(tmp_path / "replay").open(create=True)
    for _ in range(20):
        assert store.append(robot.run_episode(8)) == []
    assert 1 <= len(starved) <= 2, "a block that could not be made is left for a while"
    assert store.stats()["appended_fragments"] == 40
    store.close()
    assert "is left with a part" in caplog.text
    monkeypatch.undo()
    with Store(tmp_path / "replay").open() as store:
        assert store.expected("arm", 1) == 40


def test_a_look_at_readers_that_fails_is_not_the_last(tmp_path, recorder, monkeypatch, caplog):
    looks = []

    def clear(*_):
        looks.append(1)
        raise ValueError("a table of readers like none before")

    monkeypatch.setattr(keeper, "_PERIOD_S", 0.01)
    monkeypatch.setattr(keeper, "BLOCK_STEPS", 8)
    monkeypatch.setattr("user_system.replay.pinning.Pinning.clear", clear)
    with Store(tmp_path / "replay").open(create=True) as store:
        wait_for(lambda: len(looks) > 2)
        store.append(recorder().run_episode(8))
        wait_for(lambda: blocks(store.env)[0])
    assert "like none before" in caplog.text


def test_a_store_lets_go_of_its_directory_whatever_its_keeper_does(tmp_path, monkeypatch):
    store = Store(tmp_path / "replay").open(create=True)
    with monkeypatch.context() as patch:

        def stop(_):
            raise RuntimeError("cannot join")

        patch.setattr(keeper.Keeper, "stop", stop)
        with pytest.raises(RuntimeError, match="cannot join"):
            store.close()
    store._keeper.stop()
    with pytest.raises(StoreError, match="is not open"):
        store.expected("arm", 1)
    Store(tmp_path / "replay").open().close()


# --- fragments that weigh much ---


@pytest.mark.parametrize("remembered", [True, False])
def test_a_block_of_huge_fragments_ends_before_it_has_its_steps(
    tmp_path, recorder, monkeypatch, remembered
):
    """Four thousand depth images are more than one value can be."""
    size = 1 << 13
    monkeypatch.setattr(filling, "BLOCK_BYTES", size)
    monkeypatch.setattr(recent, "MAX_BYTES", size if remembered else 0)
    robot, sizes = recorder(), []
    with Store(tmp_path / "replay").open(create=True) as store:
        stored = store._keeper.appended
        monkeypatch.setattr(
            store._keeper, "appended", lambda s: (sizes.extend(e.size for e in s), stored(s))
        )
        for _ in range(11):
            store.append(robot.run_episode(32, flush_every=16))
        # A block is due by its bytes alone: of steps there are far too few.
        wait_for(lambda: len(blocks(store.env)[0]) > 2)
        store.tend()
        ends, made = blocks(store.env)
    assert ends[-1] < 22
    for start, end in zip([0, *ends], ends, strict=False):
        assert sum(sizes[start : end - 1]) < size <= sum(sizes[start:end])
    assert sum(sizes[ends[-1] :]) < size
    assert [len(block) for block in made] == np.diff([0, *ends]).tolist()


def test_a_reader_takes_no_more_of_the_log_at_once_than_fills_a_block(
    tmp_path, recorder, monkeypatch
):
    monkeypatch.setattr(keeper.Keeper, "_run", lambda self: None)
    robot, most = recorder(), []
    with Store(tmp_path / "replay").open(create=True) as store:
        for _ in range(10):
            store.append(robot.run_episode(8))
        whole = Index(store.env)
        whole.refresh()
        monkeypatch.setattr(filling, "BLOCK_BYTES", 1 << 13)
        of = Block.of
        monkeypatch.setattr(Block, "of", lambda e, *more: (most.append(len(e)), of(e, *more))[1])
        parts = Index(store.env)
        parts.refresh()
        assert most == [6, 6, 6, 2], "eight kibibytes each"
    assert parts.mark == whole.mark == Mark(20, 0)
    (one,), (other,) = whole.rows.values(), parts.rows.values()
    for name in ("obs", "next_obs", "executed"):
        assert np.array_equal(one[name], other[name])


# --- an extra that is large, and recorded once ---


def test_readers_take_what_is_stored_and_not_what_it_would_be_for_all(
    tmp_path, recorder, monkeypatch
):
    """A store of before may hold a step of 40 MB: for all steps that would be 80 GB."""
    monkeypatch.setattr(fragments, "MAX_STEP_BYTES", 1 << 30)
    robot = recorder()
    with Store(tmp_path / "replay").open(create=True) as store:
        for n in range(20):
            robot.step(100)
            fragment = robot.flush()
            if n == 7:
                large = np.full((100, 100_000), 3, np.float32)
                fragment = dataclasses.replace(fragment, extras={"map": large})
            assert store.append([fragment]) == []
        store.tend()
        index = Index(store.env)
        index.refresh()
        (rows,) = index.rows.values()
        assert index.stats()["index_bytes"] < 2 * large.nbytes
        assert rows.extra("map", np.array([[750, 799]])).min() == 3
        assert np.isnan(rows.extra("map", np.array([699, 800]))).all()
        with pytest.raises(SpecError, match="no number to weigh by"):
            Values(rows, "", Priorities(rows)).of("map", np.arange(len(rows)))


def test_an_episode_leaves_out_what_would_fill_the_memory(tmp_path, recorder, monkeypatch, caplog):
    monkeypatch.setattr(joining, "PADDED_BYTES", 1 << 16)
    robot = recorder()
    with Store(tmp_path / "replay").open(create=True) as store:
        parts = robot.run_episode(40)
        for n, name, size in ((2, "map", 1000), (3, "note", 100)):
            extras = {name: np.ones((4, size), np.float32)}
            parts[n] = dataclasses.replace(parts[n], extras=extras)
        assert store.append(parts) == []
        episodes = Episodes(store.env)
        (episode,) = episodes
    assert list(episode.extras) == ["note"]
    assert [sorted(piece.extras) for piece in episode.pieces] == [[]] * 3 + [["note"]] + [[]] * 6
    assert np.isnan(episode.extras["note"]).sum() == 36 * 100
    assert episodes.stats()["sparse_extras"] == 1
    assert "few steps have map, left out" in caplog.text


# --- many kinds of extras and streams ---


def varied(robot, n):
    """Return a fragment with an extra and a stream that no other has, and two that all have."""
    robot.step(1)
    fragment = robot.flush()
    extras = {"logp": np.ones(1, np.float32), f"x{n}": np.full(1, n, np.float32)}
    touch = Stream(fragment.robot_ns, np.full((1, 2), n, np.float32))
    named = {"touch": touch, f"t{n}": touch}
    return dataclasses.replace(fragment, extras=extras, streams=named)


def test_blocks_of_many_kinds_are_short_and_readers_keep_the_first(
    tmp_path, recorder, monkeypatch, caplog
):
    """Each kind costs every block its fragments, and every reader its steps."""
    monkeypatch.setattr(keeper, "BLOCK_STEPS", 20)
    monkeypatch.setattr(keeper.Keeper, "_run", lambda self: None)
    monkeypatch.setattr(filling, "BLOCK_KINDS", 10)
    robot = recorder()
    with Store(tmp_path / "replay").open(create=True) as store:
        assert store.append([varied(robot, n) for n in range(30)]) == []
        store.tend()
        monkeypatch.setattr(columns, "MAX_EXTRAS", 6)  # as in a store that was written without
        monkeypatch.setattr(streams, "MAX_STREAMS", 4)
        ends, made = blocks(store.env)
        assert ends[:2] == [4, 8], "two kinds that all have, and two of each fragment"
        assert {len(block.extras) + len(block.streams) for block in made} == {10}

        def look(mark):
            index = Index(store.env)
            index.refresh(Mark(mark, 0))
            (rows,) = index.rows.values()
            return list(rows.extras), rows.streams.names(), index.stats()["ignored_columns"]

        of_blocks = [look(mark) for mark in range(1, 31)]
        monkeypatch.setattr(tables, "blocks", lambda *_: iter(()))
        of_log = [look(mark) for mark in range(1, 31)]
    extras, samples, ignored = of_blocks[-1]
    assert extras == ["logp", "x0", "x1", "x2", "x3", "x4"]
    assert samples == ["t0", "t1", "t2", "touch"]
    assert ignored == 25 + 27
    assert of_blocks[2][0] == ["logp", "x0", "x1", "x2"]
    assert [(e, n) for e, _, n in of_blocks[4:]] == [(e, n) for e, _, n in of_log[4:]]
    assert "too many extras" in caplog.text
    assert "too many streams" in caplog.text
