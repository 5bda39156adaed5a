"""What the driver says, in the order in which the loop takes it: one reading begins each period."""

import collections
import time
from collections.abc import Iterator

from user_system.edge.driver_link import DriverLink
from user_system.edge.wire import Telemetry


class Readings:
    """Readings that begin a period and wait for the loop.

    Args:
        driver: link to the driver.
        away_s: wall time without any reading after which a driver that lives counts as gone.
    """

    def __init__(self, driver: DriverLink, away_s: float):
        self._driver, self._away_s = driver, away_s
        self._waiting: collections.deque[Telemetry] = collections.deque()
        self._seen_at = time.monotonic()

    def __len__(self) -> int:
        return len(self._waiting)

    def listen(self) -> Iterator[Telemetry]:
        """Take what came; yield what begins no period, such as the news of a fault."""
        for item in self._driver.poll():
            self._seen_at = time.monotonic()
            if item.period:
                self._waiting.append(item)
            else:
                yield item

    def take(self) -> Telemetry | None:
        """Return the oldest that waits, None where there is none."""
        return self._waiting.popleft() if self._waiting else None

    @property
    def ended(self) -> bool:
        """Whether no more are to be expected of this driver."""
        return not self._driver.alive or time.monotonic() - self._seen_at > self._away_s

    def forget(self) -> None:
        """They are of a driver that is gone."""
        self._waiting.clear()
