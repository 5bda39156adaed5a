"""What a learner said its steps are worth, kept beside it for a reader that has to be told anew."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.priorities import checked
from user_system.core.types import Array

AT_ONCE = 4096
"""Steps that are told in one message."""

_SLACK = 1 << 16
"""Things said again that may wait before they are put together."""


class Said:
    """Priorities by step id; of what was said twice the last counts. For one thread.

    Args:
        state: what ``state`` returned, or a local window's.

    Raises:
        SpecError: it is none.
    """

    def __init__(self, state: Mapping[str, Any] | None = None):
        self._ids = np.zeros(0, np.uint64)
        self._values = np.zeros(0, np.float32)
        self._new: list[tuple[Array, Array]] = []
        self._waiting = 0
        if state is not None:
            try:
                self.add(*checked(state["ids"], state["values"]))
            except (KeyError, TypeError) as error:
                raise SpecError("priorities of a window", got=repr(state)[:200]) from error

    def __bool__(self) -> bool:
        return bool(len(self._ids) or self._new)

    def add(self, ids: Array, values: Array) -> None:
        """Take over priorities ``[N]`` float32 of steps ``[N]`` uint64."""
        self._new.append((ids.copy(), values.copy()))
        self._waiting += len(ids)
        if self._waiting > _SLACK + len(self._ids):
            self._join()

    def state(self) -> dict[str, Array]:
        """Return all of it, by ascending id: what a local window's state has."""
        self._join()
        return {"ids": self._ids, "values": self._values}

    def parts(self) -> Iterator[tuple[Array, Array]]:
        """Yield all of it, ``AT_ONCE`` at a time."""
        self._join()
        return split(self._ids, self._values)

    def _join(self) -> None:
        if not self._new:
            return
        ids = np.concatenate([self._ids, *(ids for ids, _ in self._new)])
        values = np.concatenate([self._values, *(values for _, values in self._new)])
        # The first of those turned round is the last.
        self._ids, at = np.unique(ids[::-1], return_index=True)
        self._values = values[::-1][at]
        self._new, self._waiting = [], 0


def split(ids: Array, values: Array) -> Iterator[tuple[Array, Array]]:
    """Yield ids and values ``AT_ONCE`` at a time."""
    for start in range(0, len(ids), AT_ONCE):
        yield ids[start : start + AT_ONCE], values[start : start + AT_ONCE]
