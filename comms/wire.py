"""Messages of ``proto/`` <-> what ``core`` calls them, with every size checked before it is used.

What comes from outside is believed only after it was checked: dtypes against a whitelist, shapes
against the bytes that are there, the whole against ``MAX_DECODED``, images against the checksum
made where they were captured, fragments against the rules of ``codec.fragments.check``. A message
that fails raises ``SpecError`` or ``DamageError`` and has cost no more memory than itself.

Arrays are read without copying: they are read-only views of the message's bytes. Of a fragment the
observation fields ``[T, H, W, C]`` uint8 travel as images, one by one; everything else is its
record, the bytes that the replay buffer keeps.
"""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace

import numpy as np

from comms.packing import Packing
from comms.pb import experience_pb2, types_pb2
from user_system.codec import arrays, fragments, images
from user_system.core.errors import DamageError
from user_system.core.types import Array, Fragment, FragmentHeader, Parcel

MAX_DECODED = 64 << 20
"""Bytes that all arrays and images of one message may have decoded: four times the message."""

MAX_PARTS = 4096
"""Arrays, images, fields or names in one message."""

MAX_HEADER = 256 << 10
"""Bytes of a record's JSON; parsed, it takes several times as many."""

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


def fragment_to_proto(
    fragment: Fragment, packing: Packing | None = None
) -> experience_pb2.Fragment:
    """Return a fragment as a message.

    Args:
        fragment: as the edge recorded it.
        packing: encodes its images; None: one that loses nothing.

    Raises:
        SpecError: an array that may not travel.
    """
    seen = {n: a for n, a in fragment.observation.items() if fragments.is_image(a)}
    packing = packing or Packing()
    return experience_pb2.Fragment(
        source=_source(fragment.header),
        sequence=fragment.header.sequence,
        record=fragments.record(fragment),
        images=[
            _image_to_proto(name, row, image, packing)
            for name, rows in seen.items()
            for row, image in enumerate(rows)
        ],
    )


def unsendable_to_proto(header: FragmentHeader) -> experience_pb2.Fragment:
    """Return a message in place of a fragment that cannot travel: it is refused by name."""
    return experience_pb2.Fragment(source=_source(header), sequence=header.sequence)


def fragment_from_proto(message: experience_pb2.Fragment) -> Parcel:
    """Return the fragment in a message, checked, and its record.

    Raises:
        SpecError: it breaks a rule of fragments.
        DamageError: it is not what it claims to be.
    """
    if not message.record:
        raise DamageError("fragment came without its record: its host could not send it")
    _check_images(message.images)
    low = fragments.decode(message.record, max_bytes=MAX_DECODED, max_header=MAX_HEADER)
    _check_claims(message, low)
    seen = _images_from_proto(message.images)
    if both := seen.keys() & low.observation.keys():
        raise DamageError("field is both array and images", got=sorted(both))
    fragment = replace(low, observation={**low.observation, **seen})
    fragments.check_values(fragment)
    return Parcel(fragment, message.record)


def _source(header: FragmentHeader) -> experience_pb2.Source:
    producer, epoch, boot = header.producer, header.epoch, header.boot
    return experience_pb2.Source(producer=producer, epoch=epoch, boot=boot)


def _image_to_proto(camera: str, row: int, image: Array, packing: Packing) -> experience_pb2.Image:
    codec, data = packing.encode(camera, image)
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
        data = message.data  # a copy each time that it is asked for
        if images.checksum(data) != message.checksum:
            raise DamageError("image checksum does not match", got=(message.camera, message.row))
        shape = (message.height, message.width, message.channels)
        rows = seen.setdefault(message.camera, {})
        if message.row in rows:
            raise DamageError("image comes twice", got=(message.camera, message.row))
        rows[message.row] = images.decode(data, message.codec, shape)  # type: ignore[arg-type]  # checked there
    stacked: dict[str, Array] = {}
    for camera, rows in seen.items():
        shapes = {image.shape for image in rows.values()}
        if sorted(rows) != list(range(len(rows))) or len(shapes) != 1:
            raise DamageError(
                f"images of camera {camera!r} do not stack", got=(sorted(rows), sorted(shapes))
            )
        ordered = [rows[row] for row in range(len(rows))]
        stacked[camera] = np.stack(ordered) if len(ordered) > 1 else ordered[0][np.newaxis]
    return stacked


def _check_images(messages: Sequence[experience_pb2.Image]) -> None:
    """Add up what images claim to hold before any of them is decoded."""
    limit(messages, "images")
    total = sum(image.height * image.width * image.channels for image in messages)
    if total > MAX_DECODED:
        raise DamageError("fragment's images are too large", got=total, allowed=MAX_DECODED)


def _check_claims(message: experience_pb2.Fragment, low: Fragment) -> None:
    """Make sure that a record is the one that its message names, and no more than a record."""
    header = low.header
    source = message.source
    names = (source.producer, source.epoch, source.boot, message.sequence)
    if names != (got := (header.producer, header.epoch, header.boot, header.sequence)):
        raise DamageError("record is of another fragment", got=got, allowed=names)
    for parts in (low.observation, low.extras, low.streams, header.names):
        limit(parts, "arrays or names")
        if strange := [name for name in parts if not (name.isascii() or fragments.is_text(name))]:
            raise DamageError("names that are no text", got=ascii(strange[0]))
    if inside := [name for name, array in low.observation.items() if fragments.is_image(array)]:
        raise DamageError("images inside of a record", got=inside)
    if len(low) > _STEPS:
        raise DamageError("fragment is too long", got=len(low), allowed=_STEPS)


def limit(parts: Sized, what: str) -> None:
    """Refuse a message with more than ``MAX_PARTS`` of something."""
    if len(parts) > MAX_PARTS:
        raise DamageError(f"message has too many {what}", got=len(parts), allowed=MAX_PARTS)
