"""Clocks and fakes that the hub's tests share."""

import pytest


class HandClock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.ns = 1_000_000_000

    def now_ns(self) -> int:
        return self.ns

    def sleep_until(self, deadline_ns: int) -> None:
        self.ns = max(self.ns, deadline_ns)

    def pass_s(self, seconds: float) -> None:
        self.ns += int(seconds * 1e9)


@pytest.fixture
def clock():
    return HandClock()
