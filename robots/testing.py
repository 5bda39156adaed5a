"""The contract of a robot driver, as tests that its author runs. Four lines are enough.

Example::

    class TestMine(RobotContract):
        def make(self) -> Robot:
            return MyRobot(MyConfig(address="192.0.2.1"))

The robot moves: a few centimetres (``reach`` of its range) around where it stands. ``make`` is
called once per test; a simulator or emulator belongs into a fixture around it.
"""

import builtins
import contextlib
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import ClassVar
from unittest import mock

import numpy as np
import pytest

from robots.gate import Command, CommandGate
from user_system.core.clock import SECOND
from user_system.core.errors import LinkError, UserSystemError
from user_system.core.interfaces import Resettable, Robot, Sampled
from user_system.core.specs import RobotSpec, validate_observation
from user_system.core.types import Array, Reading


class Rig:
    """A connected robot behind a command gate, driven tick by tick on the robot's own clock.

    Args:
        robot: connected.
        patience_s: wall time after which a robot that does not answer fails the test.
    """

    def __init__(self, robot: Robot, patience_s: float = 30.0):
        self.robot, self.spec = robot, robot.spec
        self._patience_s = patience_s
        self._gate = CommandGate(
            self.spec.limits,
            tick_hz=self.spec.tick_hz,
            hold_after_ms=self.spec.hold_after_ms,
            stop_after_ms=self.spec.stop_after_ms,
            boot="rig",
        )
        self._sequence = 0
        self.align()

    def align(self) -> Reading:
        """Start the gate where the robot is."""
        reading = self.robot.read()
        self._gate.release()
        self._gate.start(reading.setpoint)
        return reading

    def drive(self, target: Array, seconds: float) -> list[Reading]:
        """Command ``target`` ``(Dc,)`` for robot seconds; return the reading of every tick."""
        readings = []
        for reading in self.watch(seconds):
            self._sequence += 1
            deadline = reading.robot_ns + SECOND
            command = Command(0, "rig", self._sequence, deadline, np.asarray(target, float))
            self._gate.offer(command, reading.robot_ns)
            self.robot.apply(self._gate.tick(reading.robot_ns).setpoint)
            readings.append(reading)
        return readings

    def watch(self, seconds: float) -> Iterator[Reading]:
        """Yield a reading per tick for robot seconds, applying nothing."""
        last = self.robot.read().robot_ns
        end, give_up = last + int(seconds * SECOND), time.monotonic() + self._patience_s
        period = SECOND / self.spec.tick_hz
        while last < end:
            reading = self.robot.read()
            if reading.robot_ns >= last + 0.5 * period:
                last = reading.robot_ns
                yield reading
            else:
                time.sleep(period / SECOND / 4 / reading.rate)
            if time.monotonic() > give_up:
                raise LinkError("the robot clock stands still", got=f"{last} ns")


class RobotContract:
    """What every driver keeps; see the module's example."""

    coordinate: ClassVar[int] = 0
    """Set-point coordinate that the tests move."""
    reach: ClassVar[float] = 0.05
    """How far, as a share of its range."""
    motion_s: ClassVar[float] = 1.5
    """How long a motion may take, robot s."""
    tolerance: ClassVar[float] = 0.2
    """How much of the motion may be missing at its end."""
    still: ClassVar[float] = 0.02
    """What counts as standing still: share of the motion per tick."""
    scene_s: ClassVar[float] = 0.2
    """How long a scene settles after it was laid out, robot s; 0 where it moves by itself from then
    on: two scenes are compared as they first show themselves, since later moments differ."""

    def make(self) -> Robot:
        """Return a new robot, not connected."""
        raise NotImplementedError("a contract test defines make()")

    def provoke_fault(self, robot: Robot) -> None:
        """Make a connected robot latch a fault; override it where that can be done safely."""
        pytest.skip("this driver declares no way to provoke a fault")

    @contextlib.contextmanager
    def rig(self) -> Iterator[Rig]:
        """Give a connected robot behind a gate, closed at the end."""
        with contextlib.closing(self.make()) as robot:
            robot.connect()
            yield Rig(robot)

    def aim(self, reading: Reading, spec: RobotSpec) -> Array:
        """Return a nearby target ``(Dc,)``, towards the middle of the box."""
        c, limits = self.coordinate, spec.limits
        target = np.array(reading.setpoint, np.float64)
        way = self.reach * (limits.high[c] - limits.low[c])
        target[c] += way if target[c] < (limits.high[c] + limits.low[c]) / 2 else -way
        return target

    def test_constructor_does_no_io(self) -> None:
        """Constructing opens no file and no socket, and starts nothing."""

        def forbidden(*_: object, **__: object) -> None:
            raise AssertionError("a driver's constructor must not do I/O")

        self.make()  # imports happen here
        with (
            mock.patch.object(builtins, "open", forbidden),
            mock.patch.object(socket, "socket", forbidden),
            mock.patch.object(subprocess, "Popen", forbidden),
            mock.patch.object(threading.Thread, "start", forbidden),
        ):
            robot = self.make()
        assert isinstance(robot, Robot)

    def test_spec_is_safe_and_complete(self) -> None:
        """Home lies in the box, silence is short, every action moves a coordinate there is."""
        spec = self.make().spec
        n = len(spec.limits)
        assert 0 < spec.hold_after_ms <= 500
        assert spec.stop_after_ms > spec.hold_after_ms
        assert spec.tick_hz >= spec.control_hz
        assert set(spec.action.coordinate) <= set(range(n))
        lengths = {len(getattr(spec.action, k)) for k in ("units", "low", "high", "delta")}
        assert lengths == {len(spec.action)}
        assert len(spec.action.coordinate) == len(spec.action)
        if spec.home:
            np.testing.assert_array_equal(spec.limits.clip(np.array(spec.home)), spec.home)
        assert self.make().spec == spec

    def test_reads_what_it_declares(self) -> None:
        """Readings fit the declared fields, and the set-point is finite."""
        with self.rig() as rig:
            reading = rig.robot.read()
            validate_observation(rig.spec.fields, reading.fields)
            assert reading.setpoint.shape == (len(rig.spec.limits),)
            assert np.isfinite(reading.setpoint).all()
            assert not reading.fault
            assert reading.rate > 0

    def test_connecting_moves_nothing(self) -> None:
        """Neither connecting nor reading moves the robot."""
        with self.rig() as rig:
            first = rig.robot.read()
            *_, last = rig.watch(0.5)
            assert self._moved(rig.spec, first, last) <= self.still * self.reach

    def test_stamps_increase(self) -> None:
        """Both stamps only grow, and the robot's grows at the declared rate."""
        with self.rig() as rig:
            readings = list(rig.watch(0.5))
            assert (np.diff([r.robot_ns for r in readings]) > 0).all()
            assert (np.diff([r.wall_ns for r in readings]) > 0).all()
            assert readings[-1].wall_ns <= time.monotonic_ns()

    def test_samples_what_it_declares(self) -> None:
        """Samples come once, in order, at most at their rate, and by the readings' own clock."""
        streams = self.make().spec.streams
        if not streams:
            pytest.skip("this robot has no sensors at their own rates")
        with self.rig() as rig:
            robot = rig.robot
            assert isinstance(robot, Sampled), "a robot with streams has samples()"
            first = robot.read().robot_ns
            robot.samples()
            came: dict[str, list[Array]] = {name: [] for name in streams}
            for _ in rig.watch(0.5):
                for name, samples in robot.samples().items():
                    came[name].append(streams[name].validate(samples, name).stamps)
            span_ns = robot.read().robot_ns - first
            for name, parts in came.items():
                stamps, most = np.concatenate(parts), streams[name].hz * span_ns / SECOND
                assert (np.diff(stamps) > 0).all()
                assert (np.abs(stamps - first) < 2 * span_ns).all()
                assert 1 <= len(stamps) <= 1.1 * most + 2

    def test_follows_small_motions_within_its_limits(self) -> None:
        """The measured set-point goes where it is led, not much faster than allowed."""
        with self.rig() as rig:
            before = rig.robot.read()
            target = self.aim(before, rig.spec)
            readings = rig.drive(target, self.motion_s)
            c = self.coordinate
            way = target[c] - before.setpoint[c]
            came = readings[-1].setpoint[c] - before.setpoint[c]
            assert abs(came - way) <= self.tolerance * abs(way)
            steps = np.diff([r.setpoint[c] for r in readings])
            seconds = np.diff([r.robot_ns for r in readings]) / SECOND
            assert (np.abs(steps) <= 2 * rig.spec.limits.velocity[c] * seconds + 1e-9).all()
            assert not readings[-1].fault

    def test_stop_comes_to_rest(self) -> None:
        """Stopped in the middle of a motion, twice, it stands still and reports no fault."""
        with self.rig() as rig:
            rig.drive(self.aim(rig.robot.read(), rig.spec), 0.1)
            rig.robot.stop()
            rig.robot.stop()
            readings = list(rig.watch(1.0))
            assert self._moved(rig.spec, readings[-2], readings[-1]) <= self.still * self.reach
            assert not readings[-1].fault
            rig.align()
            target = self.aim(rig.robot.read(), rig.spec)
            rig.drive(target, self.motion_s)
            missing = abs(rig.robot.read().setpoint[self.coordinate] - target[self.coordinate])
            assert missing <= self.tolerance * self._way(rig.spec)

    def test_fault_latches_until_recover(self) -> None:
        """A fault stays whatever is applied, and goes only by ``recover``."""
        with self.rig() as rig:
            rig.drive(self.aim(rig.robot.read(), rig.spec), 0.1)
            self.provoke_fault(rig.robot)
            *_, stopped = rig.watch(1.0)
            assert stopped.fault
            rig.align()
            readings = rig.drive(self.aim(stopped, rig.spec), 0.5)
            assert readings[-1].fault
            assert self._moved(rig.spec, stopped, readings[-1]) <= self.still * self.reach
            rig.robot.recover()
            *_, _ = rig.watch(0.1)
            before = rig.align()
            assert not before.fault
            readings = rig.drive(self.aim(before, rig.spec), self.motion_s)
            assert self._moved(rig.spec, before, readings[-1]) > 0.5 * self.reach

    def test_close_is_idempotent_and_final(self) -> None:
        """Closing twice is fine; afterwards, and before connecting, reading is an error."""
        robot = self.make()
        with pytest.raises(LinkError):
            robot.read()
        robot.connect()
        robot.read()
        robot.close()
        robot.close()
        with pytest.raises(LinkError):
            robot.read()

    def test_connects_again_without_a_fault(self) -> None:
        """A clean end is no fault: whoever connects next may move at once."""
        for _ in range(2):
            with self.rig() as rig:
                reading = rig.align()
                assert not reading.fault
                rig.drive(reading.setpoint, 0.2)

    def test_scene_follows_from_its_seed(self) -> None:
        """The same seed lays out the same scene, another one another."""
        with self.rig() as rig:
            robot = rig.robot
            assert isinstance(robot, Resettable) == rig.spec.resettable
            if not isinstance(robot, Resettable):
                pytest.skip("this robot has no scene to lay out")
            seen = []
            for seed in (1, 2, 1):
                robot.reset_scene(seed, {})
                reading = robot.read()
                if self.scene_s:
                    *_, reading = rig.watch(self.scene_s)
                seen.append(np.concatenate([np.ravel(v) for v in reading.fields.values()]))
            scale = 1e-3 + np.abs(seen[0])
            assert (np.abs(seen[0] - seen[2]) <= 1e-2 * scale).all()
            assert (np.abs(seen[0] - seen[1]) > 1e-2 * scale).any()

    def test_errors_are_ours(self) -> None:
        """What a closed driver raises is in our error tree, so that a host can name it."""
        robot = self.make()
        with pytest.raises(UserSystemError):
            robot.apply(np.zeros(len(robot.spec.limits)))

    def _way(self, spec: RobotSpec) -> float:
        c = self.coordinate
        return self.reach * (spec.limits.high[c] - spec.limits.low[c])

    def _moved(self, spec: RobotSpec, before: Reading, after: Reading) -> float:
        """Return the largest motion between two readings as a share of the coordinate's range."""
        size = np.subtract(spec.limits.high, spec.limits.low)
        return float((np.abs(after.setpoint - before.setpoint) / size).max())
