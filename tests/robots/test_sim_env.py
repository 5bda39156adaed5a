import numpy as np
import pytest

pytest.importorskip("mujoco")

from robots.sim.config import SimFrankaConfig, spec_of
from robots.sim.expert import pick_cube
from robots.sim.single import SimEnv
from robots.sim.tasks import PickCube, PickCubeConfig
from user_system.core.errors import ConfigError
from user_system.core.interfaces import Task
from user_system.core.specs import validate_observation
from user_system.core.types import Purpose


def episode(env: SimEnv, seed: int, act) -> tuple[int, bool]:
    """Run one episode; return its length and whether it succeeded."""
    observation, steps = env.reset(seed), 0
    while not env.done:
        observation, judgement, _ = env.step(act(observation))
        steps += 1
    assert judgement.success is not None
    return steps, judgement.success


@pytest.fixture(scope="module")
def env() -> SimEnv:
    return SimEnv()


def test_expert_picks_the_cube(env):
    outcomes = [episode(env, seed, pick_cube) for seed in range(50)]
    assert sum(success for _, success in outcomes) >= 49
    assert np.median([steps for steps, _ in outcomes]) <= 25


class LateEnv(SimEnv):
    """Actions take effect late in their period, as behind a busy machine."""

    late_ticks = 4

    def _drive(self, target):
        ticks, self._ticks = self._ticks, self.late_ticks
        super()._drive(self._gate.target)
        self._ticks = ticks - self.late_ticks
        super()._drive(target)
        self._ticks = ticks


def test_expert_copes_with_actions_that_arrive_late():
    outcomes = [episode(LateEnv(), seed, pick_cube) for seed in range(15)]
    assert sum(success for _, success in outcomes) >= 14


def test_expert_recovers_from_anywhere(env):
    rng = np.random.default_rng(0)
    recovered = 0
    for seed in range(20):
        observation = env.reset(1000 + seed)
        for _ in range(8):
            observation, _, _ = env.step(random_move(rng))
        while not env.done:
            observation, judgement, _ = env.step(pick_cube(observation))
        recovered += bool(judgement.success)
    assert recovered >= 17


def random_move(rng) -> np.ndarray:
    return np.array((*rng.uniform(-0.04, 0.04, 3), rng.uniform(0.0, 0.08)), np.float32)


def test_random_actions_do_not_pick_the_cube(env):
    rng = np.random.default_rng(0)
    assert sum(episode(env, seed, lambda _: random_move(rng))[1] for seed in range(20)) <= 4


def test_episodes_repeat_exactly_in_a_new_environment():
    runs = []
    for _ in range(2):
        env, seen = SimEnv(), []
        observation = env.reset(3)
        while not env.done:
            observation, judgement, executed = env.step(pick_cube(observation))
            seen.append(np.concatenate((*observation.values(), executed, [judgement.reward])))
        runs.append(np.array(seen))
    np.testing.assert_array_equal(*runs)


def test_observations_are_as_declared(env):
    observation = env.reset(0)
    for _ in range(10):
        validate_observation(env.spec.observation, observation)
        observation, _, _ = env.step(pick_cube(observation))
    np.testing.assert_allclose(
        observation["cube_offset"],
        observation["cube_position"] - observation["tcp_position"],
        atol=1e-6,
    )


def test_executed_action_is_what_was_asked_within_the_bounds(env):
    env.reset(0)
    asked = np.array([0.01, -0.02, 0.03, 0.05], np.float32)
    _, _, executed = env.step(asked)
    np.testing.assert_allclose(executed, asked, atol=1e-6)
    _, _, executed = env.step(np.array([9.0, -9.0, np.nan, 0.05], np.float32))
    np.testing.assert_allclose(executed, [0.04, -0.04, 0.0, 0.05], atol=1e-6)


def test_executed_action_ends_at_the_wall(env):
    env.reset(0)
    for _ in range(30):
        observation, _, executed = env.step(np.array([0.0, 0.04, 0.0, 0.08], np.float32))
    assert executed[1] == 0.0
    assert observation["tcp_position"][1] <= env.spec.limits.high[1] + 0.002


def test_cube_leaves_the_fingers_when_they_open(env):
    episode(env, 0, pick_cube)
    env.reset(1)
    observation, _, _ = env.step(np.array([0.0, 0.0, 0.0, 0.08], np.float32))
    assert observation["cube_position"][2] < 0.03
    assert observation["gripper_width"][0] > 0.07


def test_joint_control_moves_joints():
    config = SimFrankaConfig(space="joint", action=("q1", "q4", "width"))
    env = SimEnv(config)
    before = env.reset(0)["joint_position"]
    for _ in range(5):
        observation, _, executed = env.step(np.array([0.1, 0.0, 0.08], np.float32))
    for _ in range(5):
        observation, _, _ = env.step(np.array([0.0, 0.0, 0.08], np.float32))
    moved = observation["joint_position"] - before
    np.testing.assert_allclose(moved, [0.5, 0, 0, 0, 0, 0, 0], atol=0.02)
    assert executed[0] == pytest.approx(0.1)


# --- the task ------------------------------------------------------------------------------------


def seen(height: float, *, aside: float = 0.0, width: float = 0.04) -> dict[str, np.ndarray]:
    cube = np.array([0.5, 0.0, height], np.float32)
    return {
        "cube_position": cube,
        "tcp_position": cube + np.array([aside, 0, 0], np.float32),
        "gripper_width": np.array([width], np.float32),
    }


@pytest.mark.parametrize(
    ("after", "success"),
    [
        (seen(0.13), True),
        (seen(0.11), False),  # the lower face is not high enough
        (seen(0.13, aside=0.05), False),  # thrown, not held
        (seen(0.13, width=0.001), False),  # nothing between the fingers
    ],
)
def test_success_is_a_cube_held_high_enough(after, success):
    judged = PickCube().judge(seen(0.02), np.zeros(4), after, 0)
    assert judged.terminated == success
    assert judged.reward == float(success)
    assert judged.success == (True if success else None)


@pytest.mark.parametrize("wrong", [{"reset_speed": 0.0}, {"reset_speed": 1.5}, {"max_steps": 0}])
def test_a_task_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ConfigError, match=r"sim\.pick_cube"):
        PickCubeConfig(**wrong)


def test_only_success_terminates_and_time_runs_out():
    task = PickCube(PickCubeConfig(max_steps=10, step_penalty=0.1))
    assert isinstance(task, Task)
    judged = task.judge(seen(0.02), np.zeros(4), seen(0.02), 8)
    assert not judged.timeout
    assert judged.reward == pytest.approx(-0.1)
    judged = task.judge(seen(0.02), np.zeros(4), seen(0.02), 9)
    assert judged.timeout
    assert not judged.terminated
    assert judged.success is False
    judged = task.judge(seen(0.02), np.zeros(4), seen(0.2), 9)
    assert judged.terminated
    assert not judged.timeout


def test_reset_follows_from_the_seed_and_stays_in_the_box():
    task, limits = PickCube(), spec_of(SimFrankaConfig()).limits
    plans = [task.reset(seed=s, purpose=Purpose.TRAIN) for s in (1, 2, 1)]
    assert plans[0] == plans[2]
    assert plans[0] != plans[1]
    for seed in range(100):
        for point in task.reset(seed=seed, purpose=Purpose.EVAL).waypoints:
            np.testing.assert_array_equal(limits.clip(np.array(point)), point)


@pytest.mark.parametrize(
    "options",
    [
        {"action": ("x", "elbow")},
        {"action": ()},
        {"action": ("x", "x")},
        {"cameras": ("rear",)},
        {"step_m": 0.5},
        {"image_size": (4, 128)},
    ],
)
def test_impossible_configurations_are_refused(options):
    with pytest.raises(ConfigError):
        SimFrankaConfig(**options)


def test_action_follows_from_the_configuration():
    config = SimFrankaConfig(action=("z", "rz", "width"), step_m=0.02, turn_rad=0.1)
    action = spec_of(config).action
    assert action.names == ("dz", "drz", "width")
    assert action.units == ("m", "rad", "m")
    assert action.low == (-0.02, -0.1, 0.0)
    assert action.high == (0.02, 0.1, 0.08)
    assert action.delta == (True, True, False)
    assert action.coordinate == (2, 5, 6)
