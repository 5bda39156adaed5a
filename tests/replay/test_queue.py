"""The durable queue under the edge's spool."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from user_system.core.errors import DamageError, StoreError
from user_system.replay.origin import Origin
from user_system.replay.queue import Queue


@pytest.fixture
def queue(tmp_path):
    with Queue(tmp_path / "spool").open(create=True) as queue:
        yield queue


def test_items_come_back_in_order_until_forgotten(queue):
    for k in range(5):
        queue.append("arm", 1, k, b"item %d" % k)
    assert [(i.sequence, i.data) for i in queue.read("arm", 1, 2, 2)] == [
        (2, b"item 2"),
        (3, b"item 3"),
    ]
    assert queue.forget("arm", 1, 3) == 3
    assert [i.sequence for i in queue.read("arm", 1, 0, 10)] == [3, 4]
    assert len(queue) == 2
    assert queue.size_bytes == 12


def test_everything_survives_reopening_also_the_next_sequence(tmp_path):
    with Queue(tmp_path / "spool").open(create=True) as queue:
        assert queue.begin_epoch("arm") == 1
        queue.append("arm", 1, 0, b"a")
        queue.append("arm", 1, 1, b"bc")
        queue.forget("arm", 1, 2)
        queue.append("arm", 1, 2, b"def")
    with Queue(tmp_path / "spool").open() as queue:
        assert queue.next_sequence("arm", 1) == 3
        assert queue.size_bytes == 3
        assert queue.begin_epoch("arm") == 2
        assert queue.begin_epoch("other") == 1


def test_sources_name_the_newest_epoch_first(queue):
    queue.append("arm", 1, 0, b"old")
    queue.append("arm", 10, 0, b"new")
    queue.append("leg", 2, 0, b"other")
    assert queue.sources() == [("arm", 10), ("leg", 2), ("arm", 1)]
    queue.forget("arm", 10, 1)
    assert queue.sources() == [("leg", 2), ("arm", 1)]


def test_sources_do_not_mix_where_one_name_begins_another(queue):
    queue.append("arm", 1, 0, b"arm")
    queue.append("arm1", 1, 0, b"arm1")
    assert [i.data for i in queue.read("arm", 1, 0, 9)] == [b"arm"]
    assert queue.forget("arm", 1, 99) == 1
    assert [i.data for i in queue.read("arm1", 1, 0, 9)] == [b"arm1"]


def test_an_item_out_of_order_is_refused_and_nothing_stored(queue):
    queue.append("arm", 1, 0, b"a")
    with pytest.raises(StoreError, match="out of order; got 2; allowed: 1"):
        queue.append("arm", 1, 2, b"c")
    assert len(queue) == 1


def test_a_full_queue_refuses_and_takes_again_after_forgetting(tmp_path):
    with Queue(tmp_path / "spool", max_bytes=10).open(create=True) as queue:
        queue.append("arm", 1, 0, b"12345678")
        with pytest.raises(StoreError, match="is full"):
            queue.append("arm", 1, 1, b"123")
        queue.forget("arm", 1, 1)
        queue.append("arm", 1, 1, b"123")


def test_what_is_set_aside_blocks_nothing_and_is_kept(queue):
    for k in range(3):
        queue.append("arm", 1, k, b"item %d" % k)
    assert queue.set_aside("arm", 1, 1, "wrong shape")
    assert not queue.set_aside("arm", 1, 1, "again")
    assert [i.sequence for i in queue.read("arm", 1, 0, 9)] == [0, 2]
    (kept,) = queue.aside()
    assert (kept.producer, kept.epoch, kept.sequence) == ("arm", 1, 1)
    assert (kept.reason, kept.data) == ("wrong shape", b"item 1")


def test_reading_stops_before_too_many_bytes_but_never_at_nothing(queue):
    for k in range(3):
        queue.append("arm", 1, k, bytes(1000))
    assert len(queue.read("arm", 1, 0, 9, max_bytes=10)) == 1
    assert len(queue.read("arm", 1, 0, 9, max_bytes=2100)) == 2


def test_a_flipped_bit_is_found_before_the_item_is_served(tmp_path):
    with Queue(tmp_path / "spool").open(create=True) as queue:
        for k in range(3):
            queue.append("arm", 1, k, b"item number %d" % k)
    file = tmp_path / "spool" / "data.mdb"
    data = bytearray(file.read_bytes())
    for at in _all(data, b"item number 1"):
        data[at + 3] ^= 4
    file.write_bytes(data)
    with Queue(tmp_path / "spool").open() as queue:
        assert [i.sequence for i in queue.read("arm", 1, 0, 9)] == [0]
        with pytest.raises(DamageError, match="spooled item 1 of arm"):
            queue.read("arm", 1, 1, 9)
        assert queue.set_aside("arm", 1, 1, "damaged")
        assert [i.sequence for i in queue.read("arm", 1, 1, 9)] == [2]


def _all(data: bytes, part: bytes) -> list[int]:
    found, at = [], data.find(part)
    while at >= 0:
        found.append(at)
        at = data.find(part, at + 1)
    return found


class Model:
    def __init__(self):
        self.items, self.next = {}, {}


actions = st.lists(
    st.tuples(
        st.sampled_from(["append", "forget", "aside", "reopen"]),
        st.sampled_from([("a", 1), ("a", 2), ("ab", 1)]),
        st.integers(0, 8),
    ),
    max_size=30,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(actions)
def test_it_does_what_a_dictionary_would(tmp_path_factory, script):
    path = tmp_path_factory.mktemp("model") / "spool"
    queue, items, following, aside = Queue(path).open(create=True), {}, {}, {}
    try:
        for verb, source, k in script:
            if verb == "append":
                sequence = following.get(source, 0)
                data = bytes([sequence]) * (k * 300)
                queue.append(*source, sequence, data)
                following[source], items[*source, sequence] = sequence + 1, data
            elif verb == "forget":
                queue.forget(*source, k)
                items = {i: d for i, d in items.items() if i[:2] != source or i[2] >= k}
            elif verb == "aside":
                assert queue.set_aside(*source, k, "why") == ((*source, k) in items)
                if (*source, k) in items:
                    aside[*source, k] = items.pop((*source, k))
            else:
                queue.close()
                queue = Queue(path).open()
        for source in [("a", 1), ("a", 2), ("ab", 1)]:
            got = {(*source, i.sequence): i.data for i in queue.read(*source, 0, 99)}
            assert got == {i: d for i, d in items.items() if i[:2] == source}
            assert queue.next_sequence(*source) == following.get(source, 0)
        assert len(queue) == len(items)
        assert queue.size_bytes == sum(map(len, [*items.values(), *aside.values()]))
        assert {(a.producer, a.epoch, a.sequence): a.data for a in queue.aside()} == aside
        assert set(queue.sources()) == {i[:2] for i in items}
    finally:
        queue.close()


WRITER = """
import sys
from user_system.replay.queue import Queue
queue = Queue(sys.argv[1]).open(create=True)
k = queue.next_sequence("arm", 1)
while True:
    queue.append("arm", 1, k, b"%d" % k * 500)
    k += 1
    print(k, flush=True)
"""


@pytest.mark.system
def test_what_was_appended_survives_kill_9(tmp_path):
    acked = 0
    for round_ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "spool")], stdout=subprocess.PIPE
        )
        for _ in range(3 + 7 * round_):
            acked = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        rest = child.stdout.read().split()
        acked = int(rest[-1]) if rest else acked
        child.wait()
        child.stdout.close()
    with Queue(tmp_path / "spool").open() as queue:
        items = queue.read("arm", 1, 0, 100_000)
    assert [i.sequence for i in items] == list(range(len(items)))
    assert acked <= len(items) <= acked + 1
    assert all(i.data == b"%d" % i.sequence * 500 for i in items)


def test_a_second_writer_is_refused(tmp_path):
    path = tmp_path / "spool"
    with Queue(path).open(create=True):
        with pytest.raises(StoreError, match="open in this process already"):
            Queue(path).open()
        code = f"from user_system.replay.queue import Queue; Queue({str(path)!r}).open()"
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
        assert b"another process writes to" in child.stderr


def test_opening_nothing_says_so_and_makes_nothing(tmp_path: Path):
    with pytest.raises(StoreError, match="there is no store in"):
        Queue(tmp_path / "spool").open()
    assert not (tmp_path / "spool").exists()


def test_a_queue_that_replaces_a_lost_one_repeats_no_epoch(tmp_path):
    """Else the other side takes what is new for what it has, and it is forgotten unread."""
    with Queue(tmp_path / "old", first_epoch=1000).open(create=True) as old:
        before = [old.begin_epoch("arm") for _ in range(3)]
    with Queue(tmp_path / "new", first_epoch=1100).open(create=True) as new:
        assert new.begin_epoch("arm") > max(before)
    with Queue(tmp_path / "new", first_epoch=1).open() as again:
        assert again.begin_epoch("arm") == 1101


def test_places_that_were_never_filled_are_given_up_at_once(tmp_path):
    with Queue(tmp_path / "q").open(create=True) as queue:
        queue.append("arm", 1, 0, b"a")
        assert queue.lose("arm", 1, 5, "gone") == 4
        assert queue.lose("arm", 1, 3, "gone") == 0
        queue.append("arm", 1, 5, b"b")
        assert [item.sequence for item in queue.read("arm", 1, 0, 9)] == [0, 5]
        assert [queue.reason("arm", 1, n) for n in (0, 1, 4, 5)] == [None, "gone", "gone", None]
        assert [(a.sequence, a.data) for a in queue.aside()] == [(n, b"") for n in (1, 2, 3, 4)]
        assert len(queue) == 2


def test_the_books_say_whose_a_source_is_whatever_became_of_its_items(tmp_path):
    with Queue(tmp_path / "q").open(create=True) as queue:
        queue.append("arm", 1, 0, b"a", boot="b0")
        queue.append("arm", 1, 1, b"b", boot="another")
        queue.set_aside("arm", 1, 0, "damaged")
        queue.forget("arm", 1, 2)
        queue.lose("leg", 7, 3, "damaged in the journal", boot="b1")
        queue.append("old", 1, 0, b"nobody said it")
    with Queue(tmp_path / "q").open() as again:
        assert [again.boot(*s) for s in [("arm", 1), ("leg", 7), ("old", 1)]] == ["b0", "b1", ""]
        assert [again.next_sequence(*s) for s in [("arm", 1), ("leg", 7)]] == [2, 3]
        again.append("old", 1, 1, b"now", boot="b2")
        assert again.boot("old", 1) == "b2"


def test_books_of_an_earlier_version_are_read():
    assert Origin.parse((7).to_bytes(8, "big")) == Origin(7)
    for origin in (Origin(), Origin(1 << 40, "b0"), Origin(2, "b", "why"), Origin(2, "", "why")):
        assert Origin.parse(origin.pack()) == origin


def test_what_was_set_aside_counts_against_the_quota(tmp_path):
    """If everything is refused the disk must not fill up without anybody hearing of it."""
    with Queue(tmp_path / "q", max_bytes=1000).open(create=True) as queue:
        for n in range(2):
            queue.append("arm", 1, n, bytes(400))
            queue.set_aside("arm", 1, n, "wrong shape")
        assert (len(queue), queue.size_bytes, queue.stats()["aside"]) == (0, 800, 2)
        with pytest.raises(StoreError, match="2 set aside"):
            queue.append("arm", 1, 2, bytes(400))
    with Queue(tmp_path / "q", max_bytes=1000).open() as again:
        assert (again.size_bytes, again.stats()["aside"]) == (800, 2)
