"""What the next episode is for: evaluation, demonstration or training. Pure decisions, no I/O.

    BASELINE   one evaluation set of version 0, the policy as built
    COLLECT    demonstrations, until enough of them succeeded
    TRAIN      training episodes; an evaluation set whenever one is due
    FROZEN     a set passed: its version is pinned, and judged on fresh starts without help
    DONE

A robot that asks again before its episode was reported gets the same assignment again, so that an
answer lost on the way, or a restart of either side, costs nothing. Every episode of an evaluation
set acts with the same weights and starts differently from every other episode of the run.
"""

import hashlib
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from user_system.core.errors import ConfigError
from user_system.core.types import End, Purpose, Segment

COUNTED = frozenset({Segment.DEMO, Segment.AUTO, Segment.RECOVERY, Segment.CORRECTION})
"""Segments whose steps are environment steps: somebody acted towards the goal."""

_LOST = 256
"""Episodes taken back whose late reports are waited for."""


class Phase(StrEnum):
    """Where a run stands."""

    BASELINE = "baseline"
    COLLECT = "collect"
    TRAIN = "train"
    FROZEN = "frozen"
    DONE = "done"


@dataclass(frozen=True)
class ScheduleConfig:
    """The rule of a run.

    An evaluation costs robot time that nothing is learned from, and one lucky set would freeze an
    immature policy. So a set is due only when training itself looks good: of the last
    ``ready_window`` training episodes a share of ``ready_rate`` succeeded without any help.
    """

    run: str = "run"
    """Prefix of episode ids."""
    task: str = ""
    seed: int = 0
    demos: int = 20
    """Demonstrations that must succeed before training."""
    eval_episodes: int = 20
    eval_pass: int = 19
    """Successes in a set that freeze the policy."""
    eval_after: int = 0
    """Env steps before the first set of the training phase."""
    eval_every: int = 500
    """Env steps between the end of one set and the start of the next, at least."""
    eval_latest: int = 0
    """Env steps after which a set is due however training looks; 0: never."""
    ready_window: int = 20
    ready_rate: float = 0.9
    stop_hopeless: bool = True
    """End a set of the training phase once it can no longer pass."""
    final_episodes: int = 100
    max_steps: int = 0
    """Steps per episode; 0: the task's own limit."""
    give_up_steps: int = 0
    """Env steps at which a run that never froze is done; 0: never."""
    judge_version: int = 0
    """Weights that are only judged: the run is one final set; 0: the run learns."""
    max_behind_steps: int = 0
    """Steps that learning may be behind before robots wait for it between training episodes, so
    that a slow machine learns from as few steps as a fast one; 0: they never wait."""

    def __post_init__(self) -> None:
        if not 0 < self.eval_pass <= self.eval_episodes:
            raise ConfigError(
                "eval_pass must lie within an evaluation set",
                got=self.eval_pass,
                allowed=f"1..{self.eval_episodes}",
            )
        if self.ready_window < 1 or not 0 <= self.ready_rate <= 1:
            raise ConfigError(
                "ready_window and ready_rate decide when a set is due",
                got=f"{self.ready_window}, {self.ready_rate}",
                allowed="window >= 1, rate in [0, 1]",
            )


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a robot's next episode is for."""

    robot: str
    purpose: Purpose
    task: str
    seed: int
    """Names the start of the episode; never given twice except to repeat a broken one."""
    version: int
    """Weights to act with; 0: the newest, renewed on the way (before any exist: as built)."""
    max_steps: int
    episode: str
    """Unique id of the episode."""


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """What became of an episode."""

    robot: str
    episode: str
    purpose: Purpose
    success: bool | None
    end: End
    steps: int
    """Steps recorded, of whatever segment."""
    segments: Mapping[int, int]
    """Segment number -> steps."""
    human_steps: int = 0
    takeovers: int = 0
    reward: float = 0.0
    version: int = 0
    seed: int = 0

    @property
    def env_steps(self) -> int:
        """Steps in which somebody acted towards the goal."""
        return sum(n for s, n in self.segments.items() if s in COUNTED)

    @property
    def broken(self) -> bool:
        """Whether it says nothing about the policy: the robot faulted or somebody broke it off."""
        return self.end in (End.FAULT, End.ABORT)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The outcome of one evaluation set."""

    version: int
    episodes: int
    """Episodes judged; fewer than a full set where it had become hopeless."""
    successes: int
    env_steps: int
    """Env steps of the run when the set ended."""
    wall_s: float
    """The caller's clock when the set ended."""

    @property
    def rate(self) -> float:
        """Share of successes."""
        return self.successes / max(self.episodes, 1)


@dataclass
class _Set:
    """An evaluation set under way."""

    version: int
    seeds: tuple[int, ...]
    wanted: list[int]
    """Seeds not handed out yet."""
    outcomes: dict[int, bool] = field(default_factory=dict)
    """Seed -> success."""

    @property
    def successes(self) -> int:
        return sum(self.outcomes.values())

    @property
    def failures(self) -> int:
        return len(self.outcomes) - self.successes


class Schedule:
    """Decides what each robot does next; one instance per run, for any number of robots.

    Example::

        assignment = schedule.next("arm-1", version=store.newest)
        ...the episode...
        schedule.report(result, now_s)
    """

    def __init__(self, config: ScheduleConfig):
        self.config = config
        self.phase = Phase.BASELINE if config.eval_episodes else Phase.COLLECT
        self.env_steps = 0
        self.evaluations: list[Evaluation] = []
        self.freeze: Evaluation | None = None
        """The set that passed: version, env steps and time of the freeze."""
        self.final: Evaluation | None = None
        """The judgement of the frozen version on fresh starts."""
        self._demos = 0
        self._numbers = dict.fromkeys(("baseline", "demo", "train", "eval", "final"), 0)
        self._open: dict[str, Assignment] = {}
        self._lost: OrderedDict[str, tuple[str, int]] = OrderedDict()
        """Episode taken back -> its robot, and the steps of it that were counted."""
        self._recent: deque[tuple[bool, float]] = deque(maxlen=config.ready_window)
        self._since_set = 0
        self._set: _Set | None = None
        self._episodes = 0
        if self.phase is Phase.BASELINE:
            self._set = self._make_set("baseline", 0, config.eval_episodes)
        if config.judge_version:
            self.phase = Phase.FROZEN
            self._set = self._make_set("final", config.judge_version, config.final_episodes)

    # --- asking ------------------------------------------------------------------------------

    def next(self, robot: str, version: int = 0, behind: float = 0.0) -> Assignment | None:
        """Return what ``robot`` is to do next; None: wait a moment and ask again.

        Args:
            robot: who asks. While its last assignment is not reported it gets that one again.
            version: the newest weights there are, 0 before any; a new set is pinned to it.
            behind: steps that were not yet learned from.
        """
        if robot in self._open:
            return self._open[robot]
        assignment = self._decide(robot, version, behind)
        if assignment is not None:
            self._open[robot] = assignment
        return assignment

    def lost(self, robot: str, progress: tuple[str, int] = ("", 0)) -> None:
        """Take back what ``robot`` was doing: it is gone, and others may do it.

        What it did until then is recorded and learned from, so its steps count: those that are
        known now, and the rest if it reports after all.

        Args:
            robot: who is gone.
            progress: (episode, steps) as the robot last said.
        """
        assignment = self._open.pop(robot, None)
        if assignment is None:
            return
        self._want_again(assignment)
        if assignment.purpose is not Purpose.EVAL:
            steps = progress[1] if progress[0] == assignment.episode else 0
            self._count(steps)
            self._lost[assignment.episode] = (robot, steps)
            while len(self._lost) > _LOST:
                self._lost.popitem(last=False)

    def _count(self, steps: int) -> None:
        self.env_steps += steps
        self._since_set += steps

    def _decide(self, robot: str, version: int, behind: float) -> Assignment | None:
        if self.phase is Phase.TRAIN and self._set is None and self._due(version):
            self._set = self._make_set("eval", version, self.config.eval_episodes)
        if self._set is not None and self._set.wanted:
            return self._assign(robot, Purpose.EVAL, self._set.wanted.pop(0), self._set.version)
        if self.phase is Phase.COLLECT and self._demos + self._collecting < self.config.demos:
            return self._assign(robot, Purpose.COLLECT, self._seed("demo"), 0)
        waits = 0 < self.config.max_behind_steps < behind
        if self.phase is Phase.TRAIN and not waits:
            return self._assign(robot, Purpose.TRAIN, self._seed("train"), 0)
        return None

    @property
    def _collecting(self) -> int:
        return sum(a.purpose is Purpose.COLLECT for a in self._open.values())

    def _due(self, version: int) -> bool:
        """Whether an evaluation of ``version`` is worth its time now."""
        if self.evaluations and version <= self.evaluations[-1].version:
            return False
        if self.env_steps < self.config.eval_after:
            return False
        if self.config.eval_latest and self._since_set >= self.config.eval_latest:
            return True
        ready = len(self._recent) == self._recent.maxlen and (
            self.unaided_rate >= self.config.ready_rate
        )
        return ready and self._since_set >= self.config.eval_every

    def _assign(self, robot: str, purpose: Purpose, seed: int, version: int) -> Assignment:
        number = self._episodes
        self._episodes += 1
        return Assignment(
            robot=robot,
            purpose=purpose,
            task=self.config.task,
            seed=seed,
            version=version,
            max_steps=self.config.max_steps,
            episode=f"{self.config.run}-{number:06d}",
        )

    def _make_set(self, kind: str, version: int, size: int) -> _Set:
        seeds = tuple(self._seed(kind) for _ in range(size))
        return _Set(version, seeds, list(seeds))

    def _seed(self, kind: str) -> int:
        number = self._numbers[kind]
        self._numbers[kind] += 1
        text = f"{self.config.seed}/{kind}/{number}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "little")

    # --- reporting ---------------------------------------------------------------------------

    def report(self, result: EpisodeResult, now_s: float = 0.0) -> bool:
        """Take note of an episode; False: it was reported before, or was never assigned.

        Args:
            result: what became of it.
            now_s: the caller's clock, noted in evaluations.
        """
        assignment = self._open.get(result.robot)
        if assignment is None or assignment.episode != result.episode:
            return self._report_late(result, now_s)
        del self._open[result.robot]
        if assignment.purpose is not Purpose.EVAL:
            self._count(result.env_steps)
        if result.broken:
            self._want_again(assignment)
        elif assignment.purpose is Purpose.EVAL:
            self._judge(assignment, result)
        elif assignment.purpose is Purpose.COLLECT:
            self._demos += bool(result.success)
        else:
            alone = bool(result.success) and not result.takeovers
            self._recent.append((alone, result.human_steps / max(result.steps, 1)))
        self._advance(now_s)
        return True

    def _report_late(self, result: EpisodeResult, now_s: float) -> bool:
        """Count the steps of an episode that was taken back, once, and no more of it."""
        robot, counted = self._lost.get(result.episode, ("", 0))
        if robot != result.robot:
            return False
        del self._lost[result.episode]
        self._count(max(0, result.env_steps - counted))
        self._advance(now_s)
        return True

    def _want_again(self, assignment: Assignment) -> None:
        """Put the start of a broken evaluation episode back; others are simply not counted."""
        if self._set is not None and assignment.seed in self._set.seeds:
            self._set.wanted.insert(0, assignment.seed)

    def _judge(self, assignment: Assignment, result: EpisodeResult) -> None:
        if self._set is None or assignment.seed not in self._set.seeds:
            return  # a straggler of a set that had become hopeless
        if result.version != self._set.version:
            self._want_again(assignment)  # it acted with other weights: no evidence
        else:
            self._set.outcomes[assignment.seed] = bool(result.success)

    def _advance(self, now_s: float) -> None:
        if self._set is not None and self._over(self._set):
            self._close_set(self._set, now_s)
        elif self.phase is Phase.COLLECT and self._demos >= self.config.demos:
            self.phase = Phase.TRAIN
        elif self.phase is Phase.TRAIN and 0 < self.config.give_up_steps <= self.env_steps:
            self.phase, self._set = Phase.DONE, None

    def _over(self, current: _Set) -> bool:
        allowed = self.config.eval_episodes - self.config.eval_pass
        hopeless = self.phase is Phase.TRAIN and current.failures > allowed
        return len(current.outcomes) == len(current.seeds) or (
            hopeless and self.config.stop_hopeless
        )

    def _close_set(self, current: _Set, now_s: float) -> None:
        done = Evaluation(
            current.version, len(current.outcomes), current.successes, self.env_steps, now_s
        )
        self._set, self._since_set = None, 0
        if self.phase is Phase.FROZEN:
            self.final, self.phase = done, Phase.DONE
            return
        self.evaluations.append(done)
        if self.phase is Phase.BASELINE:
            self.phase = Phase.COLLECT if self.config.demos else Phase.TRAIN
        elif done.successes >= self.config.eval_pass:
            self.freeze, self.phase = done, Phase.FROZEN
            if self.config.final_episodes:
                self._set = self._make_set("final", done.version, self.config.final_episodes)
            else:
                self.phase = Phase.DONE

    # --- looking -----------------------------------------------------------------------------

    @property
    def unaided_rate(self) -> float:
        """Share of recent training episodes that succeeded without help; 0 before any."""
        return sum(alone for alone, _ in self._recent) / max(len(self._recent), 1)

    @property
    def intervention_rate(self) -> float:
        """Share of human steps, averaged over recent training episodes; 0 before any."""
        return sum(share for _, share in self._recent) / max(len(self._recent), 1)

    def stats(self) -> dict[str, float]:
        """Return the run's figures."""
        return {
            "env_steps": float(self.env_steps),
            "episodes": float(self._episodes),
            "demos": float(self._demos),
            "success_rate": self.unaided_rate,
            "intervention_rate": self.intervention_rate,
            "evaluations": float(len(self.evaluations)),
        }

    # --- surviving ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return everything decided so far, as JSON can hold it."""
        return {
            "phase": self.phase.value,
            "env_steps": self.env_steps,
            "evaluations": [asdict(e) for e in self.evaluations],
            "freeze": asdict(self.freeze) if self.freeze else None,
            "final": asdict(self.final) if self.final else None,
            "demos": self._demos,
            "numbers": dict(self._numbers),
            "open": [asdict(a) | {"purpose": int(a.purpose)} for a in self._open.values()],
            "lost": [[episode, *known] for episode, known in self._lost.items()],
            "recent": [[alone, share] for alone, share in self._recent],
            "since_set": self._since_set,
            "episodes": self._episodes,
            "set": _set_state(self._set),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state_dict``; assignments that were open are given out again."""
        self.phase = Phase(state["phase"])
        self.env_steps = int(state["env_steps"])
        self.evaluations = [Evaluation(**e) for e in state["evaluations"]]
        self.freeze = Evaluation(**state["freeze"]) if state["freeze"] else None
        self.final = Evaluation(**state["final"]) if state["final"] else None
        self._demos = int(state["demos"])
        self._numbers = {k: int(v) for k, v in state["numbers"].items()}
        opened = [Assignment(**(a | {"purpose": Purpose(a["purpose"])})) for a in state["open"]]
        self._open = {a.robot: a for a in opened}
        # A run begun before these were kept has none.
        lost = state.get("lost", ())
        self._lost = OrderedDict((str(e), (str(robot), int(n))) for e, robot, n in lost)
        self._recent.clear()
        self._recent.extend((bool(alone), float(share)) for alone, share in state["recent"])
        self._since_set = int(state["since_set"])
        self._episodes = int(state["episodes"])
        self._set = _set_from(state["set"])


def _set_state(current: _Set | None) -> dict[str, Any] | None:
    if current is None:
        return None
    return {
        "version": current.version,
        "seeds": list(current.seeds),
        "wanted": list(current.wanted),
        "outcomes": [[seed, ok] for seed, ok in current.outcomes.items()],
    }


def _set_from(state: Mapping[str, Any] | None) -> _Set | None:
    if state is None:
        return None
    outcomes = {int(seed): bool(ok) for seed, ok in state["outcomes"]}
    seeds, wanted = ([int(s) for s in state[key]] for key in ("seeds", "wanted"))
    return _Set(int(state["version"]), tuple(seeds), wanted, outcomes)
