"""Views: named filters over one raw log, as small data.

A view says which steps may be the *first* of a draw. By default none shows steps that a rewind
undid, nor episodes whose purpose is ``EVAL``, nor steps in which nobody pursued the task.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from user_system.core.errors import ConfigError
from user_system.core.types import HUMAN_SEGMENTS, Array, Purpose, Segment
from user_system.replay import clauses
from user_system.replay.columns import Column
from user_system.replay.rows import Rows, Watcher

ACTING = frozenset(
    {Segment.DEMO, Segment.AUTO, Segment.RECOVERY, Segment.CORRECTION, Segment.SYNTHETIC}
)
"""Segments in which somebody pursued the task; not HOLD, REWIND, RESET."""

TRAINING = frozenset({Purpose.COLLECT, Purpose.TRAIN})

Success = bool | str | None
"""``True``, ``False``, one of ``SUCCESS``, or None: whatever."""


@dataclass(frozen=True, slots=True)
class View:
    """A filter; empty clauses let everything pass, and a step passes all of them.

    Names and segments are of the step or its fragment; ``success`` and ``intervened`` are of the
    whole episode, and may change when more of it, or a verdict, arrives.
    """

    segments: frozenset[Segment] = ACTING
    purposes: frozenset[Purpose] = TRAINING
    robots: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    operators: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    success: Success = None
    """Only episodes that are known to have succeeded (``True``) or failed (``False``); ``known``
    and ``unknown`` as they say; ``not_failed``: all but those known to have failed."""
    min_version: int | None = None
    max_version: int | None = None
    """Policy versions, both included."""
    since: int | None = None
    until: int | None = None
    """UTC, ns since 1970, of the first step of the fragment that a step was recorded in; the first
    included, the second not."""
    intervened: bool | None = None
    """Only episodes in which a person did, or did not, step in (``RECOVERY``, ``CORRECTION``)."""
    lead: int = 0
    """Leave out so many ``AUTO`` steps before each intervention: they led to it."""
    any: tuple["View", ...] = ()
    """Steps that one of these shows. Such a view has no other clauses."""

    @classmethod
    def parse(cls, name: str, said: Mapping[str, Any]) -> "View":
        """Return the view that a manifest describes.

        Example::

            View.parse("left", {"robots": ["arm-1"], "segments": ["AUTO"], "success": True})

        Raises:
            ConfigError: an unknown clause or value, with what is allowed.
        """
        found = clauses.parse(name, said)
        if "any" in found:
            found["any"] = tuple(cls(**inner) for inner in found["any"])
        return cls(**found)

    def mask(self, rows: Rows, low: int, *, include_void: bool, reward: str = "") -> Array:
        """Return for rows ``[low:]`` whether the view shows them, with a known ``reward``."""
        mask = rows.drawable(low, reward)
        if not include_void:
            mask &= ~rows["void"][low:]
        mask &= self.passes(rows, low)
        return mask

    def passes(self, rows: Rows, low: int) -> Array:
        """Return for rows ``[low:]`` whether the clauses let them pass."""
        if self.any:
            either: Array = np.logical_or.reduce([view.passes(rows, low) for view in self.any])
            return either
        mask: Array = _table(self.segments)[rows["segment"][low:]]
        # What is the same for a whole fragment or episode is decided there, then spread.
        piece = rows["piece"][low:]
        if len(piece):
            mask &= self._pieces(rows, int(piece[0]))[piece - piece[0]]
        if self.min_version is not None:
            mask &= rows["version"][low:] >= self.min_version
        if self.max_version is not None:
            mask &= rows["version"][low:] <= self.max_version
        if self.operators:
            mask &= np.isin(rows["operator"][low:], rows.names.find(self.operators))
        if self.lead:
            mask &= rows.interventions.lead.data[low:] > self.lead
        return mask

    @property
    def around(self) -> frozenset[Segment]:
        """Segments that a draw from this view may go on into."""
        return ACTING | self.segments | frozenset().union(*(view.segments for view in self.any))

    @property
    def looks_ahead(self) -> bool:
        """Whether steps may leave it, or come to it, when more of their episode arrives."""
        return self.intervened is not None or self.lead > 0 or any(v.looks_ahead for v in self.any)

    def _pieces(self, rows: Rows, first: int) -> Array:
        """Return for each piece from ``first`` on whether its fragment and episode may be shown."""
        pieces = {name: column.data[first:] for name, column in rows.pieces.items()}
        mask: Array = _table(self.purposes)[pieces["purpose"]]
        for column, wanted in (("robot", self.robots), ("task", self.tasks), ("run", self.runs)):
            if wanted:
                mask &= np.isin(pieces[column], rows.names.find(wanted))
        if self.since is not None:
            mask &= pieces["wall_ns"] >= self.since
        if self.until is not None:
            mask &= pieces["wall_ns"] < self.until
        if self.success is not None:
            mask &= _VERDICTS[self.success][rows.success.data[pieces["episode"]]]
        if self.intervened is not None:
            mask &= rows.interventions.helped.data[pieces["episode"]] == self.intervened
        return mask


_VERDICTS: Mapping[bool | str, Array] = {
    value: np.array(shown) for value, shown in clauses.VERDICTS.items()
}
"""Value of ``success`` -> whether it shows episodes that failed, succeeded, are not known (-1)."""

BUILT_IN: Mapping[str, View] = {
    "all": View(),
    "online": View(segments=ACTING - {Segment.DEMO}),
    "demos": View(segments=frozenset({Segment.DEMO})),
    "human": View(segments=HUMAN_SEGMENTS),
    "prior": View(segments=HUMAN_SEGMENTS),
    "interventions": View(segments=frozenset({Segment.RECOVERY, Segment.CORRECTION})),
    "auto": View(segments=frozenset({Segment.AUTO})),
    "eval": View(purposes=frozenset({Purpose.EVAL})),
    "rac": View(
        any=(
            View(segments=HUMAN_SEGMENTS),
            View(segments=frozenset({Segment.AUTO}), success=True, intervened=False),
        )
    ),
    "armada": View(segments=HUMAN_SEGMENTS | {Segment.AUTO}, success="not_failed"),
    "sirius": View(segments=HUMAN_SEGMENTS | {Segment.AUTO}, lead=15),
}
"""``prior`` is what HIL-SERL draws its second half from: demonstrations and interventions. The last
ones belong to presets of the same names."""


class Members:
    """The rows that a view shows, in log order, kept up to date as rows come and change."""

    def __init__(self, view: View, rows: Rows, *, include_void: bool, reward: str = ""):
        self.view = view
        self.low = 0
        self.generation = 0
        """Counts changes, for what is derived from this."""
        self.watchers: list[Watcher] = []
        """Those who derive something from ``rows()``; their ``low`` is a place in it."""
        self.source = rows
        self._include_void = include_void
        self._reward = reward
        self._found = Column("int64")
        rows.watchers.append(self)

    def rows(self) -> Array:
        """Return the row numbers ``[N]`` int64, ascending."""
        size = len(self.source)
        if self.view.looks_ahead:
            self.source.interventions.update(self.source)
        if self.low < size:
            kept = int(np.searchsorted(self._found.data, self.low))
            self._found.cut(kept)
            mask = self.view.mask(
                self.source, self.low, include_void=self._include_void, reward=self._reward
            )
            self._found.extend(self.low + np.flatnonzero(mask))
            for watcher in self.watchers:
                watcher.low = min(watcher.low, kept)
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


def parse_views(said: Mapping[str, Mapping[str, Any]]) -> Mapping[str, View]:
    """Return the built-in views and those that a manifest describes, name -> clauses.

    Raises:
        ConfigError: one makes no sense, or would hide a built-in one.
    """
    return with_views({name: View.parse(name, clauses) for name, clauses in said.items()})


def _table(values: frozenset[Any]) -> Array:
    """Return a lookup ``[256]`` bool, faster than ``isin`` for a byte."""
    table = np.zeros(256, bool)
    table[[int(value) for value in values]] = True
    return table
