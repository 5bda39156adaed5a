"""Specifications: what an array is, checked once at each trust boundary.

The same object checks real data and makes examples of it for tests.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.types import Array, Observation, Stream


@dataclass(frozen=True)
class Field:
    """One quantity: its shape, dtype, unit, frame and range.

    Raises:
        SpecError: from ``validate``, naming the field, what was got and what is allowed.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    unit: str = ""
    """SI symbol per element: "m", "rad", "N", "m/s"; "1" for ratios, "" for images and flags."""
    frame: str = ""
    """Frame of reference: "base", "tcp", a camera's name; "" where none applies."""
    low: float | None = None
    high: float | None = None
    doc: str = ""

    def validate(self, value: object, name: str) -> Array:
        """Return ``value`` as an array of this field, or say exactly why it is not one."""
        array = np.asarray(value)
        allowed = f"{self.dtype}{list(self.shape)}"
        if array.shape != tuple(self.shape):
            raise SpecError(
                f"field {name!r} has the wrong shape", got=list(array.shape), allowed=allowed
            )
        if array.dtype != np.dtype(self.dtype):
            raise SpecError(f"field {name!r} has the wrong dtype", got=array.dtype, allowed=allowed)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise SpecError(f"field {name!r} is not finite", got=array.tolist(), allowed="finite")
        if self.low is not None and array.size and array.min() < self.low:
            raise SpecError(f"field {name!r} is too low", got=array.min(), allowed=f">= {self.low}")
        if self.high is not None and array.size and array.max() > self.high:
            raise SpecError(
                f"field {name!r} is too high", got=array.max(), allowed=f"<= {self.high}"
            )
        return array

    def sample(self, rng: np.random.Generator) -> Array:
        """Return a random array that ``validate`` accepts."""
        dtype = np.dtype(self.dtype)
        if dtype.kind in "ui":
            info = np.iinfo(dtype)
            low = int(self.low) if self.low is not None else max(info.min, -1000)
            high = int(self.high) if self.high is not None else min(info.max, 1000)
            return np.asarray(rng.integers(low, high, self.shape, dtype, endpoint=True))
        if dtype.kind == "b":
            return np.asarray(rng.random(self.shape) < 0.5)
        low_f = -1.0 if self.low is None else self.low
        high_f = 1.0 if self.high is None else self.high
        return np.asarray(rng.uniform(low_f, high_f, self.shape), dtype)


def validate_observation(fields: Mapping[str, Field], observation: Observation) -> Observation:
    """Check every declared field of ``observation``; unknown or missing names are errors."""
    missing, unknown = fields.keys() - observation.keys(), observation.keys() - fields.keys()
    if missing or unknown:
        raise SpecError(
            "observation has other fields than declared",
            got=sorted(observation),
            allowed=sorted(fields),
        )
    return {name: spec.validate(observation[name], name) for name, spec in fields.items()}


@dataclass(frozen=True)
class StreamSpec:
    """A sensor that is sampled at its own rate, beside the observation.

    Raises:
        SpecError: the rate is none; from ``validate``, what a driver delivered does not fit.
    """

    field: Field
    """One sample."""
    hz: float
    """Samples per robot second, at most; it sizes buffers."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.hz) and self.hz > 0):
            raise SpecError("rate of a stream", got=self.hz, allowed="above 0, finite, in Hz")

    def validate(self, stream: Stream, name: str) -> Stream:
        """Return samples of this stream, or say exactly why they are none."""
        stamps, what = stream.stamps, f"stamps of stream {name!r}"
        if stamps.dtype != np.int64 or stamps.ndim != 1:
            got = f"{stamps.dtype}{list(stamps.shape)}"
            raise SpecError(what, got=got, allowed="int64[N], robot ns")
        stuck = np.flatnonzero(np.diff(stamps) <= 0)
        if len(stuck):
            before, after = stamps[stuck[0] : stuck[0] + 2].tolist()
            raise SpecError(f"{what} do not increase", got=after, allowed=f"above {before}")
        many = replace(self.field, shape=(len(stamps), *self.field.shape))
        return Stream(stamps, many.validate(stream.values, name))


@dataclass(frozen=True)
class Limits:
    """Bounds of the ``Dc`` set-point coordinates of a robot, enforced by the command gate.

    ``low`` and ``high`` are the workspace box (or joint range) in the coordinate's unit; velocity,
    acceleration and jerk are magnitudes in unit/s, unit/s² and unit/s³.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    velocity: tuple[float, ...]
    acceleration: tuple[float, ...]
    jerk: tuple[float, ...]
    frame: str = "base"

    def __post_init__(self) -> None:
        for key in ("units", "low", "high", "velocity", "acceleration", "jerk"):
            if len(getattr(self, key)) != len(self.names):
                raise SpecError(
                    f"limits.{key} must have one entry per coordinate",
                    got=len(getattr(self, key)),
                    allowed=f"{len(self.names)} {list(self.names)}",
                )
        if not all(lo < hi for lo, hi in zip(self.low, self.high, strict=True)):
            raise SpecError("limits.low must lie below limits.high", got=(self.low, self.high))
        if min(*self.velocity, *self.acceleration, *self.jerk) <= 0:
            raise SpecError("velocity, acceleration and jerk limits must be positive")

    def __len__(self) -> int:
        return len(self.names)

    def clip(self, setpoint: Array) -> Array:
        """Return ``setpoint`` ``(Dc,)`` moved into the box."""
        return np.clip(setpoint, self.low, self.high)


@dataclass(frozen=True)
class ActionSpec:
    """The ``Da`` numbers a policy chooses each step, and how they become a set-point.

    Action dimension ``i`` moves set-point coordinate ``coordinate[i]``: by the value where
    ``delta[i]``, to the value otherwise. Coordinates that no dimension names keep their set-point.
    Turning deltas into absolute targets before anything is sent makes a command idempotent: it may
    be lost, doubled or overtaken without the robot ending elsewhere.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    delta: tuple[bool, ...]
    coordinate: tuple[int, ...]
    frame: str = "base"

    def __post_init__(self) -> None:
        for key in ("units", "low", "high", "delta", "coordinate"):
            if len(getattr(self, key)) != len(self.names):
                raise SpecError(
                    f"action.{key} must have one entry per dimension",
                    got=len(getattr(self, key)),
                    allowed=f"{len(self.names)} {list(self.names)}",
                )
        if not all(lo < hi for lo, hi in zip(self.low, self.high, strict=True)):
            raise SpecError("action.low must lie below action.high", got=(self.low, self.high))
        if len(set(self.coordinate)) != len(self.coordinate) or min(self.coordinate, default=0) < 0:
            raise SpecError("each action dimension moves its own coordinate", got=self.coordinate)

    def __len__(self) -> int:
        return len(self.names)

    def clip(self, action: Array) -> Array:
        """Return ``action`` ``(Da,)`` float32 within its bounds; NaN becomes no motion.

        For an absolute dimension there is no "no motion" value, so NaN there stays NaN and
        ``target`` keeps the coordinate where it is.
        """
        clipped = np.clip(np.asarray(action, np.float32), self.low, self.high)
        return np.where(np.isnan(clipped) & np.asarray(self.delta), 0.0, clipped).astype(np.float32)

    def target(self, setpoint: Array, action: Array) -> Array:
        """Return the absolute set-point ``(Dc,)`` that ``action`` ``(Da,)`` asks for."""
        result = np.array(setpoint, np.float64)
        values = self.clip(action)
        for i, c in enumerate(self.coordinate):
            if np.isnan(values[i]):
                continue
            result[c] = result[c] + values[i] if self.delta[i] else values[i]
        return result

    def between(self, before: Array, after: Array) -> Array:
        """Return the action ``(Da,)`` float32 that leads from one set-point to another.

        The inverse of ``target`` wherever the motion lies within the bounds; used to record what
        was executed, whoever drove.
        """
        moved = [
            after[c] - before[c] if d else after[c]
            for c, d in zip(self.coordinate, self.delta, strict=True)
        ]
        return np.asarray(moved, np.float32)

    @property
    def scale(self) -> tuple[Array, Array]:
        """Centre and half-range ``(Da,)`` float32 that map [-1, 1] onto the bounds."""
        low, high = np.asarray(self.low, np.float32), np.asarray(self.high, np.float32)
        return (low + high) / 2, (high - low) / 2


@dataclass(frozen=True)
class RobotSpec:
    """Everything the rest of the system knows about a robot."""

    kind: str
    """Registry name of the driver, e.g. ``sim.franka``."""
    observation: Mapping[str, Field]
    """Low-dimensional fields read every period."""
    action: ActionSpec
    limits: Limits
    cameras: Mapping[str, Field] = field(default_factory=dict)
    """Image fields ``(H, W, 3)`` uint8 read with the observation; empty where none are wanted."""
    control_hz: float = 10.0
    """Steps per robot second."""
    tick_hz: float = 100.0
    """Set-points per robot second that the driver sends to the robot."""
    hold_after_ms: float = 200.0
    """Silence after which the driver holds, in ms of robot time; at most 500."""
    stop_after_ms: float = 2000.0
    """Silence after which it stops the robot and reports a fault, in ms of robot time."""
    home: tuple[float, ...] = ()
    """Set-point ``(Dc,)`` of the resting pose."""
    resettable: bool = False
    """Whether the driver can lay out its scene again (simulators only)."""
    streams: Mapping[str, StreamSpec] = field(default_factory=dict)
    """Sensors recorded at their own rates; the driver implements ``Sampled``."""

    def __post_init__(self) -> None:
        if taken := self.fields.keys() & self.streams.keys():
            raise SpecError(
                "a stream has the name of an observation",
                got=", ".join(sorted(taken)),
                allowed="another name: a draw has both",
            )

    @property
    def fields(self) -> Mapping[str, Field]:
        """Observation fields and cameras together."""
        return {**self.observation, **self.cameras}

    @property
    def schema(self) -> str:
        """Hash of fields and action: rows with equal schema stack into one array."""
        return _digest(
            {
                "observation": {
                    k: [list(f.shape), f.dtype, f.unit, f.frame]
                    for k, f in sorted(self.fields.items())
                },
                "action": [self.action.names, self.action.units, self.action.delta],
            }
        )

    @property
    def embodiment(self) -> str:
        """Hash of the kind of body: its coordinates and units, not its limits or address."""
        return _digest({"kind": self.kind, "limits": [self.limits.names, self.limits.units]})


@dataclass(frozen=True)
class PolicySpec:
    """What a policy sees and answers; made from a robot's spec and the learner's config."""

    observation: Mapping[str, Field]
    action: ActionSpec
    control_hz: float
    history: int = 1
    """Observations per call, To."""
    horizon: int = 1
    """Actions per plan, Tp."""
    execute: int = 1
    """Actions taken from a plan before the next call, Ta <= Tp."""
    extras: Mapping[str, Field] = field(default_factory=dict)
    """What ``Plan.extras`` holds, per step."""
    modules: tuple[str, ...] = ("policy",)
    """Weights an actor needs; the learner publishes exactly these."""
    bases: Mapping[str, str] = field(default_factory=dict)
    """Frozen base models: name -> hash."""
    budget_ms: float = 50.0
    """Time an ``act`` call may take, in wall ms, before the step goes on without it."""


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
