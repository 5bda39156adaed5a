"""Messages of ``proto/`` <-> what ``core`` calls them, with every size checked before it is used.

What comes from outside is believed only after it was checked: dtypes against a whitelist, shapes
against the bytes that are there, the whole against ``MAX_DECODED``, images against the checksum
made where they were captured, fragments against the rules of ``codec.fragments.check``. A message
that fails raises ``SpecError`` or ``DamageError`` and has cost no more memory than itself.

Arrays are read without copying: they are read-only views of the message's bytes. Observation fields
``[T, H, W, C]`` uint8 travel as images, one by one; everything else as plain arrays.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from comms.pb import experience_pb2, types_pb2
from user_system.codec import arrays, fragments, images
from user_system.core.errors import DamageError
from user_system.core.types import Array, Fragment, FragmentHeader, Purpose, Stream

MAX_DECODED = 64 << 20
"""Bytes that all arrays and images of one message may have decoded: four times the message."""

MAX_PARTS = 4096
"""Arrays, images, fields or names in one message."""

_STEPS = 10_000
"""Steps in one fragment; the edge sends four."""


# --- arrays ---------------------------------------------------------------------------------------


def array_to_proto(array: Array, name: str = "array") -> types_pb2.Array:
    """Return an array as a message.

    Raises:
        SpecError: its dtype may not travel.
    """
    block = arrays.little_endian(array, name)
    return types_pb2.Array(dtype=block.dtype.name, shape=block.shape, data=block.tobytes())


def array_from_proto(message: types_pb2.Array, *, max_bytes: int = MAX_DECODED) -> Array:
    """Return a read-only view of the array in a message.

    Raises:
        DamageError: it is not what it claims to be.
    """
    shape = tuple(message.shape)
    size = arrays.checked_size(message.dtype, shape, max_bytes)
    data = message.data
    if len(data) != size:
        raise DamageError("array has the wrong number of bytes", got=len(data), allowed=size)
    array: Array = np.frombuffer(data, np.dtype(message.dtype).newbyteorder("<")).reshape(shape)
    if array.dtype.kind == "b" and (array.view(np.uint8) > 1).any():
        raise DamageError("array holds bools that are neither 0 nor 1")
    return array


def named_to_proto(named: Mapping[str, Array]) -> list[types_pb2.NamedArray]:
    """Return arrays by name as messages, in the order of ``named``."""
    return [
        types_pb2.NamedArray(name=name, array=array_to_proto(array, name))
        for name, array in named.items()
    ]


def named_from_proto(
    messages: Sequence[types_pb2.NamedArray], *, max_bytes: int = MAX_DECODED
) -> dict[str, Array]:
    """Return arrays by name.

    Raises:
        DamageError: a name comes twice, or an array is not what it claims to be.
    """
    limit(messages, "arrays")
    result: dict[str, Array] = {}
    for message in messages:
        if message.name in result:
            raise DamageError("array is named twice", got=message.name)
        result[message.name] = array_from_proto(message.array, max_bytes=max_bytes)
    return result


# --- fragments ------------------------------------------------------------------------------------


def fragment_to_proto(fragment: Fragment, codec: images.Codec = "zstd") -> experience_pb2.Fragment:
    """Return a fragment as a message.

    Args:
        fragment: as the edge recorded it.
        codec: of the images; ``raw`` and ``zstd`` lose nothing.

    Raises:
        SpecError: an array that may not travel.
    """
    seen = {name: a for name, a in fragment.observation.items() if _is_images(a)}
    plain = {name: a for name, a in fragment.observation.items() if name not in seen}
    return experience_pb2.Fragment(
        header=header_to_proto(fragment.header),
        observation=named_to_proto(plain),
        columns=named_to_proto({name: getattr(fragment, name) for name in fragments.COLUMNS}),
        extras=named_to_proto(fragment.extras),
        streams=[
            experience_pb2.Stream(
                name=name,
                stamps=array_to_proto(stream.stamps, name),
                values=array_to_proto(stream.values, name),
            )
            for name, stream in fragment.streams.items()
        ],
        images=[
            _image_to_proto(name, row, image, codec)
            for name, rows in seen.items()
            for row, image in enumerate(rows)
        ],
    )


def fragment_from_proto(message: experience_pb2.Fragment) -> Fragment:
    """Return the fragment in a message, checked.

    Raises:
        SpecError: it breaks a rule of fragments.
        DamageError: it is not what it claims to be.
    """
    _check_claims(message)
    columns = named_from_proto(message.columns)
    if columns.keys() != fragments.COLUMNS.keys():
        allowed = sorted(fragments.COLUMNS)
        raise DamageError("fragment has the wrong columns", got=sorted(columns), allowed=allowed)
    observation = named_from_proto(message.observation)
    for name, stacked in _images_from_proto(message.images).items():
        if name in observation:
            raise DamageError("field is both array and images", got=name)
        observation[name] = stacked
    fragment = Fragment(
        header=header_from_proto(message.header),
        observation=observation,
        extras=named_from_proto(message.extras),
        streams=_streams_from_proto(message.streams),
        **columns,
    )
    fragments.check(fragment)
    return fragment


def header_to_proto(header: FragmentHeader) -> experience_pb2.Header:
    """Return a fragment's header as a message."""
    return experience_pb2.Header(
        source=experience_pb2.Source(producer=header.producer, epoch=header.epoch),
        sequence=header.sequence,
        run=header.run,
        task=header.task,
        episode=header.episode,
        start=header.start,
        purpose=int(header.purpose),  # type: ignore[arg-type]  # same numbers by contract
        schema=header.schema,
        robot=header.robot,
        embodiment=header.embodiment,
        boot=header.boot,
        wall_ns=header.wall_ns,
        wall_bound_ns=header.wall_bound_ns,
        names=header.names,
        success=header.success,
        void_from=header.void_from,
    )


def header_from_proto(message: experience_pb2.Header) -> FragmentHeader:
    """Return a fragment's header.

    Raises:
        DamageError: its purpose does not exist, or it has too many names.
    """
    limit(message.names, "names")
    if int(message.purpose) not in set(Purpose):
        raise DamageError("unknown purpose", got=int(message.purpose), allowed=list(Purpose))
    return FragmentHeader(
        producer=message.source.producer,
        epoch=message.source.epoch,
        sequence=message.sequence,
        run=message.run,
        task=message.task,
        episode=message.episode,
        start=message.start,
        purpose=Purpose(message.purpose),
        schema=message.schema,
        robot=message.robot,
        embodiment=message.embodiment,
        boot=message.boot,
        wall_ns=message.wall_ns,
        wall_bound_ns=message.wall_bound_ns,
        names=tuple(message.names),
        success=message.success if message.HasField("success") else None,
        void_from=message.void_from if message.HasField("void_from") else None,
    )


def _is_images(array: Array) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4 and array.size > 0


def _image_to_proto(
    camera: str, row: int, image: Array, codec: images.Codec
) -> experience_pb2.Image:
    data = images.encode(image, codec)
    height, width, channels = image.shape
    return experience_pb2.Image(
        camera=camera,
        row=row,
        height=height,
        width=width,
        channels=channels,
        codec=codec,
        data=data,
        checksum=images.checksum(data),
    )


def _images_from_proto(messages: Sequence[experience_pb2.Image]) -> dict[str, Array]:
    """Return camera -> ``[rows, H, W, C]``; all rows of a camera must be there, in one shape."""
    seen: dict[str, dict[int, Array]] = {}
    for message in messages:
        if images.checksum(message.data) != message.checksum:
            raise DamageError("image checksum does not match", got=(message.camera, message.row))
        shape = (message.height, message.width, message.channels)
        rows = seen.setdefault(message.camera, {})
        if message.row in rows:
            raise DamageError("image comes twice", got=(message.camera, message.row))
        rows[message.row] = images.decode(message.data, message.codec, shape)  # type: ignore[arg-type]  # checked there
    stacked: dict[str, Array] = {}
    for camera, rows in seen.items():
        shapes = {image.shape for image in rows.values()}
        if sorted(rows) != list(range(len(rows))) or len(shapes) != 1:
            raise DamageError(
                f"images of camera {camera!r} do not stack", got=(sorted(rows), sorted(shapes))
            )
        stacked[camera] = np.stack([rows[row] for row in range(len(rows))])
    return stacked


def _streams_from_proto(messages: Sequence[experience_pb2.Stream]) -> dict[str, Stream]:
    streams: dict[str, Stream] = {}
    for message in messages:
        if message.name in streams:
            raise DamageError("stream is named twice", got=message.name)
        stamps, values = array_from_proto(message.stamps), array_from_proto(message.values)
        streams[message.name] = Stream(stamps, values)
    return streams


def _check_claims(message: experience_pb2.Fragment) -> None:
    """Add up what a fragment claims to hold before any of it is decoded."""
    for part in (message.observation, message.columns, message.extras):
        limit(part, "arrays")
    limit(message.streams, "streams")
    limit(message.images, "images")
    # Arrays are as large as their bytes, which are here already; images grow when decoded.
    total = sum(image.height * image.width * image.channels for image in message.images)
    if total > MAX_DECODED:
        raise DamageError("fragment's images are too large", got=total, allowed=MAX_DECODED)
    for column in message.columns:
        if column.name == "executed" and column.array.shape and column.array.shape[0] > _STEPS:
            raise DamageError("fragment is too long", got=column.array.shape[0], allowed=_STEPS)


def limit(parts: Sequence[Any], what: str) -> None:
    """Refuse a message with more than ``MAX_PARTS`` of something."""
    if len(parts) > MAX_PARTS:
        raise DamageError(f"message has too many {what}", got=len(parts), allowed=MAX_PARTS)
