"""Views: named filters over one raw log, as small data.

A view says which steps may be the *first* of a draw. By default none shows steps that a rewind
undid, nor episodes whose purpose is ``EVAL``, nor steps in which nobody pursued the task.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Any, TypeVar

import numpy as np

from user_system.core.errors import ConfigError
from user_system.core.types import HUMAN_SEGMENTS, Array, Purpose, Segment
from user_system.replay.columns import Column
from user_system.replay.rows import Rows

E = TypeVar("E", bound=IntEnum)

ACTING = frozenset(
    {Segment.DEMO, Segment.AUTO, Segment.RECOVERY, Segment.CORRECTION, Segment.SYNTHETIC}
)
"""Segments in which somebody pursued the task; not HOLD, REWIND, RESET."""

TRAINING = frozenset({Purpose.COLLECT, Purpose.TRAIN})


@dataclass(frozen=True, slots=True)
class View:
    """A filter; empty clauses let everything pass."""

    segments: frozenset[Segment] = ACTING
    purposes: frozenset[Purpose] = TRAINING
    robots: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    success: bool | None = None
    """Only episodes that are known to have succeeded, or to have failed."""
    min_version: int | None = None
    max_version: int | None = None
    """Policy versions, both included."""

    @classmethod
    def parse(cls, name: str, clauses: Mapping[str, Any]) -> "View":
        """Return the view that a manifest describes.

        Example::

            View.parse("left", {"robots": ["arm-1"], "segments": ["AUTO"], "success": True})

        Raises:
            ConfigError: an unknown clause or value, with what is allowed.
        """
        known = [f.name for f in fields(cls)]
        found: dict[str, Any] = {}
        for key, value in clauses.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, 1)
                raise ConfigError(
                    f"view {name!r} has an unknown clause",
                    got=key,
                    allowed=", ".join(known),
                    todo=f"Did you mean {near[0]!r}?" if near else "",
                )
            found[key] = _clause(name, key, value)
        return cls(**found)

    def mask(self, rows: Rows, low: int, *, include_void: bool) -> Array:
        """Return for rows ``[low:]`` whether the view shows them."""
        mask = rows.drawable(low)
        if not include_void:
            mask &= ~rows["void"][low:]
        mask &= _table(self.segments)[rows["segment"][low:]]
        # What is the same for a whole fragment or episode is decided there, then spread.
        mask &= self._pieces(rows)[rows["piece"][low:]]
        if self.min_version is not None:
            mask &= rows["version"][low:] >= self.min_version
        if self.max_version is not None:
            mask &= rows["version"][low:] <= self.max_version
        if self.operators:
            mask &= np.isin(rows["operator"][low:], rows.names.find(self.operators))
        return mask

    def _pieces(self, rows: Rows) -> Array:
        """Return for each piece whether its fragment and episode may be shown."""
        pieces = {name: column.data for name, column in rows.pieces.items()}
        mask: Array = _table(self.purposes)[pieces["purpose"]]
        for column, wanted in (("robot", self.robots), ("task", self.tasks), ("run", self.runs)):
            if wanted:
                mask &= np.isin(pieces[column], rows.names.find(wanted))
        if self.success is not None:
            mask &= (rows.success.data == int(self.success))[pieces["episode"]]
        return mask


BUILT_IN: Mapping[str, View] = {
    "all": View(),
    "online": View(segments=ACTING - {Segment.DEMO}),
    "demos": View(segments=frozenset({Segment.DEMO})),
    "human": View(segments=HUMAN_SEGMENTS),
    "prior": View(segments=HUMAN_SEGMENTS),
    "interventions": View(segments=frozenset({Segment.RECOVERY, Segment.CORRECTION})),
    "auto": View(segments=frozenset({Segment.AUTO})),
    "eval": View(purposes=frozenset({Purpose.EVAL})),
}
"""``prior`` is what RLPD draws its second half from: demonstrations and interventions."""


class Members:
    """The rows that a view shows, in log order, kept up to date as rows come and change."""

    def __init__(self, view: View, rows: Rows, *, include_void: bool):
        self.view = view
        self.low = 0
        self.generation = 0
        """Counts changes, for what is derived from this."""
        self._rows = rows
        self._include_void = include_void
        self._found = Column("int64")
        rows.watchers.append(self)

    def rows(self) -> Array:
        """Return the row numbers ``[N]`` int64, ascending."""
        size = len(self._rows)
        if self.low < size:
            kept = int(np.searchsorted(self._found.data, self.low))
            self._found.cut(kept)
            mask = self.view.mask(self._rows, self.low, include_void=self._include_void)
            self._found.extend(self.low + np.flatnonzero(mask))
            self.generation += 1
        self.low = size
        return self._found.data


def with_views(views: Mapping[str, View]) -> Mapping[str, View]:
    """Return the built-in views and ``views``.

    Raises:
        ConfigError: one would hide a built-in one.
    """
    hidden = views.keys() & BUILT_IN.keys()
    if hidden:
        raise ConfigError("view is built in", got=", ".join(sorted(hidden)), allowed="another name")
    return {**BUILT_IN, **views}


def _table(values: frozenset[Any]) -> Array:
    """Return a lookup ``[256]`` bool, faster than ``isin`` for a byte."""
    table = np.zeros(256, bool)
    table[[int(value) for value in values]] = True
    return table


def _clause(view: str, key: str, value: Any) -> Any:
    if key == "segments":
        return _members(view, key, value, Segment)
    if key == "purposes":
        return _members(view, key, value, Purpose)
    if key in ("robots", "tasks", "operators", "runs"):
        if not isinstance(value, list | tuple) or not all(isinstance(v, str) for v in value):
            raise ConfigError(f"view {view!r}, {key}", got=value, allowed="a list of names")
        return tuple(value)
    if key == "success":
        if not isinstance(value, bool):
            raise ConfigError(f"view {view!r}, {key}", got=value, allowed="true or false")
        return value
    if type(value) is not int:
        raise ConfigError(f"view {view!r}, {key}", got=value, allowed="a whole number")
    return value


def _members(view: str, key: str, value: Any, enum: type[E]) -> frozenset[E]:
    names = enum.__members__
    if not isinstance(value, list | tuple) or not all(v in names for v in value):
        raise ConfigError(f"view {view!r}, {key}", got=value, allowed=f"some of {list(names)}")
    return frozenset(names[v] for v in value)
