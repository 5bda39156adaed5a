"""The window follows how long things wait at the server."""

import random

import pytest

from comms.pacing import Cost, Limits, Pacing

LIMITS = Limits(least=2, most=64, together=8, target_s=0.015)


def test_one_stream_may_have_all_there_is() -> None:
    assert Pacing(LIMITS).credit(1) == 64


def test_streams_share_one_window() -> None:
    pacing = Pacing(LIMITS)
    assert pacing.credit(4) == 16
    assert pacing.credit(1000) == 2


def test_it_shrinks_while_things_wait_and_grows_back() -> None:
    pacing = Pacing(LIMITS)
    for _ in range(100):
        pacing.waited(0.1, 0.002, 8, 4)
    assert pacing.credit(4) == 2
    for _ in range(1000):
        pacing.waited(0.001, 0.001, 8, 4)
    assert pacing.credit(4) == 64, "four streams may have 64 each when the server keeps up"


def served(pacing: Pacing, fixed: float, each: float, groups: int = 500) -> None:
    """Serve four streams that send all they may: half of it is in each group, in turns."""
    chance, before = random.Random(1), 0.0
    for _ in range(groups):
        count = max(1, round(4 * pacing.credit(4) * chance.uniform(0.4, 0.6)))
        work = (fixed + each * count) * chance.uniform(0.95, 1.05)
        pacing.waited(before + work, work, count, 4)
        before = work


def test_it_settles_where_the_wait_is_what_is_wanted() -> None:
    """A server whose time goes by what it is sent: more under way only waits longer."""
    pacing = Pacing(LIMITS)
    served(pacing, 0.001, 0.001)
    assert 8 <= 4 * pacing.credit(4) <= 24


def test_a_slow_disk_shrinks_nothing() -> None:
    """A flush takes as long for few as for many: fewer under way would only be fewer."""
    pacing = Pacing(LIMITS)
    served(pacing, 0.2, 0.0001)
    assert pacing.credit(4) == 64


def test_a_disk_that_became_slow_is_understood() -> None:
    pacing = Pacing(LIMITS)
    served(pacing, 0.001, 0.0001)
    served(pacing, 0.2, 0.0001)
    assert pacing.credit(4) == 64


def test_what_a_group_costs_however_small_is_told_from_what_each_of_it_costs() -> None:
    cost, chance = Cost(), random.Random(2)
    assert cost.fixed == 0
    for _ in range(300):
        count = chance.randint(4, 40)
        cost.learn(count, 0.003 + 0.0005 * count)
    assert cost.fixed == pytest.approx(0.003, abs=0.0005)


def test_groups_that_are_alike_say_nothing_of_what_each_costs() -> None:
    cost = Cost()
    for _ in range(300):
        cost.learn(16, 0.2)
    assert cost.fixed == pytest.approx(0.2)


def test_groups_stay_large_enough_to_be_worth_a_flush() -> None:
    pacing = Pacing(Limits(least=2, most=64, together=32))
    for _ in range(100):
        pacing.waited(0.1, 0.002, 8, 4)
    assert pacing.credit(4) == 8
    assert pacing.credit(60) == 2
