"""What people are told of a link is what is known of it, and no more."""

from dataclasses import replace

from comms.link import Link
from user_system.cluster.status import LANES, RobotView, link_of, version_of
from user_system.core.modes import Mode


def test_what_is_known_is_said_in_words():
    figures = {"base_rtt_ms": 41.2, "rtt_ms": 88.9, "rate_mbit_s": 0.8423, "loss": 0.0123}
    held = {"held_experience": 1.0, "held_video": 1.0, "held_weights": 0.0, "spool_fragments": 9.0}
    said = link_of({**figures, **held})
    assert said == ("41 ms (now 89), 0.842 Mbit/s up, 1.2 % lost, held back: experience, video")


def test_what_is_not_known_is_left_out():
    assert link_of({"spool_fragments": 3.0}) == ""
    assert link_of({"base_rtt_ms": 41.2}) == "41 ms"
    assert link_of(Link().stats()) == ""


def test_a_robot_that_acts_with_old_weights_is_shown():
    robot = RobotView("arm-1", online=True, mode=Mode.AUTO, version=7, figures={})
    assert version_of(robot) == "7"
    assert version_of(replace(robot, figures={"weights_stale_s": 0.4})) == "7"
    stale = replace(robot, figures={"weights_stale_s": 61.7})
    assert version_of(stale) == "7 (62 s stale)"
    assert version_of(replace(stale, mode=Mode.EVAL)) == "7"


def test_every_lane_has_its_name():
    assert {f"held_{lane}" for lane in LANES} == set(Link().stats())
