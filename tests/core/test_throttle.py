"""Buckets: they refill, keep keys apart, and forget what is old."""

from user_system.core.throttle import Throttle


class HandClock:
    def __init__(self):
        self.ns = 0

    def now_ns(self):
        return self.ns

    def sleep_until(self, deadline_ns):
        self.ns = deadline_ns

    def pass_s(self, seconds):
        self.ns += int(seconds * 1e9)


def test_a_throttle_refills_and_keeps_keys_apart():
    clock = HandClock()
    throttle = Throttle(clock, per_s=1.0, burst=2.0)
    assert [throttle.take("a") for _ in range(3)] == [True, True, False]
    assert throttle.take("b")
    clock.pass_s(1.0)
    assert [throttle.take("a") for _ in range(2)] == [True, False]
    throttle.forgive("a")
    assert throttle.take("a")


def test_a_throttle_bounds_what_it_remembers():
    throttle = Throttle(HandClock(), per_s=1.0, burst=1.0, keys=10)
    for i in range(100):
        throttle.take(str(i))
    assert len(throttle._buckets) == 10
