"""A motion is found to every target, also where the planner's cases meet."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robots.motion import Motion
from robots.sim.config import CARTESIAN

LOW, HIGH = np.asarray(CARTESIAN.low), np.asarray(CARTESIAN.high)
BORDER = [2 * a**3 / j**2 for a, j in zip(CARTESIAN.acceleration, CARTESIAN.jerk, strict=True)]
"""Distance per coordinate at which the acceleration limit is just reached."""


def run(start, target) -> Motion:
    motion = Motion(CARTESIAN)
    motion.place(start)
    motion.head_for(target)
    for _ in range(200):
        motion.advance(0.02)
    return motion


@given(st.lists(st.floats(0.0, 1.0), min_size=7, max_size=7), st.sampled_from([0.5, 1.0, 2.0, 4.0]))
def test_distances_at_the_border_between_two_profiles(shares, times):
    start = LOW + np.asarray(shares) * (HIGH - LOW - 4 * np.asarray(BORDER))
    target = start + times * np.asarray(BORDER)
    motion = run(start, target)
    assert motion.unsolved == 0
    assert motion.advance(0.02) == pytest.approx(target)
