"""The contract of a learner plugin, as tests that its author runs. Four lines are enough.

Example::

    class TestMine(LearnerContract):
        plugin = my_package.plugin
        config = my_package.Config()

The experience is synthetic: random observations of ``spec``, actions within its bounds, episodes of
demonstrations, autonomy and interventions that end in success or by timeout.
"""

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from learners.memory import MemoryData, Step
from user_system.core.errors import PluginError
from user_system.core.interfaces import (
    ActMode,
    Data,
    Learner,
    LearnerPlugin,
    NotReady,
    Policy,
    Report,
)
from user_system.core.specs import ActionSpec, Field, Limits, RobotSpec
from user_system.core.types import End, Observation, Segment, Weights

SPEC = RobotSpec(
    kind="synthetic",
    observation={
        "position": Field((3,), "float32", "m", "base", -1.0, 1.0),
        "speed": Field((3,), "float32", "m/s", "base"),
        "width": Field((1,), "float32", "m", "", 0.0, 0.08),
    },
    action=ActionSpec(
        names=("dx", "dy", "dz", "width"),
        units=("m",) * 4,
        low=(-0.05, -0.05, -0.05, 0.0),
        high=(0.05, 0.05, 0.05, 0.08),
        delta=(True, True, True, False),
        coordinate=(0, 1, 2, 3),
    ),
    limits=Limits(
        names=("x", "y", "z", "width"),
        units=("m",) * 4,
        low=(-1.0, -1.0, -1.0, 0.0),
        high=(1.0, 1.0, 1.0, 0.08),
        velocity=(1.0,) * 4,
        acceleration=(10.0,) * 4,
        jerk=(100.0,) * 4,
    ),
)
"""A robot that exists in no world."""

MODES: tuple[ActMode, ...] = ("explore", "eval")


def observe(spec: RobotSpec, rng: np.random.Generator) -> Observation:
    """Return a random observation of the low-dimensional fields."""
    return {name: field.sample(rng) for name, field in spec.observation.items()}


def synthetic_data(spec: RobotSpec, *, steps: int = 900, seed: int = 0) -> MemoryData:
    """Return experience of ``steps`` steps in episodes of 30: demos, autonomy, interventions."""
    rng, data = np.random.default_rng(seed), MemoryData(seed)
    low, high = np.asarray(spec.action.low), np.asarray(spec.action.high)
    here = observe(spec, rng)
    for i in range(steps):
        segment = (Segment.DEMO, Segment.AUTO, Segment.CORRECTION)[i // 30 % 3]
        last, success = i % 30 == 29, i // 30 % 2 == 0
        end = (End.TERMINATED if success else End.TIMEOUT) if last else End.NONE
        there = observe(spec, rng)
        action = rng.uniform(low, high).astype(np.float32)
        data.add(Step(here, action, float(last and success), there, segment, end))
        here = observe(spec, rng) if last else there
    return data


class LearnerContract:
    """Tests that every learner plugin passes; collect them by subclassing."""

    plugin: ClassVar[LearnerPlugin]
    config: ClassVar[Any]
    spec: ClassVar[RobotSpec] = SPEC
    units: ClassVar[int] = 3
    """Units of work done in each test."""
    max_update_s: ClassVar[float] = 2.0
    policy_module: ClassVar[str] = ""
    """``module:attribute`` of the plugin, if its policy must act without torch."""

    def make_data(self) -> Data:
        """Return experience to learn from; override it where random numbers are not enough."""
        return synthetic_data(self.spec)

    def make_learner(self, data: Data | None = None, seed: int = 0) -> Learner:
        """Build a learner on synthetic data."""
        data = self.make_data() if data is None else data
        return self.plugin.make_learner(self.spec, self.config, data=data, seed=seed)

    def make_policy(self) -> Policy:
        """Build a policy."""
        return self.plugin.make_policy(self.spec, self.config)

    def work(self, learner: Learner) -> list[Report]:
        """Do a few units of work; stops early at a learner that wants fresh steps."""
        reports: list[Report] = []
        while len(reports) < self.units:
            try:
                reports.append(learner.update())
            except NotReady:
                break
        assert reports, "the learner did nothing with 900 steps of experience"
        return reports

    def weights(self, learner: Learner, version: int = 1) -> Weights:
        """Return the learner's weights as the weight store would hand them on."""
        modules, statistics = learner.weights()
        return Weights("p", version, "", modules, statistics)

    # --- the policy --------------------------------------------------------------------------

    def test_policy_is_deterministic_in_observation_and_noise(self) -> None:
        """The same observation and noise give the same plan, whatever came before."""
        policy, rng = self.make_policy(), np.random.default_rng(1)
        noise = rng.standard_normal(len(self.spec.action)).astype(np.float32)
        seen = observe(self.spec, rng)
        for mode in MODES:
            policy.reset(seed=1, reason="episode")
            first = policy.act(seen, mode=mode, noise=noise)
            policy.reset(seed=2, reason="episode")
            again = policy.act(seen, mode=mode, noise=noise)
            np.testing.assert_array_equal(first.actions, again.actions)

    def test_policy_repeats_an_episode_from_its_seed(self) -> None:
        """Noise that the policy draws itself depends on the seed of the episode only."""
        policy = self.make_policy()
        seen = observe(self.spec, np.random.default_rng(1))
        runs = []
        for seed in (1, 1):
            policy.reset(seed=seed, reason="episode")
            runs.append([policy.act(seen, mode="explore").actions for _ in range(3)])
        np.testing.assert_array_equal(runs[0], runs[1])

    def test_plans_fit_the_robot(self) -> None:
        """Actions have the declared shape and dtype, are finite and within bounds."""
        policy, rng = self.make_policy(), np.random.default_rng(2)
        policy.load(self.weights(self._trained()))
        shape = (policy.spec.horizon, len(self.spec.action))
        for _ in range(20):
            policy.reset(seed=0, reason="episode")
            plan = policy.act(observe(self.spec, rng), mode="explore")
            assert plan.actions.shape == shape, f"shape {plan.actions.shape}, wanted {shape}"
            assert plan.actions.dtype == np.float32, f"dtype {plan.actions.dtype}"
            assert np.isfinite(plan.actions).all(), "actions are not finite"
            assert (plan.actions >= np.asarray(self.spec.action.low, np.float32)).all()
            assert (plan.actions <= np.asarray(self.spec.action.high, np.float32)).all()
            assert plan.version == 1, "a plan carries the version of its weights"

    def test_policy_acts_without_torch(self) -> None:
        """Where ``policy_module`` is given: importing, building and acting import no torch."""
        if not self.policy_module:
            return
        module, _, attribute = self.policy_module.partition(":")
        code = (
            "import sys\nfrom learners.testing import SPEC, observe\nimport numpy as np\n"
            f"from {module} import {attribute} as plugin\n"
            "policy = plugin.make_policy(SPEC, plugin.config_type())\n"
            "policy.act(observe(SPEC, np.random.default_rng(0)), mode='explore')\n"
            "sys.exit(17 if 'torch' in sys.modules else 0)\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode != 17, "make_policy or act imports torch"
        assert done.returncode == 0, done.stderr

    # --- the learner -------------------------------------------------------------------------

    def test_updates_are_finite_and_short(self) -> None:
        """Work reports finite metrics, counts its updates, and takes no longer than agreed."""
        learner = self.make_learner()
        self.work(learner)  # warm up
        start = time.perf_counter()
        reports = self.work(self.make_learner())
        took = (time.perf_counter() - start) / len(reports)
        assert took < self.max_update_s, f"a unit of work took {took:.2f} s"
        for report in reports:
            assert report.updates >= 1
            bad = {k: v for k, v in report.metrics.items() if not np.isfinite(v)}
            assert not bad, f"metrics are not finite: {bad}"

    def test_weights_reach_the_policy(self) -> None:
        """A policy takes over what the learner offers, and acts differently with it."""
        policy = self.make_policy()
        learner = self._trained()
        modules, _ = learner.weights()
        assert set(modules) == set(policy.spec.modules), f"published {sorted(modules)}"
        seen = observe(self.spec, np.random.default_rng(3))
        before = policy.act(seen, mode="eval").actions
        policy.load(self.weights(learner))
        assert not np.array_equal(before, policy.act(seen, mode="eval").actions)

    def test_weights_are_copies(self) -> None:
        """Weights once handed out do not change under further updates."""
        learner = self._trained()
        modules, statistics = learner.weights()
        kept = _copied({**modules, "statistics": statistics})
        self.work(learner)
        np.testing.assert_equal({**modules, "statistics": statistics}, kept)

    def test_bad_weights_leave_the_policy_as_it_was(self) -> None:
        """Weights that are not finite or of another shape are refused, and change nothing."""
        policy, good = self.make_policy(), self.weights(self._trained())
        policy.load(good)
        seen = observe(self.spec, np.random.default_rng(4))
        before = policy.act(seen, mode="eval").actions
        for spoil in (lambda a: np.full_like(a, np.nan), lambda a: np.zeros((1, *a.shape))):
            modules = {
                m: {name: spoil(np.asarray(a, np.float32)) for name, a in tensors.items()}
                for m, tensors in good.modules.items()
            }
            try:
                policy.load(replace(good, modules=modules, version=2))
            except PluginError:
                pass
            else:
                raise AssertionError("the policy took over broken weights")
        np.testing.assert_array_equal(before, policy.act(seen, mode="eval").actions)

    def test_state_goes_on_where_it_was(self) -> None:
        """A learner loaded from a state does the same next updates as the one it came from."""
        data = self.make_data()
        learner = self.make_learner(data)
        self.work(learner)
        state, cursor = _copied(learner.state_dict()), _copied(data.state_dict())
        expected = [r.metrics for r in self.work(learner)]
        after = _copied(learner.weights()[0])
        data.load_state_dict(cursor)
        other = self.make_learner(data, seed=99)
        other.load_state_dict(state)
        assert [r.metrics for r in self.work(other)] == expected
        np.testing.assert_equal(_copied(other.weights()[0]), after)

    def test_state_can_be_kept(self) -> None:
        """The state consists of what a checkpoint file can hold, and nothing else."""
        from user_system.codec.weights import from_bytes, to_bytes

        state = self._trained().state_dict()
        np.testing.assert_equal(_copied(from_bytes(to_bytes(state))), _copied(state))

    def _trained(self) -> Learner:
        learner = self.make_learner()
        self.work(learner)
        return learner


def _copied(tree: Any) -> Any:
    """Return nested mappings with their arrays copied."""
    if isinstance(tree, Mapping):
        return {key: _copied(value) for key, value in tree.items()}
    return np.array(tree) if isinstance(tree, np.ndarray) else tree
