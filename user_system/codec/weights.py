r"""Weights and checkpoints: what identifies them, and how they are kept.

Identity. A tensor's hash is the sha256 of ``"<dtype>[<n>,<n>...]\n"`` and its little-endian bytes
in C order. The hash of a set of weights is the sha256 of its sorted rows ``[module, name, dtype,
shape, hash]`` as compact JSON; normaliser statistics are rows of module ``statistics``. So a
receiver that has some of the tensors already can name what it lacks, and both sides agree on what
they hold.

File. A tree of mappings, lists, arrays, numbers, strings, bools and None is a safetensors file:
arrays under their path in the tree, and in ``__metadata__`` these texts:

- ``format``: "user-system 1"
- ``tree``: the tree as JSON, with ``{"$array": path}`` for an array, ``{"$tuple": [...]}`` for a
  tuple and ``{"$items": [[key, value], ...]}`` for a mapping with other keys than plain strings
- ``checksum``: xxh3-64 of the tree and the sorted arrays; safetensors itself has none

Nothing in it is code.

Saving writes a temporary name, syncs it, renames it over the old one and syncs the directory:
whatever happens, the name holds either the old or the new state, whole.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import xxhash

from user_system.codec.arrays import Buffer, Json, little_endian, raw
from user_system.core.errors import DamageError, SpecError, StoreError
from user_system.core.types import Array

Tree: TypeAlias = Any
"""Nested mappings, lists and tuples of arrays, numbers, strings, bools and None."""

STATISTICS = "statistics"
"""Reserved module name of the normaliser statistics."""

_FORMAT = "user-system 1"


class Entry(NamedTuple):
    """One tensor of a set of weights, without its data."""

    module: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    hash: str


def tensor_hash(array: Array) -> str:
    """Return the hex sha256 over dtype, shape and bytes of one tensor."""
    block = little_endian(array, "tensor")
    digest = tensor_digest(block.dtype.name, block.shape)
    digest.update(raw(block))
    return digest.hexdigest()


def tensor_digest(dtype: str, shape: Sequence[int]) -> "hashlib._Hash":
    """Return the digest of a tensor of which no byte has been added yet."""
    return hashlib.sha256(f"{dtype}[{','.join(map(str, shape))}]\n".encode())


def round_to_bfloat16(array: Array) -> Array:
    """Return float32 numbers rounded to those of bfloat16, half to even; others as they are.

    They stay float32, with lower halves of zero: whoever acts with them, here or there, acts with
    the same numbers, and on the way they take two bytes each (see ``codec.deltas``).
    """
    values = np.asarray(array)
    if values.dtype != np.float32:
        return values
    bits = np.ascontiguousarray(values).view(np.uint32)
    odd = (bits >> np.uint32(16)) & np.uint32(1)
    upper = (bits + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000)
    # What is not finite must stay so, whatever its lower half.
    rounded = np.where(np.isfinite(values), upper.view(np.float32).reshape(values.shape), values)
    return rounded.astype(np.float32, copy=False)


def entries(
    modules: Mapping[str, Mapping[str, Array]], statistics: Mapping[str, Array] | None = None
) -> list[Entry]:
    """Return what a set of weights consists of, sorted by module and name.

    Raises:
        SpecError: a module is called ``statistics``, or a dtype may not travel.
    """
    if STATISTICS in modules:
        raise SpecError("module name is reserved", got=STATISTICS, allowed="any other name")
    rows = [
        Entry(module, name, np.asarray(array).dtype.name, np.shape(array), tensor_hash(array))
        for module, tensors in {**modules, STATISTICS: statistics or {}}.items()
        for name, array in tensors.items()
    ]
    return sorted(rows)


def entries_hash(rows: Iterable[Entry]) -> str:
    """Return the identity of the weights that ``rows`` describe, in any order."""
    table = [[*row[:3], list(row.shape), row.hash] for row in sorted(rows)]
    return hashlib.sha256(json.dumps(table, separators=(",", ":")).encode()).hexdigest()


def weights_hash(
    modules: Mapping[str, Mapping[str, Array]], statistics: Mapping[str, Array] | None = None
) -> str:
    """Return the identity of a set of weights: ``Weights.hash``."""
    return entries_hash(entries(modules, statistics))


def flatten(tree: Tree) -> tuple[Json, dict[str, Array]]:
    """Return (``tree`` as JSON with references, path -> array).

    NumPy scalars become Python numbers; everything else comes back from ``unflatten`` as it was.

    Raises:
        SpecError: something in the tree is none of the allowed things; names its path.
    """
    found: dict[str, Array] = {}
    return _flatten(tree, "/", found), found


def unflatten(tree: Json, arrays: Mapping[str, Array]) -> Tree:
    """Return the tree that ``flatten`` took apart.

    Raises:
        DamageError: a reference without array, an array without reference, or an unknown mark.
    """
    unused = set(arrays)
    result = _unflatten(tree, arrays, unused)
    if unused:
        raise DamageError("arrays that the tree does not mention", got=sorted(unused))
    return result


def to_bytes(tree: Tree) -> bytes:
    """Return ``tree`` as the bytes of a safetensors file.

    Raises:
        SpecError: something in the tree cannot be kept.
    """
    from safetensors.numpy import save as serialize

    structure, arrays = flatten(tree)
    text = json.dumps(structure, separators=(",", ":"))
    notes = {"format": _FORMAT, "tree": text, "checksum": _checksum(text, arrays)}
    return bytes(serialize(arrays, metadata=notes))


def from_bytes(data: Buffer) -> Tree:
    """Return the tree that ``to_bytes`` wrote.

    Raises:
        DamageError: these are not the bytes that were written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load as deserialize

    notes = _notes(data)
    try:
        arrays: dict[str, Array] = deserialize(bytes(data))
    except (SafetensorError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise DamageError("not a readable safetensors file", got=error) from error
    text = notes["tree"]
    if _checksum(text, arrays) != notes["checksum"]:
        raise DamageError("checkpoint checksum does not match its contents")
    try:
        structure = json.loads(text)
        return unflatten(structure, arrays)
    except (ValueError, RecursionError) as error:
        raise DamageError("tree of a checkpoint is not readable", got=error) from error


def save(path: Path, tree: Tree) -> None:
    """Write ``tree`` to ``path`` so that a crash leaves the old file or the new one.

    Raises:
        SpecError: something in the tree cannot be kept; nothing was written.
        StoreError: the disk failed; the old file is untouched.
    """
    data = to_bytes(tree)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StoreError(
            f"cannot write {path}", got=error, todo="Check space and rights."
        ) from error


def load(path: Path) -> Tree:
    """Return the tree that ``save`` wrote to ``path``.

    Raises:
        StoreError: it cannot be read.
        DamageError: it is not what was written.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"cannot read {path}", got=error) from error
    try:
        return from_bytes(data)
    except DamageError as error:
        raise DamageError(f"{path} is damaged", got=error) from error


def _flatten(value: Tree, path: str, found: dict[str, Array]) -> Json:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return _flatten(value.item(), path, found)
    if isinstance(value, np.ndarray):
        found[path] = little_endian(value, path)
        return {"$array": path}
    if isinstance(value, (list, tuple)):
        items = [_flatten(item, _child(path, i), found) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        return _flatten_mapping(value, path, found)
    raise SpecError(
        f"{path} cannot be kept",
        got=type(value).__name__,
        allowed="mappings, lists, arrays, numbers, strings, bools, None",
    )


def _flatten_mapping(value: Mapping[Any, Tree], path: str, found: dict[str, Array]) -> Json:
    if not all(type(key) in (str, int) for key in value):
        raise SpecError(f"{path} has keys that cannot be kept", allowed="strings and integers")
    items = [(key, _flatten(item, _child(path, key), found)) for key, item in value.items()]
    if all(isinstance(key, str) and not key.startswith("$") for key, _ in items):
        return dict(items)
    return {"$items": [[key, item] for key, item in items]}


def _child(path: str, key: str | int) -> str:
    """Append to a path so that no two places share one: escapes as in RFC 6901, and for ints."""
    if isinstance(key, str):
        name = key.replace("~", "~0").replace("/", "~1").replace("#", "~2")
    else:
        name = f"#{key}"
    return f"{path}{name}" if path == "/" else f"{path}/{name}"


def _unflatten(value: Json, arrays: Mapping[str, Array], unused: set[str]) -> Tree:
    if isinstance(value, list):
        return [_unflatten(item, arrays, unused) for item in value]
    if not isinstance(value, dict):
        return value
    mark = next((key for key in value if key.startswith("$")), None)
    if mark is None:
        return {key: _unflatten(item, arrays, unused) for key, item in value.items()}
    inner = value[mark]
    if len(value) == 1 and mark == "$array" and isinstance(inner, str) and inner in arrays:
        unused.discard(inner)
        return arrays[inner]
    if len(value) == 1 and mark == "$tuple" and isinstance(inner, list):
        return tuple(_unflatten(item, arrays, unused) for item in inner)
    if len(value) == 1 and mark == "$items" and isinstance(inner, list) and _pairs(inner):
        return {key: _unflatten(item, arrays, unused) for key, item in inner}
    raise DamageError("unknown mark in a tree", got=str(value)[:200])


def _pairs(items: Sequence[Json]) -> bool:
    return all(
        isinstance(item, list) and len(item) == 2 and type(item[0]) in (str, int) for item in items
    )


def _checksum(text: str, arrays: Mapping[str, Array]) -> str:
    digest = xxhash.xxh3_64(text.encode())
    for name in sorted(arrays):
        block = little_endian(arrays[name], name)
        digest.update(f"\n{name} {block.dtype.name} {block.shape}\n".encode())
        digest.update(raw(block))
    return str(digest.hexdigest())


def _notes(data: Buffer) -> dict[str, str]:
    """Return the metadata texts of a safetensors file; its library only reads them from files."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        if length > len(data) - 8:
            raise DamageError("safetensors header is cut", got=len(data), allowed=length + 8)
        notes = json.loads(bytes(data[8 : 8 + length]))["__metadata__"]
        if notes["format"] != _FORMAT:
            raise DamageError("not a checkpoint of ours", got=notes["format"], allowed=_FORMAT)
        return {key: str(notes[key]) for key in ("tree", "checksum")}
    except (struct.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamageError("not a checkpoint", got=error) from error
