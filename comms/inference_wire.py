"""Messages of ``proto/inference.proto`` <-> what ``core`` calls them, checked before they are used.

An observation that comes in is one of the policy's specification, to the field, shape and dtype;
images are decoded into the shape that is declared, never into one that is claimed. A message that
is anything else raises ``SpecError`` or ``DamageError``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comms.packing import Packing
from comms.pb import inference_pb2 as pb
from comms.tunnel import MAX_MESSAGE
from user_system.codec import arrays, fragments, images
from user_system.core.errors import DamageError, SpecError
from user_system.core.ports import MAX_VERSION
from user_system.core.specs import Field, validate_observation
from user_system.core.types import Array, Observation, Plan, Segment

MAX_EXECUTED = 4096
"""Steps of an episode whose executed actions are told again after a broken stream."""
MAX_SEEN = 64
"""Observations in one message."""
MAX_HEADER = 64 << 10
"""Bytes of a message's JSON; a specification has a few thousand."""
_ROOM = 64 << 10
"""Bytes of a message beside its content."""

Executed = Sequence[tuple[Array, Segment]]
"""Executed actions ``(Da,)`` and what their steps were, oldest first."""

Fields = Mapping[str, Field]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a question brings."""

    seen: tuple[tuple[int, Observation], ...]
    """Observations by step that the policy had not got yet, oldest first."""
    executed: Executed


def spec_to_bytes(spec: Mapping[str, Any]) -> bytes:
    """Return a policy's specification, as plain values, for ``InferenceReady``."""
    return arrays.pack({"spec": spec}, {})


def spec_from_bytes(content: bytes) -> Mapping[str, Any]:
    """Return the plain values of a specification.

    Raises:
        DamageError: there is none.
    """
    meta, _ = arrays.unpack(content, max_bytes=MAX_MESSAGE, max_header=MAX_HEADER)
    spec = meta.get("spec")
    if not isinstance(spec, dict):
        raise DamageError("no specification of a policy", got=sorted(meta))
    return spec


def executed_to_bytes(executed: Executed) -> bytes:
    """Return executed actions for ``InferenceBegin`` and ``InferenceReplan``."""
    return arrays.pack({}, _columns(executed))


def executed_from_bytes(content: bytes, actions: int) -> Executed:
    """Return executed actions of ``actions`` numbers each.

    Raises:
        DamageError: they are not.
    """
    _, blocks = arrays.unpack(content, max_bytes=MAX_MESSAGE, max_header=MAX_HEADER)
    return _rows(blocks, actions)


def ask_to_bytes(asked: Asked, packing: Packing) -> bytes:
    """Return the content of an ``InferenceAsk``.

    Args:
        asked: what it brings.
        packing: encodes images.

    Raises:
        SpecError: it is too large for one message.
    """
    blocks = _columns(asked.executed)
    coded: dict[str, arrays.Json] = {}
    for index, (_, observation) in enumerate(asked.seen):
        for field, value in observation.items():
            name = f"o/{index}/{field}"
            if fragments.is_image(value[None]):
                codec, data = packing.encode(field, value)
                coded[name] = [codec, list(value.shape)]
                blocks[name] = np.frombuffer(data, np.uint8)
            else:
                blocks[name] = value
    steps = [step for step, _ in asked.seen]
    content = arrays.pack({"steps": steps, "images": coded}, blocks)
    if len(content) + _ROOM > MAX_MESSAGE:
        raise SpecError(
            "observations are too large for one message to the head",
            got=f"{len(content)} bytes",
            allowed=f"{MAX_MESSAGE - _ROOM}",
            todo="Let the actor's images travel as jpeg, or take smaller ones.",
        )
    return content


def ask_from_bytes(content: bytes, fields: Fields, actions: int) -> Asked:
    """Return what an ``InferenceAsk`` brings to a policy that sees ``fields``.

    Raises:
        DamageError: it is not what it claims to be.
        SpecError: an observation is not one that the policy declares.
    """
    meta, blocks = arrays.unpack(content, max_bytes=MAX_MESSAGE, max_header=MAX_HEADER)
    steps, coded = meta.get("steps"), meta.get("images")
    if not isinstance(steps, list) or not isinstance(coded, dict) or len(steps) > MAX_SEEN:
        raise DamageError("a question has the wrong form", got=sorted(meta))
    if not all(type(step) is int and step >= 0 for step in steps):
        raise DamageError("steps of a question are not counts")
    seen = [(step, _observation(i, blocks, coded, fields)) for i, step in enumerate(steps)]
    return Asked(tuple(seen), _rows(blocks, actions))


def _observation(
    index: int, blocks: Mapping[str, Array], coded: Mapping[str, Any], fields: Fields
) -> Observation:
    found = {}
    for field, spec in fields.items():
        name = f"o/{index}/{field}"
        if name not in blocks:
            raise DamageError("an observation lacks a field", got=name)
        block = blocks[name]
        if name in coded:
            codec = coded[name][0] if isinstance(coded[name], list) and coded[name] else None
            if block.dtype != np.uint8 or block.ndim != 1 or codec not in images.CODECS:
                raise DamageError("an image has the wrong form", got=name)
            block = images.decode(block.data, codec, spec.shape)
        found[field] = block
    return validate_observation(fields, found)


def plan_to_reply(episode: str, step: int, plan: Plan, compute_ms: float) -> pb.InferenceReply:
    """Return the message of a plan."""
    extras = {f"x/{name}": np.asarray(value) for name, value in plan.extras.items()}
    message = pb.InferencePlan(
        episode=episode,
        step=step,
        version=plan.version,
        compute_ms=compute_ms,
        content=arrays.pack({}, {"actions": plan.actions, **extras}),
    )
    if plan.confidence is not None:
        message.confidence = plan.confidence
    return pb.InferenceReply(plan=message)


def plan_from_message(message: pb.InferencePlan) -> Plan:
    """Return the plan in a message; its shapes are the receiver's to check.

    Raises:
        DamageError: there is none, or it names weights of a number beyond all versions.
    """
    if message.version > MAX_VERSION:
        raise DamageError(
            "a plan's weights have no number of a version", got=message.version, allowed=MAX_VERSION
        )
    _, blocks = arrays.unpack(message.content, max_bytes=MAX_MESSAGE, max_header=MAX_HEADER)
    if "actions" not in blocks:
        raise DamageError("a plan has no actions", got=sorted(blocks))
    extras = {name[2:]: value for name, value in blocks.items() if name.startswith("x/")}
    confidence = message.confidence if message.HasField("confidence") else None
    return Plan(blocks["actions"], message.version, None, extras, confidence)


def _columns(executed: Executed) -> dict[str, Array]:
    if not executed:
        return {}
    return {
        "executed": np.stack([np.asarray(action, np.float32) for action, _ in executed]),
        "segment": np.asarray([segment for _, segment in executed], np.uint8),
    }


def _rows(blocks: Mapping[str, Array], actions: int) -> Executed:
    if "executed" not in blocks:
        return ()
    executed, segment = blocks["executed"], blocks.get("segment")
    count = len(executed) if executed.ndim else 0
    fits = executed.dtype == np.float32 and executed.shape == (count, actions)
    if not fits or segment is None or segment.dtype != np.uint8 or segment.shape != (count,):
        raise DamageError("executed actions have the wrong form", got=list(executed.shape))
    if count > MAX_EXECUTED:
        raise DamageError("too many executed actions", got=count, allowed=MAX_EXECUTED)
    try:
        segments = [Segment(int(number)) for number in segment]
    except ValueError as error:
        raise DamageError("no such segment", got=error) from error
    return tuple(zip(executed, segments, strict=True))
