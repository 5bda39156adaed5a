"""The figures of a loop's periods say what the periods were."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_system.edge import periods
from user_system.edge.periods import Periods

MS = 1_000_000


@pytest.fixture(autouse=True)
def _fresh_figures(monkeypatch):
    monkeypatch.setattr(periods, "REFRESH_S", -1.0)


def test_an_even_loop_has_no_error():
    loop = Periods(20.0)
    for number in range(101):
        loop.begins(number * 50 * MS, 1.0)
    assert loop.stats() == {"periods_measured": 100.0, "period_p50_ms": 0.0, "period_p99_ms": 0.0}


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=200))
def test_errors_are_taken_from_the_length_of_each_period(late_ms):
    loop, now = Periods(20.0), 0
    loop.begins(now, 1.0)
    for late in late_ms:
        now += (50 + late) * MS
        loop.begins(now, 1.0)
    wanted = np.percentile(np.abs(late_ms), 99, method="higher")
    assert loop.stats()["period_p99_ms"] == pytest.approx(float(wanted))


def test_lateness_is_measured_in_wall_time_at_any_rate():
    loop = Periods(10.0)
    for start in (0, 10 * MS, 22 * MS):
        loop.begins(start, 10.0)
    assert loop.stats()["period_p99_ms"] == pytest.approx(2.0)


def test_neither_a_change_of_rate_nor_a_pause_is_an_error():
    loop = Periods(10.0)
    loop.begins(0, 10.0)
    loop.begins(100 * MS, 1.0)
    loop.pauses()
    loop.begins(900 * MS, 1.0)
    assert loop.stats() == {"periods_measured": 0.0}


def test_only_the_newest_periods_count():
    loop, now = Periods(10.0), 0
    loop.begins(now, 1.0)
    for length in [500] * periods.WINDOW + [100] * periods.WINDOW:
        now += length * MS
        loop.begins(now, 1.0)
    assert loop.stats()["period_p99_ms"] == 0.0
