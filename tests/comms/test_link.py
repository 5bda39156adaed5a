"""What a host knows of its link: measured, or left out."""

import os
import socket
import time

import pytest

from comms.delay import Delay
from comms.link import ECHO_BUSY_S, ECHO_S, Link
from comms.rate import Rate
from comms.sockets import Segments, segments


class Far:
    """A link whose other end has another clock, with a queue in either direction."""

    def __init__(self, there_s: float, back_s: float, skew_s: float) -> None:
        self.now, self.skew_s = 50.0, skew_s
        self.there_s, self.back_s = there_s, back_s
        self.counted: dict[int, Segments] = {}
        self.link = Link(lambda: dict(self.counted), now=lambda: self.now)

    def echo(self, queue_there_s: float = 0.0, queue_back_s: float = 0.0) -> None:
        sent = self.now
        there = sent + self.there_s + queue_there_s
        self.now = there + self.back_s + queue_back_s
        self.link.echoed(sent, there + self.skew_s)


@pytest.mark.parametrize("skew_s", [0.0, 3600.0, -1e6])
def test_echoes_tell_there_from_back_whatever_the_clocks_show(skew_s):
    far = Far(0.03, 0.05, skew_s)
    for _ in range(3):
        far.echo()
    for _ in range(3):
        far.echo(queue_there_s=0.2)
    stats = far.link.stats()
    assert stats["base_rtt_ms"] == pytest.approx(80, abs=0.1)
    assert stats["rtt_ms"] == pytest.approx(280, abs=0.1)
    assert far.link._there.queue(far.now) == pytest.approx(0.2, abs=1e-6)
    assert far.link._back.queue(far.now) == pytest.approx(0.0, abs=1e-6)


def test_what_is_not_known_is_not_said():
    link = Link()
    assert link.stats() == dict.fromkeys(
        ("held_experience", "held_behind", "held_video", "held_weights"), 0.0
    )


def test_an_echo_that_cannot_be_ours_is_ignored():
    far = Far(0.03, 0.05, 0.0)
    far.link.echoed(far.now + 1.0, far.now)
    far.link.echoed(far.now - 100.0, far.now)
    assert "rtt_ms" not in far.link.stats()


def test_an_old_round_trip_is_not_the_present_one():
    far = Far(0.03, 0.05, 0.0)
    far.echo()
    far.now += 5.0
    assert "rtt_ms" not in far.link.stats()
    assert far.link.stats()["base_rtt_ms"] == pytest.approx(80, abs=0.1)


def test_loss_is_the_share_of_segments_sent_again_since_the_last_look():
    far = Far(0.03, 0.05, 0.0)
    far.counted = {1: Segments(1000, 100), 2: Segments(10, 0)}
    assert "loss" not in far.link.stats(), "one look says nothing of now"
    far.counted = {1: Segments(1100, 104), 2: Segments(110, 0), 3: Segments(9, 9)}
    far.now += 6.0
    assert far.link.stats()["loss"] == pytest.approx(4 / 200)
    far.now += 6.0
    assert far.link.stats()["loss"] == pytest.approx(4 / 200), "nothing was sent: nothing is new"
    far.counted = {}
    far.now += 6.0
    far.link.stats()
    assert "loss" not in far.link.stats()


def test_echoes_are_frequent_while_bulk_is_under_way():
    link = Link()
    assert link.echo_every_s() == ECHO_S
    ticket = link.weights.take(1000, 0.0)
    assert ticket is not None
    assert link.echo_every_s() <= ECHO_BUSY_S
    link.weights.done(ticket)
    assert link.echo_every_s() == ECHO_S


def test_the_kernel_counts_segments_of_our_own_connections():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as near, server.accept()[0] as far:
            before = segments({port})
            for _ in range(5):
                near.sendall(b"x")
                far.recv(1)
                far.sendall(b"y")  # acknowledged: the next one is a segment of its own
                near.recv(1)
            after = segments({port})
            assert len(before) == len(after) == 1, "the other end is somebody else's"
            (sent,) = (after[key].sent - before[key].sent for key in after)
            assert sent == 5
        assert segments({port}) == {}
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            segments({port})
        assert len(os.listdir("/proc/self/fd")) <= before + 2, "looking leaves nothing open"


# --- delay and rate -------------------------------------------------------------------------------


def test_one_late_sample_is_no_queue():
    delay = Delay()
    for k, seconds in enumerate([0.1, 0.1, 0.9, 0.1]):
        delay.sample(seconds, 10 + 0.1 * k)
    assert delay.queue(10.3) == 0.0
    for k in range(3):
        delay.sample(0.15, 10.4 + 0.1 * k)
    assert delay.queue(10.6) == pytest.approx(0.05)
    assert delay.queue(10.6, since=10.5) is None, "two samples are too few"
    assert delay.queue(20.0) is None, "and old ones say nothing"


def test_the_base_is_the_least_of_late():
    delay = Delay()
    delay.sample(0.1, 0.0)
    delay.sample(0.2, 10.0)
    assert delay.base == 0.1
    delay.sample(0.3, 16.0)
    assert delay.base == 0.2
    delay.forget(15.0)
    assert delay.base == 0.3


def test_a_rate_sample_of_too_little_to_send_counts_only_upwards():
    rate, now = Rate(), 0.0
    for full, size, expected in [(True, 1000, 10_000), (False, 10, 10_000), (False, 2000, 20_000)]:
        mark = rate.send(now, idle=True, full=full)
        now += 0.1
        rate.arrived(mark, size, now, 10.0, 0.0)
        assert rate.value == pytest.approx(expected)
    now += 100.0
    mark = rate.send(now, idle=True, full=False)
    rate.arrived(mark, 10, now + 0.1, 10.0, 0.0)
    assert rate.value == pytest.approx(20_000), "nothing was tried since"
    mark = rate.send(now, idle=True, full=True)
    rate.arrived(mark, 1000, now + 0.1, 10.0, 0.0)
    assert rate.value < 11_000


def test_acknowledgements_in_a_bunch_pretend_no_speed():
    rate = Rate()
    marks = []
    for k in range(20):
        marks.append(rate.send(k * 0.01, idle=k == 0, full=True))
    for mark in marks:  # 1,000 bytes each 10 ms, all acknowledged in one ms
        rate.arrived(mark, 1000, 0.3, 10.0, 0.0)
    assert rate.value <= 110_000


def test_a_bunch_on_one_connection_pretends_no_speed_on_another():
    """What one brought late, all at once, is not what the other's pieces took."""
    rate, now = Rate(), 0.0
    late = [rate.send(0.01 * k, idle=k == 0, full=True) for k in range(10)]
    now = 0.1
    for k in range(10):  # the other one's pieces come after 50 ms each
        mark = rate.send(now, idle=False, full=True)
        if k == 8:
            for held in late:
                rate.arrived(held, 1000, now + 0.04, 10.0, 0.03)
        now += 0.05
        rate.arrived(mark, 1000, now, 10.0, 0.03)
    assert rate.value <= 40_000, "20 pieces in half a second"
    other = rate.send(now, idle=False, full=True)
    rate.gone(other)
    assert rate.send(now + 0.2, idle=False, full=True).first_sent == now + 0.2


def test_what_is_stuck_for_long_holds_no_sample_down():
    rate = Rate()
    rate.send(0.0, idle=True, full=True)  # on a connection that is gone, and nobody knows yet
    for k in range(20):
        mark = rate.send(2.0 + 0.1 * k, idle=False, full=True)
        rate.arrived(mark, 1000, 2.1 + 0.1 * k, 10.0, 0.05)
    assert rate.value == pytest.approx(10_000)


def test_a_clock_is_asked_for_by_default():
    before = time.monotonic()
    link = Link()
    link.echoed(before, 0.0)
    assert link.stats()["rtt_ms"] < 60_000
