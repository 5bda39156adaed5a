"""The scripted person: demonstrates, steps in less and less, releases; always under a lease."""

import threading
import time

import numpy as np
import pytest

from comms.pb import types_pb2
from user_system.core.errors import SecurityError
from user_system.core.helping import HelpConfig
from user_system.core.modes import Mode
from user_system.teleop.scripted import ScriptedConfig, ScriptedOperator

STEPS = 6


def expert(observation):
    return np.array([0.01, float(observation["q"][1]), 0.0, 0.08], np.float32)


class Day(threading.Thread):
    """Lets the robots live: states fifty times a second, episodes that end after some steps."""

    def __init__(self, world):
        super().__init__(daemon=True)
        self.world, self.over = world, threading.Event()
        self.driven = dict.fromkeys(world.modes, 0)
        self.seen_modes = {name: [] for name in world.modes}
        self.ended = []
        world.on_command = self.commanded

    def commanded(self, command):
        self.driven[command.robot] += 1

    def run(self):
        while not self.over.wait(0.02):
            with self.world.lock:
                for robot, mode in self.world.modes.items():
                    if not self.seen_modes[robot] or self.seen_modes[robot][-1] != mode.value:
                        self.seen_modes[robot].append(mode.value)
                    self.live(robot, mode)
            self.world.show(*[self.world.state(robot) for robot in self.world.modes])

    def live(self, robot, mode):
        world = self.world
        if mode in (Mode.DEMO, Mode.CORRECTION) and self.driven[robot] >= STEPS:
            self.end(robot, mode)
        elif mode is Mode.AUTO:
            world.steps[robot] += 1
            if world.steps[robot] > 40:
                self.end(robot, mode)
        elif mode is Mode.HOLD and not world.helps[robot]:
            if world.purposes[robot] == types_pb2.PURPOSE_COLLECT:
                world.helps[robot] = "Waits for a demonstration."
            elif robot not in world.leases:
                world.modes[robot] = Mode.AUTO

    def end(self, robot, mode):
        self.ended.append((robot, mode.value))
        self.driven[robot] = self.world.steps[robot] = 0
        self.world.episodes[robot] += 1
        self.world.modes[robot], self.world.helps[robot] = Mode.HOLD, ""


@pytest.fixture
def work(page, world):
    stop = threading.Event()
    day = Day(world)
    threads, crashed = [], []

    def begin(**options):
        options = {"release_after_s": 0.3, "resume_after_s": 0.5, "retry_s": 0.2} | options
        config = ScriptedConfig(url=page.url, operator="ann", **options)
        operator = ScriptedOperator(config, secret="ann-secret", expert=expert)

        def target():
            try:
                operator.run(stop)
            except Exception as error:
                crashed.append(error)

        thread = threading.Thread(target=target, daemon=True)
        threads.append(thread)
        thread.start()
        day.start()
        return operator, day

    yield begin
    stop.set()
    for thread in threads:
        thread.join(30)
    day.over.set()
    day.join()
    assert not crashed


def test_it_demonstrates_where_a_robot_waits_for_it(work, world, until):
    for robot in world.modes:
        world.modes[robot] = Mode.HOLD
        world.purposes[robot] = types_pb2.PURPOSE_COLLECT
    operator, day = work()
    until(lambda: sum(mode == "demo" for _, mode in day.ended) >= 4)
    assert {robot for robot, _ in day.ended} == {"arm-1", "arm-2"}
    assert world.commands[0].operator == "ann"
    assert world.commands[0].action[0] == pytest.approx(0.01)
    assert operator.stats()["demonstrations"] >= 4


def test_it_steps_in_once_an_episode_is_not_on_its_way(work, world, until):
    operator, day = work(robots=("arm-1",), help=HelpConfig(patience=5, fade_steps=10**9))
    until(lambda: ("arm-1", "correction") in day.ended)
    assert operator.stats()["takeovers"] >= 1
    events = [event for robot, event, _, _ in world.asked if robot == "arm-1"]
    # An episode that ended while the lease was on its way is handed back at once.
    assert "hold recover correct" in " ".join(events)
    assert not [c for c in world.commands if c.robot == "arm-2"]
    until(lambda: "arm-1" not in world.leases)


def test_what_it_cannot_save_it_calls_a_failure(work, world, until):
    """A cube may lie where no arm reaches: nobody should wait for it to be picked."""
    habit = HelpConfig(patience=5, fade_steps=10**9)
    work(robots=("arm-1",), help=habit, correct_steps=STEPS - 2)
    until(lambda: ("arm-1", "done", "ann", False) in world.asked)
    until(lambda: "arm-1" not in world.leases)


def test_its_help_fades_out(work, world, until):
    world.figures["env_steps"] = 5000.0
    operator, day = work(help=HelpConfig(patience=5, fade_steps=3000))
    until(lambda: set(operator._desks) == {"arm-1", "arm-2"})
    ended = len(day.ended)
    until(lambda: len(day.ended) >= ended + 6)
    assert operator.stats()["takeovers"] == 0


def test_it_releases_a_fault_but_never_an_emergency_stop(work, world, until):
    world.modes["arm-1"], world.modes["arm-2"] = Mode.FAULT, Mode.ESTOP
    operator, day = work(help=HelpConfig(watch=0.0))
    until(lambda: "auto" in day.seen_modes["arm-1"])
    assert ("arm-1", "release", "ann", None) in world.asked
    until(lambda: len(day.ended) >= 2)
    assert world.modes["arm-2"] is Mode.ESTOP
    assert operator.stats()["releases"] == 1


def test_it_lets_a_waiting_robot_go_on_but_not_one_that_somebody_holds(work, world, until):
    for robot in world.modes:
        world.modes[robot], world.helps[robot] = Mode.HOLD, "somebody fell silent"
    world.claim("arm-2", "bob")
    _, day = work(help=HelpConfig(watch=0.0))
    until(lambda: ("arm-1", "auto") in day.ended)
    assert world.modes["arm-2"] is Mode.HOLD
    assert world.leases["arm-2"].operator == "bob"


@pytest.mark.parametrize("mode", [Mode.HOLD, Mode.FAULT])
def test_it_does_not_touch_what_a_person_left(work, world, until, mode):
    for robot in world.modes:
        world.modes[robot], world.helps[robot] = mode, "bob fell silent"
    world.left_by = {"arm-1": "ann", "arm-2": "bob"}
    _, day = work(help=HelpConfig(watch=0.0))
    until(lambda: day.ended.count(("arm-1", "auto")) >= 3)  # ann is the script's own account
    assert world.modes["arm-2"] is mode
    assert not [robot for robot, *_ in world.asked if robot == "arm-2"]


def test_it_shows_how_old_its_commands_are(work, world, until):
    world.modes["arm-1"], world.purposes["arm-1"] = Mode.HOLD, types_pb2.PURPOSE_COLLECT
    work(robots=("arm-1",))
    until(lambda: world.commands)
    assert 0 < world.commands[0].seen_s < time.monotonic()
    assert 0 <= world.commands[0].rested_ms < 60_000


def test_it_dials_again_when_the_page_or_the_hub_went_away(work, world, until):
    world.modes["arm-1"] = Mode.HOLD
    world.purposes["arm-1"] = types_pb2.PURPOSE_COLLECT
    _, day = work(robots=("arm-1",))
    until(lambda: len(day.ended) >= 1)
    world.away = True
    ended = len(day.ended)
    until(lambda: not world.leases or len(day.ended) > ended)
    world.away = False
    ended = len(day.ended)
    until(lambda: len(day.ended) >= ended + 2)


def test_a_wrong_secret_ends_it_with_a_clear_line(page):
    operator = ScriptedOperator(
        ScriptedConfig(url=page.url, operator="ann"), secret="wrong", expert=expert
    )
    with pytest.raises(SecurityError, match="token is wrong"):
        operator.run(threading.Event())
