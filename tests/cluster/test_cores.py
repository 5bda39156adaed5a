"""Which CPUs are whose."""

import pytest

from user_system.cluster.cores import Cores, divide


@pytest.mark.parametrize(
    ("cpus", "wanted", "whose"),
    [
        ((0, 1), 1.0, Cores((0,), (1,))),
        ((5, 3, 4), 1.5, Cores((3,), (4, 5))),
        ((0, 1, 2, 3), 0.5, Cores((0, 1, 2), (3,))),
        ((0, 1), 0.0, Cores()),
        ((0,), 1.0, Cores()),
        ((0, 1), 2.0, Cores()),
        ((0, 1), 7.0, Cores()),
        ((), 1.0, Cores()),
    ],
)
def test_learners_have_what_they_reserve_and_robots_the_rest(cpus, wanted, whose) -> None:
    assert divide(cpus, wanted) == whose
