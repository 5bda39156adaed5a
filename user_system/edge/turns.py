"""A person's turn in a period of a fast robot clock: one action, waited for.

A robot clock that runs faster than the wall's stands until a command answers the period that began
(``driver.STAND_S``). While a person drives, which at such a pace is a script, that command is their
action upon the state that began the period. It is waited for, as the policy's is; who is too late
for it acts one period later, and never twice in one. A robot that does not stand is kept supplied
with commands all the same: patience counts from the first period that was not answered.
"""

import time

from user_system.core.clock import SECOND
from user_system.core.types import Array


class Turn:
    """Whether this period's command is out, and what it will be. One thread's business.

    Args:
        patience_s: wall time for which an action is waited for, less than ``driver.STAND_S``.
    """

    def __init__(self, patience_s: float):
        self._patience_s = patience_s
        self._began_ns = 0
        self._until_s = 0.0
        self._action: Array | None = None
        self._state_ns = 0
        self._expires_s = 0.0
        self.open = False
        """Whether this period has not been answered."""

    def begin(self, seen_ns: int, *, hurry: bool = False) -> None:
        """A period begins with the reading of wall ``seen_ns``.

        Args:
            seen_ns: this host's monotonic clock.
            hurry: the robot does not stand now: nobody is waited for.
        """
        if not self.open:
            self._until_s = seen_ns / SECOND + self._patience_s
        if hurry:
            self._until_s = 0.0
        self._began_ns, self.open = seen_ns, True

    def hear(self, action: Array, state_ns: int, valid_s: float) -> None:
        """Take an action ``(Da,)`` upon the state that was sent at wall ``state_ns``."""
        self._action, self._state_ns = action, state_ns
        self._expires_s = time.monotonic() + valid_s

    @property
    def due(self) -> bool:
        """Whether to answer now: the action is there, or patience is over."""
        if not self.open:
            return False
        fresh = self._action is not None and self._state_ns >= self._began_ns
        return fresh or time.monotonic() >= self._until_s

    def take(self) -> Array | None:
        """Answer the period: return the action, None where there is none; it is used once."""
        action, self._action, self.open = self._action, None, False
        return action if time.monotonic() < self._expires_s else None

    def drop(self) -> None:
        """It is nobody's turn any more."""
        self._action, self.open = None, False
