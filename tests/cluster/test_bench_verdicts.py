"""What the evidence of a kill says: how late a hold, how much unspooled, how a fault ended."""

from dataclasses import replace

import pytest

from user_system.cluster.bench.history import Entry
from user_system.cluster.bench.verdicts import (
    Kill,
    fault_problems,
    hold_ms,
    released_ns,
    steps_between,
    still_ms,
    unspooled_s,
)
from user_system.cluster.bench.witness import State, Tick

MS = 1_000_000
RATE = 10.0
PERIOD = 10 * MS
"""Wall time of a period of 0.1 robot s."""


def tick(wall_ms: float, **more) -> Tick:
    values = {"boot": "a", "period": True, "holding": False, "fault": "", "released": 0}
    wall = int(wall_ms * MS)
    return Tick(wall, int(wall * RATE), RATE, **{**values, "target": b"0", **more})


def state(wall_ms: float, mode="auto", episode="e", step=1) -> State:
    return State(int(wall_ms * MS), mode, episode, step, int(wall_ms * MS * RATE), "agent")


def kill(wall_ms: float, **more) -> Kill:
    states = {"arm": state(wall_ms)}
    return Kill("agent", "edge", int(wall_ms * MS), **{"states": states, "spooled": {}, **more})


# --- hold ----------------------------------------------------------------------------------------


def test_the_time_to_the_hold_is_robot_time_since_the_death():
    ticks = [tick(100), tick(110), tick(132, holding=True), tick(140, holding=True)]
    assert hold_ms(kill(112), ticks) == pytest.approx(200.0)


def test_a_driver_that_never_held_is_found_out():
    assert hold_ms(kill(112), [tick(100), tick(110), tick(120), tick(130)]) is None
    assert hold_ms(kill(112), []) is None


def test_one_that_held_already_needs_no_time():
    assert hold_ms(kill(112), [tick(110, holding=True)]) == 0.0


def test_a_target_that_goes_on_moving_is_seen():
    ticks = [tick(100, target=b"0"), tick(110, target=b"1"), tick(120, target=b"2"), tick(130)]
    dead = kill(100, back_ns=125 * MS)
    assert still_ms(dead, "arm", ticks, []) == pytest.approx(200.0)


@pytest.mark.parametrize("mode", ["reset", "eval"])
def test_what_somebody_else_does_next_is_not_counted(mode):
    ticks = [tick(100), tick(110, target=b"1"), tick(120, target=b"2")]
    assert still_ms(kill(100), "arm", ticks, [state(115, mode=mode)]) == pytest.approx(100.0)


# --- spool ---------------------------------------------------------------------------------------


def log(*spans: tuple[int, int], final=False) -> list[Entry]:
    """Fragments of episode ``e`` that began at robot time 0."""
    return [
        Entry("arm", 1, n, "e", start, steps, final, int((start + steps - 1) * PERIOD * RATE))
        for n, (start, steps) in enumerate(spans)
    ]


def spooled(count: int, wall_ms: float = 87) -> Kill:
    seen = State(int(80 * MS), "auto", "e", 8, int(80 * MS * RATE), "agent")
    return kill(wall_ms, spooled={("arm", 1): count}, states={"arm": seen})


def test_unspooled_are_the_whole_steps_after_the_last_spooled_one():
    ticks = [tick(70), tick(80), tick(90)]
    entries = log((0, 4), (4, 3))
    assert unspooled_s(spooled(2), "arm", ticks, entries, 0.1) == pytest.approx(0.1)
    assert unspooled_s(spooled(1), "arm", ticks, entries, 0.1) == pytest.approx(0.4)
    assert unspooled_s(spooled(0), "arm", ticks, entries, 0.1) == pytest.approx(0.8)


def test_nothing_is_unspooled_where_nothing_is_recorded_or_all_is_over():
    ticks = [tick(80)]
    resting = kill(87, states={"arm": state(80, step=0)})
    assert unspooled_s(resting, "arm", ticks, [], 0.1) == 0.0
    assert unspooled_s(spooled(1), "arm", ticks, log((0, 8), final=True), 0.1) == 0.0
    assert unspooled_s(kill(87, states={}), "arm", ticks, [], 0.1) == 0.0


# --- fault ---------------------------------------------------------------------------------------

FAULT = "restarted"
SOUND = [
    tick(100),
    tick(200, boot="b", fault=FAULT),
    tick(300, boot="b", fault=FAULT),
    tick(310, boot="b", released=7),
    tick(320, boot="b", released=7),
]
MODES = [state(120, "fault"), state(200, "fault"), state(300, "fault"), state(330, "hold")]


def test_a_fault_that_a_person_released_is_as_it_should_be():
    assert fault_problems(kill(105), "arm", SOUND, MODES) == []
    assert released_ns(kill(105), SOUND) == 310 * MS


@pytest.mark.parametrize(
    ("ticks", "states", "problem"),
    [
        (SOUND[:1], MODES, "did not come back"),
        ([SOUND[0], *[replace(t, fault="") for t in SOUND[1:]]], MODES, "was not in a fault"),
        ([replace(t, released=0) for t in SOUND], MODES, "went away by itself"),
        (SOUND[:3], MODES[:3], "nobody released"),
        (SOUND, [state(120, "auto")], "never in FAULT"),
        (SOUND, [state(120, "fault"), state(200, "auto"), *MODES[2:]], "left FAULT before"),
    ],
)
def test_every_other_end_of_a_fault_is_found_out(ticks, states, problem):
    assert any(problem in found for found in fault_problems(kill(105), "arm", ticks, states))


def test_steps_are_counted_over_episodes():
    states = [state(at, episode=f"e{at // 40}", step=at // 10 % 4) for at in range(0, 200, 5)]
    assert steps_between(states, 0, 200 * MS) == 14
    assert steps_between([], 0, 1) == 0
