"""A file whose tree cannot be walked is refused before LMDB, which would end us, maps it."""

import errno
import os
import random
import struct
import subprocess
import sys

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


def test_a_branch_without_nodes_is_noticed(written):
    path, data = written
    damaged = bytearray(data)
    for page in tree_pages(data):
        if struct.unpack_from("<H", data, page * 4096 + 10)[0] & 0x01:
            struct.pack_into("<H", damaged, page * 4096 + 12, 16)
    (path / "data.mdb").write_bytes(damaged)
    assert "is not one" in structure.check(path / "data.mdb")[0]


def test_a_disk_that_cannot_read_the_file_is_damage(written, monkeypatch):
    path, _ = written

    def broken(*_):
        raise OSError(errno.EIO, "bad sector")

    monkeypatch.setattr(structure.DataFile, "read_into", broken)
    monkeypatch.setattr(structure.DataFile, "read_once", broken)
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
