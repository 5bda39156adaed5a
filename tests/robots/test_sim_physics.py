import itertools

import numpy as np
import pytest

pytest.importorskip("mujoco")

from robots.gate import Command, CommandGate
from robots.sim import franka_data as fr3
from robots.sim.config import CARTESIAN, HOME, HOME_JOINTS, SimFrankaConfig, spec_of
from robots.sim.control_box import CYCLE_S, JUMP_M, ControlBox
from robots.sim.kinematics import Kinematics
from robots.sim.layout import cube_pose
from robots.sim.model import Scene
from robots.sim.physics import READY, Physics, tool_pose
from robots.sim.state import cartesian_setpoint, joint_setpoint, part
from user_system.core.clock import MS, SECOND
from user_system.core.errors import ConfigError, SpecError


@pytest.fixture
def home() -> np.ndarray:
    return np.array(HOME)


@pytest.fixture
def physics() -> Physics:
    return Physics(Scene())


def box_of(physics: Physics, control="cartesian", watchdog_ms=1000.0) -> ControlBox:
    return ControlBox(physics, control, watchdog_ms)


def follow(box: ControlBox, setpoint, cycles: int) -> None:
    for _ in range(cycles):
        box.follow(np.asarray(setpoint, float))
        box.cycle()


def dh_tool(q) -> np.ndarray:
    """Tool pose ``(4, 4)`` straight from the data sheet's table: the oracle of the model."""
    pose = np.eye(4)
    for (a, d, alpha), angle in zip(fr3.DH, q, strict=True):
        ca, sa, ct, st = np.cos(alpha), np.sin(alpha), np.cos(angle), np.sin(angle)
        pose = pose @ np.array(
            [
                [ct, -st, 0, a],
                [st * ca, ct * ca, -sa, -d * sa],
                [st * sa, ct * sa, ca, d * ca],
                [0, 0, 0, 1],
            ]
        )
    turn = np.eye(4)
    c, s = np.cos(fr3.HAND_TURN), np.sin(fr3.HAND_TURN)
    turn[:2, :2] = [[c, -s], [s, c]]
    turn[2, 3] = fr3.FLANGE + fr3.TCP
    return pose @ turn


def test_model_has_the_kinematics_of_the_data_sheet(physics):
    from robots.sim.engine import mujoco

    rng = np.random.default_rng(0)
    for _ in range(50):
        q = rng.uniform(fr3.JOINT_LOW, fr3.JOINT_HIGH)
        physics.data.qpos[:7] = q
        mujoco.mj_kinematics(physics.model, physics.data)
        site = physics.data.site("tcp")
        expected = dh_tool(q)
        np.testing.assert_allclose(site.xpos, expected[:3, 3], atol=1e-9)
        np.testing.assert_allclose(site.xmat.reshape(3, 3), expected[:3, :3], atol=1e-9)


def test_model_has_the_masses_and_limits_of_the_data_sheet(physics):
    model = physics.model
    for i in range(7):
        assert model.body(f"link{i + 1}").mass[0] == pytest.approx(fr3.LINKS[i][0])
        joint = model.joint(f"joint{i + 1}")
        assert tuple(joint.range) == pytest.approx((fr3.JOINT_LOW[i], fr3.JOINT_HIGH[i]))
        force = model.jnt_actfrcrange[joint.id]
        assert tuple(force) == pytest.approx((-fr3.JOINT_TORQUE[i], fr3.JOINT_TORQUE[i]))
    assert model.opt.timestep <= 0.002


def test_ready_is_home_in_both_coordinates(physics):
    state = box_of(physics).state()
    np.testing.assert_allclose(cartesian_setpoint(state), HOME, atol=1e-4)
    np.testing.assert_allclose(joint_setpoint(state), HOME_JOINTS, atol=1e-4)


def test_every_corner_of_the_workspace_can_be_reached(physics):
    kinematics = Kinematics(physics.model, np.asarray(READY))
    for corner in itertools.product(*zip(CARTESIAN.low[:6], CARTESIAN.high[:6], strict=True)):
        q = np.asarray(READY)
        for _ in range(600):
            q = q + np.clip(kinematics.speeds(q, np.array(corner), 0.02), -2, 2) * 0.01
        metres, radians = kinematics.distance(q, np.array(corner))
        assert metres < 1e-3, corner
        assert radians < 1e-2, corner
        assert (q > np.array(fr3.JOINT_LOW) + 0.05).all(), corner
        assert (q < np.array(fr3.JOINT_HIGH) - 0.05).all(), corner


def test_kinematics_never_leave_the_joint_limits(physics):
    kinematics = Kinematics(physics.model, np.asarray(READY))
    q = np.asarray(READY)
    for pose in ((1.5, 0, 0.2, 0, 0, 0), (-0.5, 0, 0.2, 0, 0, 0), (0.4, 0, 0.3, 0, 0, 3.1)):
        for _ in range(500):
            speeds = kinematics.speeds(q, np.array(pose, float), 0.02)
            q = q + np.clip(speeds, -2, 2) * 0.01
            assert np.isfinite(q).all()
            assert (q >= fr3.JOINT_LOW).all()
            assert (q <= fr3.JOINT_HIGH).all()


def test_gravity_is_compensated(physics):
    box = box_of(physics)
    before = box.state()
    for _ in range(200):
        box.cycle()
    np.testing.assert_allclose(part(box.state(), "q"), part(before, "q"), atol=1e-4)


@pytest.mark.parametrize(
    "offset", [(0.08, 0, 0, 0, 0, 0), (0, -0.08, 0.05, 0, 0, 0), (0, 0, 0.05, 0.1, -0.1, 0.3)]
)
def test_cartesian_setpoints_are_followed(physics, offset, home):
    box = box_of(physics)
    goal = home + np.array([*offset, 0])
    for share in np.linspace(0, 1, 60):
        follow(box, home + share * (goal - home), 1)
    follow(box, goal, 60)
    assert not box.fault
    np.testing.assert_allclose(cartesian_setpoint(box.state()), goal, atol=2e-3)


def test_joint_setpoints_are_followed(physics):
    box = box_of(physics, control="joint")
    home = np.array(HOME_JOINTS)
    goal = home + np.array([0.3, -0.2, 0.1, 0.2, -0.3, 0.2, 0.4, -0.04])
    for share in np.linspace(0, 1, 100):
        follow(box, home + share * (goal - home), 1)
    follow(box, goal, 60)
    assert not box.fault
    np.testing.assert_allclose(joint_setpoint(box.state()), goal, atol=5e-3)


def test_hand_closes_on_the_cube_and_lifts_it(physics, home):
    box = box_of(physics)
    physics.lay_out(np.array([0.5, 0.0, 0.2]))
    down = home
    for z in np.linspace(0.2, 0.02, 60):
        down[2] = z
        follow(box, down, 1)
    down[6] = 0.0
    follow(box, down, 60)
    assert part(box.state(), "width")[0] == pytest.approx(0.04, abs=0.003)
    for z in np.linspace(0.02, 0.3, 80):
        down[2] = z
        follow(box, down, 1)
    follow(box, down, 300)  # three seconds in the air: it must not creep out
    state = box.state()
    assert not box.fault
    assert 25 < part(state, "grip_force")[0] < fr3.GRIP_FORCE_MAX
    offset = part(state, "cube") - part(state, "tcp")[:3]
    assert np.linalg.norm(offset) < 0.006
    assert cartesian_setpoint(state)[6] == 0.0  # whoever takes over from here keeps the grip


def test_silence_brakes_and_latches_a_fault(physics, home):
    box = box_of(physics, watchdog_ms=300.0)
    setpoint = home.copy()
    for _ in range(20):
        setpoint[0] += 0.005
        follow(box, setpoint, 1)
    for _ in range(25):
        box.cycle()
    assert not box.fault
    for _ in range(20):
        box.cycle()
    assert "communication constraints violation" in box.fault
    rest = part(box.state(), "tcp").copy()
    follow(box, home, 50)
    assert "communication" in box.fault
    np.testing.assert_allclose(part(box.state(), "tcp"), rest, atol=1e-3)
    box.recover()
    assert not box.fault
    setpoint = cartesian_setpoint(box.state())
    setpoint[0] -= 0.02
    follow(box, setpoint, 60)
    assert part(box.state(), "tcp")[0] == pytest.approx(setpoint[0], abs=2e-3)


def test_rest_is_no_fault_and_the_watchdog_waits(physics, home):
    box = box_of(physics, watchdog_ms=100.0)
    follow(box, home, 5)
    box.rest()
    for _ in range(100):
        box.cycle()
    assert not box.fault


@pytest.mark.parametrize(
    ("setpoint", "said"),
    [
        (np.add(HOME, [JUMP_M + 0.02, 0, 0, 0, 0, 0, 0]), "discontinuity"),
        (np.add(HOME, [0, 0, 0, 0, 0.6, 0, 0]), "discontinuity"),
        (np.full(7, np.nan), "finite"),
        (np.zeros(3), "length"),
    ],
)
def test_the_box_trusts_nobody(physics, setpoint, said, home):
    box = box_of(physics)
    box.follow(setpoint)
    assert said in box.fault
    follow(box, home, 5)
    assert said in box.fault
    assert box.faults == 1


def test_joint_speed_reflex(physics):
    box = box_of(physics)
    physics.data.qvel[0] = 1.5 * fr3.JOINT_VELOCITY[0]  # as if something hit the arm
    box.cycle()
    assert "velocity" in box.fault


def test_recovery_lets_the_arm_come_to_rest(physics):
    box = box_of(physics)
    physics.data.qvel[0] = 2.0 * fr3.JOINT_VELOCITY[0]
    box.cycle()
    assert "velocity" in box.fault
    box.recover()  # at once, while the arm still moves
    for _ in range(200):
        box.cycle()
    assert not box.fault
    physics.data.qvel[0] = 2.0 * fr3.JOINT_VELOCITY[0]
    box.cycle()
    assert "velocity" in box.fault


@pytest.mark.parametrize("seed", [3, 5])
def test_what_the_gate_lets_through_is_followed_though_the_driver_stalls(physics, home, seed):
    rng = np.random.default_rng(seed)
    spec = spec_of(SimFrankaConfig())
    times = {"tick_hz": spec.tick_hz, "hold_after_ms": 500.0, "stop_after_ms": 1e9}
    gate, box = CommandGate(spec.limits, boot="b", **times), box_of(physics)
    gate.start(home)
    due, period, tick = 0, -1, round(1e9 / spec.tick_hz)
    while physics.robot_ns < 60e9:
        now = physics.robot_ns
        if now >= due:
            if now // (100 * MS) > period:
                period = now // (100 * MS)
                if rng.random() < 0.3:
                    target = rng.uniform(spec.limits.low, spec.limits.high)
                    gate.offer(Command(1, "b", period, now + 200 * MS, target), now)
            box.follow(gate.tick(now).setpoint)
            stall = rng.uniform(0.02, 0.4) * 1e9 if rng.random() < 0.03 else 0.0
            due = (now + int(stall)) // tick * tick + tick
        box.cycle()
        assert not box.fault


def test_reference_never_exceeds_joint_speeds(physics):
    box = box_of(physics, control="joint")
    goal = np.array(HOME_JOINTS)
    before = physics.reference.copy()
    for _ in range(50):
        goal[:7] = physics.reference + 0.39
        follow(box, goal, 1)
        speed = np.abs(physics.reference - before) / CYCLE_S
        assert (speed <= fr3.JOINT_VELOCITY).all()
        before = physics.reference.copy()
        if box.fault:
            break
    assert box.fault in ("", "joint velocity violation")
    assert (physics.data.qpos[:7] <= np.array(fr3.JOINT_HIGH) + 0.01).all()


def test_physics_repeat_exactly_from_a_seed(home):
    def run() -> np.ndarray:
        physics = Physics(Scene())
        box = box_of(physics)
        physics.lay_out(cube_pose(5, {}))
        rng = np.random.default_rng(0)
        setpoint, states = home.copy(), []
        for _ in range(200):
            setpoint[:3] += rng.uniform(-0.003, 0.003, 3)
            follow(box, setpoint, 1)
            states.append(box.state())
        return np.array(states)

    np.testing.assert_array_equal(run(), run())


def test_cube_follows_from_seed_and_options(physics):
    assert (cube_pose(1, {}) == cube_pose(1, {})).all()
    assert (cube_pose(1, {}) != cube_pose(2, {})).all()
    x, _, turn = cube_pose(1, {"x_low": 0.4, "x_high": 0.41, "turn": 0.0})
    assert 0.4 <= x <= 0.41
    assert turn == 0.0
    with pytest.raises(SpecError, match="colour"):
        cube_pose(1, {"colour": 1.0})
    physics.lay_out(np.array([0.45, 0.1, 0.0]))
    physics.step(50)
    cube = part(box_of(physics).state(), "cube")
    np.testing.assert_allclose(cube, (0.45, 0.1, 0.02), atol=1e-3)


def test_cube_waits_until_the_hand_has_left_its_place(physics, home):
    box = box_of(physics)
    low = home.copy()
    for z in np.linspace(0.2, 0.03, 60):
        low[2] = z
        follow(box, low, 1)
    physics.lay_out(np.array([0.5, 0.0, 0.0]))
    follow(box, low, 20)
    assert part(box.state(), "cube")[0] < 0
    for z in np.linspace(0.03, 0.2, 60):
        low[2] = z
        follow(box, low, 1)
    np.testing.assert_allclose(part(box.state(), "cube"), (0.5, 0.0, 0.02), atol=1e-3)


def test_robot_time_is_counted_in_physics_steps(physics):
    box_of(physics).cycle()
    assert physics.robot_ns == 10 * MS


def test_tool_pose_is_relative_to_tool_down(physics):
    pose = tool_pose(physics.data, physics.model.site("tcp").id)
    np.testing.assert_allclose(pose[3:], 0, atol=1e-4)
    assert SimFrankaConfig().limits.clip(np.array(HOME)).tolist() == list(HOME)


@pytest.mark.parametrize("hz", [50.0, 100.0, 250.0, 500.0])
def test_the_wrist_bears_what_the_hand_weighs(physics, home, hz):
    box = box_of(physics)
    follow(box, home, 20)
    physics.wrist.sense(hz)
    begun = physics.robot_ns
    follow(box, home, 50)
    samples = physics.wrist.take()
    period = SECOND // int(hz)
    assert samples.stamps.tolist() == list(
        range(-(-begun // period) * period, begun + SECOND // 2, period)
    )
    weight = 9.81 * (fr3.HAND_MASS + 2 * fr3.FINGER_MASS)
    np.testing.assert_allclose(samples.values[:, 2], -weight, rtol=0.02)
    np.testing.assert_allclose(samples.values[:, :2], 0.0, atol=0.05 * weight)
    assert not len(physics.wrist.take().stamps)


def test_the_wrist_feels_what_the_hand_accelerates_and_lifts(physics, home):
    box = box_of(physics)
    follow(box, home, 20)
    physics.wrist.sense(500.0)
    for z in np.linspace(0.2, 0.3, 20):
        home[2] = z
        follow(box, home, 1)
    moving = physics.wrist.take().values[:, 2]
    follow(box, home, 100)
    resting = physics.wrist.take().values[-100:, 2]
    # Upwards at first, which is against the tool's axis, then slower again.
    assert moving.min() < resting.mean() - 0.5
    assert resting.std() < 0.1


def test_a_sensor_changes_nothing_about_the_motion(home):
    home[0] += 0.05
    ends = []
    for hz in (0.0, 500.0):
        physics = Physics(Scene())
        physics.wrist.sense(hz)
        box = box_of(physics)
        follow(box, home, 100)
        ends.append(box.state())
    np.testing.assert_array_equal(*ends)


def test_the_wrist_has_the_rates_of_the_physics(physics):
    with pytest.raises(ConfigError, match=r"333.*50\.0.*500\.0"):
        physics.wrist.sense(333.0)
    with pytest.raises(ConfigError, match="wrist_hz"):
        SimFrankaConfig(wrist_hz=333.0)
    assert not spec_of(SimFrankaConfig()).streams
