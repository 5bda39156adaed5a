"""What comes next in the file is made ready in large pages, and what is there is never touched."""

import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from user_system.core.interfaces import Draw
from user_system.replay import ahead
from user_system.replay.ahead import LEAD, PIECE, Ahead
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store, reader

CAMERAS = {"cam": (64, 64, 3)}


@pytest.fixture
def small(monkeypatch):
    """Even small files are made ready."""
    monkeypatch.setattr(ahead, "FROM", 0)


def store_of(path, recorder, episodes=2):
    robot = recorder(cameras=CAMERAS)
    fragments = [f for _ in range(episodes) for f in robot.run_episode(8)]
    with Store(path).open(create=True) as store:
        for fragment in fragments:
            store.append([fragment])
        stats = store.stats()
    return fragments, stats


def test_a_store_reads_the_same_and_takes_no_more_disk(tmp_path, recorder, small):
    fragments, stats = store_of(tmp_path / "replay", recorder)
    file = tmp_path / "replay" / "data.mdb"
    assert stats["large_pages"] >= 2
    assert file.stat().st_size % PIECE == 0
    assert file.stat().st_blocks * 512 < 2 << 20
    with reader(tmp_path / "replay").open() as env:
        data = ReplayData(env)
        batch = data.consume(Draw(data.count()))
    pictures = np.concatenate([f.observation["cam"][: len(f)] for f in fragments])
    assert (batch.observation["cam"] == pictures).all()


def test_it_goes_on_where_it_was_after_it_was_opened_again(tmp_path, recorder, small):
    store_of(tmp_path / "replay", recorder)
    with Store(tmp_path / "replay").open() as store:
        robot = recorder("arm-2", cameras=CAMERAS)
        store.append(list(robot.run_episode(8)))
        assert store.stats()["fragments"] > 0
    with reader(tmp_path / "replay").open() as env:
        assert ReplayData(env).count() == 24


def test_small_stores_are_left_alone(tmp_path, recorder):
    _, stats = store_of(tmp_path / "replay", recorder)
    assert stats["large_pages"] == 0


def test_a_file_is_made_longer_and_never_cut(tmp_path):
    file = tmp_path / "data"
    file.write_bytes(b"x" * (20 * PIECE + 5))
    ready = Ahead(file)
    ready.keep(9 * PIECE)
    assert file.stat().st_size == 20 * PIECE + 5
    ready.keep(20 * PIECE + 5)
    assert file.stat().st_size >= 20 * PIECE + 5 + LEAD
    assert file.read_bytes()[: 20 * PIECE + 5] == b"x" * (20 * PIECE + 5)


def test_nothing_is_done_twice(tmp_path):
    file = tmp_path / "data"
    file.write_bytes(b"x")
    ready = Ahead(file)
    for end in range(ahead.FROM, ahead.FROM + PIECE, PIECE // 8):
        ready.keep(end)
    assert ready.pieces == LEAD // PIECE + 1


def test_a_file_that_cannot_be_made_longer_is_said_once(tmp_path, caplog):
    ready = Ahead(tmp_path / "gone")
    for _ in range(3):
        ready.keep(ahead.FROM)
    assert caplog.text.count("gets no large pages") == 1


def test_what_is_written_there_lies_in_large_pages(tmp_path):
    file = tmp_path / "data"
    file.write_bytes(b"")
    Ahead(file).keep(ahead.FROM)
    with file.open("r+b") as handle:
        handle.seek(ahead.FROM)
        for _ in range(LEAD // 4096):
            handle.write(b"y" * 4096)
            handle.flush()
        with mmap.mmap(handle.fileno(), ahead.FROM + LEAD, prot=mmap.PROT_READ) as mapped:
            assert sum(mapped[at] for at in range(ahead.FROM, ahead.FROM + LEAD, 4096)) > 0
            found = mapped_large(file)
    if not found:
        pytest.skip("this kernel, or this file system, has no large pages for files")
    assert found >= LEAD - PIECE


def mapped_large(file: Path) -> int:
    """Return how many bytes of a mapped file are mapped as large pages."""
    maps = Path("/proc/self/smaps").read_text()
    part = maps[maps.index(str(file)) :]
    match = re.search(r"FilePmdMapped:\s+(\d+) kB", part)
    return int(match.group(1)) << 10 if match else 0
