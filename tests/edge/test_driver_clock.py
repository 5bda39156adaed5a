"""A tick is of the robot's clock: it acts on the report of its own instant, however late."""

import threading
import time

import pytest

from user_system.core.types import Reading
from user_system.edge.driver import Clocked, DriverConfig, DriverServer
from user_system.edge.driver_link import DriverLink
from user_system.edge.rings import Duplex

TICK = 10_000_000


@pytest.fixture
def late_robot(tmp_path, processes):
    class Late(processes.PointMass):
        """Has nothing newer to report than what somebody waited for."""

        def __init__(self, log):
            super().__init__(log)
            self.awaited = [0]

        def wait(self, robot_ns, timeout_s):
            self.awaited.append(robot_ns)

        def read(self):
            told = super().read()
            return Reading(
                told.fields, told.setpoint, self.awaited[-1], time.monotonic_ns(), told.rate
            )

    return Late(tmp_path / "log")


def test_each_tick_acts_on_the_report_of_its_instant(tmp_path, late_robot, wait_for):
    assert isinstance(late_robot, Clocked)
    config = DriverConfig("arm", tmp_path / "d", tmp_path / "memory", priority=0)
    server = DriverServer(config, late_robot)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    link, seen = DriverLink(Duplex(tmp_path / "d", "connect")), []

    def some():
        seen.extend(link.poll())
        return len(seen) > 5

    try:
        wait_for(some, "periods")
    finally:
        server.stop()
        thread.join(20.0)
        link.close()
    assert not thread.is_alive()
    awaited = late_robot.awaited
    assert {item.reading.robot_ns for item in seen} <= set(awaited)
    assert awaited == sorted(awaited)
    assert all(instant % TICK == 0 for instant in awaited)
