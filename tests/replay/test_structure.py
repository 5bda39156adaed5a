"""A file whose tree cannot be walked is refused before LMDB, which would end us, maps it."""

import errno
import os
import random
import struct
import subprocess
import sys

import lmdb
import pytest

from user_system.core.errors import DamageError, StoreError
from user_system.replay import structure
from user_system.replay.store import Store, reader

READ = """
import sys
from user_system.core.errors import UserSystemError
from user_system.core.interfaces import Draw
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store, reader
try:
    with reader(sys.argv[1]).open() as env:
        data = ReplayData(env, seed=1)
        data.draw(Draw(64))
        data.consume(Draw(data.count()))
    with Store(sys.argv[1]).open() as store:
        store.tend()
        store.label("arm-1-1", "success", "v", True, None)
except UserSystemError as error:
    print("refused:", error)
"""


@pytest.fixture
def written(tmp_path, recorder):
    """A closed store with trees of several levels, and its sound bytes."""
    robot = recorder(cameras={"cam": (8, 8, 3)})
    with Store(tmp_path / "replay").open(create=True) as store:
        for _ in range(60):
            store.append(robot.run_episode(10, flush_every=1))
    path = tmp_path / "replay"
    return path, (path / "data.mdb").read_bytes()


def tree_pages(data):
    """Return the numbers of all branch and leaf pages, old copies included."""
    return [
        i
        for i in range(2, len(data) // 4096)
        if struct.unpack_from("<Q", data, i * 4096)[0] == i
        and struct.unpack_from("<H", data, i * 4096 + 10)[0] & 0x03
    ]


def test_a_sound_file_is_sound(written):
    path, data = written
    assert structure.check(path / "data.mdb") == []
    assert len(tree_pages(data)) > 50


def test_pages_of_the_tree_that_are_none_are_noticed_or_not_in_use(written):
    """Every page of the tree in turn: zeroed, it is noticed, or it is an old copy."""
    path, data = written
    file = path / "data.mdb"
    noticed = 0
    pages = tree_pages(data)
    for page in pages:
        file.write_bytes(data[: page * 4096] + bytes(4096) + data[(page + 1) * 4096 :])
        found = structure.check(file)
        if found:
            noticed += 1
            with pytest.raises(DamageError, match="replay salvage"):
                reader(path).open()
    assert noticed > len(pages) / 4


def test_two_pages_that_point_to_the_same_one_are_noticed(written):
    path, data = written
    damaged = bytearray(data)
    changed = 0
    for page in tree_pages(data):
        begin = page * 4096
        flags, lower = struct.unpack_from("<HH", data, begin + 10)
        if flags & 0x01 and lower >= 16 + 4:
            first, second = struct.unpack_from("<HH", data, begin + 16)
            damaged[begin + second : begin + second + 6] = data[begin + first : begin + first + 6]
            changed += 1
    (path / "data.mdb").write_bytes(damaged)
    assert changed
    assert "twice" in structure.check(path / "data.mdb")[0]


@pytest.mark.parametrize("nodes", [0, 1])
def test_a_branch_that_does_not_divide_is_noticed(written, nodes):
    path, data = written
    damaged = bytearray(data)
    for page in tree_pages(data):
        if struct.unpack_from("<H", data, page * 4096 + 10)[0] & 0x01:
            struct.pack_into("<H", damaged, page * 4096 + 12, 16 + 2 * nodes)
    (path / "data.mdb").write_bytes(damaged)
    assert "is not one" in structure.check(path / "data.mdb")[0]


@pytest.mark.parametrize("kind", [0x01, 0x02])
def test_a_page_with_a_flag_that_none_has_on_disk_is_noticed(written, kind):
    path, data = written
    for flag in (0x04, 0x10, 0x20, 0x40, 0x4000, 0x8000):
        damaged = bytearray(data)
        for page in tree_pages(data):
            if struct.unpack_from("<H", data, page * 4096 + 10)[0] == kind:
                struct.pack_into("<H", damaged, page * 4096 + 10, kind | flag)
        (path / "data.mdb").write_bytes(damaged)
        assert "is not one" in structure.check(path / "data.mdb")[0], hex(flag)


def test_whatever_lmdb_leaves_behind_is_sound(tmp_path):
    """Trees grow, shrink to nothing and grow again; old snapshots make the list of free pages."""
    rng = random.Random(7)
    file = tmp_path / "data.mdb"
    with lmdb.open(str(tmp_path), map_size=1 << 30, max_dbs=2, sync=False) as env:
        tables = [env.open_db(name) for name in (b"short", b"long")]
        snapshot = env.begin()
        for round_ in range(240):
            gone = (0.1, 0.6, 0.95)[round_ // 40 % 3]
            with env.begin(write=True) as txn:
                for _ in range(rng.choice((1, 30, 300))):
                    number = rng.randrange(4000)
                    long = rng.random() < 0.5
                    key = number.to_bytes(8, "big") + bytes(300 + number % 200) * long
                    cursor = txn.cursor(tables[long])
                    if rng.random() > gone:
                        cursor.put(key, rng.randbytes(rng.choice((8, 900, 5000))))
                    elif cursor.set_range(key):
                        for _ in range(rng.choice((1, 40))):
                            cursor.delete()
            if round_ % 30 == 0:
                snapshot.abort()
                snapshot = env.begin()
            assert structure.check(file) == []
        snapshot.abort()


def test_a_store_is_sound_after_everything_that_is_done_to_it(tmp_path, recorder):
    robot = recorder(cameras={"cam": (8, 8, 3)})
    path = tmp_path / "replay"
    rng = random.Random(7)
    there = []
    with Store(path).open(create=True) as store:
        for number in range(1, 61):
            fragments = robot.run_episode(10, flush_every=1)
            store.append(fragments)
            there.append(fragments[0].header.episode)
            store.label(there[-1], "success", "v", True, None)
            for _ in range(rng.choice((0, 0, 1, 3)) if number > 5 else 0):
                store.delete(there.pop(rng.randrange(len(there))), who="ada", why="a test")
            store.tend()
            assert structure.check(path / "data.mdb") == []
        for episode in there[:-1]:
            store.delete(episode, who="ada", why="a test")
            assert structure.check(path / "data.mdb") == []
    with Store(path, quota_bytes=1 << 20).open() as store:
        removals = store.stats()["removals"]
        for _ in range(60):
            store.append(robot.run_episode(10, flush_every=1))
            store.tend()
            assert structure.check(path / "data.mdb") == []
        assert store.stats()["removals"] > removals, "the quota was to remove some"


def test_a_disk_that_cannot_read_the_file_is_damage(written, monkeypatch):
    path, _ = written

    def broken(*_):
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(DamageError, match="bad sector"):
        reader(path).open()


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE, errno.EOPNOTSUPP])
@pytest.mark.parametrize("name", ["preadv", "open"])
def test_a_machine_that_cannot_read_now_says_nothing_about_the_file(
    written, monkeypatch, name, number
):
    path, _ = written

    def failing(*_, **__):
        raise OSError(number, "not now")

    monkeypatch.setattr(os, name, failing)
    with pytest.raises(StoreError, match="not now") as caught:
        structure.check(path / "data.mdb")
    assert not isinstance(caught.value, DamageError)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_no_damage_ends_the_process_that_reads_and_writes(written, seed):
    path, data = written
    print("seed", seed)
    rng = random.Random(seed)
    damaged = bytearray(data)
    at = rng.choice(tree_pages(data)) * 4096
    if seed % 3 == 0:
        damaged[at : at + 4096] = bytes(4096)
    elif seed % 3 == 1:
        damaged[at : at + 4096] = rng.randbytes(4096)
    else:
        for _ in range(8):
            damaged[at + rng.randrange(4096)] ^= 1 << rng.randrange(8)
    (path / "data.mdb").write_bytes(damaged)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
