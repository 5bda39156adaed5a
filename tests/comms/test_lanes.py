"""The cap fills a link and leaves little in its queue; lanes give way to each other by rank."""

import importlib.util
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from comms.delay import Delay
from comms.lanes import LEAST, TARGET_S, Pipe, Ticket

_spec = importlib.util.spec_from_file_location(
    "simulated_link", Path(__file__).with_name("simulated_link.py")
)
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
SimulatedLink: Any = _module.SimulatedLink

MBIT = 125_000.0


class Hand:
    """A pipe whose time and echoes are moved by hand."""

    def __init__(self, base_s: float | None = 0.1) -> None:
        self.now, self.delay, self.base = 100.0, Delay(), base_s
        trip = Delay()
        if base_s is not None:
            trip.sample(base_s, self.now)
        self.pipe = Pipe(self.delay, trip, now=lambda: self.now)
        self.first, self.second = self.pipe.lane("first"), self.pipe.lane("second")

    def learn(self, rate: float, seconds: float = 3.0) -> None:
        """Let the pipe see a rate, bytes/s, with echoes that find a queue which is neither."""
        piece, under_way = rate * 0.01, []
        for _ in range(int(seconds / 0.01)):
            self.now += 0.01
            self.delay.sample(0.03 if self.delay.base is not None else 0.0, self.now)
            self.first.want()
            under_way.append(Ticket(int(piece), self.pipe.sent(int(piece))))
            if len(under_way) > 100 * (self.base or 0.0):
                self.first.done(under_way.pop(0))
        while under_way:
            self.first.done(under_way.pop(0))
        self.now += 3.0


# --- against the model of a queue -----------------------------------------------------------------


@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    mbit=st.floats(-0.3, 2.5).map(lambda power: 10**power),
    base_s=st.floats(-3.0, -0.8).map(lambda power: 10**power),
    jitter_s=st.one_of(st.just(0.0), st.floats(0.0, 0.01)),
    seed=st.integers(0, 1 << 20),
)
def test_the_queue_stays_short_and_the_link_full(mbit, base_s, jitter_s, seed):
    """0.5 to 300 Mbit/s, 1 to 160 ms: what is urgent waits 50 ms and a piece, 90 % are used."""
    link = SimulatedLink(mbit * MBIT, base_s, jitter_s, seed)
    link.run(6.0)  # it is got to know
    delivered, since = link.delivered, link.now
    link.run(12.0)
    waits = link.waits(since)
    # What jitters the echoes is in the base and in the queue that they show.
    bound = TARGET_S + link.lane.chunk() / link.rate + 2 * jitter_s
    assert waits[int(0.99 * len(waits))] <= bound
    assert waits[-1] <= bound + 0.02, "as it is emptied and filled again, and after a bad sample"
    assert link.delivered - delivered >= 0.9 * link.rate * (link.now - since)


@pytest.mark.parametrize("base_s", [0.005, 0.1])
def test_a_new_link_of_little_more_than_was_assumed_is_not_flooded(base_s):
    link = SimulatedLink(1.5 * MBIT, base_s)
    link.run(3.0)
    assert link.waits()[-1] <= base_s + TARGET_S + 2 * LEAST / link.rate


@pytest.mark.parametrize(("before", "after"), [(20.0, 1.0), (1.0, 20.0), (5.0, 0.5)])
def test_a_link_that_changes_is_followed(before, after):
    link = SimulatedLink(before * MBIT, 0.04)
    link.run(8.0)
    link.rate = after * MBIT
    link.run(8.0)
    delivered, since = link.delivered, link.now
    link.run(6.0)
    waits = link.waits(since)
    assert waits[int(0.99 * len(waits))] <= TARGET_S + link.lane.chunk() / link.rate
    assert link.delivered - delivered >= 0.9 * link.rate * (link.now - since)


def test_a_way_that_becomes_longer_is_not_taken_for_a_queue_for_good():
    link = SimulatedLink(10 * MBIT, 0.02)
    link.run(8.0)
    link.base_s = 0.15
    link.run(15.0)
    delivered, since = link.delivered, link.now
    link.run(8.0)
    assert link.trip.base == pytest.approx(0.15, abs=0.01)
    assert link.delivered - delivered >= 0.9 * link.rate * (link.now - since)


def test_acknowledgements_that_come_late_for_no_queue_do_not_stop_the_link():
    """As TCP holds back what came after a gap: echoes find no queue, so the cap is raised."""
    link = SimulatedLink(10 * MBIT, 0.1)
    answer_at = link.answer_at
    link.answer_at = lambda there: answer_at(there) + 0.15
    link.run(15.0)
    delivered, since = link.delivered, link.now
    link.run(8.0)
    assert link.delivered - delivered >= 0.85 * link.rate * (link.now - since)


@pytest.mark.parametrize("ever", [True, False])
def test_without_echoes_a_link_with_losses_is_not_starved(ever):
    """The fresh lane is down and experience is not: acknowledgements are all that is known."""
    link = SimulatedLink(10 * MBIT, 0.1)
    link.run(8.0 if ever else 0.0)
    link.echo = lambda: None
    late = itertools.cycle([0.0, 0.3, 0.5])
    answer_at = link.answer_at
    link.answer_at = lambda there: answer_at(there) + next(late)
    link.run(40.0)
    delivered, since = link.delivered, link.now
    link.run(10.0)
    assert link.delivered - delivered >= 0.8 * link.rate * (link.now - since)


def test_what_is_sent_now_and_then_teaches_no_false_rate():
    link = SimulatedLink(10 * MBIT, 0.04)
    link.run(6.0)
    known = link.pipe.rate
    budget = [0]
    link.offered = lambda: budget[0]
    for _ in range(100):
        link.run(0.1)
        ticket = link.lane.take(1000, 0.0)
        there = link.enqueue(1000)
        link.at(link.answer_at(there), lambda ticket=ticket: link.arrived(ticket))
    assert link.pipe.rate == pytest.approx(known, rel=0.05)


# --- by hand --------------------------------------------------------------------------------------


def test_the_cap_is_the_rate_times_the_base_and_fifty_ms():
    hand = Hand(base_s=0.1)
    hand.learn(10 * MBIT)
    assert hand.pipe.rate == pytest.approx(10 * MBIT, rel=0.1)
    assert hand.pipe.limit() == pytest.approx(hand.pipe.rate * 0.15, rel=0.01)


def test_nothing_is_known_at_first_and_little_is_sent():
    hand = Hand(base_s=None)
    assert hand.pipe.limit() == MBIT * TARGET_S
    assert hand.first.take(4000, 0.0) is not None
    assert hand.first.take(4000, 0.0) is None


def test_what_is_larger_than_all_that_may_be_passes_alone():
    hand = Hand()
    ticket = hand.first.take(10 << 20, 0.0)
    assert ticket is not None
    assert hand.first.take(1, 0.0) is None
    hand.first.done(ticket)
    assert hand.first.take(1, 0.0) is not None


def test_what_is_lost_makes_room_and_says_nothing_of_the_rate():
    hand = Hand()
    ticket = hand.first.take(10 << 20, 0.0)
    assert ticket is not None
    hand.now += 0.1
    hand.first.lost(ticket)
    assert not hand.pipe.busy
    assert hand.pipe.rate == 0


def test_who_waits_is_woken_by_what_arrives():
    pipe = Pipe(Delay(), Delay())
    lane = pipe.lane("bulk")
    ticket = lane.take(1 << 20, 0.0)
    assert ticket is not None
    threading.Timer(0.2, lane.done, [ticket]).start()
    began = time.monotonic()
    assert lane.take(1 << 20, 30.0) is not None
    assert 0.1 < time.monotonic() - began < 20.0


def test_no_more_goes_at_once_than_the_link_takes_in_a_moment():
    """After a pause the whole cap is free; put on the link at once, it would be a queue."""
    hand = Hand(base_s=0.3)
    hand.learn(10 * MBIT)
    sent = 0
    while (ticket := hand.first.take(hand.first.chunk(), 0.0)) is not None:
        sent += ticket.size
    assert sent < 0.6 * hand.pipe.limit()
    hand.now += 0.1
    assert hand.first.take(hand.first.chunk(), 0.0) is not None


def test_a_lane_gets_what_those_before_it_leave_and_a_sixteenth_at_least():
    hand = Hand()
    hand.learn(8 * MBIT)
    assert hand.second.left() == pytest.approx(hand.pipe.rate / 2)
    assert hand.second.take(2000, 0.0) is not None, "nobody else wants it"
    hand.now += 1.0
    while hand.first.take(hand.first.chunk(), 0.0) is not None:
        pass  # now the first one waits for room
    assert hand.second.left() == pytest.approx(hand.pipe.rate / 16)
    given = 0
    for _ in range(100):
        hand.now += 0.01
        hand.first.want()
        while hand.second.take(1000, 0.0) is not None:
            given += 1000
    assert 0.5 < given / (hand.pipe.rate / 16) < 1.6
    hand.now += 5.0  # the first one has what it wanted
    assert hand.second.left() == pytest.approx(hand.pipe.rate / 2)


def test_a_pipe_that_is_never_seen_empty_is_emptied():
    link = SimulatedLink(5 * MBIT, 0.05)
    seen = []
    release = link.pipe.arrived

    def arrived(ticket: Ticket) -> None:
        release(ticket)
        seen.append(link.pipe.emptying)

    link.pipe.arrived = arrived
    link.run(25.0)
    assert any(seen)
    assert sum(seen) < 0.05 * len(seen)


def test_stats_say_which_lane_is_held_back():
    hand = Hand()
    assert hand.pipe.stats()["held_first"] == 0
    hand.first.take(1 << 20, 0.0)
    hand.first.take(1 << 20, 0.0)
    assert (hand.pipe.stats()["held_first"], hand.pipe.stats()["held_second"]) == (1, 0)
    hand.now += 10
    assert hand.pipe.stats()["held_first"] == 0
