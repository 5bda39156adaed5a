"""How evenly a robot's loop keeps its period: the newest few thousand of them, in wall time."""

import time

import numpy as np

from user_system.core.clock import MS, SECOND

WINDOW = 5000
"""Periods over which figures are taken."""
REFRESH_S = 1.0
"""Time between two looks at the window: everybody asks for figures, few need the newest."""


class Periods:
    """Takes note of when periods begin. One thread's business.

    The error of a period is the difference between its length and the wanted one, as absolute
    value. A change of the clock's rate begins anew: no length is wanted of the period it falls in.

    Args:
        control_hz: periods per second of the robot's clock.
    """

    def __init__(self, control_hz: float):
        self._period_ns = SECOND / control_hz
        self._errors = np.zeros(WINDOW, np.float32)  # ms of wall time
        self._last: tuple[int, float] | None = None
        self._figures: dict[str, float] = {}
        self._refreshed = float("-inf")
        self.count = 0

    def begins(self, now_ns: int, rate: float) -> None:
        """A period begins at wall ``now_ns``, while the robot's clock runs at ``rate``."""
        if self._last is not None and self._last[1] == rate:
            length = now_ns - self._last[0]
            self._errors[self.count % WINDOW] = abs(length - self._period_ns / rate) / MS
            self.count += 1
        self._last = (now_ns, rate)

    def pauses(self) -> None:
        """The driver is away: the next period has no predecessor."""
        self._last = None

    def stats(self) -> dict[str, float]:
        """Return the periods measured, and median and 99th percentile of the newest, wall ms."""
        if self.count and time.monotonic() - self._refreshed > REFRESH_S:
            self._refreshed = time.monotonic()
            known = self._errors[: min(self.count, WINDOW)]
            p50, p99 = np.percentile(known, (50, 99), method="higher")
            self._figures = {"period_p50_ms": float(p50), "period_p99_ms": float(p99)}
        return {"periods_measured": float(self.count), **self._figures}
