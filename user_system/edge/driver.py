"""The driver process: one robot, its command gate, its watchdog. It trusts nobody.

At every tick of the robot's own clock: read, take commands, advance the gate, apply. Whoever
commands may die at any moment; the gate then brakes within ``hold_after_ms`` and one tick. A fault
is latched here and written down, so neither the driver's restart nor anybody's mistake clears it:
only a ``release`` that a person asked for does.

Telemetry goes into the ring once per control period, at the first tick on or after the grid of the
robot's clock, and in between whenever something changes that somebody must know at once (fault,
hold, end of motion after a request). The ring is lossless, so a step is never missed; every tick
would cost the agent ten times the work and tell it nothing it could still act on.
"""

import fcntl
import logging
import math
import os
import select
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from robots.gate import Command, CommandGate, GateTick
from user_system.core.clock import MS, SECOND, RobotClock
from user_system.core.errors import MissingError, RobotFault, SpecError, UserSystemError
from user_system.core.interfaces import Resettable, Robot, Sampled
from user_system.core.priority import prefer
from user_system.core.specs import validate_observation
from user_system.core.types import Array, Reading
from user_system.edge import keep, wire
from user_system.edge.rings import MIN_CAPACITY, Duplex
from user_system.edge.samples import Samples, most_bytes

log = logging.getLogger(__name__)

STAND_S = 0.05
"""Wall time for which a robot clock faster than the wall's stands to wait for an answer."""

RESTARTED = "the driver was restarted; release the robot when it is safe to move"


PREVIEW_BYTES = 1 << 20
"""Room in the ring per camera that people watch: 640 x 480 in three colours."""


@runtime_checkable
class Paced(Protocol):
    """A simulated robot whose clock can run faster or slower."""

    def pace(self, rate: float) -> None:
        """Run at ``rate`` robot seconds per wall second from now on."""


@runtime_checkable
class Viewed(Protocol):
    """A robot with pictures for people beside what it observes."""

    def preview(self, camera: str) -> tuple[Array, int] | None:
        """Return the newest image ``(H, W, 3)`` uint8 and its wall ns; never waits."""


@runtime_checkable
class Clocked(Protocol):
    """A robot that reports on a grid of its own clock, and can be waited for."""

    def wait(self, robot_ns: int, timeout_s: float) -> None:
        """Return once a state of ``robot_ns`` or later is there, or the time is over."""


@dataclass(frozen=True)
class DriverConfig:
    """How a driver process runs."""

    name: str
    """The robot's name."""
    socket: Path
    """Where the agent finds it; the rings lie beside it."""
    memory: Path
    """JSON file with the fence and a latched fault."""
    priority: int = 20
    """SCHED_FIFO priority where the machine permits it; 0: never ask."""
    orphan_after_s: float = 30.0
    """Wall seconds without an agent after which it stops the robot and exits."""
    previews: tuple[str, ...] = ()
    """Cameras whose pictures people may see."""
    preview_hz: float = 2.0
    """Pictures per wall second and camera."""
    ring_readings: int = 64
    """Telemetry messages that the ring holds at least."""


class DriverServer:
    """Drives ``robot`` until closed; ``run`` is the process.

    Args:
        config: names and places.
        robot: not yet connected.

    Raises:
        SpecError: the robot declares streams and cannot deliver them.
    """

    def __init__(self, config: DriverConfig, robot: Robot):
        self.config, self.robot, self.spec = config, robot, robot.spec
        self.boot = uuid.uuid4().hex[:12]
        self.clock = RobotClock()
        # Once: asking whether an object has a Protocol's methods takes as long as a gate's tick.
        self._clocked = robot if isinstance(robot, Clocked) else None
        self._sampled = robot if self.spec.streams and isinstance(robot, Sampled) else None
        if self.spec.streams and self._sampled is None:
            raise SpecError(
                f"{config.name} declares streams and delivers none",
                got=sorted(self.spec.streams),
                todo="Give its driver samples(), or take the streams out of its specification.",
            )
        self._samples = Samples(self.spec.streams)
        self.link = Duplex(config.socket, "listen", self._capacity())
        self.overruns = 0
        self._tick_ns = round(SECOND / self.spec.tick_hz)
        self._period_ns = round(SECOND / self.spec.control_hz)
        self._fault = ""
        self._released = self._scene = 0
        self._laid: tuple[int, int] | None = None
        self._recovered_ns = -1
        self._token, self._sequence = 0, -1
        self._period = -1
        self._held_ns, self._hurry = 0, 0.0
        self._reading_ns, self._steps = 0, False
        self._shown: tuple[Any, ...] = ()
        self._running, self._connected = True, False
        self._figures_at = self._heard_at = self._shown_at = time.monotonic()
        self._pictures: dict[str, int] = {}
        self._greeted = 0
        self._gate: CommandGate

    def _capacity(self) -> int:
        fields = self.spec.fields.values()
        previews = len(self.config.previews) * PREVIEW_BYTES
        size = 2048 + sum(math.prod(f.shape) * np.dtype(f.dtype).itemsize for f in fields)
        size += most_bytes(self.spec.streams)
        readings = 8 if size > MIN_CAPACITY else self.config.ring_readings
        return max(MIN_CAPACITY, size * readings + previews)

    def run(self) -> None:
        """Connect and drive until told to close or left alone.

        Raises:
            LinkError: the robot cannot be reached or stopped answering; after the restart it is in
                FAULT until released.
        """
        prefer(self.config.priority)
        self._alone()
        try:
            self._open()
            deadline = self._next_tick(self.clock.now_ns())
            while self._running:
                if not self._steps:
                    self.clock.sleep_until(deadline)
                self._await(deadline)
                self._tick()
                deadline = self._next_tick(deadline)
        finally:
            if self._connected:
                self.robot.close()
            self.link.close()
            self._lock.close()
        self._remember(clean=True)
        log.info("driver of %s closed", self.config.name)

    def stop(self) -> None:
        """Let ``run`` return after the present tick; may be called from a signal handler."""
        self._running = False

    def _alone(self) -> None:
        """Make sure that no other process drives this robot.

        Raises:
            RobotFault: one does.
        """
        self.config.memory.parent.mkdir(parents=True, exist_ok=True)
        self._lock = open(self.config.memory.with_suffix(".lock"), "w")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise RobotFault(
                f"another driver of {self.config.name} is running",
                todo="End it first; two cannot command one robot.",
            ) from error

    def _open(self) -> None:
        facts = keep.read(self.config.memory)
        self._token = int(facts.get("token", 0))
        self._fault = str(facts.get("fault", ""))
        if facts and not facts.get("clean", False):
            self._fault = self._fault or RESTARTED
        self._remember(clean=False)
        self.robot.connect()
        self._connected = True
        reading = self._read()
        self._gate = CommandGate(
            self.spec.limits,
            tick_hz=self.spec.tick_hz,
            hold_after_ms=self.spec.hold_after_ms,
            stop_after_ms=self.spec.stop_after_ms,
            boot=self.boot,
            fence=self._token,
        )
        self._gate.start(reading.setpoint)
        if self._fault:
            self._gate.halt()
            self.robot.stop()
        self.link.open()

    def _read(self) -> Reading:
        reading = self.robot.read()
        self.clock.sync(reading.robot_ns, reading.wall_ns, reading.rate)
        self._reading_ns = reading.robot_ns
        self._steps = reading.rate > 1.0 and self._clocked is not None
        return reading

    def _now_ns(self) -> int:
        """Return the robot clock; a fast one stands between its reports, see ``_answered``."""
        return self._reading_ns if self._steps else self.clock.now_ns()

    def _next_tick(self, last: int) -> int:
        """Return the next deadline on the grid; ticks that are already over are skipped."""
        if self._steps:
            return (self._reading_ns // self._tick_ns + 1) * self._tick_ns
        missed = (self.clock.now_ns() - last) // self._tick_ns
        if missed > 1:
            self.overruns += missed - 1
        return (max(last, last + (missed - 1) * self._tick_ns) // self._tick_ns + 1) * self._tick_ns

    def _await(self, robot_ns: int) -> None:
        """Wait for the report of the tick's own instant, for one more tick at most.

        Its clock is extrapolated here; without this a report that is a moment late would be taken
        for the next tick's, and periods would differ by ticks in the robot's own time.
        """
        if self._clocked is not None:
            patience = STAND_S if self._steps else self._tick_ns / self.clock.rate / SECOND
            self._clocked.wait(robot_ns, patience)

    def _tick(self) -> None:
        self._attend()
        reading = self._read()
        self._sample()
        if self._laid is not None and reading.robot_ns > self._laid[1]:
            self._scene, self._laid = self._laid[0], None
        tick = self._gate.tick(self._now_ns())
        self._wait_for_commands(reading, tick)
        if reading.fault and not self._fault and reading.robot_ns > self._recovered_ns:
            self._latch(reading.fault)
        if tick.stopped and not self._fault:
            silence = f"no command for {self.spec.stop_after_ms:.0f} ms of robot time"
            self._latch(f"{silence}; release the robot when somebody commands it again")
        if not self._fault:
            self.robot.apply(tick.setpoint)
        begins = self._publish(reading, tick)
        if begins and self._steps and not tick.holding and not self._fault:
            self._answered()

    def _answered(self) -> None:
        """Let the agent answer the period that began; meanwhile a fast robot clock stands.

        The world takes no cycle ahead of its driver. So how long an answer takes in the robot's
        time does not depend on how fast that runs, or on who else wants the processor; a robot in
        real time never waits for anybody.
        """
        before, until = self._sequence, time.monotonic() + STAND_S
        while self._running and self._sequence == before and not self._fault:
            left = until - time.monotonic()
            if left <= 0:
                return
            select.select([self.link.fileno()], [], [], left)
            self._attend()

    def _wait_for_commands(self, reading: Reading, tick: GateTick) -> None:
        """Let a sped-up clock run in real time once a hold lasts, until somebody commands again.

        Otherwise an agent that was not scheduled for a moment of the wall's time would have been
        silent for seconds of the robot's, and every hiccup would be a fault.
        """
        if not tick.holding or tick.stopped:
            self._held_ns = reading.robot_ns
            if self._hurry:
                self._pace(self._hurry)
            return
        held_ns = reading.robot_ns - self._held_ns
        if reading.rate > 1.0 and not self._hurry and held_ns > self.spec.hold_after_ms * MS:
            self._pace(1.0)
            self._hurry = reading.rate

    def _pace(self, rate: float) -> None:
        self._hurry = 0.0
        if isinstance(self.robot, Paced):
            self.robot.pace(rate)

    def _latch(self, fault: str) -> None:
        """Stop and stay stopped; of two reasons the newer one counts."""
        if fault == self._fault:
            return
        self._fault = fault
        self._gate.halt()
        self.robot.stop()
        self._remember(clean=False)
        log.warning("%s: FAULT: %s", self.config.name, fault)

    def _remember(self, *, clean: bool) -> None:
        # Not synced: it must outlive this process, not the machine. Whoever commanded before a
        # power cut is gone with it, and the fault is latched again because this is not clean.
        facts = {"token": self._token, "fault": self._fault, "clean": clean, "boot": self.boot}
        keep.write(self.config.memory, facts, sync=False)

    def _publish(self, reading: Reading, tick: GateTick) -> bool:
        """Tell the agent what is new; return whether a period begins."""
        period = reading.robot_ns // self._period_ns
        if period > self._period and not self._fault:
            self._check(reading)
        shown = (self._fault, tick.holding, self._released, self._scene)
        begins, self._period = period > self._period, max(period, self._period)
        if not begins and shown == self._shown:
            return False
        self._shown = shown
        seen = wire.Telemetry(
            reading=_with_fault(reading, self._fault),
            accepted=tick.target,
            boot=self.boot,
            period=begins,
            holding=tick.holding,
            moving=tick.moving,
            token=self._token,
            sequence=self._sequence,
            released=self._released,
            scene=self._scene,
            samples=self._samples.waiting() if begins else {},
        )
        # What a full ring refuses goes with the next period.
        if self.link.send(*wire.reading_message(seen)) and begins:
            self._samples.clear()
        return begins

    def _sample(self) -> None:
        """Take what the sensors delivered since the last tick; nobody records during a fault."""
        if self._sampled is None:
            return None
        samples = self._sampled.samples()
        if self._fault:
            return self._samples.clear()
        try:
            self._samples.add(samples)
        except SpecError as error:
            self._latch(f"the robot samples what it did not declare: {error}")

    def _check(self, reading: Reading) -> None:
        """Make sure that the robot reports what it declares; nothing is learned from the rest."""
        try:
            validate_observation(self.spec.fields, reading.fields)
        except SpecError as error:
            self._latch(f"the robot reports what it did not declare: {error}")

    def _attend(self) -> None:
        """Take everything the agent said since the last tick; greet a new one."""
        while (message := self.link.receive()) is not None:
            self._obey(*message)
        now = time.monotonic()
        if self.link.connected:
            self._heard_at = now
        elif now - self._heard_at > self.config.orphan_after_s:
            log.warning("%s: no agent for %.0f s", self.config.name, now - self._heard_at)
            self._running = False
        if self._greeted != self.link.connects:
            greeting = wire.Hello(self.boot, os.getpid(), wire.spec_to_json(self.spec))
            if self.link.send(greeting.message()):
                self._greeted = self.link.connects
                self._shown = ()
        if now - self._figures_at >= 1.0:
            self._figures_at = now
            self.link.send({"k": "figures", "figures": self.stats()})
        if self.config.previews and now - self._shown_at >= 1.0 / self.config.preview_hz:
            self._shown_at = now
            self._show()

    def _show(self) -> None:
        """Pass pictures on to people; where there are none, nothing else suffers."""
        if not isinstance(self.robot, Viewed):
            return
        for camera in self.config.previews:
            try:
                picture = self.robot.preview(camera)
            except MissingError as error:
                log.warning("%s: no pictures: %s", self.config.name, error)
                self._shown_at = float("inf")
                return
            if picture is not None and picture[1] != self._pictures.get(camera):
                self._pictures[camera] = picture[1]
                meta = {"k": "preview", "camera": camera, "wall_ns": picture[1]}
                self.link.send(meta, {"image": picture[0]})

    def _obey(self, meta: dict[str, Any], arrays: Mapping[str, Array]) -> None:
        """Carry out one message; what was meant for an earlier life of this driver is not for us.

        A request that cannot be carried out is answered with why; it must not end the loop.
        """
        if meta.get("boot") != self.boot:
            return
        try:
            if meta["k"] == "command":
                self._command(meta, arrays["target"])
            else:
                self._request(meta)
        except UserSystemError as error:
            log.warning("%s: %s failed: %s", self.config.name, meta["k"], error)
            self.link.send({"k": "failed", "what": meta["k"], "error": str(error)})

    def _command(self, meta: Mapping[str, Any], target: Array) -> None:
        command = Command(
            meta["token"], meta["boot"], meta["sequence"], meta["deadline_ns"], target
        )
        offered = self._gate.offer(command, self._now_ns())
        if offered.accepted:
            self._sequence = command.sequence
        if self._gate.fence > self._token:
            self._token = self._gate.fence
            self._remember(clean=False)

    def _request(self, meta: Mapping[str, Any]) -> None:
        match meta["k"]:
            case "stop":
                self._latch(str(meta["reason"]))
            case "release":
                self._release(int(meta["id"]))
            case "scene":
                if isinstance(self.robot, Resettable):
                    self.robot.reset_scene(int(meta["seed"]), meta["options"])
                # It counts from the first reading that was taken after it.
                self._laid = int(meta["id"]), self._now_ns()
            case "pace":
                self._pace(float(meta["rate"]))
            case "close":
                self._running = False
            case unknown:
                log.warning("%s: unknown message %r", self.config.name, unknown)

    def _release(self, number: int) -> None:
        """Clear the fault because a person said so; the motion starts where the robot is."""
        self.robot.recover()
        self._recovered_ns = self._now_ns()
        self._gate.release()
        self._gate.start(self._read().setpoint)
        self._fault = ""
        self._released = number
        self._remember(clean=False)
        log.info("%s: released", self.config.name)

    def stats(self) -> dict[str, float]:
        """Return counters and gauges of gate, ticks, ring and samples."""
        ring = {f"ring_{name}": value for name, value in self.link.stats().items()}
        own = {
            "tick_overruns": float(self.overruns),
            "samples_dropped": float(self._samples.dropped),
        }
        return {**self._gate.stats(), **ring, **own}


def _with_fault(reading: Reading, fault: str) -> Reading:
    if reading.fault == fault:
        return reading
    return Reading(
        reading.fields, reading.setpoint, reading.robot_ns, reading.wall_ns, reading.rate, fault
    )
