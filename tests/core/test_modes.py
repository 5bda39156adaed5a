from itertools import product

import pytest

from user_system.core.errors import TransitionError
from user_system.core.modes import (
    HUMAN_MODES,
    POLICY_MODES,
    SEGMENT,
    STOPPED_MODES,
    TABLE,
    Event,
    Mode,
    Who,
    allowed,
    follow,
)
from user_system.core.types import HUMAN_SEGMENTS, Segment


@pytest.mark.parametrize(("mode", "event", "who"), list(product(Mode, Event, Who)))
def test_follow_agrees_with_the_table(mode, event, who):
    row = TABLE.get((mode, event))
    if row is not None and who in row[1]:
        assert follow(mode, event, who) is row[0]
        assert event in allowed(mode, who)
    else:
        with pytest.raises(TransitionError, match=f"{who} may not cause {event} in mode {mode}"):
            follow(mode, event, who)
        assert event not in allowed(mode, who)


@pytest.mark.parametrize("mode", list(STOPPED_MODES))
def test_only_the_operator_leaves_a_stopped_mode(mode):
    ways = {
        (event, who)
        for (m, event), (to, askers) in TABLE.items()
        if m is mode
        for who in askers
        if to not in STOPPED_MODES
    }
    assert ways == {(Event.RELEASE, Who.OPERATOR)}
    assert follow(mode, Event.RELEASE, Who.OPERATOR) is Mode.HOLD


def test_nothing_leads_out_of_estop_into_fault():
    """Else a fault would wash a pressed stop away."""
    assert {to for (mode, _), (to, _) in TABLE.items() if mode is Mode.ESTOP} == {
        Mode.ESTOP,
        Mode.HOLD,
    }


@pytest.mark.parametrize(("mode", "who"), list(product(Mode, Who)))
def test_anyone_can_press_stop_anywhere(mode, who):
    assert follow(mode, Event.ESTOP, who) is Mode.ESTOP


@pytest.mark.parametrize("mode", list(Mode))
def test_bystanders_can_only_stop(mode):
    assert allowed(mode, Who.ANYONE) == [Event.ESTOP]


@pytest.mark.parametrize("mode", [m for m in Mode if m not in STOPPED_MODES])
def test_a_driver_can_report_a_fault_from_every_mode(mode):
    assert follow(mode, Event.FAULT, Who.DRIVER) is Mode.FAULT


@pytest.mark.parametrize("mode", [m for m in Mode if m not in STOPPED_MODES | {Mode.HOLD}])
@pytest.mark.parametrize("who", [Who.OPERATOR, Who.SESSION, Who.DETECTOR, Who.DRIVER])
def test_whatever_moves_can_be_held(mode, who):
    assert follow(mode, Event.HOLD, who) is Mode.HOLD


@pytest.mark.parametrize("mode", [Mode.DEMO, Mode.RECOVERY, Mode.CORRECTION])
def test_a_person_steps_in_only_by_his_own_wish(mode):
    assert mode in HUMAN_MODES
    ways = [askers for (_, _), (to, askers) in TABLE.items() if to is mode]
    assert ways
    assert all(askers == {Who.OPERATOR} for askers in ways)


def test_takeover_walk():
    """AUTO -> HOLD -> REWIND -> RECOVERY -> CORRECTION -> hand back."""
    walk = [
        (Event.HOLD, Who.DETECTOR, Mode.HOLD),
        (Event.REWIND, Who.OPERATOR, Mode.REWIND),
        (Event.DONE, Who.SESSION, Mode.HOLD),
        (Event.RECOVER, Who.OPERATOR, Mode.RECOVERY),
        (Event.CORRECT, Who.OPERATOR, Mode.CORRECTION),
        (Event.HAND_BACK, Who.OPERATOR, Mode.HANDBACK),
        (Event.DONE, Who.SESSION, Mode.AUTO),
    ]
    mode = Mode.AUTO
    for event, who, expected in walk:
        mode = follow(mode, event, who)
        assert mode is expected


def test_a_policy_never_drives_straight_after_a_person_or_a_stop():
    into = {mode for (mode, _), (to, _) in TABLE.items() if to in POLICY_MODES}
    assert into == {Mode.HOLD, Mode.HANDBACK}


def test_every_mode_can_be_reached_and_left():
    reached, frontier = {Mode.HOLD}, [Mode.HOLD]
    while frontier:
        mode = frontier.pop()
        for (m, _), (to, _) in TABLE.items():
            if m is mode and to not in reached:
                reached.add(to)
                frontier.append(to)
    assert reached == set(Mode)
    assert {m for (m, _), (to, _) in TABLE.items() if to is not m} == set(Mode)


def test_every_mode_has_a_segment_and_people_drive_in_human_ones():
    assert SEGMENT.keys() == set(Mode)
    assert {SEGMENT[mode] for mode in HUMAN_MODES} == HUMAN_SEGMENTS
    assert {SEGMENT[mode] for mode in POLICY_MODES} == {Segment.AUTO}
    assert {mode for mode in Mode if SEGMENT[mode] in HUMAN_SEGMENTS} == HUMAN_MODES


def test_refusal_says_what_is_allowed():
    with pytest.raises(TransitionError, match=r"fault; allowed: (release|estop), (release|estop)$"):
        follow(Mode.FAULT, Event.RUN, Who.OPERATOR)
