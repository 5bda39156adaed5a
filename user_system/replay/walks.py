"""From first steps to n-step sums, windows and histories, along the recorded links.

A walk goes from a step to the step recorded after it, a history to the one before it. Neither goes
past a border: to a step of another episode (there is no link), into or out of a void, to a step
whose images are damaged, to a segment in which nobody pursued the task, and, unless the request
allows it, to another segment. A walk also ends before a step whose reward or successor is not known
yet, and where the request says so before a step that its view does not show.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from user_system.core.types import Array, End, Segment
from user_system.replay.rows import Rows

_TERMINATED = int(End.TERMINATED)


@dataclass(frozen=True, slots=True)
class Rule:
    """Which links may be walked."""

    segments: frozenset[Segment]
    """Those that may be entered."""
    cross: bool = True
    """Whether one may go from one segment into another."""
    reward: str = ""
    """The column that is the reward."""

    def passes(self, rows: Rows, before: Array, after: Array) -> Array:
        """Return whether one may go from rows ``before`` to ``after`` ``[N]`` (-1: no)."""
        ok = self.adjoins(rows, after, before)
        ok &= (rows["next_obs"][after] >= 0) & ~np.isnan(rows.rewards(self.reward)[after])
        return ok

    def adjoins(self, rows: Rows, to: Array, of: Array) -> Array:
        """Return whether the observations of ``to`` (-1: no) belong with those of ``of``."""
        ok: Array = (to >= 0) & ~rows["damaged"][to] & ~rows["gone"][to]
        ok &= rows["void"][to] == rows["void"][of]
        segment = rows["segment"]
        if not self.cross:
            ok &= segment[to] == segment[of]
        else:
            allowed = np.zeros(256, bool)
            allowed[[int(s) for s in self.segments]] = True
            ok &= allowed[segment[to]]
        return ok


class Walk:
    """Walks of one draw: ``path`` ``[B, L]`` int64 rows, -1 behind the last one of each.

    Every first one is there.
    """

    def __init__(self, path: Array):
        self.path = path
        self.first: Array = path[:, 0]
        if path.shape[1] == 1:
            self.last = self.first
            self.whole = True
        else:
            counts = self.counts
            self.last = path[np.arange(len(path)), counts - 1]
            self.whole = bool((counts == path.shape[1]).all())

    @cached_property
    def counts(self) -> Array:
        """Steps of each walk ``[B]``."""
        found: Array = (self.path >= 0).sum(1)
        return found

    def rewards(self, rewards: Array) -> Array:
        """Return rewards ``[B, L]`` float32 out of those of all rows; 0 behind the last one."""
        found: Array = rewards[self.path]
        if not self.whole:
            found[self.path < 0] = 0
        return found

    def discount(self, rows: Rows, gamma: float) -> Array:
        """Return what multiplies the value after each walk ``[B]`` float32."""
        if self.path.shape[1] == 1:
            result = np.full(len(self.path), gamma, np.float32)
        else:
            powers = np.power(gamma, np.arange(self.path.shape[1] + 1)).astype(np.float32)
            result = powers[self.counts]
        result[rows["end"][self.last] == _TERMINATED] = 0
        return result


def follow(rows: Rows, first: Array, length: int, rule: Rule, shown: Array | None = None) -> Walk:
    """Walk up to ``length`` steps from each of ``first`` ``[B]``.

    Args:
        rows: where.
        first: rows that may be drawn.
        length: L, at least 1.
        rule: how far.
        shown: ascending rows that alone may be entered; None: all.
    """
    path = np.full((len(first), length), -1, np.int64)
    path[:, 0] = first
    going = np.arange(len(first))
    for i in range(1, length):
        before = path[going, i - 1]
        step = rows["next_step"][before].astype(np.int64)
        ok = rule.passes(rows, before, step)
        if shown is not None:
            ok &= _contains(shown, step)
        going = going[ok]
        if not len(going):
            break
        path[going, i] = step[ok]
    return Walk(path)


def back(rows: Rows, last: Array, length: int, rule: Rule) -> Array:
    """Return up to ``length`` rows that lead to and end with ``last`` ``[B]``, -1 before them."""
    path = np.full((len(last), length), -1, np.int64)
    path[:, -1] = last
    going = np.arange(len(last))
    for i in range(length - 2, -1, -1):
        after = path[going, i + 1]
        step = _before(rows, after)
        ok = rule.adjoins(rows, step, after)
        going = going[ok]
        if not len(going):
            break
        path[going, i] = step[ok]
    return path


def whole(rows: Rows, members: Array, first: Array) -> Walk:
    """Return for the episodes that begin with ``first`` ``[B]`` their steps among ``members``."""
    numbers, episodes = rows.of("episode", members), rows.of("episode", first)
    # Stable, and members are in log order, which is the order of steps within an episode.
    order = np.argsort(numbers, kind="stable")
    starts = np.searchsorted(numbers[order], episodes)
    ends = np.searchsorted(numbers[order], episodes, side="right")
    path = np.full((len(episodes), int((ends - starts).max())), -1, np.int64)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        path[i, : end - start] = members[order[start:end]]
    return Walk(path)


def join(paths: Sequence[Array]) -> Array:
    """Stack paths of different lengths; the shorter ones end in -1."""
    if len(paths) == 1:
        return paths[0]
    length = max(path.shape[1] for path in paths)
    joined = np.full((sum(len(path) for path in paths), length), -1, np.int64)
    at = 0
    for path in paths:
        joined[at : at + len(path), : path.shape[1]] = path
        at += len(path)
    return joined


def _before(rows: Rows, after: Array) -> Array:
    """Return the rows recorded before ``after`` ``[N]``; -1: none is here."""
    piece = rows["piece"][after]
    first = rows.pieces["row"].data[piece]
    prev = rows.pieces["prev"].data[piece]
    end = rows.pieces["row"].data[prev] + rows.pieces["steps"].data[prev] - 1
    step = np.where(after > first, after - 1, np.where(prev >= 0, end, -1))
    found: Array = np.where(rows["next_step"][step] == after, step, -1)
    return found


def _contains(ascending: Array, rows: Array) -> Array:
    at = np.minimum(np.searchsorted(ascending, rows), len(ascending) - 1)
    found: Array = ascending[at] == rows
    return found
