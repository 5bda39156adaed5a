"""What agent, drivers and workers say to each other over a ``Duplex``: names and conversions.

A message is JSON meta with a kind ``k``, and named arrays. A server (driver, worker) greets each
client with ``hello``: its boot id, process id and specification. A client repeats the boot id in
everything it says, so that what was meant for a life that ended is not obeyed by the next one.

    agent  -> driver   command stop release scene pace close
    driver -> agent    hello reading failed figures
    agent  -> worker   begin step handback load close
    worker -> agent    hello begun answer plan unplanned loaded acts away failed
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from user_system.core.errors import DamageError
from user_system.core.specs import ActionSpec, Field, Limits, PolicySpec, RobotSpec, StreamSpec
from user_system.core.types import Array, Reading, Stream

OBSERVATION, EXTRA, STAMPS, VALUES = "o/", "x/", "t/", "v/"
"""Prefixes of array names."""


@dataclass(frozen=True, slots=True)
class Telemetry:
    """One account of a driver: the robot's reading and what the gate makes of its commands."""

    reading: Reading
    accepted: Array
    """Target ``(Dc,)`` float64 that the robot moves to or rests at."""
    boot: str
    """Id of this life of the driver."""
    period: bool = True
    """Whether a control period begins with it; else something changed in between."""
    holding: bool = False
    """Commands were missing, so the gate braked."""
    moving: bool = False
    token: int = 0
    """Highest fencing token seen."""
    sequence: int = -1
    """Number of the last accepted command."""
    released: int = 0
    """Number of the last release that was carried out."""
    scene: int = 0
    """Number of the last scene that was laid out."""
    samples: Mapping[str, Stream] = field(default_factory=dict)
    """What sensors at their own rates delivered since the period before; empty in between."""


def telemetry(meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> Telemetry:
    """Return the telemetry in a ``reading`` message.

    Raises:
        DamageError: it lacks something.
    """
    try:
        reading = Reading(
            fields=unprefixed(arrays, OBSERVATION),
            setpoint=arrays["setpoint"],
            robot_ns=meta["robot_ns"],
            wall_ns=meta["wall_ns"],
            rate=meta["rate"],
            fault=meta["fault"],
        )
        values = unprefixed(arrays, VALUES)
        stamps = unprefixed(arrays, STAMPS)
        samples = {name: Stream(stamps[name], values[name]) for name in values}
        gate = meta["gate"]
        return Telemetry(reading=reading, accepted=arrays["accepted"], samples=samples, **gate)
    except (KeyError, TypeError) as error:
        raise DamageError("a reading lacks something", got=error) from error


def reading_message(seen: Telemetry) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the ``reading`` message of ``seen``; the inverse of ``telemetry``."""
    gate = {
        name: getattr(seen, name)
        for name in Telemetry.__slots__
        if name not in {"reading", "accepted", "samples"}
    }
    reading = seen.reading
    meta = {
        "k": "reading",
        "robot_ns": reading.robot_ns,
        "wall_ns": reading.wall_ns,
        "rate": reading.rate,
        "fault": reading.fault,
        "gate": gate,
    }
    arrays = {"setpoint": reading.setpoint, "accepted": seen.accepted}
    arrays |= prefixed({name: s.stamps for name, s in seen.samples.items()}, STAMPS)
    arrays |= prefixed({name: s.values for name, s in seen.samples.items()}, VALUES)
    return meta, arrays | prefixed(reading.fields, OBSERVATION)


def prefixed(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """Return ``arrays`` under names that begin with ``prefix``."""
    return {prefix + name: array for name, array in arrays.items()}


def unprefixed(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """Return those of ``arrays`` whose names begin with ``prefix``, without it."""
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}


@dataclass(frozen=True, slots=True)
class Hello:
    """Greeting of a server."""

    boot: str
    pid: int
    spec: dict[str, Any] = field(default_factory=dict)

    def message(self) -> dict[str, Any]:
        """Return it as meta."""
        return {"k": "hello", **asdict(self)}


def hello(meta: Mapping[str, Any]) -> Hello:
    """Return the greeting in a ``hello`` message."""
    return Hello(str(meta["boot"]), int(meta["pid"]), dict(meta["spec"]))


def spec_to_json(spec: RobotSpec | PolicySpec) -> dict[str, Any]:
    """Return a specification as JSON-able values."""
    return asdict(spec)


def robot_spec(value: Mapping[str, Any]) -> RobotSpec:
    """Return the specification that ``spec_to_json`` took apart.

    Raises:
        DamageError: it is none.
    """
    try:
        return RobotSpec(
            **{
                **value,
                "observation": _fields(value["observation"]),
                "cameras": _fields(value["cameras"]),
                "action": ActionSpec(**_tuples(value["action"])),
                "limits": Limits(**_tuples(value["limits"])),
                "home": tuple(value["home"]),
                "streams": _streams(value["streams"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise DamageError("not a robot's specification", got=error) from error


def policy_spec(value: Mapping[str, Any]) -> PolicySpec:
    """Return the specification that ``spec_to_json`` took apart.

    Raises:
        DamageError: it is none.
    """
    try:
        return PolicySpec(
            **{
                **value,
                "observation": _fields(value["observation"]),
                "extras": _fields(value["extras"]),
                "action": ActionSpec(**_tuples(value["action"])),
                "modules": tuple(value["modules"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise DamageError("not a policy's specification", got=error) from error


def _fields(value: Mapping[str, Any]) -> dict[str, Field]:
    return {
        name: Field(**{**entry, "shape": tuple(entry["shape"])}) for name, entry in value.items()
    }


def _streams(value: Mapping[str, Any]) -> dict[str, StreamSpec]:
    fields = _fields({name: entry["field"] for name, entry in value.items()})
    return {name: StreamSpec(fields[name], value[name]["hz"]) for name in value}


def _tuples(value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
