"""Damaged bytes: found before they are served, named, set aside; the rest keeps working."""

import json
import logging
import random
import subprocess
import sys

import numpy as np
import pytest

from user_system.core.errors import DamageError, StoreError
from user_system.core.interfaces import Draw
from user_system.replay import layout, verify
from user_system.replay.queue import Queue
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store, reader


@pytest.fixture
def written(tmp_path, recorder):
    """A closed store of 5 episodes of 10 steps with images, and its fragments."""
    robot = recorder(cameras={"cam": (40, 40, 3)})
    fragments = [f for _ in range(5) for f in robot.run_episode(10)]
    with Store(tmp_path / "replay").open(create=True) as store:
        store.append(fragments)
    return tmp_path / "replay", fragments


def flip(path, part: bytes, bit: int = 3):
    """Flip one bit in the middle of every copy of ``part`` in the file."""
    file = path / "data.mdb"
    data = bytearray(file.read_bytes())
    at = data.find(part)
    assert at >= 0
    while at >= 0:
        data[at + len(part) // 2] ^= 1 << bit
        at = data.find(part, at + 1)
    file.write_bytes(data)


def test_a_damaged_image_is_never_served_and_the_rest_is(written, caplog):
    path, fragments = written
    flip(path, fragments[1].observation["cam"][2].tobytes())  # observation 7 of episode 1
    with reader(path).open() as env:
        data = ReplayData(env, seed=1)
        for _ in range(10):
            batch = data.draw(Draw(64))
            assert not {7} & {*batch.observation["flag"].tolist()}
            assert not {7} & {*batch.next_observation["flag"].tolist()}
            for row, number in enumerate(batch.observation["flag"].tolist()):
                written_image = image_of(fragments, number)
                assert (batch.observation["cam"][row] == written_image).all()
        assert data.stats()["damaged_steps"] == 2
        assert data.count() == 48
    assert "images of 'cam'" in caplog.text


def test_draws_after_a_resume_know_what_was_damaged(written):
    path, fragments = written
    flip(path, fragments[1].observation["cam"][2].tobytes())
    with reader(path).open() as env:
        data = ReplayData(env, seed=1)
        for _ in range(10):
            data.draw(Draw(64))
        assert data.stats()["damaged_steps"] == 2
        state = json.loads(json.dumps(data.state_dict()))
        expected = [data.draw(Draw(64)).ids.tolist() for _ in range(10)]
        resumed = ReplayData(env, seed=2)
        resumed.load_state_dict(state)
        assert [resumed.draw(Draw(64)).ids.tolist() for _ in range(10)] == expected


def image_of(fragments, number):
    for fragment in fragments:
        (at,) = np.nonzero(fragment.observation["flag"] == number)
        if len(at):
            return fragment.observation["cam"][at[0]]
    raise AssertionError(number)


def test_a_damaged_record_is_left_out_and_the_rest_is_served(written, caplog):
    path, fragments = written
    flip(path, fragments[4].observation["o"].tobytes())
    with reader(path).open() as env:
        data = ReplayData(env, seed=1)
        # Its 4 steps are gone, and the one before it has lost its successor.
        assert data.count() == 50 - 5
        assert data.stats()["damaged_records"] == 1
        batch = data.consume(Draw(45))
        following = batch.next_observation["flag"] - batch.observation["flag"]
        assert (following == 1).all()
    assert "is damaged and left out" in caplog.text


def test_verify_finds_and_names_every_damage(written):
    path, fragments = written
    findings = verify.verify(path)
    assert findings.ok
    assert findings.images == 55
    flip(path, fragments[1].observation["cam"][2].tobytes())
    flip(path, fragments[4].observation["o"].tobytes())
    findings = verify.verify(path)
    assert len(findings.damaged) == 2
    assert any(line.startswith("images ") and "checksum" in line for line in findings.damaged)
    assert any(line.startswith("log ") and "checksum" in line for line in findings.damaged)


def test_random_bit_flips_in_data_are_all_found_or_harmless(written):
    """Whatever byte is hit: what is still drawn is what was written."""
    path, fragments = written
    sound = (path / "data.mdb").read_bytes()
    expected = {n: image_of(fragments, n) for f in fragments for n in f.observation["flag"]}
    rng, found = random.Random(7), 0
    for _ in range(10):
        data = bytearray(sound)
        # The first 2 pages are the meta pages; their damage is a test of its own.
        data[rng.randrange(8192, len(data))] ^= 1 << rng.randrange(8)
        (path / "data.mdb").write_bytes(data)
        if not verify.verify(path).ok:
            found += 1
            continue
        with reader(path).open() as env:
            served = ReplayData(env).consume(Draw(50))
        for row, number in enumerate(served.observation["flag"].tolist()):
            assert (served.observation["cam"][row] == expected[number]).all()
            assert served.next_observation["flag"][row] == number + 1
    assert found > 3


@pytest.mark.system
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_file_does_not_kill_who_opens_it(written, keep):
    path, _ = written
    file = path / "data.mdb"
    size = int(file.stat().st_size * keep)
    with file.open("r+b") as handle:
        handle.truncate(size)
    for open_it in (Store(path).open, reader(path).open):
        with pytest.raises(DamageError) as caught:
            open_it()
        assert f"user-system replay verify {path}" in str(caught.value)


@pytest.mark.system
def test_a_truncated_spool_is_refused_too(tmp_path):
    with Queue(tmp_path / "spool").open(create=True) as queue:
        for k in range(50):
            queue.append("arm", 1, k, bytes(5000))
    with (tmp_path / "spool" / "data.mdb").open("r+b") as handle:
        handle.truncate(100_000)
    with pytest.raises(DamageError, match="pages are missing"):
        Queue(tmp_path / "spool").open()


def test_lost_meta_pages_are_named(written):
    path, _ = written
    data = bytearray((path / "data.mdb").read_bytes())
    data[16:20] = b"\0\0\0\0"
    (path / "data.mdb").write_bytes(data)
    with pytest.raises(DamageError, match="lost its meta pages"):
        Store(path).open()


def test_missing_pages_are_counted_from_the_newest_meta_page(written):
    path, _ = written
    assert layout.missing_pages(path) == 0
    file = path / "data.mdb"
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 3 * 4096)
    assert layout.missing_pages(path) == 3


@pytest.mark.system
def test_pages_that_nobody_uses_may_be_missing(written):
    """LMDB never writes pages that it took and gave back at the end of a file."""
    path, _ = written
    file = path / "data.mdb"
    data = bytearray(file.read_bytes())
    for page in (0, 4096):
        at = page + layout._TAIL_OFFSET
        last, transaction = layout._META_TAIL.unpack_from(data, at)
        layout._META_TAIL.pack_into(data, at, last + 2, transaction)
    file.write_bytes(data)
    assert layout.missing_pages(path) == 2
    with Store(path).open() as store:
        assert ReplayData(store.env).count() == 50


def test_quarantine_moves_the_directory_and_makes_no_new_one(written):
    path, _ = written
    target = verify.quarantine(path)
    assert not path.exists()
    assert target.name.startswith("replay.corrupt-")
    with pytest.raises(StoreError, match="no store in"):
        Store(path).open()
    with Store(path).open(create=True) as store:
        assert ReplayData(store.env).count() == 0


def test_quarantine_does_not_pull_a_store_from_under_its_writer(written):
    path, _ = written
    with Store(path).open(), pytest.raises(StoreError, match="another process writes"):
        verify.quarantine(path)


@pytest.mark.system
def test_the_command_line_says_what_is_damaged(written):
    path, fragments = written
    command = [sys.executable, "-m", "user_system.replay.verify", str(path)]
    sound = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (sound.returncode, "55 images" in sound.stdout) == (0, True)
    flip(path, fragments[1].observation["cam"][2].tobytes())
    damaged = subprocess.run(
        [*command, "--quarantine"], capture_output=True, text=True, check=False
    )
    assert damaged.returncode == 1
    assert "1 damaged" in damaged.stdout
    assert "moved to" in damaged.stdout
    assert not path.exists()
    gone = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (gone.returncode, "no store in" in gone.stderr) == (2, True)


@pytest.fixture(autouse=True)
def _log_level(caplog):
    caplog.set_level(logging.INFO)
