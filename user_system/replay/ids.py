"""Names of steps that outlast an index: rows are numbered anew whenever an index is made.

An id is the offset of a fragment in the log and the place of the step within it. Ids rise with
rows. What left the store has no row in a new index, so rows cannot be kept in a checkpoint; a range
of ids stands for whatever of it is still there.
"""

from collections.abc import Sequence

import numpy as np

from user_system.core.types import Array
from user_system.replay.rows import Rows

Ranges = Sequence[Sequence[int]]
"""First and last id of each range, both included."""


def rows_of(rows: Rows, ids: Array) -> Array:
    """Return the rows of steps ``ids`` ``[N]`` uint64; -1 where there is none."""
    piece, within = _find(rows, ids)
    found = rows.pieces["row"].data[piece] + within
    sound = (piece >= 0) & (within < rows.pieces["steps"].data[piece])
    numbers: Array = np.where(sound, found, -1)
    return numbers


def observations_of(rows: Rows, ids: Array) -> Array:
    """Return the observation rows of ids ``[N]`` uint64; those that are not there are left out."""
    piece, within = _find(rows, ids)
    counts = rows.pieces["steps"].data[piece] + rows.pieces["final"].data[piece]
    found: Array = (rows.pieces["obs"].data[piece] + within)[(piece >= 0) & (within < counts)]
    return found


def ids_of(rows: Rows, observations: Array) -> Array:
    """Return the ids of observation rows ``[N]``."""
    piece = rows.piece_of.data[observations]
    within = observations - rows.pieces["obs"].data[piece]
    ids: Array = (rows.pieces["offset"].data[piece] << np.uint64(16)) | within.astype(np.uint64)
    return ids


def ranges_of(rows: Rows, taken: Array) -> list[list[int]]:
    """Return where ``taken`` ``[N]`` bool by row is true, as ranges of ids."""
    edges = np.diff(np.concatenate([[0], taken.astype(np.int8), [0]]))
    firsts = rows.of("id", np.flatnonzero(edges == 1))
    lasts = rows.of("id", np.flatnonzero(edges == -1) - 1)
    return [[int(a), int(b)] for a, b in zip(firsts, lasts, strict=True)]


def between(rows: Rows, first: int, last: int) -> slice:
    """Return the rows whose ids lie between two, both included."""
    return slice(_lower(rows, first), _lower(rows, last + 1))


def _find(rows: Rows, ids: Array) -> tuple[Array, Array]:
    """Return the piece that bears the offset of each id, -1 for none, and the place within it."""
    offsets, within = ids >> np.uint64(16), (ids & np.uint64(0xFFFF)).astype(np.int64)
    column = rows.pieces["offset"].data
    at = np.searchsorted(column, offsets)
    there = at < len(column)
    there[there] = column[at[there]] == offsets[there]
    return np.where(there, at, -1), within


def _lower(rows: Rows, number: int) -> int:
    """Return the first row whose id is at least ``number``."""
    offset, within = number >> 16, number & 0xFFFF
    column = rows.pieces["offset"].data
    piece = int(np.searchsorted(column, np.uint64(offset)))
    if piece == len(column):
        return len(rows)
    row, steps = int(rows.pieces["row"].data[piece]), int(rows.pieces["steps"].data[piece])
    return row + min(within, steps) if int(column[piece]) == offset else row
