from random import Random

from hypothesis import given
from hypothesis import strategies as st

from user_system.core.supervise import Backoff


class Top(Random):
    """Always draws the upper end, so that the ceiling can be seen."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_ceiling_doubles_up_to_the_cap():
    backoff = Backoff(base_s=0.5, cap_s=3.0, rng=Top())
    assert [backoff.died(0.0) for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_quiet_life_clears_the_count():
    backoff = Backoff(base_s=0.5, cap_s=30.0, quiet_s=10.0, rng=Top())
    for _ in range(5):
        backoff.died(1.0)
    assert backoff.died(10.0) == 0.5
    assert backoff.failures == 1


@given(st.lists(st.floats(0, 100), min_size=1, max_size=2000), st.integers())
def test_delays_stay_between_zero_and_the_cap(lives, seed):
    backoff = Backoff(rng=Random(seed))
    assert all(0 <= backoff.died(lived) <= backoff.cap_s for lived in lives)


def test_two_that_died_together_do_not_come_back_together():
    one, two = Backoff(rng=Random(1)), Backoff(rng=Random(2))
    assert [one.died(0.0) for _ in range(5)] != [two.died(0.0) for _ in range(5)]


def test_thousands_of_deaths_do_not_overflow():
    backoff = Backoff(failures=5000, rng=Top())
    assert backoff.died(0.0) == backoff.cap_s
