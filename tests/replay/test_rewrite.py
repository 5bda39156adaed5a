"""Stores written anew: compacted, merged, brought to today's format, backed up and restored."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from user_system.codec import arrays
from user_system.core.errors import DamageError, SpecError, StoreError
from user_system.core.interfaces import Draw
from user_system.replay import backup, rewrite, tables, verify
from user_system.replay.order import Order
from user_system.replay.salvage import salvage
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store, reader

OLD = Path(__file__).parents[1] / "data" / "replay-format-1"


def rows(path):
    """Return everything that a store serves, in order, by observation number."""
    with reader(path).open() as env:
        data = ReplayData(env)
        batch = data.consume(Draw(data.count(), columns=("success", "logp")))
        columns = {
            "flag": batch.observation["flag"],
            "next": batch.next_observation["flag"],
            "cam": batch.observation["cam"],
            "next cam": batch.next_observation["cam"],
            "reward": batch.reward,
            **batch.extras,
        }
        order = np.argsort(columns["flag"])
        return {name: values[order].copy() for name, values in columns.items()}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[n], b[n], equal_nan=True) for n in a)


@pytest.fixture
def two(tmp_path, recorder):
    """Two stores of two robots each, with labels; and how many steps they have."""
    paths = []
    for name in ("a", "b"):
        robots = [recorder(f"{name}{i}", cameras={"cam": (40, 40, 3)}, extras=True) for i in (1, 2)]
        with Store(tmp_path / name).open(create=True) as store:
            for _ in range(4):
                for robot in robots:
                    store.append(robot.run_episode(10))
            store.label(f"{name}1-1-1", "success", "v", True, None)
            store.label(f"{name}1-1-2", "reward", "v", None, np.arange(10, dtype=np.float32))
        paths.append(tmp_path / name)
    return paths


def test_a_store_of_format_1_says_what_to_do_and_comes_along(tmp_path):
    path = tmp_path / "replay"
    shutil.copytree(OLD, path)
    with pytest.raises(StoreError, match="user-system replay compact"):
        reader(path).open()
    done = rewrite.compact(path)
    assert (done.records, done.steps, done.labels, done.damaged) == (8, 24, 2, 0)
    assert verify.verify(path).ok
    found = rows(path)
    assert len(found["flag"]) == 24
    assert (found["next"] == found["flag"] + 1).all()
    assert (found["success"] == 1).sum() == 7
    assert sorted(found["reward"].tolist())[-6:] == [1, 2, 3, 4, 5, 6]
    with Store(path).open() as store:
        assert (store.expected("arm-1", 1), store.expected("arm-2", 1)) == (4, 4)
    assert not (tmp_path / "replay.before").exists()


def test_compacting_gives_back_what_was_removed_and_changes_nothing_else(two):
    path = two[0]
    with Store(path).open() as store:
        # The newest one: only the books still know that it was ever sent.
        store.delete("a2-1-4", who="ada", why="a test")
        removed = store.stats()["removals"]
    before, size = rows(path), (path / "data.mdb").stat().st_size
    rewrite.compact(path)
    assert removed == 1
    assert same(rows(path), before)
    assert (path / "data.mdb").stat().st_size < size
    with Store(path).open() as store:
        assert store.expected("a2", 1) == 12


def test_what_was_deleted_is_not_in_the_file_after_compacting(tmp_path, recorder):
    robot = recorder(cameras={"cam": (40, 40, 3)})
    fragments = robot.run_episode(4)
    secret = fragments[0].observation["cam"][1].tobytes()[:512]
    path = tmp_path / "replay"
    with Store(path).open(create=True) as store:
        store.append(fragments)
        store.append(robot.run_episode(4))
        assert secret in (path / "data.mdb").read_bytes()
        store.delete(fragments[0].header.episode, who="ada", why="a face")
    rewrite.compact(path)
    assert secret not in (path / "data.mdb").read_bytes()


@pytest.mark.parametrize("way", ["compact", "merge", "salvage"])
def test_who_removed_what_and_why_goes_along(two, tmp_path, way):
    path = two[0]
    with Store(path).open() as store:
        store.delete("a2-1-2", who="ada", why="a face")
    before = rows(path)
    if way == "compact":
        rewrite.compact(path)
    else:
        new = tmp_path / "new"
        rewrite.rewrite([path], new) if way == "merge" else salvage(path, new)
        path = new
    assert same(rows(path), before), "the offsets of a removal are others here"
    with reader(path).open() as env, env.read() as txn:
        (entry,) = tables.entries(txn, env, "gone", 0)
        meta, columns = arrays.unpack(bytes(entry[1]))
    assert (meta["who"], meta["why"], len(columns["identities"])) == ("ada", "a face", 3)


@pytest.mark.parametrize("after", ["the old one moved", "both moved"])
def test_compacting_survives_its_end_at_any_step(two, after):
    path = two[0]
    before = rows(path)
    old = path.with_name("a.before")
    if after == "the old one moved":
        path.rename(old)
    else:
        shutil.copytree(path, old)
    rewrite.compact(path)
    assert same(rows(path), before)
    assert not old.exists()


def test_what_is_no_store_leaves_nothing_behind(two, tmp_path):
    here = sorted(p.name for p in tmp_path.iterdir())
    for fail in (
        lambda: rewrite.compact(tmp_path / "none"),
        lambda: rewrite.rewrite([two[0], tmp_path / "none"], tmp_path / "all"),
        lambda: backup.backup(tmp_path / "none", tmp_path / "copy"),
        lambda: backup.restore(tmp_path / "none", tmp_path / "copy"),
    ):
        with pytest.raises(StoreError, match="there is no store"):
            fail()
    assert sorted(p.name for p in tmp_path.iterdir()) == here


def test_compacting_a_damaged_store_changes_nothing(two):
    path = two[0]
    data = bytearray((path / "data.mdb").read_bytes())
    with reader(path).open() as env:
        picture = ReplayData(env).consume(Draw(1)).observation["cam"][0].tobytes()
    at = data.find(picture)
    data[at + 100] ^= 1
    (path / "data.mdb").write_bytes(data)
    with pytest.raises(DamageError, match="damaged"):
        rewrite.compact(path)
    assert (path / "data.mdb").read_bytes() == bytes(data)


def test_merging_keeps_all_rows_and_what_was_said_of_them(two, tmp_path):
    parts = [rows(path) for path in two]
    done = rewrite.rewrite(two, tmp_path / "all")
    assert (done.records, done.labels, done.damaged, done.repeated) == (48, 4, 0, 0)
    together = rows(tmp_path / "all")
    expected = {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}
    order = np.argsort(expected["flag"])
    assert same(together, {n: values[order] for n, values in expected.items()})
    again = rewrite.rewrite([two[1]], tmp_path / "all")
    assert (again.records, again.repeated) == (0, 24), "merging twice doubles nothing"


def test_merging_rows_that_do_not_stack_is_refused(two, tmp_path, recorder):
    other = recorder("c", cameras={"cam": (8, 8, 3)})
    with Store(tmp_path / "c").open(create=True) as store:
        store.append(other.run_episode(4))
    with pytest.raises(SpecError, match="'cam' differs"):
        rewrite.rewrite([two[0], tmp_path / "c"], tmp_path / "all")


@pytest.fixture
def backwards(tmp_path, recorder, monkeypatch):
    """A store whose second fragment is earlier than the first, and what its door says today."""
    fragments = recorder("late", cameras={"cam": (40, 40, 3)}, extras=True).run_episode(12)
    early = dataclasses.replace(fragments[1], robot_ns=fragments[1].robot_ns - 10**12)
    with monkeypatch.context() as patch, Store(tmp_path / "late").open(create=True) as store:
        patch.setattr(Order, "refusal", lambda *_: "")
        assert not store.append([fragments[0], early, fragments[2]])
    with Store(tmp_path / "new").open(create=True) as store:
        (refused,) = store.append([fragments[0], early])
    return tmp_path / "late", refused.reason


@pytest.mark.parametrize("way", ["compact", "merge", "salvage"])
def test_time_that_runs_backwards_is_copied_and_named(backwards, tmp_path, caplog, way):
    path, reason = backwards
    before = rows(path)
    if way == "compact":
        assert rewrite.compact(path).backwards == 1
    elif way == "merge":
        done = rewrite.rewrite([path], tmp_path / "all")
        assert (done.records, done.backwards, done.damaged) == (3, 1, 0)
        assert rewrite.rewrite([path], tmp_path / "all").backwards == 0, "they are there already"
        path = tmp_path / "all"
    else:
        salvage(path, tmp_path / "saved")
        path = tmp_path / "saved"
    assert same(rows(path), before)
    named = [record.getMessage() for record in caplog.records if "backwards" in record.getMessage()]
    assert len(named) == 1
    assert named[0].endswith(reason), "in the words of the store's door"


def test_a_fragment_that_goes_back_behind_what_was_merged_is_refused(tmp_path, recorder):
    """What was adopted counts as what is there, also before the store was opened again."""
    fragments = recorder("c", cameras={"cam": (40, 40, 3)}).run_episode(8)
    early = dataclasses.replace(fragments[1], robot_ns=fragments[1].robot_ns - 10**12)
    with Store(tmp_path / "c").open(create=True) as store:
        store.append(fragments[:1])
    with Store(tmp_path / "all").open(create=True) as store:
        rewrite._Copy(tmp_path / "c", store, lambda *_: None).run()
        (refused,) = store.append([early])
    assert "robot_ns runs backwards" in refused.reason


def test_merging_what_is_in_order_names_nothing(two, tmp_path, caplog):
    assert rewrite.rewrite(two, tmp_path / "all").backwards == 0
    assert not [r for r in caplog.records if "backwards" in r.getMessage()]


def test_a_backup_taken_while_writing_is_a_sound_moment_of_it(tmp_path, recorder):
    robot = recorder(cameras={"cam": (40, 40, 3)}, extras=True)
    with Store(tmp_path / "replay").open(create=True) as store:
        for _ in range(5):
            store.append(robot.run_episode(10))
        copy = "import sys; from user_system.replay.backup import backup; backup(*sys.argv[1:])"
        command = [sys.executable, "-c", copy, tmp_path / "replay", tmp_path / "backup"]
        subprocess.run(command, check=True)
        store.append(robot.run_episode(10))
    assert len(rows(tmp_path / "backup")["flag"]) == 50
    with pytest.raises(StoreError, match="there already"):
        backup.backup(tmp_path / "replay", tmp_path / "backup")
    with pytest.raises(StoreError, match="never overwrites"):
        backup.restore(tmp_path / "backup", tmp_path / "replay")
    backup.restore(tmp_path / "backup", tmp_path / "again")
    assert same(rows(tmp_path / "again"), rows(tmp_path / "backup"))
    with Store(tmp_path / "again").open() as store:
        assert store.append(robot.run_episode(10)) == []
        assert store.stats()["gaps"] == 3, "what the backup lacks has to be sent again first"


def test_a_damaged_backup_is_not_restored(tmp_path, recorder):
    robot = recorder(cameras={"cam": (40, 40, 3)})
    fragments = robot.run_episode(10)
    with Store(tmp_path / "replay").open(create=True) as store:
        store.append(fragments)
    backup.backup(tmp_path / "replay", tmp_path / "backup")
    file = tmp_path / "backup" / "data.mdb"
    data = bytearray(file.read_bytes())
    data[data.find(fragments[0].observation["cam"][0].tobytes()) + 7] ^= 4
    file.write_bytes(data)
    with pytest.raises(DamageError, match="damaged"):
        backup.restore(tmp_path / "backup", tmp_path / "again")
    assert not (tmp_path / "again").exists()
