"""Columns of all steps, whose space is taken at once, and of some, which take no more."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from user_system.replay.columns import Column, Extra


def test_what_is_there_stays_when_space_is_made():
    column = Column("int32", (2,))
    column.extend(np.arange(20).reshape(10, 2))
    column.reserve(5_000)
    assert column.data.tolist() == np.arange(20).reshape(10, 2).tolist()
    space = column.nbytes
    column.repeat(7, 5_000)
    assert (len(column), column.nbytes) == (5_010, space)


def test_space_for_little_more_is_left_to_doubling():
    """A column that took just what it needs would be copied at every step of a growing store."""
    column = Column("int32")
    column.repeat(0, 256)
    for _ in range(100):
        column.reserve(1)
        column.repeat(0, 1)
    assert column.nbytes == 4 * 512


pieces = st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=12)


@given(st.lists(pieces, max_size=4), st.sampled_from(["float32", "int16"]))
def test_an_extra_says_for_every_step_what_was_recorded(blocks, dtype):
    """Whatever fragments have it, in whatever blocks they come."""
    extra = Extra(np.dtype(dtype), (2,))
    wanted: list[list[float] | None] = []
    for block in blocks:
        firsts, counts, values = [], [], []
        for there, steps in block:
            if there:
                firsts.append(len(wanted))
                counts.append(steps)
                values += [[len(wanted) + i, -1] for i in range(steps)]
            wanted += [[len(wanted) + i, -1] if there else None for i in range(steps)]
        if firsts:
            extra.extend(np.array(firsts), np.array(counts), np.array(values, dtype))
    if not len(extra.values):
        return
    rows = np.arange(len(wanted)).reshape(1, -1)
    none = [np.nan] * 2 if dtype == "float32" else [0, 0]
    assert extra.has(rows).tolist() == [[value is not None for value in wanted]]
    assert np.array_equal(
        extra.at(rows), [[none if v is None else v for v in wanted]], equal_nan=dtype == "float32"
    )


def test_an_extra_that_all_have_is_one_run():
    extra = Extra(np.dtype("float32"), ())
    for first in range(0, 400, 8):
        extra.extend(np.array([first, first + 4]), np.array([4, 4]), np.zeros(8, np.float32))
    assert extra.has(np.arange(402)).tolist() == [True] * 400 + [False] * 2
    assert extra.nbytes <= 4 * 2 * 400 + 3 * 8 * 2
