"""More is under way where losses make acknowledgements late, and nowhere else."""

import pytest

from comms.lateness import Lateness

BASE_S = 0.2


def look(trips: list[float], *, queue_s: float = 0.0, piece_s: float = 0.0, calm: bool = True):
    late = Lateness(0.0)
    for trip in trips:
        late.arrived(1000, trip)
    late.look(1.0, BASE_S, queue_s, piece_s, calm)
    return late


def test_half_of_the_pieces_say_by_how_much():
    assert look([0.2, 0.4, 0.45, 0.6, 0.2, 0.5]).extra_s == pytest.approx(0.225)
    assert look([0.2] * 6 + [0.8] * 5).extra_s == 0, "a loss now and then"
    assert look([0.2, 5.0, 5.0]).extra_s == pytest.approx(0.05 + 2 * BASE_S), "bounded"


def test_a_queue_and_pieces_that_wait_for_each_other_are_no_losses():
    assert look([0.4] * 5, queue_s=0.19).extra_s == 0
    assert look([0.25] * 5, piece_s=0.03).extra_s == 0
    assert look([0.25] * 5, piece_s=0.01).extra_s == pytest.approx(0.05)


def test_it_grows_only_while_echoes_find_no_queue():
    late = look([0.4] * 5, calm=False)
    assert late.extra_s == 0
    late.arrived(1000, 0.5)
    late.look(2.0, BASE_S, 0.0, 0.0, True)
    assert late.extra_s == pytest.approx(0.3)
    late.arrived(1000, 0.3)
    late.look(3.0, BASE_S, 0.0, 0.0, False)
    assert late.extra_s == pytest.approx(0.1), "and falls whenever they are less late"


def test_it_is_looked_at_once_a_period():
    late = look([0.4] * 5)
    late.arrived(1000, 0.2)
    late.look(1.1, BASE_S, 0.0, 0.0, True)
    assert late.extra_s == pytest.approx(0.2)
    assert late.mean == pytest.approx(5000)
    late.restart(2.0)
    late.look(9.0, BASE_S, 0.0, 0.0, True)
    assert late.extra_s == pytest.approx(0.2), "nothing arrived, nothing is known"
