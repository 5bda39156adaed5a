"""What the system tests of the edge run as processes of their own: a point mass and its plugins."""

import json
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from user_system.core.interfaces import Judgement, ResetPlan
from user_system.core.specs import ActionSpec, Field, Limits, PolicySpec, RobotSpec
from user_system.core.types import Array, Plan, Reading, Weights

SPEC = RobotSpec(
    kind="test.point",
    observation={"position": Field((2,), "float32", "m"), "goal": Field((2,), "float32", "m")},
    action=ActionSpec(
        names=("dx", "dy"),
        units=("m", "m"),
        low=(-0.05, -0.05),
        high=(0.05, 0.05),
        delta=(True, True),
        coordinate=(0, 1),
    ),
    limits=Limits(
        names=("x", "y"),
        units=("m", "m"),
        low=(-1.0, -1.0),
        high=(1.0, 1.0),
        velocity=(2.0, 2.0),
        acceleration=(20.0, 20.0),
        jerk=(400.0, 400.0),
    ),
    control_hz=10.0,
    tick_hz=100.0,
    hold_after_ms=300.0,
    stop_after_ms=60_000.0,
    home=(0.0, 0.0),
    resettable=True,
)


class PointMass:
    """Is where it is told to be; its clock runs at ``rate``; it writes down what it was told."""

    spec = SPEC

    def __init__(self, log: Path, rate: float = 1.0):
        self._log = log
        self._anchor = (time.monotonic_ns(), time.monotonic_ns())
        self._rate = rate
        self._goal = np.zeros(2, np.float32)
        self._at = np.zeros(2)
        self._fault = ""

    def connect(self) -> None:
        self._file = self._log.open("a", buffering=1)

    def _now(self) -> int:
        wall, robot = self._anchor
        return robot + int((time.monotonic_ns() - wall) * self._rate)

    def read(self) -> Reading:
        fields = {"position": self._at.astype(np.float32), "goal": self._goal}
        now, wall = self._now(), time.monotonic_ns()
        return Reading(fields, self._at.copy(), now, wall, self._rate, self._fault)

    def apply(self, setpoint: Array) -> None:
        if not np.array_equal(setpoint, self._at):
            self._file.write(json.dumps([self._now(), *map(float, setpoint)]) + "\n")
        self._at = np.array(setpoint)

    def stop(self) -> None:
        self._file.write(json.dumps([self._now(), "stop"]) + "\n")

    def recover(self) -> None:
        self._file.write(json.dumps([self._now(), "recover"]) + "\n")
        self._fault = ""

    def close(self) -> None:
        self._file.close()

    def pace(self, rate: float) -> None:
        self._anchor = (time.monotonic_ns(), self._now())
        self._rate = rate

    def reset_scene(self, seed: int, options: Mapping[str, float]) -> None:
        self._goal = np.random.default_rng(seed).uniform(-0.4, 0.4, 2).astype(np.float32)


class Seeker:
    """Goes to the goal, unless a file tells it to misbehave; weights set its gain."""

    def __init__(self, mischief: Path):
        self._mischief = mischief
        self._gain, self._version = 1.0, 0
        self.spec = PolicySpec(
            SPEC.observation,
            SPEC.action,
            SPEC.control_hz,
            extras={"gain": Field((), "float32")},
            budget_ms=40.0,
        )

    def load(self, weights: Weights) -> None:
        self._gain, self._version = float(weights.modules["policy"]["gain"]), weights.version

    def reset(self, *, seed: int, reason: str) -> None:
        pass

    def act(self, observation: Mapping[str, Array], *, mode: str, noise: Any = None) -> Plan:
        mischief = self._mischief.read_text() if self._mischief.exists() else ""
        if mischief == "hang":
            time.sleep(3600)
        if mischief == "raise":
            raise ValueError("no idea")
        wish = (observation["goal"] - observation["position"]) * self._gain
        if mischief == "nan":
            wish = wish * np.nan
        action = np.clip(wish, -0.05, 0.05)
        return Plan(action[None], self._version, extras={"gain": np.float32(self._gain)})

    def observe(self, executed: Array, segment: Any) -> None:
        pass


class Reach:
    """Succeeds at the goal, gives up after 40 steps."""

    def reset(self, *, seed: int, purpose: Any) -> ResetPlan:
        return ResetPlan(((0.0, 0.0),), {}, speed=0.9)

    def judge(self, before: Any, executed: Array, after: Any, k: int) -> Judgement:
        near = float(np.linalg.norm(after["goal"] - after["position"])) < 0.02
        return Judgement(float(near), near, k >= 39, near if near or k >= 39 else None)


def drive(arguments: Mapping[str, Any]) -> None:
    from user_system.edge.driver import DriverConfig, DriverServer

    config = DriverConfig(
        arguments["name"],
        Path(arguments["socket"]),
        Path(arguments["memory"]),
        priority=0,
        orphan_after_s=20.0,
    )
    server = DriverServer(config, PointMass(Path(arguments["log"])))
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    server.run()


def work(arguments: Mapping[str, Any]) -> None:
    from user_system.edge.worker import SeatConfig, WorkerServer

    mischief = Path(arguments["mischief"])
    seats = [
        SeatConfig(name, Path(socket), "seeker", "reach", lambda: Seeker(mischief), Reach)
        for name, socket in arguments["seats"].items()
    ]
    WorkerServer(seats, orphan_after_s=5.0).run()


if __name__ == "__main__":
    {"driver": drive, "worker": work}[sys.argv[1]](json.loads(sys.argv[2]))
