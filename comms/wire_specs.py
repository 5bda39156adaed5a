"""Robot specifications and weight manifests <-> their messages, checked as in ``comms.wire``."""

import math
import re
from collections.abc import Iterable, Sequence

from comms.pb import types_pb2, weights_pb2
from comms.wire import MAX_DECODED, limit
from user_system.codec import arrays
from user_system.core.errors import SpecError
from user_system.core.ports import MAX_VERSION, Manifest, TensorEntry
from user_system.core.specs import ActionSpec, Field, Limits, RobotSpec, StreamSpec

MAX_TENSOR = 2 << 30
"""Bytes of one tensor of weights."""

MAX_TENSORS = 1 << 16
_HASH = re.compile(r"[0-9a-f]{64}")


def spec_to_proto(spec: RobotSpec) -> types_pb2.RobotSpec:
    """Return a robot's specification as a message."""
    action, limits = spec.action, spec.limits
    return types_pb2.RobotSpec(
        kind=spec.kind,
        observation=[_field_to_proto(name, f) for name, f in spec.observation.items()],
        cameras=[_field_to_proto(name, f) for name, f in spec.cameras.items()],
        action=types_pb2.ActionSpec(
            names=action.names,
            units=action.units,
            low=action.low,
            high=action.high,
            delta=action.delta,
            coordinate=action.coordinate,
            frame=action.frame,
        ),
        limits=types_pb2.Limits(
            names=limits.names,
            units=limits.units,
            low=limits.low,
            high=limits.high,
            velocity=limits.velocity,
            acceleration=limits.acceleration,
            jerk=limits.jerk,
            frame=limits.frame,
        ),
        control_hz=spec.control_hz,
        tick_hz=spec.tick_hz,
        hold_after_ms=spec.hold_after_ms,
        stop_after_ms=spec.stop_after_ms,
        home=spec.home,
        resettable=spec.resettable,
        streams=[
            types_pb2.StreamSpec(field=_field_to_proto(name, stream.field), hz=stream.hz)
            for name, stream in spec.streams.items()
        ],
    )


def spec_from_proto(message: types_pb2.RobotSpec) -> RobotSpec:
    """Return a robot's specification, checked.

    Raises:
        SpecError: parts do not fit each other, or a number is none.
        DamageError: a field that cannot exist.
    """
    limits = _limits_from_proto(message.limits)
    action = _action_from_proto(message.action, len(limits))
    rates = (message.control_hz, message.tick_hz, message.hold_after_ms, message.stop_after_ms)
    if not all(math.isfinite(rate) and rate > 0 for rate in rates):
        raise SpecError("rates and time limits of a robot must be positive", got=rates)
    if len(message.home) not in (0, len(limits)):
        raise SpecError("home has the wrong length", got=len(message.home), allowed=len(limits))
    return RobotSpec(
        kind=message.kind,
        observation=_fields_from_proto(message.observation),
        action=action,
        limits=limits,
        cameras=_fields_from_proto(message.cameras),
        control_hz=message.control_hz,
        tick_hz=message.tick_hz,
        hold_after_ms=message.hold_after_ms,
        stop_after_ms=message.stop_after_ms,
        home=_numbers(message.home, "home"),
        resettable=message.resettable,
        streams=_streams_from_proto(message.streams),
    )


def _field_to_proto(name: str, spec: Field) -> types_pb2.FieldSpec:
    return types_pb2.FieldSpec(
        name=name,
        shape=spec.shape,
        dtype=spec.dtype,
        unit=spec.unit,
        frame=spec.frame,
        low=spec.low,
        high=spec.high,
        doc=spec.doc,
    )


def _fields_from_proto(messages: Sequence[types_pb2.FieldSpec]) -> dict[str, Field]:
    limit(messages, "fields")
    fields: dict[str, Field] = {}
    for message in messages:
        if message.name in fields:
            raise SpecError("field is named twice", got=message.name)
        arrays.checked_size(message.dtype, tuple(message.shape), MAX_DECODED)
        fields[message.name] = Field(
            shape=tuple(message.shape),
            dtype=message.dtype,
            unit=message.unit,
            frame=message.frame,
            low=message.low if message.HasField("low") else None,
            high=message.high if message.HasField("high") else None,
            doc=message.doc,
        )
    return fields


def _streams_from_proto(messages: Sequence[types_pb2.StreamSpec]) -> dict[str, StreamSpec]:
    fields = _fields_from_proto([message.field for message in messages])
    rates = (message.hz for message in messages)
    return {name: StreamSpec(f, hz) for (name, f), hz in zip(fields.items(), rates, strict=True)}


def _action_from_proto(message: types_pb2.ActionSpec, coordinates: int) -> ActionSpec:
    parts = (message.units, message.low, message.high, message.delta, message.coordinate)
    if not message.names or any(len(part) != len(message.names) for part in parts):
        got = [len(part) for part in (message.names, *parts)]
        raise SpecError("action needs one entry per dimension", got=got)
    if max(message.coordinate) >= coordinates:
        got_at = list(message.coordinate)
        raise SpecError("action moves no such coordinate", got=got_at, allowed=f"< {coordinates}")
    return ActionSpec(
        names=tuple(message.names),
        units=tuple(message.units),
        low=_numbers(message.low, "action.low"),
        high=_numbers(message.high, "action.high"),
        delta=tuple(message.delta),
        coordinate=tuple(message.coordinate),
        frame=message.frame,
    )


def _limits_from_proto(message: types_pb2.Limits) -> Limits:
    if not message.names:
        raise SpecError("limits name no coordinate", got=0, allowed="at least 1")
    return Limits(
        names=tuple(message.names),
        units=tuple(message.units),
        frame=message.frame,
        **{
            key: _numbers(getattr(message, key), f"limits.{key}")
            for key in ("low", "high", "velocity", "acceleration", "jerk")
        },
    )


def _numbers(values: Iterable[float], what: str) -> tuple[float, ...]:
    numbers = tuple(values)
    if any(math.isnan(number) for number in numbers):
        raise SpecError(f"{what} holds something that is no number", got=numbers)
    return numbers


def manifest_to_proto(manifest: Manifest) -> weights_pb2.Manifest:
    """Return what a version of weights consists of as a message."""
    return weights_pb2.Manifest(
        policy=manifest.policy,
        version=manifest.version,
        hash=manifest.hash,
        tensors=[weights_pb2.TensorEntry(**row._asdict()) for row in manifest.tensors],
        bases=manifest.bases,
        notes=manifest.notes,
    )


def manifest_from_proto(message: weights_pb2.Manifest) -> Manifest:
    """Return what a version of weights consists of, checked.

    Raises:
        SpecError: a name twice, a hash that is none, or a number beyond all versions.
        DamageError: a tensor that cannot exist.
    """
    if len(message.tensors) > MAX_TENSORS:
        raise SpecError("too many tensors", got=len(message.tensors), allowed=MAX_TENSORS)
    if message.version > MAX_VERSION:
        raise SpecError("no number of a version", got=message.version, allowed=MAX_VERSION)
    rows = tuple(
        TensorEntry(row.module, row.name, row.dtype, tuple(row.shape), row.hash)
        for row in message.tensors
    )
    for row in rows:
        arrays.checked_size(row.dtype, tuple(row.shape), MAX_TENSOR)
    hashes = [message.hash, *(row.hash for row in rows)]
    if not all(_HASH.fullmatch(text) for text in hashes):
        raise SpecError("manifest holds something that is no sha256")
    if len({row[:2] for row in rows}) != len(rows):
        raise SpecError("tensor is named twice", got=message.policy)
    return Manifest(
        policy=message.policy,
        version=message.version,
        hash=message.hash,
        tensors=rows,
        bases=dict(message.bases),
        notes=dict(message.notes),
    )
