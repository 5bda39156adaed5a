"""Pictures for people are as good as the link has room for, and get better again."""

import numpy as np
import pytest

from user_system.edge.pictures import PICTURE_S, RUNGS, Pictures

IMAGE = np.kron(np.random.default_rng(0).integers(0, 255, (48, 64, 3)), np.ones((5, 5, 1)))
IMAGE = IMAGE.astype(np.uint8)


@pytest.mark.parametrize("left", [20_000.0, 100_000.0, 400_000.0])
def test_a_picture_takes_the_link_no_longer_than_it_may(left):
    pictures = Pictures()
    for _ in range(30):
        data = pictures.pack("wrist", IMAGE, left)
        assert data is None or len(data) <= max(2048, PICTURE_S * left)


def test_the_less_room_the_smaller_and_with_room_the_best():
    sizes = [
        len(Pictures().pack("wrist", IMAGE, left) or b"") for left in (2e4, 1e5, 5e5, 1e8, 0.0)
    ]
    assert sizes == sorted(sizes)
    assert sizes[-1] == sizes[-2] > 3 * sizes[0] > 0


def test_a_link_that_gets_better_shows_better_pictures_and_not_at_once():
    pictures = Pictures()
    small = len(pictures.pack("wrist", IMAGE, 10_000.0) or b"")
    assert pictures.degraded
    sizes = [len(pictures.pack("wrist", IMAGE, 1e8) or b"") for _ in range(12 * len(RUNGS))]
    assert sizes[0] == small
    assert sizes == sorted(sizes)
    assert not pictures.degraded
    assert sizes[-1] == len(Pictures().pack("wrist", IMAGE, 0.0) or b"")


def test_cameras_stand_on_rungs_of_their_own():
    pictures = Pictures()
    pictures.pack("large", IMAGE, 10_000.0)
    flat = np.zeros((24, 32, 3), np.uint8)
    assert len(pictures.pack("small", flat, 10_000.0) or b"") > 0
    assert pictures._cameras["small"].rung == 0
    assert pictures._cameras["large"].rung > 0


def test_a_picture_for_which_there_is_no_room_at_all_is_left_out():
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    pictures = Pictures()
    assert pictures.pack("huge", noise, 100.0) is None
    assert pictures.stats() == {"rung": len(RUNGS) - 1, "dropped": 1}
