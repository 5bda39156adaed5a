"""Which steps a draw begins with: candidates of views, equally likely or weighed."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from user_system.core.draws import Draw, Weigh
from user_system.core.errors import ConfigError
from user_system.core.interfaces import NotReady
from user_system.core.types import Array
from user_system.replay.rows import Rows
from user_system.replay.values import Priorities, Values
from user_system.replay.views import Members, View
from user_system.replay.weigh import Masses, Weights, weights

_MOST_KEPT = 64
"""Of views by reward, and of weights: what requests made necessary, until others did."""

Key = tuple[Any, ...]


class Picked(NamedTuple):
    """The first steps of one view's part of a batch."""

    view: str
    rows: Array
    """``[n]``."""
    importance: Array | None = None
    """``[n]`` float32: what makes up for weights."""


def rows_of(parts: Sequence[Picked]) -> Array:
    """Return the first steps of all parts of a batch."""
    return parts[0].rows if len(parts) == 1 else np.concatenate([part.rows for part in parts])


def lookup(views: Mapping[str, View], name: str) -> View:
    """Return a view by name.

    Raises:
        ConfigError: there is none; says which there are.
    """
    if name not in views:
        raise ConfigError("unknown view", got=name, allowed=", ".join(views))
    return views[name]


class Chooser:
    """Chooses among the rows of one schema. For one thread."""

    def __init__(self, rows: Rows, views: Mapping[str, View]):
        self.priorities = Priorities(rows)
        self._rows = rows
        self._views = views
        self._members: dict[Key, Members] = {}
        self._weights: dict[Key, Weights] = {}
        self._whole: dict[Key, tuple[int, Array]] = {}

    def members(self, view: str, *, include_void: bool = False, reward: str = "") -> Members:
        """Return the steps that a view shows.

        Raises:
            ConfigError: there is no such view.
        """
        key = view, include_void, reward
        found = self._members.get(key)
        if found is None:
            if len(self._members) >= _MOST_KEPT:
                self._forget()
            shown = lookup(self._views, view)
            found = Members(shown, self._rows, include_void=include_void, reward=reward)
            self._members[key] = found
        return found

    def candidates(self, view: str, request: Draw) -> Array:
        """Return the rows that a draw may begin with: of whole episodes the first ones."""
        members = self._of(view, request)
        found = members.rows()
        if request.unit != "episode":
            return found
        key = view, request.include_void, request.reward
        cached = self._whole.get(key)
        if cached is None or cached[0] != members.generation:
            numbers = np.unique(self._rows.of("episode", found))
            numbers = numbers[self._rows.complete.data[numbers]]
            first = np.sort(self._rows.first_row.data[numbers])
            cached = self._whole[key] = members.generation, first.astype(np.int64)
        return cached[1]

    def pick(self, rng: np.random.Generator, view: str, n: int, request: Draw) -> Picked:
        """Return ``n`` rows with replacement.

        Raises:
            NotReady: there is nothing to draw from.
        """
        found = self.candidates(view, request)
        if not len(found):
            raise NotReady(self._empty(view, request))
        if request.weigh is None:
            return Picked(view, found.take(rng.integers(0, len(found), n)))
        places, chances = self._weigh(view, request, request.weigh).pick(rng, n)
        importance = (len(found) * chances) ** -request.weigh.beta
        return Picked(view, found[places], importance.astype(np.float32))

    def masses(self, view: str, request: Draw) -> Masses:
        """Return what a view has to draw from, see ``weigh.Weights.masses``."""
        if request.weigh is not None:
            return self._weigh(view, request, request.weigh).masses()
        found = len(self.candidates(view, request))
        return {"": (found, float(found))}

    def view(self, name: str) -> View:
        """Return a view by name."""
        return lookup(self._views, name)

    def shown(self, view: str, request: Draw) -> Array:
        """Return all rows that a view shows, ascending."""
        return self._of(view, request).rows()

    def _of(self, view: str, request: Draw) -> Members:
        return self.members(view, include_void=request.include_void, reward=request.reward)

    def _weigh(self, view: str, request: Draw, weigh: Weigh) -> Weights:
        shares = tuple(weigh.shares.items())
        how = weigh.by, weigh.power, weigh.floor, weigh.missing, shares, weigh.rest
        key = view, request.include_void, request.reward, *how
        if key not in self._weights:
            if len(self._weights) >= _MOST_KEPT:
                self._forget()
            values = Values(self._rows, request.reward, self.priorities)
            self._weights[key] = weights(weigh, self._of(view, request), values)
        return self._weights[key]

    def _forget(self) -> None:
        """Let go of everything that can be made again."""
        kept = {id(found) for found in (*self._members.values(), *self._weights.values())}
        kept |= {id(held) for found in self._weights.values() for held in found.held()}
        self._rows.watchers[:] = [w for w in self._rows.watchers if id(w) not in kept]
        self.priorities.watchers.clear()
        self._members.clear()
        self._weights.clear()
        self._whole.clear()

    def _empty(self, view: str, request: Draw) -> str:
        known = ", ".join(sorted(self._rows.labels)) or "none"
        late = f" of steps whose {request.reward!r} is known; late labels: {known}"
        return f"view {view!r} is empty{late if request.reward else ''}"
