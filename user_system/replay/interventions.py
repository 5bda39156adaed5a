"""Where a person stepped in: known of a whole episode, and of the steps before it, only later.

An *intervention* is a stretch of ``RECOVERY`` and ``CORRECTION``. That an episode had one, and how
far each step was from it, is found when the person's first step arrives, long after the steps that
it is about.
"""

from typing import TYPE_CHECKING

import numpy as np

from user_system.core.types import Array, Segment
from user_system.replay.columns import Column

if TYPE_CHECKING:
    from user_system.replay.rows import Rows

NEVER = np.iinfo(np.int32).max
"""The lead of a step that no intervention followed."""


class Interventions:
    """What is known of the interventions among the rows of one schema."""

    def __init__(self) -> None:
        self.helped = Column(bool)
        """By episode number: a person stepped in."""
        self.lead = Column("int32")
        """By row: for ``AUTO`` steps, which one before the next intervention this is: 1 for the
        last one. Steps of other segments between do not count, steps that were undone do."""
        self._seen = 0

    def update(self, rows: "Rows") -> None:
        """Take in the rows that are new; touch those that turn out to be different for it."""
        first, self._seen = self._seen, len(rows)
        self.helped.pad(len(rows.success), value=False)
        self.lead.pad(self._seen, NEVER)
        helps = first + np.flatnonzero(_is_help(rows["segment"][first:]))
        if not len(helps):
            return
        episodes = np.unique(rows.of("episode", helps))
        starts = rows.first_row.data[episodes]
        changed = int(starts[~self.helped.data[episodes]].min(initial=self._seen))
        self.helped.data[episodes] = True
        changed = min(changed, self._count(rows, int(starts.min())))
        rows.touch(changed)

    def _count(self, rows: "Rows", start: int) -> int:
        """Count again in the episodes with help from row ``start``; return the lowest change."""
        numbers = rows.pieces["episode"].data[rows["piece"][start:]]
        inside = np.flatnonzero(self.helped.data[numbers])
        # Stable: the order of the log is the order of steps within an episode.
        order = inside[np.argsort(numbers[inside], kind="stable")]
        of, segment = numbers[order], rows["segment"][start:][order]
        here = np.arange(len(order))
        following = np.where(_is_help(segment), here, len(order))
        following = np.minimum.accumulate(following[::-1])[::-1]
        known = following < len(order)
        known &= of[np.minimum(following, len(order) - 1)] == of
        known &= segment == Segment.AUTO
        before = np.cumsum(np.concatenate([[0], segment == Segment.AUTO]))
        lead = np.where(known, before[following] - before[here], NEVER)
        rows_of = start + order
        differs = rows_of[self.lead.data[rows_of] != lead]
        self.lead.data[rows_of] = lead
        return int(differs.min(initial=len(rows)))


def _is_help(segment: Array) -> Array:
    helps: Array = (segment == Segment.RECOVERY) | (segment == Segment.CORRECTION)
    return helps
