"""Plain trees into frozen dataclasses, strictly, with every problem found in one pass.

One parser serves both sides: a manifest (YAML, written by people, quantities with units) and the
per-process files that the launcher derives from it (JSON, written by us, bare numbers).
"""

import dataclasses
import datetime
import difflib
import enum
import json
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from user_system.cluster.tree import Node, Problems, from_plain, join, plain
from user_system.core.errors import PluginError, UserSystemError

T = TypeVar("T")

_TIME = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_LENGTH = {"mm": 1e-3, "cm": 1e-2, "m": 1.0}
_ANGLE = {"rad": 1.0, "deg": 0.017453292519943295}

UNITS: dict[str, dict[str, float]] = {
    "_m_s": {"m/s": 1.0, "mm/s": 1e-3},
    "_rad_s": {"rad/s": 1.0, "deg/s": _ANGLE["deg"]},
    "_per_s": {"Hz": 1.0, "/s": 1.0},
    "_ns": {unit: factor * 1e9 for unit, factor in _TIME.items()},
    "_us": {unit: factor * 1e6 for unit, factor in _TIME.items()},
    "_ms": {unit: factor * 1e3 for unit, factor in _TIME.items()},
    "_s": _TIME,
    "_hz": {"Hz": 1.0, "kHz": 1e3},
    "_bytes": _SIZE,
    "_mm": {unit: factor * 1e3 for unit, factor in _LENGTH.items()},
    "_m": _LENGTH,
    "_rad": _ANGLE,
    "_deg": {"deg": 1.0, "rad": 1 / _ANGLE["deg"]},
    "_kg": {"g": 1e-3, "kg": 1.0},
    "_n": {"N": 1.0, "mN": 1e-3},
}
"""Suffix of a field's name -> unit a person may write -> factor to the field's own unit.

The field ``publish_every_s`` is the manifest key ``publish_every``, whose value needs a unit.
"""

_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([A-Za-z/]+)")


# --- typed values --------------------------------------------------------------------------------


class _Wrong(Exception):
    """A value that does not fit; what is allowed there."""


_BOUNDS: tuple[tuple[str, str, Callable[[float, float], bool]], ...] = (
    ("min", "at least", lambda value, bound: value >= bound),
    ("max", "at most", lambda value, bound: value <= bound),
    ("above", "more than", lambda value, bound: value > bound),
)
"""Metadata of a dataclass field that bounds a number: name, words, test."""


@dataclass(frozen=True)
class Parser:
    """Parses nodes into types, noting problems instead of stopping at the first.

    Metadata of dataclass fields that it obeys: ``min``, ``max``, ``above`` (bounds of a number in
    the field's unit), ``plugin`` (the value is the config of the plugin that the sibling field
    ``kind`` names in this registry group) and ``each`` (called with key and value of every entry of
    a mapping, it raises where one makes no sense). A class attribute ``derived`` names fields that
    are not read from the tree.
    """

    problems: Problems
    units: bool = True
    """Whether quantities carry a unit (people) or are bare numbers in the field's unit (JSON)."""
    plugin_config: Callable[[str, str], type | None] = lambda group, kind: None
    """(registry group, plugin name) -> the plugin's config dataclass; may raise."""

    def dataclass(self, node: Node, cls: type[T], path: str) -> T | None:
        """Return an instance of the dataclass ``cls``; None where problems were noted."""
        if node.value is None:
            node = Node({}, node.where)
        if not isinstance(node.value, dict):
            self.problems.add(node.where, path, "wrong type", got=node.kind, allowed="a mapping")
            return None
        before = len(self.problems.lines)
        known = self._known(cls)
        for key in (key for key in node.value if key not in known):
            where = node.keys.get(key, node.where)
            self.problems.unknown(where, join(path, key), "unknown key", key, known)
        values = self._values(node, cls, known, path)
        if len(self.problems.lines) > before:
            return None
        try:
            return cls(**values)
        except (UserSystemError, ValueError) as error:
            self.problems.add(node.where, path, str(error))
            return None

    def _known(self, cls: type) -> dict[str, "dataclasses.Field[Any]"]:
        derived: frozenset[str] = (
            getattr(cls, "derived", frozenset()) if self.units else frozenset()
        )
        known: dict[str, dataclasses.Field[Any]] = {}
        for spec in dataclasses.fields(cls):
            if not spec.init or spec.name in derived:
                continue
            key = spec.name.removesuffix(self._suffix(spec.name))
            if key in known:
                raise PluginError(
                    f"two fields of {cls.__name__} have the manifest key {key!r}",
                    got=f"{known[key].name} and {spec.name}",
                    todo="Rename one of them: a unit suffix is not part of the key.",
                )
            known[key] = spec
        return known

    def _suffix(self, name: str) -> str:
        return unit_suffix(name) if self.units else ""

    def _values(
        self, node: Node, cls: type, known: Mapping[str, "dataclasses.Field[Any]"], path: str
    ) -> dict[str, Any]:
        hints = typing.get_type_hints(cls)
        values: dict[str, Any] = {}
        for key, spec in known.items():
            place = join(path, key)
            if "plugin" in spec.metadata:
                values[spec.name] = self._config(node, key, spec.metadata["plugin"], place)
            elif key in node.value:
                values[spec.name] = self._field(node.value[key], hints[spec.name], spec, place)
            elif _required(spec):
                allowed = _quantity_text(self._suffix(spec.name)) or None
                self.problems.add(node.where, place, "missing", allowed=allowed)
        return values

    def _config(self, node: Node, key: str, group: str, path: str) -> Any:
        kind = node.value.get("kind", Node(None)).value
        body = node.value.get(key, Node(None, node.where))
        if not isinstance(kind, str):
            return None  # noted as a problem of the field ``kind``
        try:
            config_type = self.plugin_config(group, kind)
        except UserSystemError as error:
            place = path.removesuffix(key) + "kind"
            self.problems.add(node.value["kind"].where, place, str(error))
            return None
        if config_type is not None:
            return self.dataclass(body, config_type, path)
        if body.value:
            self.problems.add(body.where, path, f"{kind!r} takes no configuration", got=body.kind)
        return None

    def _field(self, node: Node, hint: Any, spec: "dataclasses.Field[Any]", path: str) -> Any:
        suffix = self._suffix(spec.name)
        value = self.value(node, hint, path, UNITS.get(suffix))
        if "each" in spec.metadata and isinstance(value, dict):
            self._each(node, value, spec.metadata["each"], path)
        if isinstance(value, int | float) and not isinstance(value, bool):
            for name, words, fits in _BOUNDS:
                if name in spec.metadata and not fits(value, spec.metadata[name]):
                    allowed = f"{words} {spec.metadata[name]} {suffix[1:]}".rstrip()
                    self.problems.add(
                        node.where, path, "out of range", got=node.value, allowed=allowed
                    )
        return value

    def _each(
        self, node: Node, values: dict[str, Any], check: Callable[[str, Any], None], path: str
    ) -> None:
        for key, value in values.items():
            try:
                check(key, value)
            except UserSystemError as error:
                self.problems.add(node.value[key].where, join(path, key), str(error))

    def value(
        self, node: Node, hint: Any, path: str, units: Mapping[str, float] | None = None
    ) -> Any:
        """Return ``node`` as ``hint``; notes a problem and returns None where it does not fit."""
        try:
            return self._typed(node, hint, path, units)
        except _Wrong as wrong:
            self.problems.add(node.where, path, "wrong type", got=node.kind, allowed=str(wrong))
            return None

    def _typed(self, node: Node, hint: Any, path: str, units: Mapping[str, float] | None) -> Any:
        origin, args = get_origin(hint), get_args(hint)
        if hint is Any:
            return plain(node)
        if origin in (Union, types.UnionType):
            return self._union(node, args, path, units)
        if origin is Literal:
            return self._choice(node, args, path)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            return self.dataclass(node, hint, path)
        if origin in (tuple, list) or (origin and issubclass(origin, Sequence)):
            return self._sequence(node, origin, args, path, units)
        if origin in (dict, Mapping) or (origin and issubclass(origin, Mapping)):
            return self._mapping(node, args[1], path, units)
        return _scalar(node, hint, units)

    def _union(self, node: Node, args: Any, path: str, units: Mapping[str, float] | None) -> Any:
        if node.value is None and type(None) in args:
            return None
        rest = [arg for arg in args if arg is not type(None)]
        allowed = []
        for arg in rest[:-1]:
            try:
                return self._typed(node, arg, path, units)
            except _Wrong as wrong:
                allowed.append(str(wrong))
        try:
            return self._typed(node, rest[-1], path, units)
        except _Wrong as wrong:
            raise _Wrong(" or ".join([*allowed, str(wrong)])) from None

    def _choice(self, node: Node, args: tuple[Any, ...], path: str) -> Any:
        if node.value in args and not isinstance(node.value, list | dict):
            return node.value
        self.problems.unknown(
            node.where, path, "not one of the choices", str(plain(node)), [str(a) for a in args]
        )
        return None

    def _sequence(
        self, node: Node, origin: Any, args: Any, path: str, units: Mapping[str, float] | None
    ) -> Any:
        if not isinstance(node.value, list):
            raise _Wrong("a list")
        if origin is tuple and args[-1] is not Ellipsis:
            if len(args) != len(node.value):
                raise _Wrong(f"a list of {len(args)}")
            hints = list(args)
        else:
            hints = [args[0]] * len(node.value)
        items = [
            self.value(item, hint, f"{path}[{i}]", units)
            for i, (item, hint) in enumerate(zip(node.value, hints, strict=True))
        ]
        return items if origin is list else tuple(items)

    def _mapping(self, node: Node, hint: Any, path: str, units: Mapping[str, float] | None) -> Any:
        if node.value is None:
            return {}
        if not isinstance(node.value, dict):
            raise _Wrong("a mapping")
        return {key: self.value(v, hint, join(path, key), units) for key, v in node.value.items()}


def _scalar(node: Node, hint: Any, units: Mapping[str, float] | None) -> Any:
    value = node.value
    if isinstance(value, list | dict):
        raise _Wrong(_word(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        try:
            return hint[value.upper()] if isinstance(value, str) else hint(value)
        except (KeyError, ValueError):
            raise _Wrong(", ".join(item.name.lower() for item in hint)) from None
    if units is not None and hint in (int, float):
        return _quantity(value, hint, units)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str):
        return value
    if hint is Path and isinstance(value, str) and value:
        return Path(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint is float and (number := _number(value)) is not None:
        return number
    raise _Wrong(_word(hint))


def _number(value: Any) -> float | None:
    # PyYAML follows YAML 1.1, in which 1e-3 (no dot) is a string.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _quantity(value: Any, hint: type, units: Mapping[str, float]) -> float | int:
    names = ", ".join(units)
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        near = difflib.get_close_matches(match[2], units, 1, 0.3) if match else []
        example = near[0] if near else next((u for u, f in units.items() if f == 1), "")
        number = match[1] if match else (value if _number(value) is not None else 2)
        raise _Wrong(f"a number with a unit ({names}), e.g. {number}{example}")
    result = float(match[1]) * units[match[2]]
    if hint is float:
        return result
    if result != int(result):
        raise _Wrong(f"a whole number after conversion ({names})")
    return int(result)


def _word(hint: Any) -> str:
    words = {bool: "true or false", str: "text", int: "a whole number", float: "a number"}
    return words.get(hint, "a path" if hint is Path else str(getattr(hint, "__name__", hint)))


def _required(spec: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return spec.default is missing and spec.default_factory is missing


def _quantity_text(suffix: str) -> str:
    return f"a number with a unit ({', '.join(UNITS[suffix])})" if suffix else ""


def unit_suffix(name: str) -> str:
    """Return the unit suffix of a field's name, or ""."""
    return next((suffix for suffix in UNITS if name.endswith(suffix)), "")


# --- per-process files ----------------------------------------------------------------------------


def dump(value: Any) -> Any:
    """Return dataclasses, paths, enums and tuples as what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: dump(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): dump(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [dump(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime.date):  # YAML makes times of what looks like one
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value


def load(cls: type[T], value: Any, name: str = "config") -> T:
    """Return the dataclass that ``dump`` wrote.

    Raises:
        ConfigError: it does not fit; every misfit is named.
    """
    problems = Problems()
    result = Parser(problems, units=False).dataclass(from_plain(value, name), cls, "")
    problems.check()
    assert result is not None  # noqa: S101  (no problems means a value)
    return result


def read_json(path: str | Path, cls: type[T]) -> T:
    """Read a per-process file."""
    return load(cls, json.loads(Path(path).read_text()), str(path))
