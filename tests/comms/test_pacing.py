"""The window follows how long things wait at the server."""

from comms.pacing import Limits, Pacing

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
        pacing.waited(0.1, 0.002, 4)
    assert pacing.credit(4) == 2
    for _ in range(1000):
        pacing.waited(0.001, 0.001, 4)
    assert pacing.credit(4) == 64, "four streams may have 64 each when the server keeps up"


def test_it_settles_where_the_wait_is_what_is_wanted() -> None:
    """A server that does 1000 a second, with as many under way as it allows."""
    pacing = Pacing(LIMITS)
    for _ in range(500):
        pacing.waited(4 * pacing.credit(4) / 1000, 0.001, 4)
    assert 8 <= 4 * pacing.credit(4) <= 24


def test_a_slow_disk_shrinks_nothing() -> None:
    """A flush takes as long for few as for many: fewer under way would only be fewer."""
    pacing = Pacing(LIMITS)
    for _ in range(100):
        pacing.waited(0.39, 0.2, 4)
    assert pacing.credit(4) == 64


def test_a_disk_that_became_slow_is_understood() -> None:
    pacing = Pacing(LIMITS)
    for _ in range(100):
        pacing.waited(0.002, 0.001, 4)
    for _ in range(400):
        pacing.waited(0.39, 0.2, 4)
    assert pacing.credit(4) == 64


def test_groups_stay_large_enough_to_be_worth_a_flush() -> None:
    pacing = Pacing(Limits(least=2, most=64, together=32))
    for _ in range(100):
        pacing.waited(0.1, 0.002, 4)
    assert pacing.credit(4) == 8
    assert pacing.credit(60) == 2
