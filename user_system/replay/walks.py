"""From first steps to n-step sums and windows, along the recorded links and never past a border.

A walk goes from a step to the step recorded after it. It stops before a step of another episode
(there is no link), before or behind a void, before a step that cannot be drawn (its reward or its
successor is not known yet), before a segment in which nobody pursued the task, and, unless the
request allows it, before another segment.
"""

from dataclasses import dataclass

import numpy as np

from user_system.core.types import Array, End, Segment
from user_system.replay.rows import Rows


@dataclass(frozen=True, slots=True)
class Walk:
    """``path`` ``[B, L]`` int64 rows, -1 where ``valid`` is False; every first one is valid."""

    path: Array
    valid: Array

    @property
    def last(self) -> Array:
        """The last row of each walk ``[B]``."""
        counts = self.valid.sum(1)
        last: Array = self.path[np.arange(len(self.path)), counts - 1]
        return last

    def rewards(self, rows: Rows) -> Array:
        """Rewards ``[B, L]`` float32, 0 where not valid."""
        return np.where(self.valid, rows["reward"][self.path], np.float32(0))

    def discount(self, rows: Rows, gamma: float) -> Array:
        """What multiplies the value after each walk ``[B]`` float32; 0 after ``TERMINATED``."""
        alive = rows["end"][self.last] != End.TERMINATED
        result: Array = (np.power(gamma, self.valid.sum(1)) * alive).astype(np.float32)
        return result


def follow(
    rows: Rows, first: Array, length: int, segments: frozenset[Segment], *, cross: bool
) -> Walk:
    """Walk up to ``length`` steps from each of ``first`` ``[B]``.

    Args:
        rows: where.
        first: rows that may be drawn.
        length: L, at least 1.
        segments: those that a walk may enter.
        cross: whether it may go from one segment into another.
    """
    allowed = np.zeros(256, bool)
    allowed[[int(segment) for segment in segments]] = True
    path = np.full((len(first), length), -1, np.int64)
    path[:, 0] = first
    for i in range(1, length):
        before = path[:, i - 1]
        step = np.where(before >= 0, rows["next_step"][before], -1)
        ok = (step >= 0) & (rows["next_obs"][step] >= 0) & ~np.isnan(rows["reward"][step])
        ok &= (
            ~rows["damaged"][step]
            & ~rows["gone"][step]
            & (rows["void"][step] == rows["void"][before])
        )
        segment = rows["segment"][step]
        ok &= allowed[segment] if cross else segment == rows["segment"][before]
        path[:, i] = np.where(ok, step, -1)
    return Walk(path, path >= 0)


def whole(rows: Rows, members: Array, episodes: Array) -> Walk:
    """Return for each of ``episodes`` ``[B]`` its steps among ``members``, in order ``[B, L]``."""
    numbers = rows.of("episode", members)
    # Stable, and members are in log order, which is the order of steps within an episode.
    order = np.argsort(numbers, kind="stable")
    starts = np.searchsorted(numbers[order], episodes)
    ends = np.searchsorted(numbers[order], episodes, side="right")
    path = np.full((len(episodes), int((ends - starts).max())), -1, np.int64)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        path[i, : end - start] = members[order[start:end]]
    return Walk(path, path >= 0)
