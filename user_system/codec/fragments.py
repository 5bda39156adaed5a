"""A fragment as one message of ``codec.arrays``, and the rules every fragment keeps.

``meta`` is ``{"fragment": 1, "header": {...}}`` with the header's fields by name. Arrays are named
by what they are: ``c/<column>``, ``o/<observation field>``, ``x/<extra>``, ``t/<stream>`` for a
stream's stamps and ``v/<stream>`` for its values. Reading is without copies: the arrays of a
decoded fragment are read-only views into the bytes it came from.

A *record* is such a message of everything but the images, which are stored and sent by themselves.
It is written where the fragment is recorded, and is what the head has on disk: one checksum covers
it all the way.

``check`` belongs at trust boundaries: where a fragment is made, and where one arrives from outside.
``decode`` only makes sure that the parts are there and have the right types.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from enum import IntEnum
from itertools import pairwise
from math import isinf
from typing import Any

import numpy as np

from user_system.codec import arrays
from user_system.codec.arrays import Buffer
from user_system.core.errors import DamageError, SpecError
from user_system.core.types import Array, End, Fragment, FragmentHeader, Purpose, Segment, Stream

COLUMNS: Mapping[str, str] = {
    "executed": "float32",
    "proposed": "float32",
    "reward": "float32",
    "segment": "uint8",
    "end": "uint8",
    "robot_ns": "int64",
    "policy": "uint16",
    "version": "int64",
    "operator": "uint16",
    "chunk": "int32",
    "position": "int32",
}
"""Columns that every fragment has, and their dtypes."""

MAX_EXTRAS = 128
"""Of one fragment: readers keep a column of all steps for each."""

MAX_STEP_BYTES = 1 << 20
"""Of the extras of one step: readers hold them in memory, a batch has them for each of its rows."""

MAX_STREAMS = 64
"""Of one fragment: readers look for the newest sample of each at each observation."""

MAX_FIELDS = 1024
"""Of an observation: each image field has a number of two bytes."""

MAX_NAME = 255
"""Bytes of the name of a field, an extra or a stream."""

_FORMAT = 1
_TEXTS = ("producer", "run", "task", "episode", "schema", "robot", "embodiment", "boot")
_NUMBERS = ("epoch", "sequence", "start", "wall_ns", "wall_bound_ns")
_OPTIONAL = ("names", "success", "void_from", "purpose")

_BOUNDS = {
    "epoch": (0, 1 << 64),
    "sequence": (0, 1 << 64),
    "start": (0, 1 << 63),
    "wall_ns": (-(1 << 63), 1 << 63),
    "wall_bound_ns": (0, 1 << 63),
}
"""Numbers of the header, as columns and keys hold them."""
_FIELDS = tuple(field.name for field in fields(FragmentHeader))


_DTYPES = {name: np.dtype(dtype) for name, dtype in COLUMNS.items()}
_INTS, _PURPOSES = (int, Purpose), frozenset(map(int, Purpose))
_ARRAYS = (np.ndarray, np.memmap)
"""Others, such as masked ones, answer what is asked of them differently."""
_LABELS: tuple[tuple[str, type[IntEnum], frozenset[int]], ...] = (
    ("segment", Segment, frozenset(map(int, Segment))),
    ("end", End, frozenset(map(int, End))),
)


def encode(fragment: Fragment) -> bytes:
    """Return ``fragment`` as bytes.

    Raises:
        SpecError: an array has a dtype that may not travel.
    """
    blocks = {f"c/{name}": getattr(fragment, name) for name in COLUMNS}
    blocks |= {f"o/{name}": array for name, array in fragment.observation.items()}
    blocks |= {f"x/{name}": array for name, array in fragment.extras.items()}
    for name, stream in fragment.streams.items():
        blocks |= {f"t/{name}": stream.stamps, f"v/{name}": stream.values}
    header = {name: getattr(fragment.header, name) for name in _FIELDS}
    return arrays.pack({"fragment": _FORMAT, "header": header}, blocks)


def is_image(array: Array) -> bool:
    """Return whether ``array`` ``[T, ...]`` is a stack of images."""
    return array.dtype == np.uint8 and array.ndim == 4


def low(fragment: Fragment) -> Fragment:
    """Return a fragment without its images."""
    fields = {n: values for n, values in fragment.observation.items() if not is_image(values)}
    return replace(fragment, observation=fields)


def record(fragment: Fragment) -> bytes:
    """Return everything of a fragment but its images as bytes, for ``decode``.

    Raises:
        SpecError: an array has a dtype that may not travel.
    """
    return encode(low(fragment))


def decode(
    buffer: Buffer,
    *,
    max_bytes: int = arrays.MAX_BYTES,
    max_header: int = arrays.MAX_BYTES,
) -> Fragment:
    """Return the fragment in ``buffer``; its arrays are read-only views into it.

    Args:
        buffer: exactly one message.
        max_bytes: refuse longer ones before touching them.
        max_header: refuse longer headers; a parsed one takes several times its length.

    Raises:
        DamageError: these are not the bytes that ``encode`` wrote.
    """
    meta, blocks = arrays.unpack(buffer, max_bytes=max_bytes, max_header=max_header)
    if meta.get("fragment") != _FORMAT or len(meta) != 2:
        raise DamageError("not a fragment", got=meta.get("fragment"), allowed=_FORMAT)
    parts: dict[str, dict[str, Array]] = {kind: {} for kind in "coxtv"}
    for key, array in blocks.items():
        kind, slash, name = key.partition("/")
        if not slash or kind not in parts:
            raise DamageError("unknown array in a fragment", got=key)
        parts[kind][name] = array
    if parts["c"].keys() != COLUMNS.keys():
        raise DamageError("wrong columns", got=sorted(parts["c"]), allowed=sorted(COLUMNS))
    if parts["t"].keys() != parts["v"].keys():
        raise DamageError("streams without stamps or values", got=sorted(parts["t"]))
    return Fragment(
        header=_header(meta.get("header")),
        observation=parts["o"],
        extras=parts["x"],
        streams={name: Stream(parts["t"][name], parts["v"][name]) for name in parts["t"]},
        **parts["c"],
    )


def check(fragment: Fragment) -> None:
    """Make sure that a fragment keeps every rule that readers rely on.

    Everything is of its type; rows agree; only the last step may end the episode, and then one more
    observation is there; what is learned from is finite; stamps increase; numbers name something.

    Raises:
        SpecError: the first rule that is broken, with the producer, episode and field.
    """
    _check_types(fragment)
    _check_parts(fragment)
    check_values(fragment)


def check_values(fragment: Fragment) -> None:
    """Do what ``check`` does for a fragment that is of its types all through, as decoded ones are.

    Raises:
        SpecError: the first rule that is broken.
    """
    for broken in (
        _check_names,
        _check_header,
        _check_counts,
        _check_dtypes,
        _check_rows,
        _check_labels,
        _check_finite,
        _check_streams,
    ):
        broken(fragment)


def header_of(fragment: object) -> FragmentHeader:
    """Return the header of what should be a fragment; its values may be anything.

    Raises:
        SpecError: it has none.
    """
    header = getattr(fragment, "header", None)
    if not isinstance(fragment, Fragment) or type(header) is not FragmentHeader:
        got = f"{type(fragment).__name__} with {type(header).__name__}"
        raise SpecError("not a fragment with a header", got=got, allowed="FragmentHeader")
    return header


def is_text(text: str) -> bool:
    """Return whether ``text`` can be written as UTF-8: JSON can say what cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _header(value: object) -> FragmentHeader:
    if not isinstance(value, dict) or value.keys() != {*_TEXTS, *_NUMBERS, *_OPTIONAL}:
        raise DamageError("fragment header has the wrong fields", got=value)
    names, success, void = value["names"], value["success"], value["void_from"]
    right = (
        all(isinstance(value[key], str) for key in _TEXTS)
        and all(type(value[key]) is int for key in _NUMBERS)
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
        and (success is None or isinstance(success, bool))
        and (void is None or type(void) is int)
        and type(value["purpose"]) is int
        and value["purpose"] in set(Purpose)
    )
    if not right:
        raise DamageError("fragment header has values of the wrong type", got=value)
    fields: dict[str, Any] = value | {"names": tuple(names), "purpose": Purpose(value["purpose"])}
    return FragmentHeader(**fields)


def _refuse(fragment: Fragment, what: str, got: object, allowed: object, todo: str = "") -> None:
    at = f"fragment {fragment.header.sequence} of {fragment.header.producer!r}"
    raise SpecError(f"{at}: {what}", got=got, allowed=allowed, todo=todo)


def _is_names(value: object) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(name, str) for name in value)


_HEADER_TYPES: tuple[tuple[Sequence[str], Callable[[object], bool], str], ...] = (
    (_TEXTS, lambda value: isinstance(value, str), "str"),
    (_NUMBERS, lambda value: type(value) is int, "int"),
    (("names",), _is_names, "a tuple of str"),
    (("success",), lambda value: value is None or type(value) is bool, "bool or None"),
    (("void_from",), lambda value: value is None or type(value) is int, "int or None"),
    (("purpose",), lambda value: type(value) in _INTS and value in _PURPOSES, "a Purpose"),
)


def _check_types(fragment: Fragment) -> None:
    header = header_of(fragment)
    for keys, right, allowed in _HEADER_TYPES:
        for key in keys:
            if not right(value := getattr(header, key)):
                what = f"{key} in the header of a fragment has the wrong type"
                raise SpecError(what, got=type(value).__name__, allowed=allowed)


_PARTS = {"observation": "observation", "extras": "extra", "streams": "stream"}


def _check_parts(fragment: Fragment) -> None:
    """Arrays are arrays, and have names."""
    for name in COLUMNS:
        if type(values := getattr(fragment, name)) not in _ARRAYS:
            _refuse_array(fragment, f"column {name}", values)
    for kind, one in _PARTS.items():
        parts = getattr(fragment, kind)
        if not isinstance(parts, Mapping):
            _refuse(fragment, f"{kind}: no mapping", type(parts).__name__, "name -> array")
        for name, part in parts.items():
            if not isinstance(name, str):
                _refuse_name(fragment, kind, type(name).__name__)
            if kind != "streams":
                if type(part) not in _ARRAYS:
                    _refuse_array(fragment, f"{one} {name!r}", part)
                continue
            if type(part) is not Stream:
                _refuse(fragment, f"{one} {name!r} is none", type(part).__name__, "Stream")
            for values in (part.stamps, part.values):
                if type(values) not in _ARRAYS:
                    _refuse_array(fragment, f"{one} {name!r}", values)


def _refuse_array(fragment: Fragment, what: str, values: object) -> None:
    _refuse(fragment, f"{what} is no array", type(values).__name__, "numpy.ndarray")


def _check_names(fragment: Fragment) -> None:
    for kind in _PARTS:
        for name in getattr(fragment, kind):
            if not is_text(name) or len(name.encode()) > MAX_NAME:
                _refuse_name(fragment, kind, ascii(name[:80]))


def _refuse_name(fragment: Fragment, kind: str, got: str) -> None:
    _refuse(fragment, f"{kind}: a name is none", got, f"Unicode of <= {MAX_NAME} bytes")


def _check_header(fragment: Fragment) -> None:
    header = fragment.header
    for key in ("producer", "run", "episode", "schema", "robot"):
        if not getattr(header, key):
            _refuse(fragment, f"{key} is empty", "''", "a name")
    for key, (low, high) in _BOUNDS.items():
        if not low <= getattr(header, key) < high:
            _refuse(fragment, f"{key} is out of bounds", getattr(header, key), f"{low}..{high - 1}")
    for text in (*(getattr(header, key) for key in _TEXTS), *header.names):
        if not text.isascii() and not is_text(text):
            _refuse(fragment, "header holds what is no text", ascii(text), "Unicode")
    if header.void_from is not None and not 0 <= header.void_from <= header.start:
        _refuse(fragment, "void_from", header.void_from, f"0..{header.start}")
    if not header.names or header.names[0] != "":
        _refuse(fragment, "names must begin with the empty string", header.names, "('', ...)")


_MOST = {"observation": MAX_FIELDS, "extras": MAX_EXTRAS, "streams": MAX_STREAMS}


def _check_counts(fragment: Fragment) -> None:
    for kind, most in _MOST.items():
        if (got := len(getattr(fragment, kind))) > most:
            _refuse(fragment, f"too many {kind}", got, f"<= {most}")


def _check_dtypes(fragment: Fragment) -> None:
    for name, dtype in _DTYPES.items():
        got = getattr(fragment, name).dtype
        if got != dtype:
            _refuse(fragment, f"column {name} has the wrong dtype", got, dtype)
    for kind in ("observation", "extras"):
        for name, array in getattr(fragment, kind).items():
            arrays.little_endian(array, f"{kind} {name}")


def _check_rows(fragment: Fragment) -> None:
    steps = len(fragment) if fragment.executed.ndim == 2 else 0
    if steps == 0:
        _refuse(fragment, "executed", list(fragment.executed.shape), "[T, Da] with T >= 1")
    if fragment.proposed.shape != fragment.executed.shape:
        _refuse(fragment, "proposed", fragment.proposed.shape, fragment.executed.shape)
    for name in COLUMNS.keys() - {"executed", "proposed", "robot_ns"}:
        if getattr(fragment, name).shape != (steps,):
            _refuse(fragment, f"column {name}", getattr(fragment, name).shape, (steps,))
    for name, array in fragment.extras.items():
        if array.shape[:1] != (steps,):
            _refuse(fragment, f"extra {name!r}", array.shape, f"[{steps}, ...]")
    _check_size(fragment, steps)
    rows = steps + 1 if fragment.final else steps
    why = "one more than steps: the episode ends here" if fragment.final else "as many as steps"
    if fragment.robot_ns.shape != (rows,):
        _refuse(fragment, "robot_ns", fragment.robot_ns.shape, f"({rows},), {why}")
    for name, array in fragment.observation.items():
        if array.shape[:1] != (rows,):
            _refuse(fragment, f"observation {name!r}", array.shape, f"[{rows}, ...], {why}")


def _check_size(fragment: Fragment, steps: int) -> None:
    sizes = {name: array.nbytes // steps for name, array in fragment.extras.items()}
    if (size := sum(sizes.values())) > MAX_STEP_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        got = f"{size} bytes a step, most of them {largest!r}"
        todo = "Record what is so large as images, or not at every step as a stream."
        _refuse(fragment, "extras are too large", got, f"<= {MAX_STEP_BYTES} bytes a step", todo)


def _check_labels(fragment: Fragment) -> None:
    # As lists: for a few steps each of NumPy's reductions takes longer than all of this.
    for name, enum, known in _LABELS:
        labels = getattr(fragment, name).tolist()
        if not known.issuperset(labels):
            _refuse(fragment, f"unknown {name}", labels, list(enum))
    ends = fragment.end.tolist()
    if any(end != End.NONE for end in ends[:-1]):
        _refuse(fragment, "only the last step may end", ends, "0, 0, ..., end")
    for name in ("policy", "operator"):
        indexes = getattr(fragment, name).tolist()
        if max(indexes) >= len(fragment.header.names):
            top = len(fragment.header.names) - 1
            _refuse(fragment, f"{name} index", indexes, f"0..{top}")
    for name in ("version", "chunk", "position"):
        numbers = getattr(fragment, name).tolist()
        if min(numbers) < 0:
            _refuse(fragment, f"{name} is negative", numbers, ">= 0")


def _check_finite(fragment: Fragment) -> None:
    """NaN says "not known" in ``proposed`` and ``reward`` and is allowed nowhere else."""
    wanted = {"executed": fragment.executed, **fragment.observation}
    for name, array in wanted.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            _refuse(fragment, f"{name} is not finite", "NaN or infinity", "finite numbers")
    for name in ("proposed", "reward"):
        if any(map(isinf, getattr(fragment, name).ravel().tolist())):
            _refuse(fragment, f"{name} is infinite", "infinity", "finite numbers or NaN")
    stamps = fragment.robot_ns.tolist()
    if any(after <= before for before, after in pairwise(stamps)):
        _refuse(fragment, "robot_ns does not increase", stamps, "increasing")


def _check_streams(fragment: Fragment) -> None:
    for name, stream in fragment.streams.items():
        count = len(stream.values) if stream.values.ndim else -1
        if stream.stamps.dtype != np.int64 or stream.stamps.shape != (count,):
            got = (stream.stamps.dtype, stream.stamps.shape)
            _refuse(fragment, f"stamps of stream {name!r}", got, f"int64 ({count},)")
        if stream.values.dtype.kind == "f" and not np.isfinite(stream.values).all():
            _refuse(fragment, f"stream {name!r} is not finite", "NaN or infinity", "finite numbers")
        if (stream.stamps[1:] < stream.stamps[:-1]).any():
            _refuse(fragment, f"stamps of stream {name!r} run backwards", "", "never backwards")
        arrays.little_endian(stream.values, f"stream {name}")
