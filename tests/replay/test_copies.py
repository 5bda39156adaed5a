"""Whichever way runs of bytes are copied, they are the right ones, and nothing else changes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_system.replay import copies
from user_system.replay.mapped import PAGE

SOURCE = np.random.default_rng(0).integers(0, 256, 16 * PAGE + 100, np.uint8)


def expected(size, starts):
    return np.stack([SOURCE[start : start + size] for start in starts])


@given(st.integers(1, 3), st.lists(st.integers(0, 13), min_size=1, max_size=300))
def test_runs_of_whole_pages(pages, numbers):
    size, starts = pages * PAGE, np.array(numbers) * PAGE
    out = np.zeros((len(starts), size), np.uint8)
    copies.take(SOURCE.data, size, starts, out)
    assert (out == expected(size, starts)).all()


@given(st.integers(1, 300), st.lists(st.integers(0, 16 * PAGE - 300), min_size=1, max_size=300))
def test_runs_of_any_size_at_any_place(size, starts):
    out = np.zeros((len(starts), size), np.uint8)
    copies.take(SOURCE.data, size, np.array(starts), out)
    assert (out == expected(size, starts)).all()


@given(st.integers(1, 300), st.sets(st.integers(0, 8)))
def test_runs_to_some_places_leave_the_others_alone(size, chosen):
    slots = np.array(sorted(chosen), np.int64)
    starts = slots * 7 + 5
    out = np.full((9, size), 77, np.uint8)
    copies.scatter(SOURCE.data, size, starts, out, slots)
    for slot in range(9):
        if slot in chosen:
            assert (out[slot] == SOURCE[slot * 7 + 5 : slot * 7 + 5 + size]).all()
        else:
            assert (out[slot] == 77).all()


def test_one_run_that_begins_at_no_page_among_others_that_do():
    starts = np.array([0, 2 * PAGE, PAGE + 8, 3 * PAGE])
    out = np.zeros((4, PAGE), np.uint8)
    copies.take(SOURCE.data, PAGE, starts, out)
    assert (out == expected(PAGE, starts)).all()


def test_an_array_that_is_not_contiguous_is_refused_rather_than_left_unfilled():
    out = np.zeros((4, 2 * PAGE), np.uint8)[:, ::2]
    with pytest.raises((ValueError, AttributeError)):
        copies.take(SOURCE.data, PAGE, np.zeros(4, np.int64), out)
