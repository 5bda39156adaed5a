"""The contract itself: an honest robot passes, and each kind of dishonest one is caught."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from robots.testing import RobotContract
from user_system.core.clock import SECOND
from user_system.core.errors import LinkError, UserSystemError
from user_system.core.interfaces import Robot
from user_system.core.specs import ActionSpec, Field, Limits, RobotSpec, StreamSpec
from user_system.core.types import Reading, Stream

SPEC = RobotSpec(
    kind="pretend",
    observation={"position": Field((2,), unit="m", frame="base")},
    action=ActionSpec(("dx", "dy"), ("m", "m"), (-0.1,) * 2, (0.1,) * 2, (True, True), (0, 1)),
    limits=Limits(
        ("x", "y"), ("m", "m"), (-1.0,) * 2, (1.0,) * 2, (1.0,) * 2, (5.0,) * 2, (50.0,) * 2
    ),
    home=(0.0, 0.0),
)
RATE = 20.0
STEP = SECOND // 100


class Honest:
    """Goes at once where it is told; its clock runs twenty times as fast as the wall's."""

    def __init__(self):
        self.at = np.array([0.2, -0.1])
        self.fault, self.open = "", False

    @property
    def spec(self) -> RobotSpec:
        return SPEC

    def connect(self) -> None:
        self.open = True

    def read(self) -> Reading:
        self._require()
        wall = time.monotonic_ns()
        fields = {"position": self.at.astype(np.float32)}
        return Reading(fields, self.at.copy(), int(wall * RATE), wall, RATE, self.fault)

    def apply(self, setpoint) -> None:
        self._require()
        if not self.fault:
            self.at = np.array(setpoint)

    def stop(self) -> None:
        self._require()

    def recover(self) -> None:
        self.fault = ""

    def close(self) -> None:
        self.open = False

    def _require(self) -> None:
        if not self.open:
            raise LinkError("pretend: not connected")


class TestHonest(RobotContract):
    def make(self) -> Robot:
        return Honest()

    def provoke_fault(self, robot: Robot) -> None:
        robot.fault = "provoked"


class Busy(Honest):
    def __init__(self):
        super().__init__()
        threading.Thread(target=time.sleep, args=(0,), daemon=True).start()


class Eager(Honest):
    def connect(self) -> None:
        super().connect()
        self.began = time.monotonic()

    def read(self) -> Reading:
        self.at = np.array([0.2 + (time.monotonic() - self.began), 0.0])
        return super().read()


class Frozen(Honest):
    def apply(self, setpoint) -> None:
        self._require()


class Jumpy(Honest):
    def apply(self, setpoint) -> None:
        super().apply(np.round(np.asarray(setpoint), 1))


class Undeclared(Honest):
    def read(self) -> Reading:
        r = super().read()
        fields = {"position": r.fields["position"].astype(np.float64)}
        return Reading(fields, r.setpoint, r.robot_ns, r.wall_ns, r.rate)


class Timeless(Honest):
    def read(self) -> Reading:
        r = super().read()
        return Reading(r.fields, r.setpoint, r.robot_ns, SECOND, r.rate)


class Runaway(Honest):
    def stop(self) -> None:
        self.stopped = True

    def read(self) -> Reading:
        if getattr(self, "stopped", False):
            self.at = self.at + 0.01
        return super().read()


class Forgiving(Honest):
    def apply(self, setpoint) -> None:
        self.fault = ""
        super().apply(setpoint)


class Undead(Honest):
    def close(self) -> None:
        pass


class Fussy(Honest):
    def close(self) -> None:
        self._require()
        super().close()


class Alien(Honest):
    def _require(self) -> None:
        if not self.open:
            raise ConnectionError


class Unsafe(Honest):
    @property
    def spec(self) -> RobotSpec:
        return RobotSpec(
            kind="pretend",
            observation=SPEC.observation,
            action=SPEC.action,
            limits=SPEC.limits,
            hold_after_ms=900.0,
        )


class Forgetful(Honest):
    """Takes a clean end for a crash, and remembers it in the class as a device would."""

    ended = False

    def connect(self) -> None:
        super().connect()
        self.fault = "connection lost" if type(self).ended else ""

    def close(self) -> None:
        type(self).ended = type(self).ended or self.open
        super().close()


class Feeling(Honest):
    """Feels something every 10 ms of its clock."""

    felt = 0

    @property
    def spec(self) -> RobotSpec:
        return replace(SPEC, streams={"force": StreamSpec(Field((3,), unit="N"), 100.0)})

    def connect(self) -> None:
        super().connect()
        self.felt = self.read().robot_ns // STEP

    def samples(self):
        due = self.read().robot_ns // STEP
        stamps = np.arange(self.felt + 1, due + 1, dtype=np.int64) * STEP
        self.felt = self.kept(due)
        return {"force": Stream(stamps, np.zeros((len(stamps), 3), np.float32))}

    def kept(self, due: int) -> int:
        return due


class TestFeeling(TestHonest):
    def make(self) -> Robot:
        return Feeling()


class Repeating(Feeling):
    def kept(self, due: int) -> int:
        return due - 1


class Numb(Feeling):
    samples = None


class Hasty(Feeling):
    @property
    def spec(self) -> RobotSpec:
        return replace(SPEC, streams={"force": StreamSpec(Field((3,), unit="N"), 20.0)})


@pytest.mark.parametrize(
    ("robot", "test"),
    [
        (Busy, "test_constructor_does_no_io"),
        (Unsafe, "test_spec_is_safe_and_complete"),
        (Undeclared, "test_reads_what_it_declares"),
        (Eager, "test_connecting_moves_nothing"),
        (Timeless, "test_stamps_increase"),
        (Frozen, "test_follows_small_motions_within_its_limits"),
        (Jumpy, "test_follows_small_motions_within_its_limits"),
        (Runaway, "test_stop_comes_to_rest"),
        (Forgiving, "test_fault_latches_until_recover"),
        (Undead, "test_close_is_idempotent_and_final"),
        (Fussy, "test_close_is_idempotent_and_final"),
        (Forgetful, "test_connects_again_without_a_fault"),
        (Repeating, "test_samples_what_it_declares"),
        (Numb, "test_samples_what_it_declares"),
        (Hasty, "test_samples_what_it_declares"),
        (Alien, "test_errors_are_ours"),
    ],
)
def test_dishonest_robots_are_caught(robot, test):
    class Contract(TestHonest):
        def make(self) -> Robot:
            return robot()

    caught = (AssertionError, UserSystemError, ConnectionError, pytest.fail.Exception)
    with pytest.raises(caught):
        getattr(Contract(), test)()
