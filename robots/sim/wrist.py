"""The force-torque sensor between flange and hand, sampled between control cycles."""

from typing import Any

import numpy as np

from robots.sim.config import WRIST_HZ
from robots.sim.engine import mujoco
from robots.sim.model import TIMESTEP
from user_system.core.clock import SECOND
from user_system.core.errors import ConfigError
from user_system.core.types import Array, Stream

STEP_NS = round(TIMESTEP * SECOND)
MOST = 2 * round(1 / TIMESTEP)
"""Samples that wait for ``take``: two seconds of the fastest rate."""


class Wrist:
    """What the flange does to the hand: it bears its weight, what it holds and what it touches.

    Args:
        model: with the sensors ``wrist_force`` and ``wrist_torque``.
        data: their readings.
    """

    def __init__(self, model: Any, data: Any):
        self._model, self._data = model, data
        self._at = np.r_[self._where("wrist_force"), self._where("wrist_torque")]
        self._stamps: list[int] = []
        self._values: list[Array] = []
        self.hz = 0.0
        """Samples per robot second; 0: it is off."""
        self.sense(0.0)

    def _where(self, name: str) -> slice:
        sensor = self._model.sensor(name)
        return slice(int(sensor.adr[0]), int(sensor.adr[0] + sensor.dim[0]))

    def sense(self, hz: float) -> None:
        """Sample at ``hz`` from now on; 0: not at all, which costs the physics nothing.

        Raises:
            ConfigError: the physics have no such rate.
        """
        if hz not in WRIST_HZ:
            raise ConfigError("rate of the sensor at the wrist", got=hz, allowed=WRIST_HZ)
        off = int(mujoco.mjtDisableBit.mjDSBL_SENSOR)
        flags = self._model.opt.disableflags
        self._model.opt.disableflags = flags & ~off if hz else flags | off
        self.hz = hz
        self._every = round(1 / (hz * TIMESTEP)) if hz else 0
        self._stamps, self._values = [], []

    def stepped(self, step: int) -> None:
        """Sample where it is time; ``step`` is the number of the physics step that was made.

        The engine's readings are of the instant at which a step begins.
        """
        if step % self._every == 0 and len(self._stamps) < MOST:
            self._stamps.append(step * STEP_NS)
            self._values.append(self._data.sensordata[self._at])

    def take(self) -> Stream:
        """Return the samples since the last call: float64 ``(N, 6)``, force N and torque N m."""
        samples = Stream(
            np.array(self._stamps, np.int64), np.array(self._values, float).reshape(-1, 6)
        )
        self._stamps, self._values = [], []
        return samples
