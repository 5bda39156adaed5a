"""Space for what is expected is taken at once, and changes nothing about what is there."""

import numpy as np

from user_system.replay.columns import Column


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
