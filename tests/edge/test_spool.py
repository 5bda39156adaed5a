import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from user_system.codec import fragments as codec
from user_system.core.errors import SpecError, StoreError
from user_system.core.ports import Refused
from user_system.core.types import Fragment, FragmentHeader, Purpose
from user_system.edge.spool import Spool
from user_system.replay.queue import Queue


def fragment(sequence, epoch=1, steps=2, producer="arm"):
    header = FragmentHeader(
        producer=producer,
        epoch=epoch,
        sequence=sequence,
        run="run",
        task="t",
        episode="e",
        start=sequence * steps,
        purpose=Purpose.TRAIN,
        schema="s",
        robot=producer,
        embodiment="b",
        boot="b",
        wall_ns=1,
        wall_bound_ns=1,
    )
    zeros = np.zeros(steps)
    return Fragment(
        header=header,
        observation={"x": np.full((steps, 2), sequence, np.float32)},
        executed=np.zeros((steps, 2), np.float32),
        proposed=np.zeros((steps, 2), np.float32),
        reward=zeros.astype(np.float32),
        segment=np.full(steps, 2, np.uint8),
        end=zeros.astype(np.uint8),
        robot_ns=np.arange(steps) + sequence * steps,
        policy=zeros.astype(np.uint16),
        version=zeros.astype(np.int64),
        operator=zeros.astype(np.uint16),
        chunk=zeros.astype(np.int32),
        position=zeros.astype(np.int32),
    )


@pytest.fixture
def spool(tmp_path):
    queue = Queue(tmp_path / "q", max_bytes=1 << 24).open(create=True)
    spool = Spool(queue, 1 << 20)
    spool.start(tmp_path / "journals")
    yield spool
    spool.close()
    queue.close()


def carried(spool, wait_for):
    wait_for(lambda: spool.waiting == 0, "an empty journal")


def test_what_is_put_comes_out_in_order(spool, wait_for):
    epoch = spool.begin_epoch("arm")
    for n in range(7):
        spool.put(fragment(n, epoch))
    carried(spool, wait_for)
    assert spool.sources() == [("arm", epoch)]
    got = spool.read("arm", epoch, 2, 3)
    assert [f.header.sequence for f in got] == [2, 3, 4]
    assert got[0].observation["x"].tolist() == [[2, 2], [2, 2]]
    spool.forget("arm", epoch, 7)
    assert spool.sources() == []


def test_epochs_rise(spool):
    assert [spool.begin_epoch("arm"), spool.begin_epoch("arm"), spool.begin_epoch("leg")] == [
        1,
        2,
        1,
    ]


def test_waiting_for_news(spool):
    epoch = spool.begin_epoch("arm")
    assert not spool.wait(0.01)
    threading.Timer(0.05, lambda: spool.put(fragment(0, epoch))).start()
    assert spool.wait(20.0)
    assert not spool.wait(0.01)


def test_a_broken_fragment_is_refused_at_the_door(spool):
    epoch = spool.begin_epoch("arm")
    bad = fragment(0, epoch)
    bad.executed[0, 0] = np.nan
    with pytest.raises(SpecError, match="not finite"):
        spool.put(bad)
    assert spool.waiting == 0


def test_a_refused_fragment_is_set_aside(spool, wait_for):
    epoch = spool.begin_epoch("arm")
    for n in range(3):
        spool.put(fragment(n, epoch))
    carried(spool, wait_for)
    spool.set_aside(Refused("arm", epoch, 1, "unknown schema"))
    assert [f.header.sequence for f in spool.read("arm", epoch, 0, 10)] == [0, 2]


def test_quota_says_full(tmp_path, wait_for):
    queue = Queue(tmp_path / "q", max_bytes=1 << 24).open(create=True)
    spool = Spool(queue, quota_bytes=3000)
    spool.start(tmp_path)
    epoch = spool.begin_epoch("arm")
    assert not spool.full
    for n in range(4):
        spool.put(fragment(n, epoch))
    wait_for(lambda: spool.full, "a full spool")
    spool.put(fragment(4, epoch))  # the episode at hand is finished
    carried(spool, wait_for)
    spool.forget("arm", epoch, 5)
    assert not spool.full
    spool.close()
    queue.close()


def test_a_disk_that_refuses_fills_the_journal_and_loses_nothing(make_keeper, tmp_path, wait_for):
    class Refusing(make_keeper):
        broken = True

        def append(self, *arguments, **more):
            if self.broken:
                raise StoreError("no space")
            super().append(*arguments, **more)

    queue = Refusing()
    spool = Spool(queue, 1 << 20, journal_bytes=8000)
    spool.start(tmp_path)
    epoch = spool.begin_epoch("arm")
    put = 8000 // (16 + len(codec.encode(fragment(0, epoch))))
    for n in range(put):
        spool.put(fragment(n, epoch))
    with pytest.raises(StoreError, match="journal is full"):
        spool.put(fragment(put, epoch))
    wait_for(lambda: spool.full, "the spool saying so")
    queue.broken = False
    carried(spool, wait_for)
    assert [f.header.sequence for f in spool.read("arm", epoch, 0, 100)] == list(range(put))
    wait_for(lambda: not spool.full, "room")
    spool.close()


def test_damage_is_set_aside_and_the_rest_goes_on(make_keeper, tmp_path, wait_for):
    queue = make_keeper()
    spool = Spool(queue, 1 << 20)
    spool.start(tmp_path)
    epoch = spool.begin_epoch("arm")
    for n in range(3):
        spool.put(fragment(n, epoch))
    carried(spool, wait_for)
    data = bytearray(queue.items["arm", epoch][1])
    data[-1] ^= 1
    queue.items["arm", epoch][1] = bytes(data)
    assert [f.header.sequence for f in spool.read("arm", epoch, 0, 10)] == [0]
    assert [f.header.sequence for f in spool.read("arm", epoch, 1, 10)] == [2]
    assert [entry[2] for entry in queue.aside] == [1]
    spool.close()


def test_damage_in_the_journal_does_not_cost_what_comes_later(tmp_path):
    """The places of the lost ones stay, set aside, so that the head can be told to pass them."""
    queue = Queue(tmp_path / "q", max_bytes=1 << 24).open(create=True)
    spool = Spool(queue, 1 << 20)
    spool._directory = tmp_path  # not started: nothing is carried
    epoch = spool.begin_epoch("arm")
    for n in range(4):
        spool.put(fragment(n, epoch))
    journal = tmp_path / "arm.journal"
    data = journal.read_bytes()
    record = codec.encode(fragment(1, epoch))
    assert data.count(record) == 1
    with journal.open("r+b") as file:
        file.seek(data.index(record) + len(record) - 1)
        file.write(bytes([record[-1] ^ 1]))
    for _ in range(4):
        spool._carry_one(spool._journals["arm"])
    for n in (4, 5):  # a ring goes on behind the damage with what comes next
        spool.put(fragment(n, epoch))
        spool._carry_one(spool._journals["arm"])
    assert [f.header.sequence for f in spool.read("arm", epoch, 0, 10)] == [0, 4, 5]
    assert ["journal" in spool.lost("arm", epoch, n).reason for n in (1, 2, 3)] == [True] * 3
    assert {spool.lost("arm", epoch, n).boot for n in (1, 2, 3)} == {"b"}
    assert spool.lost("arm", epoch, 4) is None
    assert spool.stats()["spool_lost"] == 3
    assert spool.backlog("arm", epoch) == 6
    spool.close()
    queue.close()


@pytest.mark.parametrize("said", [True, False], ids=["in the books", "by what can be read"])
def test_a_damaged_source_is_still_somebodys(tmp_path, said):
    """An earlier version's books do not say whose it is; then what is behind the damage does."""
    with Queue(tmp_path / "q").open(create=True) as queue:
        spool = Spool(queue, 1 << 20)
        for n in range(4):
            damaged = b"not a fragment" if n < 2 or said else codec.encode(fragment(n))
            queue.append("arm", 1, n, damaged, boot="b" if said else "")
        assert spool.boot("arm", 1) == "b"
        assert len(spool.read("arm", 1, 0, 1)) == 0 if said else 1
        assert spool.lost("arm", 1, 0).boot == "b"
        assert spool.boot("arm", 2) == ""


PRODUCER = """
import sys, importlib.util
from pathlib import Path
spec = importlib.util.spec_from_file_location("spooling", sys.argv[2])
spooling = importlib.util.module_from_spec(spec)
sys.modules["spooling"] = spooling
spec.loader.exec_module(spooling)
place = Path(sys.argv[1])
queue = spooling.Queue(place / "q", max_bytes=1 << 26).open(create=True)
spool = spooling.Spool(queue, 1 << 25)
spool.start(place / "journals")
epoch = spool.begin_epoch("arm")
for n in range(100000):
    try:
        spool.put(spooling.fragment(n, epoch))
    except spooling.StoreError:
        spooling.time.sleep(60)
    (place / "new").write_text(f"{epoch} {n}")
    (place / "new").replace(place / "put")  # whole at any moment
"""


@pytest.mark.system
def test_everything_put_survives_kill_9_exactly_once(tmp_path, wait_for):
    """Killed at any moment: all that put returned for is there, once, in order, within epochs."""
    put = {}
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", PRODUCER, str(tmp_path), __file__])
        known = dict(put)

        def busy(known=known):
            text = (tmp_path / "put").read_text() if (tmp_path / "put").exists() else ""
            return text and int(text.split()[0]) not in known and int(text.split()[1]) > 20

        wait_for(busy, "a busy producer")
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        epoch, count = map(int, (tmp_path / "put").read_text().split())
        put[epoch] = count + 1
    queue = Queue(tmp_path / "q", max_bytes=1 << 26).open()
    spool = Spool(queue, 1 << 25)
    spool.start(tmp_path / "journals")
    spool.begin_epoch("arm")
    wait_for(lambda: spool.waiting == 0, "an empty journal")
    time.sleep(0)
    for epoch, count in put.items():
        sequences = [
            codec.decode(item.data).header.sequence for item in queue.read("arm", epoch, 0, 10**6)
        ]
        # One more may have been put before it was noted down.
        assert sequences in (list(range(count)), list(range(count + 1)))
    spool.close()
    queue.close()


def test_a_journal_that_must_grow_is_carried_on_first(tmp_path, make_keeper):
    queue = make_keeper()
    first = Spool(queue, 1 << 20, journal_bytes=20_000)
    first._directory = tmp_path  # not started: nothing is carried
    epoch = first.begin_epoch("arm")
    first.put(fragment(0, epoch))
    first.put(fragment(1, epoch))
    assert first.waiting
    second = Spool(queue, 1 << 20, journal_bytes=20_000)
    second._directory = tmp_path
    assert second.begin_epoch("arm", largest=100_000) == epoch + 1
    assert [f.header.sequence for f in second.read("arm", epoch, 0, 10)] == [0, 1]
    assert second.waiting == 0


@pytest.mark.parametrize("left", [b"", b"short", bytes(100), bytes(8192)])
def test_a_journal_that_a_power_cut_left_is_put_aside_and_the_robot_starts(tmp_path, left, caplog):
    (tmp_path / "arm-1.journal").write_bytes(left)
    with Queue(tmp_path / "spool").open(create=True) as queue:
        spool = Spool(queue, 1 << 30)
        spool.start(tmp_path)
        try:
            assert spool.begin_epoch("arm-1") == 1
        finally:
            spool.close()
    assert "was put aside" in caplog.text
    (aside,) = tmp_path.glob("arm-1.damaged-*")
    assert aside.read_bytes() == left
