"""States and status as the page gets them: plain JSON values."""

import math
from typing import Any, cast

from comms.pb.fresh_pb2 import RobotState
from comms.pb.hub_pb2 import Lease, RobotStatus, SystemStatus
from comms.pb.types_pb2 import Purpose
from comms.wire import named_from_proto

Json = dict[str, Any]


def state(message: RobotState, *, full: bool = False) -> Json:
    """Return a robot's state; ``full``: with observation and set-point."""
    view: Json = {
        "robot": message.robot,
        "boot": message.boot,
        "sequence": message.sequence,
        "mode": message.mode,
        "holder": message.holder,
        "purpose": purpose(message.purpose),
        "episode": message.episode,
        "step": message.step,
        "help": message.help,
        "fault": message.fault,
        "left_by": message.left_by,
        "robot_ns": message.robot_ns,
        "rate": message.rate,
        "version": message.version,
        "figures": figures(message.figures),
    }
    if full:
        arrays = named_from_proto(message.observation)
        view["observation"] = {name: array.tolist() for name, array in arrays.items()}
        view["dtypes"] = {name: array.dtype.name for name, array in arrays.items()}
        view["setpoint"] = list(message.setpoint)
        view["seed"] = message.seed
    return view


def finite(value: Any) -> Any:
    """Return a JSON value with null for every number that JSON does not know.

    A robot host that reports such a number must not end the pages of everybody who looks at it.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def status(message: SystemStatus) -> Json:
    """Return the system's status, without the robots' specifications."""
    view: Json = {
        "run": message.run,
        "phase": message.phase,
        "version": message.policy_version,
        "figures": figures(message.figures),
        "robots": [robot(r) for r in message.robots],
        "processes": [
            {"name": p.name, "kind": p.kind, "note": p.note, "figures": figures(p.figures)}
            for p in message.processes
        ],
        "evaluations": [
            {
                "version": e.version,
                "episodes": e.episodes,
                "successes": e.successes,
                "env_steps": e.env_steps,
            }
            for e in message.evaluations
        ],
        "curve": [
            [p.env_steps, round(p.success_rate, 4), round(p.intervention_rate, 4)]
            for p in message.curve
        ],
    }
    return cast(Json, finite(view))


def robot(message: RobotStatus) -> Json:
    """Return one robot's status with what a key may move."""
    action = message.spec.action
    return {
        "name": message.name,
        "host": message.host,
        "kind": message.kind,
        "task": message.task,
        "online": message.online,
        "mode": message.mode,
        "holder": message.holder,
        "help": message.help,
        "version": message.version,
        "last_seen_s": round(message.last_seen_s, 1),
        "figures": figures(message.figures),
        "cameras": [field.name for field in message.spec.cameras],
        "control_hz": message.spec.control_hz,
        "action": {
            "names": list(action.names),
            "units": list(action.units),
            "low": list(action.low),
            "high": list(action.high),
            "delta": list(action.delta),
        },
    }


def lease(message: Lease) -> Json:
    """Return a lease as its holder sees it; the token stays on this side."""
    return {"robot": message.robot, "operator": message.operator, "ttl_ms": message.ttl_ms}


def purpose(number: int) -> str:
    """Return the name of a purpose in small letters, "" where there is none."""
    name = Purpose.Name(number) if number in Purpose.values() else ""
    return name.removeprefix("PURPOSE_").lower().replace("unspecified", "")


def figures(values: Any) -> dict[str, float | None]:
    """Return figures as JSON can hold them: what is not finite becomes null."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
