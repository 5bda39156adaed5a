"""A window for somebody else's learner: draws can be taken back, sizes are known beforehand.

A process that draws for learners of other hosts believes little of what they say: a state is
checked before it takes memory, and a batch is measured before it is drawn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from user_system.core.draws import AsOf
from user_system.core.errors import SpecError
from user_system.core.interfaces import Draw
from user_system.core.priorities import checked
from user_system.core.types import Array, Batch
from user_system.replay.ids import Ranges
from user_system.replay.rows import Rows
from user_system.replay.sampler import ReplayData

_NUMBER = 8
"""Bytes of a column of one number per step, at most."""


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A place in the sequence of draws of one window, while it lives."""

    rng: Any
    spent: Sequence[Ranges]
    told: "Told | None"


@dataclass(frozen=True, slots=True)
class Told:
    """Priorities that were said last, by what was known of these steps before."""

    ids: Array
    before: Array


class ServedData(ReplayData):
    """As ``ReplayData``, for a process that serves it. For one thread.

    Its state is without priorities, of which there may be one for each step: whoever said them has
    them, and states are sent with every batch.
    """

    _spent: Sequence[Ranges] | None = None
    """What was consumed, steps and episodes; None: to be looked up."""
    _told: Told | None = None
    """Only the last ones can be taken back: the learner hears of them before it says others."""

    def bookmark(self) -> Bookmark:
        """Return where the sequence of draws is now, for ``rewind``."""
        if self._spent is None:
            self._spent = self._consumed.state(), self._consumed_episodes.state()
        return Bookmark(self._rng.bit_generator.state, self._spent, self._told)

    def rewind(self, bookmark: Bookmark) -> None:
        """Take back what was drawn, consumed and, once at most, said since ``bookmark``.

        The index stays where it is: what was read since remains known.
        """
        self._rng.bit_generator.state = bookmark.rng
        if self._spent is not bookmark.spent:
            self._spent = bookmark.spent
            self._consumed.load(self._spent[0])
            self._consumed_episodes.load(self._spent[1])
        window, told = self._window, self._told
        if told is not None and told is not bookmark.told and window is not None:
            window.chooser.priorities.put(told.ids, told.before)
        self._told = bookmark.told

    def prioritise(self, ids: Array, values: Array) -> None:
        """Say what steps are worth; see ``ReplayData.prioritise``."""
        ids, values = checked(ids, values)
        window = self._look()
        before = None if window is None else window.chooser.priorities.get(ids)
        super().prioritise(ids, values)
        self._told = None if before is None else Told(ids, before)

    def state_dict(self) -> Mapping[str, Any]:
        """Return the state without priorities."""
        return self._place()

    def consume(self, request: Draw) -> Batch:
        """Return the oldest rows not consumed before; see ``ReplayData.consume``."""
        self._spent = None
        return super().consume(request)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``state_dict`` that came from outside.

        Raises:
            SpecError: it is none, or the store holds less than it has seen.
        """
        self._spent = self._told = None
        try:
            super().load_state_dict(state)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
            got = f"{type(error).__name__}: {error}"
            raise SpecError("not a state of a window on the replay buffer", got=got) from error

    def bytes_of(self, request: Draw) -> int:
        """Return about how many bytes a batch of ``request`` would have, without drawing it."""
        self._follow()
        rows = self._rows()
        if rows is None:
            return 0
        names = rows.schema.names() if request.observations is None else request.observations
        seen = sum(_observation_bytes(rows, name) for name in set(names))
        seen += sum(_stream_bytes(rows, *item) for item in request.streams.items())
        step = 4 * rows.schema.action + 4 * _NUMBER
        step += sum(_column_bytes(rows, name) for name in set(request.columns))
        length = {"window": request.length, "episode": _longest(rows)}.get(request.unit, 1)
        places = 2 * request.history or length + 1
        return request.n * (length * step + places * seen)


def _observation_bytes(rows: Rows, name: str) -> int:
    if name in rows.schema.images:
        return int(np.prod(rows.schema.images[name], dtype=np.int64))
    dtype, tail = rows.schema.fields.get(name, ("uint8", (0,)))
    return np.dtype(dtype).itemsize * int(np.prod(tail, dtype=np.int64))


def _stream_bytes(rows: Rows, name: str, wanted: AsOf) -> int:
    if name not in rows.streams.names():
        return 0  # the draw itself says so
    none, _, _ = rows.streams.at(name, np.zeros(0, np.int64), 1)
    sample = none.dtype.itemsize * int(np.prod(none.shape[2:], dtype=np.int64))
    return wanted.samples * (sample + 2 * _NUMBER)


def _column_bytes(rows: Rows, name: str) -> int:
    if name in rows.steps:
        return rows[name][:1].nbytes
    recorded = [extra.values for extra in rows.extras.get(name, [])]
    return max([_NUMBER, *(values.data[:1].nbytes for values in recorded)])


def _longest(rows: Rows) -> int:
    """Return the steps of the longest episode."""
    episode, steps = rows.pieces["episode"].data, rows.pieces["steps"].data
    return int(np.bincount(episode, steps).max()) if len(episode) else 0
