"""Draws as if what was achieved later had been the goal; see ``core.draws.Hindsight``.

Which states came later is found along the links that walks follow, so a goal is never the state of
another episode, of a step that was undone, or of one behind a border.
"""

from dataclasses import dataclass

import numpy as np

from user_system.core.draws import Hindsight
from user_system.core.errors import SpecError
from user_system.core.types import Array
from user_system.replay.columns import Column
from user_system.replay.rows import Rows
from user_system.replay.walks import Rule, Walk


@dataclass(slots=True)
class Relabelled:
    """What differs in the rows of a batch that were drawn in hindsight."""

    rows: Array
    """``[K]`` places in the batch."""
    goals: Array
    """``[K, ...]``."""
    reward: Array
    """``[K, L]``, 0 behind the end of a walk."""
    ended: Array
    """``[K]`` bool: the walk ends in its goal, and with it the task."""


class Chains:
    """How far one may walk from each row, by one rule; kept up to date as rows come and change."""

    def __init__(self, rows: Rows, rule: Rule):
        self.low = 0
        self._rows = rows
        self._rule = rule
        self._breaks = Column("int64")
        """Rows from which one may not go on to the next row in memory, ascending."""
        rows.watchers.append(self)

    def later(self, first: Array, choice: Array) -> Array:
        """Return rows at or behind ``first`` ``[B]``, of which each is as likely as the others.

        Args:
            first: where from.
            choice: ``[B]`` in [0, 1): 0 is ``first`` itself, just below 1 the last of them.
        """
        starts, counts = self._runs(first)
        ends = np.cumsum(counts, 1)
        number = np.minimum((choice * ends[:, -1]).astype(np.int64), ends[:, -1] - 1)
        run = (ends <= number[:, None]).sum(1)
        at = np.arange(len(first)), run
        found: Array = starts[at] + number - (ends[at] - counts[at])
        return found

    def _runs(self, first: Array) -> tuple[Array, Array]:
        """Return where the stretches of each walk begin ``[B, K]`` and how long they are."""
        self._update()
        breaks, rows = self._breaks.data, self._rows
        going, here = np.arange(len(first)), first
        starts, counts = [], []
        while len(going):
            end = breaks[np.searchsorted(breaks, here)]
            starts.append(np.zeros(len(first), np.int64))
            counts.append(np.zeros(len(first), np.int64))
            starts[-1][going], counts[-1][going] = here, end - here + 1
            step = rows["next_step"][end].astype(np.int64)
            ok = self._rule.passes(rows, end, step)
            going, here = going[ok], step[ok]
        return np.stack(starts, 1), np.stack(counts, 1)

    def _update(self) -> None:
        rows, size = self._rows, len(self._rows)
        if self.low < size:
            # Whether one may go from a row to the next depends on both of them.
            low = max(self.low - 1, 0)
            here, step = np.arange(low, size), rows["next_step"][low:].astype(np.int64)
            ok = (step == here + 1) & self._rule.passes(rows, here, step)
            self._breaks.cut(int(np.searchsorted(self._breaks.data, low)))
            self._breaks.extend(low + np.flatnonzero(~ok))
        self.low = size


class Relabeller:
    """Gives some rows of batches other goals."""

    def __init__(self, rows: Rows):
        self._rows = rows
        self._chains: dict[Rule, Chains] = {}

    def relabel(
        self, rng: np.random.Generator, wanted: Hindsight, walk: Walk, rule: Rule, start: int
    ) -> tuple[Walk, Relabelled | None]:
        """Return the walk and its relabelled rows; where a goal ends the task, it ends the walk.

        Args:
            rng: what decides.
            wanted: the request.
            walk: from the steps drawn.
            rule: by which it was walked.
            start: the place of its first row in the batch.
        """
        rows, achieved = self._rows, self._achieved(wanted)
        chosen = _spread(start, len(walk.path), wanted.share)
        if not len(chosen):
            return walk, None
        path = walk.path[chosen]
        choice = rng.random(len(chosen)) if wanted.strategy == "future" else np.ones(len(chosen))
        later = self._chain(rule).later(path[:, 0], choice)
        goals = achieved[rows["next_obs"][later]]
        reached = _distance(achieved[rows["next_obs"][path]], goals) <= wanted.tolerance
        reached &= path >= 0
        ended: Array = np.logical_and(reached.any(1), wanted.terminate)
        if wanted.terminate:
            kept = np.where(ended, reached.argmax(1), path.shape[1])
            path[np.arange(path.shape[1]) > kept[:, None]] = -1
            cut = walk.path.copy()
            cut[chosen] = path
            walk = Walk(cut)
        reward = np.where(reached, np.float32(wanted.reached), np.float32(wanted.missed))
        reward[path < 0] = 0
        return walk, Relabelled(start + chosen, goals, reward, ended)

    def _achieved(self, wanted: Hindsight) -> Array:
        """Return what was achieved at each observation row ``[N, ...]``."""
        achieved, goal = _field(self._rows, wanted.achieved), _field(self._rows, wanted.goal)
        if (goal.dtype, goal.shape[1:]) != (achieved.dtype, achieved.shape[1:]):
            got = f"{wanted.achieved}: {achieved.dtype}{list(achieved.shape[1:])}"
            allowed = f"as {wanted.goal}: {goal.dtype}{list(goal.shape[1:])}"
            raise SpecError("what was achieved cannot be a goal", got=got, allowed=allowed)
        return achieved

    def _chain(self, rule: Rule) -> Chains:
        if rule not in self._chains:
            self._chains[rule] = Chains(self._rows, rule)
        return self._chains[rule]


def _spread(start: int, count: int, share: float) -> Array:
    """Return which of ``count`` rows from ``start`` are relabelled: evenly, and exactly in all."""
    at = np.floor(np.arange(start, start + count + 1) * share + 1e-9)
    return np.flatnonzero(np.diff(at) > 0)


def _field(rows: Rows, name: str) -> Array:
    if name not in rows.fields:
        allowed = ", ".join(rows.fields)
        raise SpecError("unknown field for hindsight, or an image", got=name, allowed=allowed)
    return rows.fields[name].data


def _distance(achieved: Array, goals: Array) -> Array:
    """Return distances ``[K, L]`` of ``achieved`` ``[K, L, ...]`` from ``goals`` ``[K, ...]``."""
    difference = achieved.astype(np.float64) - goals[:, None].astype(np.float64)
    flat = difference.reshape(*achieved.shape[:2], -1)
    distance: Array = np.sqrt((flat * flat).sum(2))
    return distance
