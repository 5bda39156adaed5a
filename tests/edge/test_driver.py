"""The driver by itself: what it remembers, what it refuses, when it holds."""

import dataclasses
import threading
import time

import numpy as np
import pytest

from user_system.core.errors import SpecError
from user_system.core.interfaces import Resettable, Robot, Sampled
from user_system.core.specs import Field, StreamSpec
from user_system.core.types import Stream
from user_system.edge import keep
from user_system.edge.driver import DriverConfig, DriverServer, Paced
from user_system.edge.driver_link import DriverLink
from user_system.edge.rings import Duplex


class Bench:
    """A driver in a thread and the agent's end of its link."""

    def __init__(self, directory, robot):
        self.config = DriverConfig(
            "arm", directory / "d", directory / "memory", priority=0, orphan_after_s=60.0
        )
        self.robot, self.link = robot, DriverLink(Duplex(directory / "d", "connect"))
        self.seen = None

    def start(self):
        self.server = DriverServer(self.config, self.robot)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        return self

    def stop(self):
        self.server.stop()
        self.thread.join(20.0)
        assert not self.thread.is_alive()

    def crash(self):
        """End it so that nothing is tidied up that a kill would not."""
        remembered = self.config.memory.read_bytes()
        self.stop()
        self.config.memory.write_bytes(remembered)

    def telemetry(self):
        for seen in self.link.poll():
            self.seen = seen
        return self.seen if self.link.alive else None


@pytest.fixture
def bench(tmp_path, processes):
    made = Bench(tmp_path, processes.PointMass(tmp_path / "log", rate=5.0))
    made.start()
    yield made
    if made.thread.is_alive():
        made.stop()
    made.link.close()


def test_the_point_mass_is_a_robot(bench):
    assert isinstance(bench.robot, (Robot, Resettable, Paced))


def test_commands_move_it_and_are_reported(bench, wait_for):
    wait_for(bench.telemetry, "telemetry")
    assert bench.link.spec == bench.robot.spec

    def there():
        bench.link.command(np.array([0.2, -0.1]), 3, 300.0)
        seen = bench.telemetry()
        return seen and np.allclose(seen.reading.setpoint, (0.2, -0.1))

    wait_for(there, "the robot there")
    assert bench.seen.token == 3
    assert bench.seen.accepted.tolist() == [0.2, -0.1]


def test_periods_lie_on_the_grid_of_the_robots_clock(bench, wait_for):
    stamps = []

    def enough():
        stamps.extend(s.reading.robot_ns for s in bench.link.poll() if s.period)
        return len(stamps) > 20

    wait_for(enough, "periods")
    periods = [stamp // 100_000_000 for stamp in stamps]
    assert periods == sorted(set(periods))


def test_smaller_tokens_are_fenced_off_for_good(bench, wait_for):
    wait_for(bench.telemetry, "telemetry")
    bench.link.command(np.array([0.1, 0.0]), 9, 300.0)
    wait_for(lambda: bench.telemetry().token == 9, "the token")
    bench.stop()
    assert keep.read(bench.config.memory)["token"] == 9
    bench.start()
    wait_for(lambda: bench.telemetry() and bench.seen.boot == bench.server.boot, "another life")
    before = bench.seen.accepted
    bench.link.command(np.array([-0.5, 0.0]), 8, 300.0)
    wait_for(lambda: bench.server.stats()["refused_fenced"] == 1, "a refusal")
    assert np.array_equal(bench.telemetry().accepted, before)


def test_silence_means_hold_and_long_silence_a_fault(tmp_path, processes, wait_for):
    robot = processes.PointMass(tmp_path / "log", rate=5.0)
    robot.spec = dataclasses.replace(processes.SPEC, stop_after_ms=1000.0)
    bench = Bench(tmp_path, robot).start()
    wait_for(bench.telemetry, "telemetry")
    bench.link.command(np.array([0.9, 0.0]), 1, 300.0)
    wait_for(lambda: bench.telemetry().holding, "a hold")
    assert bench.seen.accepted[0] < 0.9
    wait_for(lambda: bench.telemetry().reading.fault, "a fault")
    assert "no command" in bench.seen.reading.fault
    # Commands do not clear it.
    bench.link.command(np.array([0.5, 0.0]), 1, 300.0)
    wait_for(lambda: bench.server.stats()["refused_stopped"] == 1, "a refusal")
    number = bench.link.release()
    wait_for(lambda: bench.telemetry().released == number, "the release")
    assert bench.seen.reading.fault == ""
    bench.stop()
    bench.link.close()


def test_a_sped_up_clock_stands_until_the_agent_has_answered(tmp_path, processes, wait_for):
    """The world goes on by a tick with each set-point; an answer takes 20 ms of the wall's time."""

    class Stepping(processes.PointMass):
        ticks = 0

        def _now(self):
            return self.ticks * 10_000_000

        def apply(self, setpoint):
            super().apply(setpoint)
            self.ticks += 1

        def wait(self, robot_ns, timeout_s):
            if self._now() < robot_ns:
                time.sleep(0.001)

    bench = Bench(tmp_path, Stepping(tmp_path / "log", rate=100.0)).start()
    wait_for(bench.telemetry, "telemetry")
    bench.link.command(np.array([0.1, 0.0]), 1, 300.0)
    wait_for(lambda: bench.telemetry().sequence >= 0, "the first command")
    begun, answers = [], 0
    while len(begun) < 20:
        for seen in bench.link.poll():
            if seen.period and seen.sequence >= 0:
                begun.append(seen)
                time.sleep(0.02)
                bench.link.command(np.array([0.1, 0.0]), 1, 300.0)
                answers += 1
    periods = [seen.reading.robot_ns // 100_000_000 for seen in begun]
    assert periods == list(range(periods[0], periods[0] + 20)), "none passed unanswered"
    sequences = np.diff([seen.sequence for seen in begun])
    assert (sequences > 0).all(), "each period knows the answer to the one before"
    bench.stop()
    bench.link.close()


def test_a_sped_up_clock_waits_for_commands_in_real_time(bench, wait_for):
    wait_for(bench.telemetry, "telemetry")
    assert bench.seen.reading.rate == 5.0
    bench.link.command(np.array([0.1, 0.0]), 1, 300.0)
    wait_for(lambda: bench.telemetry().holding, "a hold")
    wait_for(lambda: bench.telemetry().reading.rate == 1.0, "real time")
    if not bench.seen.reading.fault:  # on a busy machine this came too late
        bench.link.command(np.array([0.2, 0.0]), 1, 300.0)
    wait_for(lambda: bench.telemetry().reading.rate == 5.0, "its own pace")


def test_an_emergency_stop_survives_everything_but_a_release(bench, wait_for):
    wait_for(bench.telemetry, "telemetry")
    bench.link.stop("emergency stop by ann")
    wait_for(lambda: bench.telemetry().reading.fault, "a fault")
    bench.stop()
    bench.start()
    wait_for(lambda: bench.telemetry() and bench.seen.boot == bench.server.boot, "another life")
    assert bench.seen.reading.fault == "emergency stop by ann"


def test_a_killed_driver_is_in_fault_and_a_closed_one_is_not(bench, wait_for):
    wait_for(bench.telemetry, "telemetry")
    bench.stop()
    bench.start()
    wait_for(lambda: bench.telemetry() and bench.seen.boot == bench.server.boot, "another life")
    assert bench.seen.reading.fault == ""
    bench.crash()
    bench.start()
    wait_for(lambda: bench.telemetry() and bench.seen.boot == bench.server.boot, "a third life")
    assert "restarted" in bench.seen.reading.fault


def test_a_release_for_an_earlier_life_clears_nothing(bench, wait_for):
    """A dead agent's release may still lie in the ring when the driver comes back."""
    wait_for(bench.telemetry, "telemetry")
    bench.crash()
    bench.link.release()
    bench.start()
    wait_for(lambda: bench.telemetry() and bench.seen.boot == bench.server.boot, "another life")
    time.sleep(0.1)
    bench.telemetry()
    assert "restarted" in bench.seen.reading.fault


def test_two_drivers_of_one_robot_are_refused(bench, processes, tmp_path, wait_for):
    from user_system.core.errors import RobotFault

    wait_for(bench.telemetry, "telemetry")
    second = DriverServer(bench.config, processes.PointMass(tmp_path / "log"))
    with pytest.raises(RobotFault, match="another driver"):
        second.run()
    assert bench.telemetry().reading.fault == ""


def test_scene_and_pace(bench, wait_for):
    wait_for(bench.telemetry, "telemetry")
    goal = bench.seen.reading.fields["goal"].copy()
    number = bench.link.scene(5, {})
    wait_for(lambda: bench.telemetry().scene == number, "the scene")
    assert not np.array_equal(bench.seen.reading.fields["goal"], goal)
    bench.link.pace(2.0)
    wait_for(lambda: bench.telemetry().reading.rate == 2.0, "the pace")


def test_what_cannot_be_done_is_said(bench, wait_for):
    from user_system.core.errors import LinkError

    def refuse(seed, options):
        raise LinkError("the world refused")

    bench.robot.reset_scene = refuse
    wait_for(bench.telemetry, "telemetry")
    bench.link.scene(1, {})

    def said():
        bench.telemetry()
        return bench.link.take_failure()

    assert "the world refused" in wait_for(said, "a complaint")
    assert bench.thread.is_alive()


def test_a_robot_that_reports_nonsense_is_in_fault(bench, wait_for):
    wait_for(bench.telemetry, "telemetry")
    bench.robot._goal = np.full(2, np.nan, np.float32)
    wait_for(lambda: "'goal' is not finite" in bench.telemetry().reading.fault, "a fault")


class Feeling:
    """A point mass that feels something every 4 ms of its clock."""

    def __init__(self, processes, log):
        class Robot(processes.PointMass):
            spec = dataclasses.replace(
                processes.SPEC, streams={"force": StreamSpec(Field((3,), "float32", "N"), 250.0)}
            )
            felt, bad = 0, False

            def connect(self):
                super().connect()
                self.felt = self._now() // 4_000_000

            def samples(self):
                due = self._now() // 4_000_000
                stamps = np.arange(self.felt + 1, due + 1, dtype=np.int64) * 4_000_000
                self.felt = due
                kind = np.float64 if self.bad else np.float32
                return {"force": Stream(stamps, np.ones((len(stamps), 3), kind))}

        self.robot = Robot(log, rate=1.0)


@pytest.fixture
def feeling(tmp_path, processes):
    made = Bench(tmp_path, Feeling(processes, tmp_path / "log").robot)
    made.start()
    yield made
    made.stop()
    made.link.close()


def test_samples_come_with_periods_each_once(feeling, wait_for):
    assert isinstance(feeling.robot, Sampled)
    came = []

    def enough():
        came.extend(feeling.link.poll())
        return sum(bool(seen.samples) for seen in came) > 8

    wait_for(enough, "periods")
    assert feeling.link.spec == feeling.robot.spec
    assert not any(seen.samples for seen in came if not seen.period)
    # A stalled machine may begin two periods at once: there is nothing new in the second one.
    felt = [seen.samples["force"] for seen in came if seen.samples]
    stamps = np.concatenate([samples.stamps for samples in felt])
    assert (np.diff(stamps) == 4_000_000).all(), "none lost, none twice"
    assert felt[-1].values.tolist()[0] == [1.0, 1.0, 1.0]


def test_samples_wait_for_room_in_the_ring(feeling, wait_for):
    wait_for(feeling.telemetry, "telemetry")
    send, refused = feeling.server.link.send, []

    def full(meta, arrays=None):
        if meta["k"] == "reading" and "t/force" in (arrays or {}) and len(refused) < 3:
            refused.append(arrays["t/force"])
            return False
        return send(meta, arrays)

    feeling.server.link.send = full
    came = []

    def after():
        came.extend(seen for seen in feeling.link.poll() if seen.samples)
        return len(refused) == 3 and came and came[-1].reading.robot_ns > refused[-1][-1] + 10**8

    wait_for(after, "a period after those refused")
    stamps = np.concatenate([seen.samples["force"].stamps for seen in came])
    assert (np.diff(stamps) == 4_000_000).all()
    assert set(refused[2]) <= set(stamps)
    assert set(refused[0]) < set(refused[2]), "what was refused waits for the next period"
    assert feeling.server.stats()["samples_dropped"] == 0


def test_a_robot_that_samples_nonsense_is_in_fault(feeling, wait_for):
    wait_for(feeling.telemetry, "telemetry")
    feeling.robot.bad = True
    wait_for(lambda: "did not declare" in feeling.telemetry().reading.fault, "a fault")
    assert "'force'" in feeling.seen.reading.fault


def test_streams_that_nobody_delivers_are_refused(tmp_path, processes):
    robot = processes.PointMass(tmp_path / "log")
    robot.spec = Feeling(processes, tmp_path / "log").robot.spec
    config = DriverConfig("arm", tmp_path / "d", tmp_path / "memory")
    with pytest.raises(SpecError, match=r"delivers none.*force.*samples\(\)"):
        DriverServer(config, robot)
