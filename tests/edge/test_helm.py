"""What reaches the driver: the arbiter's set-point, or a person's, and nothing without a token."""

from types import SimpleNamespace

import numpy as np
import pytest

from user_system.core.errors import LeaseError, LinkError
from user_system.core.modes import HUMAN_MODES, STOPPED_MODES, Mode
from user_system.edge.helm import Helm
from user_system.edge.messages import OperatorCommand

HOLD_MS, NOW_NS = 200.0, 5_000_000_000
TARGET = np.array([0.1, 0.2])


class Session:
    """Stands for a robot's session: its mode, its token, and what it says to a command."""

    def __init__(self):
        self.name, self.mode = "arm", Mode.AUTO
        self.leases = SimpleNamespace(token=7)
        self.says = True

    def command(self, command):
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


class Arbiter:
    """Stands for the arbiter: notes what it is told."""

    def __init__(self, session):
        self._session, self.stepwise = session, False
        self.target, self.steered, self.rested = TARGET, [], 0

    @property
    def mode(self):
        return self._session.mode

    def steer(self, command, now_ns):
        self.steered.append((command.sequence, now_ns))

    def rest(self):
        self.rested += 1

    def drive(self, now_ns):
        return TARGET + now_ns / 1e10

    def act(self, action):
        return self.target + action


class Driver:
    """Stands for a driver: notes what it is sent."""

    def __init__(self):
        self.sent = []
        self.clock = SimpleNamespace(now_ns=lambda: NOW_NS)

    def command(self, target, token, hold_ms):
        self.sent.append((tuple(np.round(target, 6)), token, hold_ms))


class Bench:
    def __init__(self, person_s=0.5):
        self.session, self.driver = Session(), Driver()
        self.arbiter = Arbiter(self.session)
        self.helm = Helm(self.session, self.arbiter, self.driver, HOLD_MS, person_s)

    def begin(self, holding=False, wall_ns=1):
        reading = SimpleNamespace(wall_ns=wall_ns)
        self.helm.begin(SimpleNamespace(reading=reading, holding=holding))


def command(sequence=0, action=(0.0, 0.5), born_ns=NOW_NS):
    return OperatorCommand("arm", "ann", 7, "boot", sequence, 200.0, np.array(action), born_ns)


@pytest.fixture
def bench():
    return Bench()


@pytest.mark.parametrize("mode", list(Mode))
def test_a_set_point_goes_out_with_the_token_unless_the_robot_is_stopped(bench, mode):
    bench.session.mode = mode
    bench.begin()
    bench.helm.command(TARGET)
    stopped = mode in STOPPED_MODES
    assert bench.driver.sent == ([] if stopped else [((0.1, 0.2), 7, HOLD_MS)])


def test_without_a_token_nothing_goes_out(bench):
    bench.session.leases.token = 0
    bench.helm.command(TARGET)
    assert bench.driver.sent == []


@pytest.mark.parametrize("error", [LeaseError("not yours"), LinkError("too late")])
def test_what_is_refused_moves_nothing_and_is_counted(bench, error):
    bench.session.mode, bench.session.says = Mode.CORRECTION, error
    bench.helm.steer(command())
    assert bench.arbiter.steered == []
    assert bench.helm.stats()["refused_commands"] == 1


def test_what_does_not_count_moves_nothing(bench):
    bench.session.mode, bench.session.says = Mode.CORRECTION, False
    bench.helm.steer(command())
    assert bench.arbiter.steered == []
    assert bench.helm.stats()["refused_commands"] == 0


def test_who_drives_is_passed_on_between_periods(bench):
    bench.session.mode = Mode.CORRECTION
    bench.helm.steer(command(sequence=3))
    assert bench.arbiter.steered == [(3, NOW_NS)]
    bench.helm.attend()
    assert bench.driver.sent == [((0.6, 0.7), 7, HOLD_MS)]


@pytest.mark.parametrize("mode", sorted(set(Mode) - HUMAN_MODES))
def test_nobody_drives_outside_a_persons_modes(bench, mode):
    bench.session.mode = mode
    bench.helm.attend()
    assert (bench.driver.sent, bench.arbiter.rested) == ([], 1)


# --- a fast clock: one action a period ------------------------------------------------------------


@pytest.fixture
def fast(bench):
    bench.arbiter.stepwise, bench.session.mode = True, Mode.CORRECTION
    return bench


def test_a_period_waits_for_the_action_upon_its_state(fast, monkeypatch):
    monkeypatch.setattr("user_system.edge.turns.time.monotonic", lambda: 1.0)
    fast.begin(wall_ns=1_000_000_000)
    fast.helm.command(TARGET)
    assert fast.driver.sent == [], "it is waited for"
    fast.helm.steer(command(born_ns=999_000_000))
    fast.helm.attend()
    assert fast.driver.sent == [], "that one saw the period before"
    fast.helm.steer(command(born_ns=1_000_000_000))
    fast.helm.attend()
    assert fast.driver.sent == [((0.1, 0.7), 7, HOLD_MS)]
    fast.helm.attend()
    assert len(fast.driver.sent) == 1, "never twice in one period"


def test_a_robot_that_does_not_stand_is_answered_at_once(fast):
    fast.begin(holding=True)
    fast.helm.command(TARGET)
    assert fast.driver.sent == [((0.1, 0.2), 7, HOLD_MS)], "the arbiter's: there is no action"


@pytest.mark.parametrize("how", ["mode", "change"])
def test_an_action_of_another_mode_moves_nothing(fast, monkeypatch, how):
    monkeypatch.setattr("user_system.edge.turns.time.monotonic", lambda: 1.0)
    fast.begin(wall_ns=1_000_000_000)
    fast.helm.command(TARGET)
    fast.helm.steer(command(born_ns=1_000_000_000))
    if how == "change":
        fast.helm.change()
        fast.helm.attend()
        assert fast.driver.sent == []
        return
    arbiter_mode = fast.session.mode
    type(fast.arbiter).mode = property(lambda self: arbiter_mode)
    try:
        fast.session.mode = Mode.HOLD
        fast.helm.attend()
        fast.helm.attend()
    finally:
        type(fast.arbiter).mode = property(lambda self: self._session.mode)
    assert fast.driver.sent == [((0.1, 0.2), 7, HOLD_MS)], "it rests where it is"
