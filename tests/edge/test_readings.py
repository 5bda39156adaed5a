"""What waits for a loop of its driver's readings, with the driver in the test's hands."""

from types import SimpleNamespace

import pytest

from user_system.edge.readings import Readings


class Driver:
    def __init__(self):
        self.alive, self.said = True, []

    def poll(self):
        said, self.said = self.said, []
        return said

    def says(self, *numbers, period=True):
        self.said += [SimpleNamespace(number=n, period=period) for n in numbers]


@pytest.fixture
def driver():
    return Driver()


def test_readings_that_begin_a_period_wait_in_order_and_others_do_not(driver):
    readings = Readings(driver, away_s=60.0)
    driver.says(1)
    driver.says(2, period=False)
    driver.says(3)
    assert [item.number for item in readings.listen()] == [2]
    assert len(readings) == 2
    assert [readings.take().number, readings.take().number] == [1, 3]
    assert readings.take() is None


def test_those_of_a_driver_that_is_gone_are_forgotten(driver):
    readings = Readings(driver, away_s=60.0)
    driver.says(1, 2)
    assert list(readings.listen()) == []
    readings.forget()
    assert readings.take() is None


def test_no_more_come_of_one_that_is_gone_or_silent(driver):
    readings = Readings(driver, away_s=60.0)
    assert not readings.ended
    assert Readings(driver, away_s=-1.0).ended
    driver.alive = False
    assert readings.ended
