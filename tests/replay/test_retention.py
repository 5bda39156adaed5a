"""What leaves a store: by quota, in the order of what it is worth, or because somebody said so."""

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from user_system.codec import arrays
from user_system.core.errors import SpecError, StoreError
from user_system.core.interfaces import Draw
from user_system.core.types import Segment
from user_system.replay import tables, verify
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store

from .conftest import picture

CAMERAS = {"cam": (64, 64, 3)}
QUOTA = 8 << 20


def fill(store, robot, episodes, **values):
    """Append episodes of 16 steps, 200 KB each; return their ids."""
    ids = []
    for _ in range(episodes):
        fragments = robot.run_episode(16, **values)
        assert store.append(fragments) == []
        ids.append(fragments[0].header.episode)
    return ids


def episodes_of(store):
    data = ReplayData(store.env, seed=1)
    n = data.count()
    if not n:
        return set()
    batch = data.consume(Draw(n, columns=("episode",)))
    rows = data._rows()
    ids = {e.number: e.id for e in rows.episodes.values()}
    return {ids[number] for number in np.unique(batch.extras["episode"]).tolist()}


def test_the_file_stays_within_its_quota_and_the_newest_stay(tmp_path, recorder):
    robot = recorder(cameras=CAMERAS)
    with Store(tmp_path / "replay", quota_bytes=QUOTA).open(create=True) as store:
        ids = fill(store, robot, 150)
        kept = episodes_of(store)
        assert len(kept) > 20
        assert kept == set(ids[-len(kept) :]), "not the newest"
        assert store.stats()["live_bytes"] <= QUOTA
        assert store.stats()["file_bytes"] <= 1.3 * QUOTA
    assert verify.verify(tmp_path / "replay").ok


def test_blocks_leave_with_what_they_repeat(tmp_path, recorder, monkeypatch):
    monkeypatch.setattr("user_system.replay.keeper.BLOCK_STEPS", 64)
    robot = recorder(cameras=CAMERAS)
    with Store(tmp_path / "replay", quota_bytes=QUOTA).open(create=True) as store:
        for _ in range(15):
            fill(store, robot, 10)
            store.tend()
        with store.env.read() as txn:
            (lowest, _), *_ = tables.entries(txn, store.env, "log", 0)
            first = tables.next_block(txn, store.env, 0)
            (place,) = tables.blocks(txn, store.env, first)
            assert first <= lowest < place.end, "the oldest block repeats nothing that is left"
            blocks = txn.stat(store.env.table("columns"))["entries"]
            assert blocks == txn.stat(store.env.table("blocks"))["entries"] < 30
        assert ReplayData(store.env).count() == 16 * len(episodes_of(store))


def test_what_a_person_did_outlives_what_a_robot_did_by_itself(tmp_path, recorder):
    robot = recorder(cameras=CAMERAS)
    with Store(tmp_path / "replay", quota_bytes=QUOTA).open(create=True) as store:
        demos = fill(store, robot, 8, segment=Segment.DEMO)
        helped = fill(store, robot, 8, segment=Segment.CORRECTION)
        auto = fill(store, robot, 100)
        kept = episodes_of(store)
        assert {*demos, *helped} <= kept
        assert not {*auto[:40]} & kept
        # Where there is nothing else, corrections go before demonstrations.
        more = fill(store, robot, 40, segment=Segment.DEMO)
        kept = episodes_of(store)
        assert not {*auto} & kept
        assert not {*helped} & kept
        assert more[-1] in kept


def test_an_episode_that_is_being_recorded_never_goes(tmp_path, recorder):
    slow, busy = recorder("slow", cameras=CAMERAS), recorder("busy", cameras=CAMERAS)
    slow.begin()
    slow.step(8)
    with Store(tmp_path / "replay", quota_bytes=QUOTA).open(create=True) as store:
        store.append([slow.flush()])
        fill(store, busy, 150)
        slow.step(8)
        store.append([slow.flush()])
        data = ReplayData(store.env)
        flags = data.consume(Draw(data.count())).observation["flag"].tolist()
        assert set(range(1, 9)) <= set(flags)


def test_a_quota_that_nothing_may_leave_refuses_and_loses_nothing(tmp_path, recorder):
    robot = recorder(cameras=CAMERAS)
    robot.begin()
    with Store(tmp_path / "replay", quota_bytes=1 << 20).open(create=True) as store:
        sent = 0

        def more():
            nonlocal sent
            while sent < 200:
                robot.step(8)
                store.append([robot.flush()])
                sent += 1

        with pytest.raises(StoreError, match="all it holds is being recorded"):
            more()
        assert store.expected("arm", 1) == sent > 3


def test_a_disk_without_space_to_spare_is_treated_like_a_quota(tmp_path, recorder, monkeypatch):
    robot = recorder(cameras={"cam": (128, 128, 3)})
    free = 1 << 40
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    with Store(tmp_path / "replay", reserve_bytes=1 << 30).open(create=True) as store:
        ids = fill(store, robot, 150)  # 120 MB
        assert episodes_of(store) == set(ids)
        free = 1 << 29
        before = store.stats()["file_bytes"]
        more = fill(store, robot, 150)
        assert store.stats()["file_bytes"] < before + (8 << 20), "it took what was to stay free"
        assert not set(ids[:50]) & episodes_of(store)
        assert more[-1] in episodes_of(store)


def test_a_deleted_episode_is_gone_for_everybody_and_the_reason_stays(tmp_path, recorder):
    robot = recorder(cameras=CAMERAS)
    path = tmp_path / "replay"
    with Store(path).open(create=True) as store:
        ids = fill(store, robot, 5)
        following, still = (ReplayData(store.env, seed=3, follow=f) for f in (True, False))
        still.refresh()
        assert following.count() == still.count() == 80
        still.consume(Draw(80))  # so that it knows where all images lie
        assert store.delete(ids[2], who="ada", why="a face in the picture") == 4
        gone = set(range(2 * 17 + 1, 3 * 17 + 1))
        for data in (following, still) * 5:
            batch = data.draw(Draw(64))
            assert not gone & {*batch.observation["flag"].tolist()}
        assert following.count() == ReplayData(store.env).count() == 64
        with store.env.read() as txn:
            (entry,) = tables.entries(txn, store.env, "gone", 0)
            meta, columns = arrays.unpack(bytes(entry[1]))
            assert (meta["who"], meta["why"]) == ("ada", "a face in the picture")
            assert len(columns["offsets"]) == 4
            left = [number for number, _ in tables.entries(txn, store.env, "log", 0)]
        assert len(left) == 16
        assert store.expected("arm", 1) == 20, "what was deleted must not be sent again"
        with pytest.raises(SpecError, match="no such episode"):
            store.delete(ids[2], who="ada", why="again")


def test_a_removal_that_nobody_can_read_any_more_is_one(tmp_path, recorder):
    """Where its images lay others lie by now, and who knew their place looks at no checksum."""
    robot = recorder(cameras=CAMERAS)
    with Store(tmp_path / "replay").open(create=True) as store:
        ids = fill(store, robot, 5)
        data = ReplayData(store.env, seed=3)
        data.consume(Draw(80))
        store.delete(ids[2], who="ada", why="a face in the picture")
        store.env.write(lambda txn: _flip(txn, store.env, "gone"))
        fill(store, robot, 5)
        for reader in (data, ReplayData(store.env, seed=3)):
            for _ in range(20):
                batch = reader.draw(Draw(64))
                flags = batch.observation["flag"].tolist()
                for image, flag in zip(batch.observation["cam"], flags, strict=True):
                    assert (image == picture(flag, CAMERAS["cam"])).all()
            assert reader.count() == 9 * 16


def _flip(txn, env, table):
    for number, value in list(tables.entries(txn, env, table, 0)):
        changed = bytearray(value)
        changed[40] ^= 1
        txn.put(tables.U64.pack(number), bytes(changed), db=env.table(table))


def test_an_episode_that_is_being_recorded_cannot_be_deleted(store, recorder):
    robot = recorder()
    robot.begin()
    robot.step(3)
    fragment = robot.flush()
    store.append([fragment])
    with pytest.raises(SpecError, match="being recorded"):
        store.delete(fragment.header.episode, who="ada", why="too early")


def refused(store, fragments):
    """Return why fragments were not stored; None: they were."""
    try:
        store.append(fragments)
    except StoreError as error:
        return error
    return None


STUCK = """
import sys, time
from user_system.replay.store import reader
with reader(sys.argv[1]).open() as env, env.read() as txn:
    txn.get(b"offset", db=env.table("meta"))
    print("holding", flush=True)
    time.sleep(600)
"""


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True], ids=["hung", "stopped"])
def test_a_reader_that_does_not_move_is_ended_and_the_file_stays_small(tmp_path, recorder, stopped):
    robot = recorder(cameras=CAMERAS)
    path = tmp_path / "replay"
    with Store(path, quota_bytes=QUOTA, reader_limit_s=3.0).open(create=True) as store:
        fill(store, robot, 10)
        child = subprocess.Popen(
            [sys.executable, "-c", STUCK, str(path)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "holding\n"
            if stopped:
                os.kill(child.pid, signal.SIGSTOP)
            waited = 0
            for _ in range(200):
                fragments = robot.run_episode(16)
                while (error := refused(store, fragments)) is not None:
                    assert f"process {child.pid}" in str(error)
                    waited += 1
                    assert waited < 300
                    time.sleep(0.1)
            assert waited
            assert child.wait(10) == -signal.SIGKILL
            assert store.stats()["file_bytes"] <= 1.3 * QUOTA
        finally:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()
