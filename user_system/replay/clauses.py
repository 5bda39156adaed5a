"""What a manifest says of a view, checked clause by clause."""

import difflib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum
from typing import Any, TypeVar

from user_system.core.errors import ConfigError
from user_system.core.types import Purpose, Segment

E = TypeVar("E", bound=IntEnum)

VERDICTS: Mapping[bool | str, tuple[bool, bool, bool]] = {
    False: (True, False, False),
    True: (False, True, False),
    "known": (True, True, False),
    "unknown": (False, False, True),
    "not_failed": (False, True, True),
}
"""Value of ``success`` -> whether it shows episodes that failed, succeeded, are not known."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_ALTERNATIVES = 16


def parse(view: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a ``View``; those of ``any`` as a list of such arguments.

    Raises:
        ConfigError: an unknown clause or value, with what is allowed.
    """
    if not isinstance(said, Mapping):
        raise ConfigError(f"view {view!r}", got=said, allowed="clauses")
    found: dict[str, Any] = {}
    for key, value in said.items():
        if key not in _CLAUSES:
            raise ConfigError(
                f"view {view!r} has an unknown clause",
                got=key,
                allowed=", ".join(_CLAUSES),
                todo=_near(key, _CLAUSES),
            )
        found[key] = _CLAUSES[key](f"view {view!r}, {key}", value)
    if "any" in found and len(found) > 1:
        others = ", ".join(sorted(found.keys() - {"any"}))
        raise ConfigError(
            f"view {view!r} has `any` and other clauses",
            got=others,
            allowed="`any` alone",
            todo="Put them into each of its views.",
        )
    if found.get("since") is not None and found.get("until") is not None:
        _ordered(view, found["since"], found["until"])
    return found


def _ordered(view: str, since: int, until: int) -> None:
    if since >= until:
        raise ConfigError(f"view {view!r} ends before it begins", got=(since, until))


def _alternatives(what: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple) or not 0 < len(value) <= _MAX_ALTERNATIVES:
        raise ConfigError(what, got=value, allowed=f"a list of 1..{_MAX_ALTERNATIVES} views")
    for inner in value:
        if isinstance(inner, Mapping) and "any" in inner:
            raise ConfigError(what, got=inner, allowed="views without `any` of their own")
    return [parse(f"{what}[{i}]", inner) for i, inner in enumerate(value)]


def _enum(enum: type[E]) -> Callable[[str, Any], frozenset[E]]:
    def clause(what: str, value: Any) -> frozenset[E]:
        names = enum.__members__
        if not isinstance(value, list | tuple):
            raise ConfigError(what, got=value, allowed=f"some of {list(names)}")
        for word in value:
            if not isinstance(word, str) or word not in names:
                allowed = f"some of {list(names)}"
                raise ConfigError(what, got=word, allowed=allowed, todo=_near(word, names))
        return frozenset(names[word] for word in value)

    return clause


def _names(what: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
        raise ConfigError(what, got=value, allowed="a list of names")
    return tuple(value)


def _success(what: str, value: Any) -> bool | str:
    if not isinstance(value, bool | str) or value not in VERDICTS:
        words = ", ".join(v for v in VERDICTS if isinstance(v, str))
        todo = _near(value, [v for v in VERDICTS if isinstance(v, str)])
        raise ConfigError(what, got=value, allowed=f"true or false, {words}", todo=todo)
    return value


def _flag(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(what, got=value, allowed="true or false")
    return value


def _whole(what: str, value: Any) -> int:
    if type(value) is not int:
        raise ConfigError(what, got=value, allowed="a whole number")
    return value


def _count(what: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ConfigError(what, got=value, allowed="a whole number of steps, 0 or more")
    return value


def _time(what: str, value: Any) -> int:
    """Return ns since 1970 of a UTC time: a number of them, ISO 8601 text, or what YAML made."""
    if type(value) is int:
        return value
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        elif isinstance(value, date) and not isinstance(value, datetime):
            value = datetime(value.year, value.month, value.day)
    except ValueError:
        value = None
    if not isinstance(value, datetime):
        allowed = "UTC as 2026-01-31T12:00:00, or ns since 1970"
        raise ConfigError(what, got=value, allowed=allowed)
    moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def _near(key: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(key), list(known), 1)
    return f"Did you mean {near[0]!r}?" if near else ""


_CLAUSES: Mapping[str, Callable[[str, Any], Any]] = {
    "segments": _enum(Segment),
    "purposes": _enum(Purpose),
    "robots": _names,
    "tasks": _names,
    "operators": _names,
    "runs": _names,
    "success": _success,
    "min_version": _whole,
    "max_version": _whole,
    "since": _time,
    "until": _time,
    "intervened": _flag,
    "lead": _count,
    "any": _alternatives,
}
