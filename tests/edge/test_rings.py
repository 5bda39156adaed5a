import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_system.core.errors import LinkError, StoreError
from user_system.edge import rings
from user_system.edge.rings import Duplex, Ring


def pair(path, capacity=4096):
    writer, reader = Ring(path, capacity), Ring(path)
    writer.open()
    reader.open()
    return writer, reader


@given(
    st.lists(
        st.one_of(st.binary(max_size=300), st.just(None)),
        max_size=60,
    )
)
def test_a_ring_is_a_bounded_queue(tmp_path_factory, moves):
    writer, reader = pair(tmp_path_factory.mktemp("ring") / "r", 1024)
    model, dropped, used = deque(), 0, 0
    for move in moves:
        if move is None:
            assert reader.get() == (model.popleft() if model else None)
        elif writer.put(move):
            model.append(move)
        else:
            dropped += 1
            assert sum(len(m) + 16 for m in model) + len(move) + 16 > 1024
        used = sum(len(m) + 16 for m in model)
        assert reader.waiting == used
        assert used <= 1024
    assert writer.dropped == dropped
    assert [reader.get() for _ in model] == list(model)
    writer.close()
    reader.close()


def test_a_reader_resumes_at_the_tail(tmp_path):
    writer, reader = pair(tmp_path / "r")
    for i in range(5):
        assert writer.put(bytes([i]))
    assert [reader.get(), reader.get()] == [b"\0", b"\1"]
    reader.close()
    writer.close()
    again = Ring(tmp_path / "r")
    again.open()
    assert [again.get() for _ in range(4)] == [b"\2", b"\3", b"\4", None]
    again.close()


def test_damage_is_counted_and_never_served(tmp_path):
    writer, reader = pair(tmp_path / "r")
    writer.put(b"one" * 10)
    writer.put(b"two")
    with open(tmp_path / "r", "r+b") as file:
        file.seek(256 + 16 + 4)
        file.write(b"X")
    assert reader.get() is None
    assert reader.damaged == 1
    assert reader.waiting == 0
    writer.put(b"three")
    assert reader.get() == b"three"
    writer.close()
    reader.close()


def test_what_never_fits_is_an_error(tmp_path):
    writer, reader = pair(tmp_path / "r", 64)
    with pytest.raises(StoreError, match="larger than its ring"):
        writer.put(bytes(100))
    writer.close()
    reader.close()


def test_not_a_ring(tmp_path):
    (tmp_path / "r").write_bytes(b"x" * 5000)
    with pytest.raises(LinkError, match="not a ring"):
        Ring(tmp_path / "r").open()
    with pytest.raises(LinkError, match="no ring"):
        Ring(tmp_path / "absent").open()


WRITER = """
import sys
from pathlib import Path
from user_system.edge.rings import Ring
ring = Ring(Path(sys.argv[1]), 1 << 16)
ring.open()
number = int(sys.argv[2])
while True:
    if ring.put(number.to_bytes(8, "little") * (1 + number % 90)):
        number += 1
"""


@pytest.mark.system
def test_killed_writers_leave_whole_records(tmp_path):
    """Whenever a writer is killed, what can be read is a prefix of what it wrote."""
    expected = 0
    for _ in range(5):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "r"), str(expected)])
        reader = Ring(tmp_path / "r", 1 << 16)
        reader.open()
        until = expected + 2000
        deadline = time.monotonic() + 60
        killed = False
        while not killed or reader.waiting:
            record = reader.get()
            if record is not None:
                number = int.from_bytes(record[:8], "little")
                assert number == expected
                assert record == number.to_bytes(8, "little") * (1 + number % 90)
                expected += 1
            elif not killed:
                assert time.monotonic() < deadline
            if expected >= until and not killed:
                os.kill(child.pid, signal.SIGKILL)
                child.wait()
                killed = True
        assert reader.damaged == 0
        reader.close()


@pytest.fixture
def ends(tmp_path):
    server, client = Duplex(tmp_path / "s", "listen"), Duplex(tmp_path / "s", "connect")
    server.open()
    client.open()
    assert server.receive(5.0) is None
    assert server.connected
    yield server, client
    client.close()
    server.close()


def test_messages_cross_both_ways(ends):
    server, client = ends
    values = np.arange(6, dtype=np.float64).reshape(2, 3)
    assert client.send({"k": "a", "n": 1}, {"values": values})
    meta, arrays = server.receive(5.0)
    assert meta == {"k": "a", "n": 1}
    assert np.array_equal(arrays["values"], values)
    assert server.send({"k": "b"})
    assert client.receive(5.0) == ({"k": "b"}, {})


def test_each_side_learns_of_the_others_death(ends):
    server, client = ends
    client.close()
    assert server.receive(5.0) is None
    assert not server.connected
    client.open()
    server.receive(5.0)
    assert server.connected
    server.close()
    assert client.receive(5.0) is None
    assert not client.connected
    with pytest.raises(LinkError, match="nobody listens"):
        client.open()


def test_what_was_said_before_death_is_still_heard(ends):
    server, client = ends
    client.send({"n": 1})
    client.send({"n": 2})
    client.close()
    assert [server.receive(5.0)[0]["n"], server.receive(5.0)[0]["n"]] == [1, 2]


def test_the_newest_client_wins(ends, tmp_path):
    server, client = ends
    second = Duplex(tmp_path / "s", "connect")
    second.open()
    assert server.receive(5.0) is None
    assert client.receive(5.0) is None
    assert not client.connected
    assert server.connected
    second.close()


def test_only_one_process_listens(ends, tmp_path):
    server, client = ends
    second = Duplex(tmp_path / "s", "listen")
    with pytest.raises(LinkError, match="another process listens"):
        second.open()
    client.send({"n": 1})
    assert server.receive(5.0)[0] == {"n": 1}
    server.close()
    second.open()
    second.close()


def test_a_full_ring_refuses_and_the_bell_does_not_block(ends):
    server, client = ends
    sent = sum(client.send({"n": n}, {"x": np.zeros(1000)}) for n in range(400))
    assert 0 < sent < 400
    assert client.stats()["dropped"] == 400 - sent
    numbers = []
    while (message := server.receive(0.0)) is not None:
        numbers.append(message[0]["n"])
    assert numbers == list(range(sent))


def test_no_wake_up_is_lost(ends):
    """A reader that waits is woken by each message, however the two interleave."""
    server, client = ends
    count = 3000
    got = []

    def read():
        while len(got) < count:
            message = server.receive(10.0)
            if message is None:
                return
            got.append(message[0]["n"])
            client_gate.set()

    client_gate = threading.Event()
    thread = threading.Thread(target=read)
    thread.start()
    for n in range(count):
        client_gate.clear()
        client.send({"n": n})
        if n % 3 == 0:
            client_gate.wait(10.0)
    thread.join(30.0)
    assert got == list(range(count))


def test_the_layout_is_fixed():
    assert rings.MAGIC.to_bytes(8, "little")[1:] == b"USRING1"


def test_a_ring_has_its_blocks_from_the_start(tmp_path):
    """A put into a hole of a full disk would end the process."""
    ring = Ring(tmp_path / "ring", 1 << 20)
    ring.open()
    ring.close()
    assert (tmp_path / "ring").stat().st_blocks * 512 >= 1 << 20


def test_a_disk_without_room_is_an_error_that_says_so(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(StoreError, match=r"cannot make .*No space left"):
        Ring(tmp_path / "ring", 1 << 20).open()
    assert list(tmp_path.iterdir()) == []
