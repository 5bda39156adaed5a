"""One pass over the episodes of a store: counts of everything, samples of what is compared.

Whatever the store's size, what stays in memory is bounded: the samples by ``options``, the counts
by the number of people, policies and robots, and some tens of bytes for each episode.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.types import HUMAN_SEGMENTS, Array, FragmentHeader, Purpose, Segment
from user_system.replay.episodes import Episode, EpisodeKey
from user_system.replay.quality import options as bounds
from user_system.replay.quality.clocks import Clock
from user_system.replay.quality.options import Options
from user_system.replay.quality.samples import Reservoir

DRIVEN = HUMAN_SEGMENTS | {Segment.AUTO, Segment.SYNTHETIC}
"""Segments in which somebody or something chose the action to reach the goal. In the others the
robot stood, went back or was set up by a script: their steps are counted and not judged."""


class PoolKey(NamedTuple):
    """Steps whose states can be compared."""

    task: str
    schema: str


class GroupKey(NamedTuple):
    """Steps that are judged together."""

    pool: PoolKey
    segment: Segment
    actor: str


class Stretch(NamedTuple):
    """The steps of one segment in one episode, a few of them at hand."""

    key: EpisodeKey
    header: FragmentHeader
    segment: Segment
    actors: tuple[str, ...]
    steps: int
    success: bool | None
    state: Array
    """``[n, Ds]``."""
    action: Array
    """``[n, Da]``."""


@dataclass
class Pool:
    """What is known of all steps of one task and schema."""

    numbers: tuple[str, ...]
    """Of which observation field each number of the state is."""
    skipped: tuple[str, ...]
    """Those that are too wide to be part of it."""
    stretches: list[tuple[float, int, Stretch]] = field(default_factory=list)
    """(random key, number of the episode, stretch); those with the smallest keys."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Observation fields that make the state."""
        return tuple(dict.fromkeys(self.numbers))


@dataclass
class Crew:
    """Whole episodes in which the same people and policies drove."""

    steps: list[int] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    """Of those whose every reward is known."""
    successes: int = 0
    failures: int = 0
    unknown: int = 0


class Survey:
    """What is remembered of the episodes of a store.

    Args:
        options: see ``Options``.
    """

    def __init__(self, options: Options):
        self.options = options
        self.pools: dict[PoolKey, Pool] = {}
        self.groups: dict[GroupKey, Reservoir] = {}
        self.robots: dict[tuple[PoolKey, str], Reservoir] = {}
        self.unsampled: Counter[GroupKey] = Counter()
        self.steps: Counter[tuple[Segment, str]] = Counter()
        self.purposes: Counter[Purpose] = Counter()
        self.seen: dict[str, set[str]] = {n: set() for n in ("run", "task", "robot", "schema")}
        self.people: set[str] = set()
        self.policies: set[str] = set()
        self.crews: dict[str, Crew] = {}
        self.clocks: dict[str, Clock] = {}
        self.help: list[float] = []
        """Of each episode in which a policy drove: share of its driven steps that people drove."""
        self.solved: list[float] = []
        """Of the same: 1 if it succeeded without people, NaN if its success is not known."""
        self.first_ns: int | None = None
        self.last_ns: int | None = None
        self.voids = 0
        self.parts = 0
        """Episodes whose beginning or end is missing."""
        self.stretches = 0

    def add(self, episode: Episode) -> None:
        """Take in one episode."""
        header, purpose = episode.header, episode.header.purpose
        for name, names in self.seen.items():
            names.add(getattr(header, name))
        self.purposes[purpose] += 1
        self.first_ns = min(header.wall_ns, self.first_ns or header.wall_ns)
        self.last_ns = max(header.wall_ns, self.last_ns or header.wall_ns)
        self.clocks.setdefault(header.robot, Clock()).offer(episode.robot_ns)
        self.voids += int(episode.void.sum())
        actors, who = _actors(episode)
        if purpose == Purpose.EVAL:
            return
        segment = episode.columns["segment"].astype(np.int64)
        self._count(episode, segment, actors, who)
        self._sample(episode, segment, actors, who)

    # --- counts ----------------------------------------------------------------------------------

    def _count(self, episode: Episode, segment: Array, actors: list[str], who: Array) -> None:
        valid = ~episode.void
        codes, sizes = np.unique(segment[valid] * len(actors) + who[valid], return_counts=True)
        driven = Counter[Segment]()
        crew = set()
        for code, size in zip(codes.tolist(), sizes.tolist(), strict=True):
            kind, actor = Segment(code // len(actors)), actors[code % len(actors)]
            self.steps[kind, actor] += size
            if kind in DRIVEN:
                driven[kind] += size
                crew.add((kind not in {Segment.AUTO, Segment.SYNTHETIC}, actor))
            if kind in HUMAN_SEGMENTS:
                self.people.add(actor)
            elif kind == Segment.AUTO:
                self.policies.add(actor)
        if driven[Segment.AUTO]:
            human = sum(driven[kind] for kind in HUMAN_SEGMENTS)
            self.help.append(human / sum(driven.values()))
            known = episode.success is not None
            self.solved.append(float(episode.success is True and not human) if known else np.nan)
        if episode.header.start > 0 or not episode.complete:
            self.parts += 1
        elif crew:
            self._enlist(" + ".join(actor for _, actor in sorted(crew)), episode, valid)

    def _enlist(self, name: str, episode: Episode, valid: Array) -> None:
        crew = self.crews.setdefault(name, Crew())
        crew.steps.append(int(valid.sum()))
        total = float(episode.columns["reward"][valid].astype(np.float64).sum())
        if np.isfinite(total):
            crew.returns.append(total)
        crew.successes += episode.success is True
        crew.failures += episode.success is False
        crew.unknown += episode.success is None

    # --- samples ---------------------------------------------------------------------------------

    def _sample(self, episode: Episode, segment: Array, actors: list[str], who: Array) -> None:
        judged = ~episode.void & np.isin(segment, list(DRIVEN))
        judged[len(episode.robot_ns) - 1 :] = False  # no observation after the last one of a part
        at = np.flatnonzero(judged)
        if not len(at):
            return
        key = PoolKey(episode.header.task, episode.header.schema)
        pool = self._pool(key, episode)
        states = np.concatenate(
            [np.zeros((len(episode.robot_ns), 0)), *(_flat(episode, n) for n in pool.fields)], 1
        )
        state, change = states[at], states[at + 1] - states[at]
        action = episode.columns["executed"].astype(np.float64)[at]
        rng = np.random.default_rng((self.options.seed, episode.number))
        code = segment * len(actors) + who
        columns = {
            "state": state.astype(np.float32),
            "change": change.astype(np.float32),
            "action": action.astype(np.float32),
            "before": _before(episode, code, at),
            "episode": np.full(len(at), episode.number),
        }
        keys = rng.random(len(at))
        self._offer(key, code[at], actors, keys, columns)
        robot = key, episode.header.robot
        if robot in self.robots or len(self.robots) < bounds.GROUPS:
            self.robots.setdefault(robot, Reservoir(self.options.steps)).offer(keys, columns)
        self._stretch(key, episode, segment[at], [actors[i] for i in who[at]], columns, rng)

    def _pool(self, key: PoolKey, episode: Episode) -> Pool:
        if key in self.pools:
            return self.pools[key]
        numbers: list[str] = []
        skipped: list[str] = []
        for name, array in episode.observation.items():
            size = int(np.prod(array.shape[1:]))
            asked = name in self.options.fields
            if self.options.fields and not asked:
                continue
            if len(numbers) + size <= bounds.STATE and (asked or size <= bounds.WIDEST):
                numbers += [name] * size
            else:
                skipped.append(name)
        if lost := set(self.options.fields) - {*numbers}:
            raise SpecError(
                f"fields of the state, in task {key.task!r}",
                got=", ".join(sorted(lost)),
                allowed=f"{', '.join(episode.observation)}; {bounds.STATE} numbers in all",
            )
        return self.pools.setdefault(key, Pool(tuple(numbers), tuple(skipped)))

    def _offer(
        self, pool: PoolKey, code: Array, actors: list[str], keys: Array, columns: dict[str, Array]
    ) -> None:
        """Hand the rows of an episode to the reservoirs of their groups."""
        for number in np.unique(code).tolist():
            rows = np.flatnonzero(code == number)
            segment, actor = Segment(number // len(actors)), actors[number % len(actors)]
            group = GroupKey(pool, segment, actor)
            if group not in self.groups and len(self.groups) >= bounds.GROUPS:
                self.unsampled[group] += len(rows)
                continue
            reservoir = self.groups.setdefault(group, Reservoir(self.options.steps))
            reservoir.offer(keys[rows], {name: v[rows] for name, v in columns.items()})

    def _stretch(
        self,
        key: PoolKey,
        episode: Episode,
        segment: Array,
        actors: list[str],
        columns: dict[str, Array],
        rng: np.random.Generator,
    ) -> None:
        """Keep a few steps of each segment of an episode, or of none, as chance has it."""
        pool = self.pools[key]
        for number in np.unique(segment).tolist():
            rows = np.flatnonzero(segment == number)
            self.stretches += 1
            some = rng.permutation(rows)[: bounds.SCORED_STEPS]
            stretch = Stretch(
                episode.key,
                episode.header,
                Segment(number),
                tuple(sorted({actors[i] for i in rows})),
                len(rows),
                episode.success,
                columns["state"][some],
                columns["action"][some],
            )
            pool.stretches.append((rng.random(), episode.number, stretch))
        if len(pool.stretches) > 2 * bounds.SCORED_EPISODES:
            self.trim(pool)

    @staticmethod
    def trim(pool: Pool) -> None:
        """Let go of the stretches with the largest keys, beyond so many."""
        pool.stretches.sort(key=lambda entry: entry[:2])
        del pool.stretches[bounds.SCORED_EPISODES :]


def _actors(episode: Episode) -> tuple[list[str], Array]:
    """Return who may have acted, and for each step ``[T]`` which of them did."""
    names, segment = episode.names, episode.columns["segment"]
    people = np.isin(segment, list(HUMAN_SEGMENTS))
    auto = segment == Segment.AUTO
    actors = [
        "robot",
        "synthetic",
        *(name or "unnamed person" for name in names),
        *(f"policy {name}" if name else "unnamed policy" for name in names),
    ]
    who = (segment == Segment.SYNTHETIC).astype(np.int64)
    who[people] = 2 + episode.columns["operator"][people]
    who[auto] = 2 + len(names) + episode.columns["policy"][auto]
    return actors, who


def _flat(episode: Episode, name: str) -> Array:
    """Return an observation field as ``[rows, n]`` float64."""
    array = episode.observation[name]
    flat: Array = array.reshape(len(array), -1).astype(np.float64)
    return flat


def _before(episode: Episode, code: Array, at: Array) -> Array:
    """Return the action executed just before each of the steps ``at``, by the same actor.

    NaN where the step before was somebody else's, undone by a rewind, or is not there.
    """
    executed = episode.columns["executed"].astype(np.float32)
    before: Array = executed[np.maximum(at - 1, 0)]
    same = (at > 0) & (code[at - 1] == code[at]) & ~episode.void[at - 1]
    before[~same] = np.nan
    return before
