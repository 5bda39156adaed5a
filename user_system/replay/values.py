"""One number per step, of whatever kind, that draws may be weighed by."""

from typing import Protocol

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.priorities import checked
from user_system.core.types import Array
from user_system.replay import ids
from user_system.replay.columns import Column
from user_system.replay.rows import OF_PIECE, Rows
from user_system.replay.views import ACTING

PRIORITY, RETURN = "priority", "return"


class Watcher(Protocol):
    """Somebody who keeps something that follows from numbers."""

    dirty: list[Array]
    """Rows whose priority changed since it looked."""


class Values:
    """The numbers of the rows of one schema, for one who keeps something that follows from them.

    Args:
        rows: whose.
        reward: the column that returns are made of.
        priorities: what the learner said.
    """

    def __init__(self, rows: Rows, reward: str, priorities: "Priorities"):
        self._rows = rows
        self._reward = reward
        self._priorities = priorities
        self._returns: Returns | None = None
        self._bounds = (np.nan, np.nan)

    @property
    def watchers(self) -> list[Watcher]:
        """Whom to tell of single rows that changed."""
        return self._priorities.watchers

    def of(self, name: str, rows: Array) -> Array:
        """Return numbers ``[N]`` float64 of ``rows`` ``[N]``; NaN where there is none.

        Raises:
            SpecError: it is no number of a step.
        """
        if name == PRIORITY:
            return self._priorities.of(rows)
        if name == RETURN:
            return self._scaled()[self._rows.of("episode", rows)]
        recorded = self._rows
        if name in recorded.steps or name in OF_PIECE or name in ("k", "robot_ns"):
            return _numbers(name, recorded.of(name, rows))
        if name in recorded.labels:
            recorded.labels[name].pad(len(recorded))
            return _numbers(name, recorded.labels[name].values.data[rows])
        variants = recorded.extras.get(name, [])
        if not variants:
            return np.full(len(rows), np.nan)
        if len(variants) > 1:
            raise SpecError(f"column {name!r} has several forms", got=len(variants), allowed=1)
        _numbers(name, variants[0].values.data[:0])  # before all rows of a large one are taken
        found = _numbers(name, variants[0].at(rows))
        found[~variants[0].has(rows)] = np.nan
        return found

    def changed(self, name: str) -> int:
        """Return the lowest row whose number changed, other than with the row, since last asked."""
        if name != RETURN:
            return len(self._rows)
        if self._returns is None:
            self._returns = Returns(self._rows, self._reward)
        low = self._returns.update()
        before, self._bounds = self._bounds, self._returns.bounds()
        return low if before == self._bounds else 0

    def held(self) -> list[object]:
        """Return what watches rows for this."""
        return [] if self._returns is None else [self._returns]

    def _scaled(self) -> Array:
        if self._returns is None:
            raise ValueError("ask for changes first")
        low, high = self._bounds
        span = high - low
        values = self._returns.data
        return np.where(np.isnan(values), np.nan, (values - low) / span if span > 0 else 1.0)


class Returns:
    """The return of each complete episode: the sum of its rewards, undone steps left out."""

    def __init__(self, rows: Rows, reward: str):
        self.low = 0
        self._rows = rows
        self._reward = reward
        self._values = Column("float64")
        """By episode number; NaN: not known."""
        rows.watchers.append(self)

    @property
    def data(self) -> Array:
        """By episode number, NaN where it is not known."""
        return self._values.data

    def bounds(self) -> tuple[float, float]:
        """Return the lowest and highest that are known."""
        known = self.data[~np.isnan(self.data)]
        return float(known.min(initial=np.inf)), float(known.max(initial=-np.inf))

    def update(self) -> int:
        """Look at what changed; return the lowest row of an episode that did."""
        rows, size = self._rows, len(self._rows)
        low, self.low = self.low, size
        self._values.pad(len(rows.success), np.nan)
        if low >= size:
            return size
        numbers = rows.pieces["episode"].data
        present = np.unique(numbers[int(rows["piece"][low]) :])
        start = int(rows.first_row.data[present].min())
        of = numbers[rows["piece"][start:]]
        counts = ~rows["void"][start:] & ~rows["gone"][start:]
        counts &= np.isin(rows["segment"][start:], sorted(ACTING))
        reward = rows.rewards(self._reward)[start:][counts]
        # In the order of the log, whatever the rows at which this began.
        sums = np.bincount(of[counts], reward, minlength=len(self._values))
        there = np.bincount(of[counts], minlength=len(self._values)) > 0
        known = there & rows.complete.data
        self._values.data[present] = np.where(known, sums, np.nan)[present]
        return start


class Priorities:
    """What a learner said that steps are worth to it."""

    def __init__(self, rows: Rows):
        self.watchers: list[Watcher] = []
        self._rows = rows
        self._values = Column("float32")

    def __len__(self) -> int:
        return int((~np.isnan(self._values.data)).sum())

    def set(self, step_ids: Array, values: Array) -> None:
        """Take over priorities ``[N]`` of steps; of equal ones the last counts.

        Raises:
            SpecError: these are none.
        """
        self.put(*checked(step_ids, values))

    def put(self, step_ids: Array, values: Array) -> None:
        """As ``set``, of what was checked before; NaN: nobody said any."""
        rows = ids.rows_of(self._rows, step_ids)
        there = rows >= 0
        self._values.pad(len(self._rows), np.nan)
        self._values.data[rows[there]] = values[there]
        for watcher in self.watchers:
            watcher.dirty.append(rows[there])

    def of(self, rows: Array) -> Array:
        """Return the priorities of ``rows`` ``[N]``; NaN where nobody said any."""
        self._values.pad(len(self._rows), np.nan)
        return self._values.data[rows].astype(np.float64)

    def get(self, step_ids: Array) -> Array:
        """Return the priorities ``[N]`` float32 of steps; NaN where there is none."""
        rows = ids.rows_of(self._rows, step_ids)
        found = np.full(len(rows), np.nan, np.float32)
        self._values.pad(len(self._rows), np.nan)
        found[rows >= 0] = self._values.data[rows[rows >= 0]]
        return found

    def state(self) -> dict[str, Array]:
        """Return what ``set`` takes."""
        known = np.flatnonzero(~np.isnan(self._values.data))
        return {"ids": self._rows.of("id", known), "values": self._values.data[known]}


def _numbers(name: str, values: Array) -> Array:
    if values.ndim != 1 or values.dtype.kind not in "fiub":
        got = f"{values.dtype}{list(values.shape[1:])}"
        raise SpecError(f"column {name!r} is no number to weigh by", got=got, allowed="one number")
    return values.astype(np.float64)
