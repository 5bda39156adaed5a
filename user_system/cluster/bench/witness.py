"""An onlooker of a run: what the drivers did, and what the agents said, with times.

The drivers' telemetry is read out of their rings without taking anything (see ``rings.Ring.look``),
so it is complete whatever dies, and nothing of the system knows of it. What the agents say comes
over the fresh lane, as to any viewer.
"""

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comms.fresh import FreshPeer
from comms.pb import fresh_pb2
from comms.tunnel import Tunnel
from user_system.cluster.configs import DriverHostConfig
from user_system.cluster.parse import read_json
from user_system.codec import arrays
from user_system.core.errors import DamageError, LinkError
from user_system.edge.rings import Ring

log = logging.getLogger(__name__)

POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Tick:
    """One telemetry message of a driver."""

    wall_ns: int
    robot_ns: int
    rate: float
    boot: str
    """Id of the driver's life."""
    period: bool
    """Whether a control period begins with it."""
    holding: bool
    fault: str
    released: int
    """Number of the last release that was carried out."""
    target: bytes
    """Accepted target, to compare."""

    def robot_at(self, wall_ns: int) -> int:
        """Return the robot's time at ``wall_ns``, going on from this tick."""
        return self.robot_ns + int((wall_ns - self.wall_ns) * self.rate)


@dataclass(frozen=True, slots=True)
class State:
    """What an agent said of its robot."""

    heard_ns: int
    """Wall time at which it arrived here."""
    mode: str
    episode: str
    step: int
    """Steps of the episode that were begun; 0: none is recorded."""
    robot_ns: int
    boot: str
    """Id of the agent's life."""


class Witness:
    """Looks on inside a ``with`` block; ``ticks`` and ``states`` grow meanwhile.

    Args:
        run: the run's directory.
        tunnel: the way to its hub.
    """

    def __init__(self, run: Path, tunnel: Tunnel):
        sockets = {
            config.robot: config.socket
            for path in sorted(run.glob("config/driver-*.json"))
            for config in [read_json(path, DriverHostConfig)]
        }
        self._rings = {robot: Ring(s.with_name(s.name + ".down")) for robot, s in sockets.items()}
        self._at: dict[str, int] = {}
        self._fresh = FreshPeer(tunnel, role="viewer", robots=("*",))
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=loop, name=name, daemon=True)
            for name, loop in (("rings", self._follow), ("fresh", self._listen))
        ]
        self.ticks: dict[str, list[Tick]] = {robot: [] for robot in sockets}
        """Robot -> telemetry, oldest first."""
        self.states: dict[str, list[State]] = {robot: [] for robot in sockets}
        """Robot -> states, oldest first."""

    def __enter__(self) -> "Witness":
        for robot, ring in self._rings.items():
            ring.open()
            self._at[robot] = ring.head
        self._fresh.start()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._fresh.close()
        for ring in self._rings.values():
            ring.close()

    @property
    def robots(self) -> list[str]:
        """Whom it watches."""
        return list(self._rings)

    def last(self, robot: str) -> State | None:
        """Return the newest state of a robot."""
        states = self.states[robot]
        return states[-1] if states else None

    def _follow(self) -> None:
        while not self._stop.wait(POLL_S):
            for robot, ring in self._rings.items():
                self._catch_up(robot, ring)

    def _catch_up(self, robot: str, ring: Ring) -> None:
        while True:
            try:
                found = ring.look(self._at[robot])
            except LinkError as error:  # the evidence has a hole, which verdicts notice
                log.warning("%s", error)
                self._at[robot] = ring.head
                return
            if found is None:
                return
            self._at[robot], record = found
            try:
                meta, blocks = arrays.unpack(record)
            except DamageError as error:
                log.warning("%s: %s", robot, error)
                continue
            if meta["k"] == "reading":
                self.ticks[robot].append(tick(meta, blocks["accepted"].tobytes()))

    def _listen(self) -> None:
        while not self._stop.is_set():
            for message in self._fresh.receive(0.1):
                if isinstance(message, fresh_pb2.RobotState) and message.robot in self.states:
                    self.states[message.robot].append(state(message))


def tick(meta: Mapping[str, Any], target: bytes) -> Tick:
    """Return a telemetry message as a tick."""
    gate = meta["gate"]
    return Tick(
        wall_ns=meta["wall_ns"],
        robot_ns=meta["robot_ns"],
        rate=meta["rate"],
        boot=gate["boot"],
        period=gate["period"],
        holding=gate["holding"],
        fault=meta["fault"],
        released=gate["released"],
        target=target,
    )


def state(message: fresh_pb2.RobotState) -> State:
    """Return a state message with the time of its arrival."""
    return State(
        heard_ns=time.monotonic_ns(),
        mode=message.mode,
        episode=message.episode,
        step=message.step,
        robot_ns=message.robot_ns,
        boot=message.boot,
    )
