"""Steps of a view that are drawn more often than others; see ``core.draws.Weigh``.

Everything here counts in places within the view and not in rows, and each sum is of whole blocks,
in one order: a reader that saw the store grow and one that reads it now add up the same numbers in
the same way, so that they draw the same steps.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from user_system.core.draws import Weigh
from user_system.core.errors import SpecError
from user_system.core.interfaces import NotReady
from user_system.core.types import Array, Purpose, Segment
from user_system.replay.columns import Column
from user_system.replay.rows import Rows
from user_system.replay.values import PRIORITY, RETURN, Values
from user_system.replay.views import Members

CLASSES = ("segment", "success", "robot", "task", "run", "operator", "policy", "purpose")
"""Columns that are classes; all others are numbers."""

_BLOCK = 256
_AT_ONCE = 4096
_VERDICTS = {1: "true", 0: "false", -1: "unknown"}
_WORDS: Mapping[str, tuple[str, ...]] = {
    "segment": tuple(segment.name for segment in Segment),
    "purpose": tuple(purpose.name for purpose in Purpose),
    "success": tuple(_VERDICTS.values()),
}


Masses = Mapping[str, tuple[int, float]]
"""Class -> (steps of a view, sum of their weights); one class "" where there are none."""


class Weights(Protocol):
    """How likely each step of a view is."""

    def masses(self) -> Masses:
        """Return what the view has to draw from; weights of classes are their steps."""

    def pick(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        """Return ``n`` places in the view ``[n]``, and the probability of each ``[n]``.

        Raises:
            NotReady: no step has any weight.
        """

    def held(self) -> Sequence[object]:
        """Return what watches rows for it."""


def weights(weigh: Weigh, members: Members, values: Values) -> Weights:
    """Return what draws from a view by ``weigh``.

    Raises:
        SpecError: a number of it makes no sense.
    """
    return (Classes if weigh.by in CLASSES else Numbers)(weigh, members, values)


def check(weigh: Weigh) -> None:
    """Refuse what makes no sense, whatever the store holds.

    Raises:
        SpecError: it says what.
    """
    numbers = {"power": weigh.power, "floor": weigh.floor, "missing": weigh.missing}
    for name, value in {**numbers, "beta": weigh.beta}.items():
        if not 0.0 <= value < 1e300:
            raise SpecError(f"weigh, {name}", got=value, allowed="a finite number, 0 or more")
    if not weigh.by:
        raise SpecError("weigh, by", got="''", allowed=f"{', '.join(CLASSES)}, or a number's name")
    if weigh.by not in CLASSES and (weigh.shares or weigh.rest):
        raise SpecError("only classes have shares", got=weigh.by, allowed=", ".join(CLASSES))
    shares = list(weigh.shares.values())
    if not all(0.0 <= share <= 1.0 for share in shares) or sum(shares) > 1.0 + 1e-9:
        raise SpecError("weigh, shares", got=dict(weigh.shares), allowed="masses of 1 in all")
    named = [word for joined in (*weigh.shares, weigh.rest) for word in joined.split("|") if word]
    if len(named) != len(set(named)):
        raise SpecError("weigh names a class twice", got=", ".join(named))
    if weigh.rest and not weigh.shares:
        raise SpecError("weigh has a rest of nothing", got=weigh.rest, allowed="with shares")
    known = _WORDS.get(weigh.by)
    for word in named if known is not None else ():
        if word not in (known or ()):
            near = difflib.get_close_matches(word, known or (), 1)
            todo = f"Did you mean {near[0]!r}?" if near else ""
            allowed = ", ".join(known or ())
            raise SpecError(f"unknown {weigh.by} in weigh", got=word, allowed=allowed, todo=todo)


class Classes:
    """Steps in classes, each with a mass that its steps share equally."""

    def __init__(self, weigh: Weigh, members: Members, values: Values):
        self.low = 0
        self._weigh = weigh
        self._members = members
        self._generation = -1
        self._places: dict[int, Column] = {}
        """Code of a class -> its places in the view, ascending."""
        self._named: dict[str, Column] = {}
        self._order: list[Column] = []
        self._ends = np.zeros(0)
        members.watchers.append(self)

    def masses(self) -> Masses:
        """See ``Weights.masses``."""
        self._update()
        return {name: (len(p), float(len(p))) for name, p in self._named.items()}

    def pick(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        """See ``Weights.pick``."""
        self._update()
        total = float(self._ends[-1]) if len(self._ends) else 0.0
        if total <= 0:
            raise NotReady(f"no step has any weight by {self._weigh.by!r}")
        masses = np.diff(self._ends, prepend=0.0)
        u = rng.random(n) * total
        of = np.minimum(np.searchsorted(self._ends, u, "right"), np.flatnonzero(masses)[-1])
        counts = np.array([len(places) for places in self._order])
        within = ((u - (self._ends - masses)[of]) / masses[of] * counts[of]).astype(np.int64)
        within = np.clip(within, 0, counts[of] - 1)
        found = np.empty(n, np.int64)
        for number in np.unique(of).tolist():
            found[of == number] = self._order[number].data[within[of == number]]
        return found, masses[of] / counts[of] / total

    def held(self) -> Sequence[object]:
        """See ``Weights.held``."""
        return ()

    def _update(self) -> None:
        found = self._members.rows()
        if self._generation == self._members.generation:
            return
        self._generation = self._members.generation
        for places in self._places.values():
            places.cut(int(np.searchsorted(places.data, self.low)))
        codes = self._members.source.of(self._weigh.by, found[self.low :])
        for code in np.unique(codes).tolist():
            if code not in self._places:
                self._places[code] = Column("int64")
            self._places[code].extend(self.low + np.flatnonzero(codes == code))
        self.low = len(found)
        # By name: codes of names depend on what was there when they were first seen.
        rows = self._members.source
        named = {_name(rows, self._weigh.by, c): p for c, p in self._places.items() if len(p)}
        self._named = named
        self._order = [named[name] for name in sorted(named)]
        masses = class_masses({name: len(p) for name, p in named.items()}, self._weigh)
        self._ends = np.cumsum([masses[name] for name in sorted(named)])


class Numbers:
    """Steps with a number each, from which its weight follows."""

    def __init__(self, weigh: Weigh, members: Members, values: Values):
        self.low = 0
        self.dirty: list[Array] = []
        """Rows whose number changed by itself."""
        self._weigh = weigh
        self._members = members
        self._values = values
        self._generation = -1
        self._mass = Column("float64")
        """By place in the view, and zeros up to a whole block."""
        self._sums = Column("float64")
        """By block."""
        self._known = Column(bool)
        """By place in the view: it has a number."""
        members.watchers.append(self)
        values.watchers.append(self)

    def masses(self) -> Masses:
        """See ``Weights.masses``; where no step has such a number, none has any weight."""
        self._update()
        known = self._known.data.any() or self._weigh.by in (PRIORITY, RETURN)
        return {"": (self.low, float(self._sums.data.sum()) if known else 0.0)}

    def pick(self, rng: np.random.Generator, n: int) -> tuple[Array, Array]:
        """See ``Weights.pick``."""
        self._update()
        mass, sums = self._mass.data.reshape(-1, _BLOCK), self._sums.data
        ends = np.cumsum(sums)
        total = float(ends[-1]) if len(ends) else 0.0
        if total <= 0:
            raise NotReady(f"no step has any weight by {self._weigh.by!r}")
        if not self._known.data.any() and self._weigh.by not in (PRIORITY, RETURN):
            raise NotReady(f"no step has {self._weigh.by!r}, at least not yet")
        found = np.empty(n, np.int64)
        chances = np.empty(n)
        u = rng.random(n) * total
        # Each number takes a block's worth of memory for a moment.
        for start in range(0, n, _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            block = np.minimum(np.searchsorted(ends, u[part], "right"), np.flatnonzero(sums)[-1])
            # Not below 0, where rounding would find a step without weight.
            left = np.maximum(u[part] - (ends[block] - sums[block]), 0.0)
            inside = np.cumsum(mass[block], 1)
            at = (inside <= left[:, None]).sum(1)
            at = np.where(at == _BLOCK, inside.argmax(1), at)
            found[part], chances[part] = block * _BLOCK + at, mass[block, at] / total
        return found, chances

    def held(self) -> Sequence[object]:
        """See ``Weights.held``."""
        return self._values.held()

    def _update(self) -> None:
        found = self._members.rows()
        dirty, self.dirty = self.dirty, []
        low = min(self.low, int(np.searchsorted(found, self._values.changed(self._weigh.by))))
        if self._generation != self._members.generation or low < len(found):
            self._generation = self._members.generation
            self._mass.cut(low)
            self._known.cut(low)
            mass, known = self._weights(found[low:])
            self._mass.extend(mass)
            self._known.extend(known)
            self._mass.pad(-(-len(found) // _BLOCK) * _BLOCK, 0.0)
            self._sums.cut(low // _BLOCK)
            blocks = self._mass.data.reshape(-1, _BLOCK)[low // _BLOCK :]
            self._sums.extend(blocks.sum(1))
        self.low = len(found)
        if dirty and len(found):
            self._renew(found, np.unique(np.concatenate(dirty)))

    def _renew(self, found: Array, rows: Array) -> None:
        """Weigh some rows again."""
        at = np.minimum(np.searchsorted(found, rows), len(found) - 1)
        at = at[found[at] == rows]
        self._mass.data[at], self._known.data[at] = self._weights(found[at])
        blocks = np.unique(at // _BLOCK)
        self._sums.data[blocks] = self._mass.data.reshape(-1, _BLOCK)[blocks].sum(1)

    def _weights(self, rows: Array) -> tuple[Array, Array]:
        """Return the weight of each of ``rows`` ``[N]``, and whether it is of a number."""
        value = self._values.of(self._weigh.by, rows)
        known = np.isfinite(value)
        value = np.where(known, value, self._weigh.missing)
        with np.errstate(over="ignore"):
            weight: Array = np.maximum(value, self._weigh.floor) ** self._weigh.power
        if weight.max(initial=0.0) > 1e300:
            raise SpecError(
                f"weights by {self._weigh.by!r} are too large to add up",
                got=f"{value.max()} to the power of {self._weigh.power}",
                allowed="less than 1e300",
            )
        return weight, known


def class_masses(counts: Mapping[str, int], weigh: Weigh) -> dict[str, float]:
    """Return the mass of each class that has steps; they need not add up to 1."""
    total = sum(counts.values())
    natural = {name: count / total for name, count in counts.items()}
    if not weigh.shares:
        return {name: share ** (1.0 - weigh.power) for name, share in natural.items()}
    masses: dict[str, float] = {}
    for joined, share in weigh.shares.items():
        masses |= _split(joined, share, natural)
    rest = [name for name in weigh.rest.split("|") if name in natural]
    kept = {n: share for n, share in natural.items() if n not in masses and n not in rest}
    left = 1.0 - sum(masses.values())
    if weigh.rest:
        most = sum(natural[name] for name in rest)
        masses |= _split(weigh.rest, min(max(left - sum(kept.values()), 0.0), most), natural)
        return masses | kept
    scale = left / sum(kept.values()) if kept else 0.0
    return masses | {name: share * scale for name, share in kept.items()}


def _split(joined: str, share: float, natural: Mapping[str, float]) -> dict[str, float]:
    """Give a mass to those of some classes that have steps, as their numbers are."""
    there = [name for name in joined.split("|") if name in natural]
    whole = sum(natural[name] for name in there)
    return {name: share * natural[name] / whole for name in there}


def _name(rows: Rows, column: str, code: int) -> str:
    if column == "segment":
        return Segment(code).name
    if column == "purpose":
        return Purpose(code).name
    return _VERDICTS[code] if column == "success" else list(rows.names)[code]
