"""Dataclasses <-> plain trees that JSON knows, by their type hints, strictly; arrays stay apart.

For what algorithms make grow: nothing here names a field. A field that the reading side does not
know is refused by name, one that is not sent has its default.
"""

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping, Sequence, Set
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np

from user_system.core.errors import DamageError, SpecError
from user_system.core.types import Array

T = TypeVar("T")

_BLOCK = "$array"
"""Key under which a tree holds the name of an array."""


def plain(value: Any, blocks: dict[str, Array]) -> Any:
    """Return ``value`` as what JSON knows; its arrays go to ``blocks``.

    Raises:
        SpecError: it is none of dataclass, mapping, sequence, array, number, text, None.
    """
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        name = str(len(blocks))
        blocks[name] = value
        return {_BLOCK: name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), blocks) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise SpecError("keys of a mapping that travels", got=list(value)[:5], allowed="text")
        return {key: plain(item, blocks) for key, item in value.items()}
    if isinstance(value, Set):
        return sorted(plain(item, blocks) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [plain(item, blocks) for item in value]
    raise SpecError("value that cannot travel", got=type(value).__name__)


def untyped(tree: Any, blocks: Mapping[str, Array]) -> Any:
    """Return a tree with its arrays put back."""
    if isinstance(tree, dict):
        if tree.keys() == {_BLOCK}:
            return _block(tree, blocks, "state")
        return {key: untyped(item, blocks) for key, item in tree.items()}
    if isinstance(tree, list):
        return [untyped(item, blocks) for item in tree]
    return tree


def typed(hint: Any, tree: Any, blocks: Mapping[str, Array], path: str) -> Any:
    """Return ``tree`` as ``hint``: the inverse of ``plain``.

    Values of a ``Literal`` are left to whoever knows what they mean; only their type is checked.

    Raises:
        SpecError: it does not fit; says where, and what would.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return untyped(tree, blocks)
    if origin in (Union, types.UnionType):
        return _union(args, tree, blocks, path)
    if origin is Literal:
        return _union(tuple(dict.fromkeys(map(type, args))), tree, blocks, path)
    if origin is np.ndarray:
        return _block(tree, blocks, path)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _dataclass(hint, tree, blocks, path)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _enum(hint, tree, path)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        items = _of(tree, dict, path, "a mapping").items()
        return {key: typed(args[1], item, blocks, f"{path}.{key}") for key, item in items}
    if isinstance(origin, type) and issubclass(origin, Sequence | Set):
        return _sequence(origin, args, tree, blocks, path)
    return _scalar(hint, tree, path)


def _dataclass(hint: Any, tree: Any, blocks: Mapping[str, Array], path: str) -> Any:
    hints = _hints(hint)
    found = _of(tree, dict, path, "a mapping")
    known = {f.name: f for f in dataclasses.fields(hint) if f.init}
    if unknown := sorted(found.keys() - known.keys()):
        raise SpecError(f"{path} has an unknown field", got=unknown[0], allowed=", ".join(known))
    values = {n: typed(hints[n], item, blocks, f"{path}.{n}") for n, item in found.items()}
    missing = [n for n, f in known.items() if n not in values and _required(f)]
    if missing:
        raise SpecError(f"{path} lacks a field", got=", ".join(found), allowed=missing[0])
    return hint(**values)


def _sequence(
    origin: type, args: tuple[Any, ...], tree: Any, blocks: Mapping[str, Array], path: str
) -> Any:
    items = _of(tree, list, path, "a list")
    fixed = issubclass(origin, tuple) and args[-1] is not Ellipsis
    if fixed and len(items) != len(args):
        raise SpecError(path, got=f"{len(items)} items", allowed=len(args))
    kinds = args if fixed else (args[0],) * len(items)
    made = [
        typed(kind, item, blocks, f"{path}[{i}]")
        for i, (kind, item) in enumerate(zip(kinds, items, strict=True))
    ]
    if issubclass(origin, Set):
        return frozenset(made)
    return made if origin is list else tuple(made)


def _union(args: tuple[Any, ...], tree: Any, blocks: Mapping[str, Array], path: str) -> Any:
    if tree is None and type(None) in args:
        return None
    rest = [arg for arg in args if arg is not type(None)]
    for arg in rest[:-1]:
        try:
            return typed(arg, tree, blocks, path)
        except SpecError:
            continue  # the last one says what it wants
    return typed(rest[-1], tree, blocks, path)


def _enum(hint: type[enum.Enum], tree: Any, path: str) -> enum.Enum:
    try:
        return hint(tree)
    except ValueError as error:
        allowed = ", ".join(str(member.value) for member in hint)
        raise SpecError(path, got=tree, allowed=allowed) from error


_WORDS: Mapping[Any, tuple[tuple[type, ...], str]] = {
    bool: ((bool,), "true or false"),
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    str: ((str,), "text"),
}


def _scalar(hint: Any, tree: Any, path: str) -> Any:
    if hint not in _WORDS:
        raise SpecError(f"{path} is of a type that cannot travel", got=hint)
    kinds, words = _WORDS[hint]
    if type(tree) not in kinds:
        raise SpecError(path, got=repr(tree)[:200], allowed=words)
    return tree


def _block(tree: Any, blocks: Mapping[str, Array], path: str) -> Array:
    name = tree.get(_BLOCK) if isinstance(tree, dict) else None
    if not isinstance(name, str) or name not in blocks:
        raise DamageError(f"{path} is no array", got=repr(tree)[:200])
    return blocks[name]


def _of(tree: Any, kind: type[T], path: str, words: str) -> T:
    if not isinstance(tree, kind):
        raise SpecError(path, got=repr(tree)[:200], allowed=words)
    return tree


def _required(spec: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return spec.default is missing and spec.default_factory is missing


@cache
def _hints(hint: Any) -> dict[str, Any]:
    return typing.get_type_hints(hint)
