"""What comes next in the file is made ready in large pages, and what is there is never touched."""

import errno
import mmap
import re
import subprocess
import sys
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


def opened(file):
    ready = Ahead(file)
    ready.open()
    return ready


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


def test_another_store_that_took_the_place_is_left_alone(tmp_path, recorder, small, monkeypatch):
    for name in ("LEAD", "PIECE"):
        monkeypatch.setattr(ahead, name, 1 << 16)
    path = tmp_path / "replay"
    robot = recorder(cameras=CAMERAS)
    fragments = list(robot.run_episode(24))
    with Store(path).open(create=True) as store:
        store.append(fragments[:1])
        path.rename(tmp_path / "moved")
        path.mkdir()
        (path / "data.mdb").write_bytes(b"another one")
        store.append(fragments[1:])
        assert store.stats()["large_pages"] == 2
    assert (path / "data.mdb").read_bytes() == b"another one"


def test_small_stores_are_left_alone(tmp_path, recorder):
    _, stats = store_of(tmp_path / "replay", recorder)
    assert stats["large_pages"] == 0


def test_a_file_is_made_longer_and_never_cut(tmp_path):
    file = tmp_path / "data"
    file.write_bytes(b"x" * (20 * PIECE + 5))
    ready = opened(file)
    ready.keep(9 * PIECE)
    assert file.stat().st_size == 20 * PIECE + 5
    ready.keep(20 * PIECE + 5)
    assert file.stat().st_size >= 20 * PIECE + 5 + LEAD
    assert file.read_bytes()[: 20 * PIECE + 5] == b"x" * (20 * PIECE + 5)


def test_nothing_is_done_twice(tmp_path):
    file = tmp_path / "data"
    file.write_bytes(b"x")
    ready = opened(file)
    for end in range(ahead.FROM, ahead.FROM + PIECE, PIECE // 8):
        ready.keep(end)
    assert ready.pieces == LEAD // PIECE + 1


def test_a_file_that_cannot_be_made_longer_is_said_once(tmp_path, caplog, monkeypatch):
    def refuse(handle, size):
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(ahead.os, "ftruncate", refuse)
    (tmp_path / "data").write_bytes(b"x")
    ready = opened(tmp_path / "data")
    for _ in range(3):
        ready.keep(ahead.FROM)
    assert caplog.text.count("gets no large pages") == 1


@pytest.mark.system
def test_a_full_disk_of_memory_ends_nobody(tmp_path):
    """There a page of a hole takes space as well; where there is none, touching it is a SIGBUS."""
    child = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path), str(Path(__file__).parents[1] / "chaos")],
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode == 77:
        pytest.skip(child.stderr.strip())
    assert child.returncode == 0, child.stderr
    assert "gets no large pages" in child.stderr


FULL = """
import contextlib, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from kit.namespace import tiny_disk
from user_system.replay.ahead import FROM, Ahead

place = Path(sys.argv[1]) / "tiny"
try:
    tiny_disk(place, FROM + (1 << 20))
except OSError as error:
    print(error, file=sys.stderr)
    sys.exit(77)
(place / "data").write_bytes(bytes(FROM))
with contextlib.suppress(OSError), (place / "ballast").open("wb", buffering=0) as ballast:
    while True:
        ballast.write(bytes(4096))
ready = Ahead(place / "data")
ready.open()
ready.keep(FROM)
"""


def test_a_file_that_cannot_be_opened_stops_nobody(tmp_path, caplog):
    ready = opened(tmp_path / "gone")
    ready.keep(ahead.FROM)
    assert caplog.text.count("gets no large pages") == 1


def test_what_is_written_there_lies_in_large_pages(tmp_path):
    file = tmp_path / "data"
    file.write_bytes(b"")
    opened(file).keep(ahead.FROM)
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
