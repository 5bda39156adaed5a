"""One batch from several, as if it had been drawn at once."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from user_system.core.types import Array, Batch


class Part(NamedTuple):
    """Some rows of a batch."""

    batch: Batch
    rows: Mapping[str, int]
    """View -> how many of them it has, in the order in which they lie."""


def joined(parts: Sequence[Part], views: Sequence[str]) -> Batch:
    """Return all rows of ``parts`` in one batch: by view, in the order of ``views``.

    Episodes and windows are as long as the longest; what is added is not valid.
    """
    order = _order([part.rows for part in parts], views)
    if len(parts) == 1 and bool((np.diff(order) == 1).all()):
        return parts[0].batch
    batches = [part.batch for part in parts]
    stacked = batches[0].valid.ndim > 1
    length = max(batch.valid.shape[1] for batch in batches) if stacked else 0

    def together(of: Sequence[Array]) -> Array:
        if stacked and len({array.shape[1:] for array in of}) > 1:
            of = [_lengthened(array, length) for array in of]
        rows: Array = np.concatenate(of)[order]
        return rows

    def fields(of: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        return {name: together([each[name] for each in of]) for name in of[0]}

    return Batch(
        observation=fields([batch.observation for batch in batches]),
        action=together([batch.action for batch in batches]),
        reward=together([batch.reward for batch in batches]),
        discount=together([batch.discount for batch in batches]),
        next_observation=fields([batch.next_observation for batch in batches]),
        end=together([batch.end for batch in batches]),
        valid=together([batch.valid for batch in batches]),
        ids=together([batch.ids for batch in batches]),
        extras=fields([batch.extras for batch in batches]),
    )


def _order(parts: Sequence[Mapping[str, int]], views: Sequence[str]) -> Array:
    """Return where each row of the whole lies in the parts one after the other."""
    places: dict[str, list[Array]] = {view: [] for view in views}
    start = 0
    for rows in parts:
        for view, count in rows.items():
            places[view].append(np.arange(start, start + count))
            start += count
    return np.concatenate([place for view in views for place in places[view]])


def _lengthened(array: Array, length: int) -> Array:
    """Return ``[B, L, ...]`` with ``L`` increased by zeros."""
    missing = length - array.shape[1]
    widths = [(0, 0), (0, missing), *[(0, 0)] * (array.ndim - 2)]
    longer: Array = np.pad(array, widths) if missing else array
    return longer
