import ctypes.util
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("mujoco")

from robots.sim import SimFranka, SimFrankaConfig
from robots.sim.driver import ANSWER_S
from robots.testing import Rig, RobotContract
from user_system.core.clock import SECOND
from user_system.core.errors import LinkError
from user_system.core.interfaces import Robot

pytestmark = pytest.mark.system

needs_rendering = pytest.mark.skipif(
    ctypes.util.find_library("EGL") is None, reason="no EGL: apt-get install libegl1"
)

DRIVER = """
import sys, time
from robots.sim import SimFranka, SimFrankaConfig
robot = SimFranka(SimFrankaConfig(socket=sys.argv[1]))
robot.connect()
setpoint = robot.read().setpoint
print("driving", flush=True)
while True:
    setpoint[0] += 0.001
    robot.apply(setpoint)
    time.sleep(0.005)
"""


@pytest.fixture(scope="module")
def cartesian_world(make_world):
    return make_world()


@pytest.fixture(scope="module")
def joint_world(make_world):
    return make_world(space="joint")


class SimContract(RobotContract):
    config: SimFrankaConfig

    def make(self) -> Robot:
        return SimFranka(self.config)

    def provoke_fault(self, robot: Robot) -> None:
        jump = robot.read().setpoint
        jump[self.coordinate] += 0.5
        robot.apply(jump)


class TestCartesianContract(SimContract):
    @pytest.fixture(autouse=True)
    def _world(self, cartesian_world):
        self.config = SimFrankaConfig(socket=cartesian_world.socket)


class TestWristContract(SimContract):
    @pytest.fixture(autouse=True)
    def _world(self, cartesian_world):
        self.config = SimFrankaConfig(socket=cartesian_world.socket, wrist_hz=250.0)


class TestJointContract(SimContract):
    reach = 0.02

    @pytest.fixture(autouse=True)
    def _world(self, joint_world):
        config = {"space": "joint", "action": ("q1", "q2", "width")}
        self.config = SimFrankaConfig(socket=joint_world.socket, **config)


@pytest.fixture
def connect():
    """Return a function that connects a driver to a world; all are closed at the end."""
    robots = []

    def make(world, **config) -> SimFranka:
        robot = SimFranka(SimFrankaConfig(socket=world.socket, **config))
        robots.append(robot)
        robot.connect()
        return robot

    yield make
    for robot in robots:
        robot.close()


def wait_for(condition, what: str, seconds: float = 60.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)
    return value


def test_killed_driver_leaves_a_braked_faulted_living_world(make_world, connect):
    world = make_world(rate=1.0)
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, world.socket], stdout=subprocess.PIPE, text=True
    )
    with driver:
        assert driver.stdout.readline() == "driving\n"
        time.sleep(0.3)
        driver.send_signal(signal.SIGKILL)
    rig = Rig(connect(world))
    reading = rig.robot.read()
    assert "communication constraints violation" in reading.fault
    assert world.process.poll() is None
    *_, later = rig.watch(0.5)
    *_, last = rig.watch(0.5)
    np.testing.assert_allclose(last.setpoint, later.setpoint, atol=1e-3)
    assert last.fault == reading.fault  # nothing but a person clears it
    rig.robot.recover()
    *_, reading = rig.watch(0.1)
    assert not reading.fault
    before = rig.align()
    after = rig.drive(before.setpoint - np.array([0.03, 0, 0, 0, 0, 0, 0]), 1.0)[-1]
    assert not after.fault
    assert after.setpoint[0] == pytest.approx(before.setpoint[0] - 0.03, abs=0.005)
    assert rig.robot.world_stats()["faults"] == 1


def test_silent_driver_is_stopped_by_the_watchdog(make_world, connect):
    rig = Rig(connect(make_world(watchdog_ms=200.0)))
    rig.drive(rig.robot.read().setpoint, 0.3)
    *_, reading = rig.watch(0.5)
    assert "no set-point in time" in reading.fault


def test_patience_with_a_late_driver_does_not_depend_on_the_pace(make_world, connect):
    # 2 robot seconds at rate 20 would be 0.1 s; on a busy machine the sleep may last much longer.
    robot = connect(make_world(rate=20.0, watchdog_ms=2000.0))
    rig = Rig(robot)
    setpoint = robot.read().setpoint
    rig.drive(setpoint, 0.5)
    time.sleep(0.3)
    reading = robot.read()
    assert reading.rate == 1.0
    assert not reading.fault
    robot.apply(setpoint)
    wait_for(lambda: robot.read().rate == 20.0 or robot.read().fault, "the pace is back")
    assert not robot.read().fault
    assert robot.world_stats()["late"] >= 1


def test_a_fast_clock_waits_for_its_driver(make_world, connect):
    """0.06 s at rate 20 would be 1.2 s of the robot's time."""
    robot = connect(make_world(rate=20.0))
    rig = Rig(robot)
    setpoint = robot.read().setpoint
    rig.drive(setpoint, 0.2)
    robot.apply(setpoint)
    before = robot.read().robot_ns
    time.sleep(0.06)
    assert robot.read().robot_ns - before <= 40_000_000
    robot.apply(setpoint)
    wait_for(lambda: robot.read().robot_ns - before >= 20_000_000, "the clock goes on")


@pytest.mark.parametrize(
    ("tick_hz", "step_ns"), [(50.0, 20_000_000), (25.0, 40_000_000), (80.0, 20_000_000)]
)
def test_a_fast_clock_goes_from_tick_to_tick(make_world, connect, tick_hz, step_ns):
    """Reports that no driver looks at are not made, and the clock waits at each tick."""
    robot = connect(make_world(rate=20.0), tick_hz=tick_hz, control_hz=5.0)
    setpoint = robot.read().setpoint
    steps = []
    while steps.count(step_ns) < 20:
        before = robot.read()
        robot.apply(setpoint)
        robot.wait(before.robot_ns + 1, 30.0)
        after = robot.read()
        if before.rate == after.rate == 20.0:
            steps.append(after.robot_ns - before.robot_ns)
        assert len(steps) < 200, steps
    # Two ticks pass where this test had no processor for longer than the clock stands.
    assert {step % step_ns for step in steps[5:]} == {0}, steps


def test_a_tick_out_of_range_is_refused(make_world, connect):
    with pytest.raises(LinkError, match="tick"):
        connect(make_world(), tick_hz=0.5, control_hz=0.5)


def test_robot_clock_runs_at_its_pace_and_never_jumps(make_world, connect):
    robot = connect(make_world(rate=5.0))
    for rate in (5.0, 1.0, 10.0):
        robot.pace(rate)
        rig = Rig(robot)
        readings = list(rig.watch(1.0))[1:]
        robot_ns = np.diff([r.robot_ns for r in readings])
        wall_ns = np.diff([r.wall_ns for r in readings])
        assert readings[-1].rate == rate
        # Slow is what a busy machine is; fast beyond what it may catch up is a jump.
        assert robot_ns.sum() <= rate * (wall_ns.sum() + 0.06 * SECOND)
    with pytest.raises(LinkError, match="pace"):
        robot.pace(1e6)


def test_second_driver_is_refused(make_world, connect):
    world = make_world()
    first = connect(world)
    with pytest.raises(LinkError, match="another driver"):
        connect(world)
    assert not first.read().fault


def test_requests_that_make_no_sense_are_answered(make_world, connect):
    robot = connect(make_world())
    with pytest.raises(LinkError, match="colour"):
        robot.reset_scene(0, {"colour": 1.0})
    assert not robot.read().fault


def test_missing_world_is_named():
    robot = SimFranka(SimFrankaConfig(socket="/nowhere/world", connect_s=0.1))
    with pytest.raises(LinkError, match="/nowhere/world"):
        robot.connect()
    robot.close()


def test_driver_that_slept_reads_on(make_world, connect, monkeypatch):
    monkeypatch.setattr("robots.sim.driver.STALE_S", 0.5)
    robot = connect(make_world(rate=20.0))
    before = robot.read()
    time.sleep(3.0)  # 6000 reports: far more than the line holds
    assert robot.read().robot_ns > before.robot_ns
    assert not robot.read().fault


def test_dead_world_is_noticed(make_world):
    world = make_world()
    robot = SimFranka(SimFrankaConfig(socket=world.socket))
    robot.connect()
    world.process.kill()
    world.process.wait()

    def gone() -> bool:
        try:
            robot.read()
        except LinkError:
            return True
        return False

    wait_for(gone, "reading went on")
    with pytest.raises(LinkError):
        robot.apply(np.zeros(7))
    started = time.monotonic()
    robot.close()
    assert time.monotonic() - started < 2 * ANSWER_S


def test_world_ends_cleanly_and_takes_over_a_dead_ones_socket(make_world, tmp_path):
    world = make_world()
    path = world.socket
    world.process.send_signal(signal.SIGKILL)
    world.process.wait()
    assert os.path.exists(path)
    config = tmp_path / "again.json"
    config.write_text(json.dumps({"socket": path}))
    command = [sys.executable, "-m", "robots.sim.world", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as again:
        robot = SimFranka(SimFrankaConfig(socket=path, connect_s=60.0))
        robot.connect()
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert refused.returncode == 2
        assert path in refused.stderr
        assert not robot.read().fault
        robot.close()
        again.terminate()
        assert again.wait(60) == 0, again.stderr.read()
    assert not os.path.exists(path)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('{"socket": "/x/y/z"}', "/x/y/z"),
        ('{"sockets": "s"}', "sockets"),
        ('{"socket": "s", "rate": "fast"}', "rate"),
        ('{"socket": "s", "rate": 1e9}', "pace"),
        ("not json", "Expecting"),
    ],
)
def test_wrong_configuration_is_one_line_and_status_two(tmp_path, body, said):
    config = tmp_path / "world.json"
    config.write_text(body)
    command = [sys.executable, "-m", "robots.sim.world", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=os.getcwd())
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@needs_rendering
def test_cameras_belong_to_the_observation_when_asked_for(make_world, connect):
    world = make_world(rate=1.0, image_size=[48, 64])
    config = {"cameras": ("front", "wrist"), "image_size": (48, 64), "connect_s": 60.0}
    robot = connect(world, **config)
    first = robot.read().fields
    for camera in ("front", "wrist"):
        robot.spec.cameras[camera].validate(first[camera], camera)
        assert first[camera].std() > 5  # something can be seen
    red = first["front"].astype(int)
    assert ((red[..., 0] > 120) & (red[..., 1] < 80)).sum() > 3  # the cube
    rig = Rig(robot)
    target = robot.read().setpoint
    target[2] -= 0.1
    rig.drive(target, 1.5)
    later = robot.read().fields["front"]
    assert np.abs(later.astype(int) - first["front"].astype(int)).max() > 50


@needs_rendering
def test_preview_does_not_wait_and_does_not_disturb(make_world, connect):
    robot = connect(make_world(image_size=[480, 480]), image_size=(480, 480))
    image, stamp = wait_for(lambda: robot.read() and robot.preview("front"), "no preview came")
    assert image.shape == (480, 480, 3)
    assert stamp <= time.monotonic_ns()
    newer = wait_for(
        lambda: robot.read() and (p := robot.preview("front")) and p[1] > stamp and p,
        "the preview stands still",
    )
    assert newer[0].shape == image.shape
    assert not robot.read().fault


def test_cameras_without_rendering_say_what_is_missing(monkeypatch, make_world, connect):
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    world = make_world(rate=1.0)
    from user_system.core.errors import MissingError

    robot = SimFranka(SimFrankaConfig(socket=world.socket, cameras=("front",)))
    with pytest.raises(MissingError, match="apt-get"):
        robot.connect()
    robot.close()
    assert not connect(world).read().fault  # the arm works without pictures
