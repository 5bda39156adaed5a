"""The whole loop in one process and one thread: what the system's cost is measured against.

The same robot, gate, task, learner, ratio, schedule and helper as the system, and nothing else: no
processes, sockets, disk or parallelism. What the system takes longer for the same learning is the
price of its planes.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from learners.memory import MemoryData, Step
from learners.rlpd import RlpdConfig, plugin
from robots.sim.expert import pick_cube
from robots.sim.single import SimEnv
from user_system.core.helping import HelpConfig, Helper
from user_system.core.interfaces import ActMode, NotReady
from user_system.core.schedule import Assignment, EpisodeResult, Schedule, ScheduleConfig
from user_system.core.types import Array, End, Observation, Purpose, Segment, Weights

HELD_N = 5.0
"""Force of a finger on the cube from which a watcher sees it held, N."""


@dataclass(frozen=True)
class SingleConfig:
    """What is compared: the learning, not the machinery."""

    seed: int = 0
    learner: RlpdConfig = field(default_factory=RlpdConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    help: HelpConfig = field(default_factory=HelpConfig)


class SingleLoop:
    """Runs one schedule to its end.

    Args:
        config: what to run.
        note: called after each episode with the figures so far.
    """

    def __init__(
        self, config: SingleConfig, note: Callable[[Mapping[str, float]], None] | None = None
    ):
        self._env = SimEnv()
        self._data = MemoryData(config.seed)
        self._policy = plugin.make_policy(self._env.spec, config.learner)
        self._learner = plugin.make_learner(
            self._env.spec, config.learner, data=self._data, seed=config.seed
        )
        self._schedule = Schedule(config.schedule)
        self._helper = Helper(config.help)
        self._note = note
        self._version = self._updates = 0
        self._metrics: Mapping[str, float] = {}

    def run(self) -> dict[str, Any]:
        """Run to the end of the schedule; return its report."""
        begin = time.monotonic()
        spent: list[float] = []
        while (assignment := self._schedule.next("arm", self._version)) is not None:
            result = self._episode(assignment)
            now = time.monotonic() - begin
            self._schedule.report(result, now)
            if self._note is not None:
                self._note(self.stats() | {"wall_s": now})
            if self._schedule.freeze is not None and not spent:
                spent.append(now)
        return self._report(time.monotonic() - begin)

    def stats(self) -> dict[str, float]:
        """Return the figures so far."""
        return {
            **self._metrics,
            **self._schedule.stats(),
            "updates": float(self._updates),
            "version": float(self._version),
        }

    def _episode(self, a: Assignment) -> EpisodeResult:
        observation = self._env.reset(a.seed, a.purpose)
        self._policy.reset(seed=a.seed, reason="episode")
        self._helper.begin(self._schedule.env_steps)
        segments: dict[int, int] = {}
        segment, k, judgement = Segment.AUTO, 0, None
        while not self._env.done:
            segment = self._who(a.purpose, segment, k, observation)
            following, judgement, executed = self._env.step(self._act(a, segment, observation))
            end = End.NONE
            if self._env.done:
                end = End.TERMINATED if judgement.terminated else End.TIMEOUT
            step = Step(observation, executed, judgement.reward, following, segment, end)
            if a.purpose is not Purpose.EVAL:
                self._data.add(step, a.purpose)
                self._learn()
            segments[int(segment)] = segments.get(int(segment), 0) + 1
            observation, k = following, k + 1
        helped = segments.get(int(Segment.CORRECTION), 0)
        return EpisodeResult(
            robot=a.robot,
            episode=a.episode,
            purpose=a.purpose,
            success=judgement.success if judgement else None,
            end=end,
            steps=k,
            segments=segments,
            human_steps=helped,
            takeovers=int(helped > 0),
            reward=float(judgement.reward) if judgement else 0.0,
            version=a.version if a.purpose is Purpose.EVAL else self._version,
            seed=a.seed,
        )

    def _who(self, purpose: Purpose, before: Segment, k: int, seen: Observation) -> Segment:
        if purpose is Purpose.COLLECT:
            return Segment.DEMO
        if before is Segment.CORRECTION:
            return before
        held = float(seen["gripper_force"][0]) > HELD_N
        if purpose is Purpose.TRAIN and self._helper.wants(k, held):
            return Segment.CORRECTION
        return Segment.AUTO

    def _act(self, a: Assignment, segment: Segment, observation: Observation) -> Array:
        if segment is not Segment.AUTO:
            return pick_cube(observation)
        mode: ActMode = "eval" if a.purpose is Purpose.EVAL else "explore"
        action: Array = self._policy.act(observation, mode=mode).actions[0]
        return action

    def _learn(self) -> None:
        """Do the updates that the newest step allows; act with what came of them."""
        publish = False
        while True:
            try:
                report = self._learner.update()
            except NotReady:
                break
            self._metrics, self._updates = report.metrics, self._updates + report.updates
            publish = publish or report.publish
        if publish:
            self._version += 1
            self._policy.load(Weights("single", self._version, "", *self._learner.weights()))

    def _report(self, wall_s: float) -> dict[str, Any]:
        schedule = self._schedule
        freeze, final = schedule.freeze, schedule.final
        return {
            "baseline_rate": schedule.evaluations[0].rate if schedule.evaluations else None,
            "evaluations": [
                (e.version, e.successes, e.episodes, e.env_steps, round(e.wall_s, 1))
                for e in schedule.evaluations
            ],
            "env_steps": freeze.env_steps if freeze else None,
            "freeze_wall_s": freeze.wall_s if freeze else None,
            "success_rate": final.rate if final else None,
            "updates": self._updates,
            "wall_s": wall_s,
        }
