"""What people are told of a link is what is known of it, and no more."""

from comms.link import Link
from user_system.cluster.status import LANES, link_of


def test_what_is_known_is_said_in_words():
    figures = {"base_rtt_ms": 41.2, "rtt_ms": 88.9, "rate_mbit_s": 0.8423, "loss": 0.0123}
    held = {"held_experience": 1.0, "held_video": 1.0, "held_weights": 0.0, "spool_fragments": 9.0}
    said = link_of({**figures, **held})
    assert said == ("41 ms (now 89), 0.842 Mbit/s up, 1.2 % lost, held back: experience, video")


def test_what_is_not_known_is_left_out():
    assert link_of({"spool_fragments": 3.0}) == ""
    assert link_of({"base_rtt_ms": 41.2}) == "41 ms"
    assert link_of(Link().stats()) == ""


def test_every_lane_has_its_name():
    assert {f"held_{lane}" for lane in LANES} == set(Link().stats())
