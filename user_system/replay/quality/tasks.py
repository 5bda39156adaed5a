"""What is said of one task: who acted how in it, where its states lie, which episodes stand out."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from user_system.core.types import Array, Segment
from user_system.replay.progress import Progress
from user_system.replay.quality import measures, outliers
from user_system.replay.quality.estimates import Estimate
from user_system.replay.quality.measures import Bootstrap
from user_system.replay.quality.options import Options
from user_system.replay.quality.outliers import Outlier
from user_system.replay.quality.samples import Reservoir
from user_system.replay.quality.space import Points, Space
from user_system.replay.quality.survey import GroupKey, Pool, PoolKey, Survey

_DOTS = 1200
"""Of the picture of states."""


@dataclass(frozen=True, slots=True)
class Group:
    """Steps that one actor chose in one segment of one task."""

    segment: str
    actor: str
    steps: int
    """That there are."""
    sampled: int
    """That the estimates were made with."""
    measures: Mapping[str, Estimate]
    """By the names in ``measures.MEASURES``."""


@dataclass(frozen=True, slots=True)
class Cloud:
    """States on the two directions in which they vary most."""

    dots: Array
    """``[n, 2]``."""
    segment: tuple[str, ...]
    """Of each dot."""
    explained: tuple[float, float]
    """Share of the variance of states along each direction."""
    fields: tuple[tuple[str, ...], tuple[str, ...]]
    """Observation fields that each direction is mostly made of."""


@dataclass(frozen=True, slots=True)
class Task:
    """All steps of one task whose states can be compared."""

    task: str
    schema: str
    fields: tuple[str, ...]
    """Observation fields that make the state."""
    skipped: tuple[str, ...]
    """Those that were left out, since they are too wide."""
    numbers: int
    """Of a state; those that vary."""
    state_radius: float
    step_radius: float
    groups: tuple[Group, ...]
    robots: tuple[tuple[str, Estimate], ...]
    """Transition diversity of each robot, whoever drove it."""
    cloud: Cloud | None
    outliers: tuple[Outlier, ...]
    """Episodes that went most differently in similar states."""
    elsewhere: tuple[Outlier, ...]
    """Episodes to most of whose states no other came near."""
    scored: int
    """Stretches among which both were looked for."""

    def plain(self) -> dict[str, Any]:
        """Return it for JSON, without the picture of states."""
        value = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "cloud"}
        for name in ("outliers", "elsewhere"):
            value[name] = [asdict(outlier) for outlier in value[name]]
        value["robots"] = {name: asdict(estimate) for name, estimate in self.robots}
        value["groups"] = [asdict(group) for group in self.groups]
        return value


def compare(survey: Survey, options: Options, progress: Progress | None) -> tuple[Task, ...]:
    """Return what there is to say of every task of which a step was sampled."""
    groups: dict[PoolKey, list[GroupKey]] = {}
    for group in sorted(survey.groups):
        groups.setdefault(group.pool, []).append(group)
    done = []
    for number, (key, pool) in enumerate(sorted(survey.pools.items())):
        if progress:
            progress("comparing", number, len(survey.pools))
        survey.trim(pool)
        reservoirs = {group: survey.groups[group] for group in groups.get(key, ())}
        if reservoirs:
            robots = {name: r for (of, name), r in sorted(survey.robots.items()) if of == key}
            done.append(_task(key, pool, reservoirs, robots, options))
    return tuple(done)


def _task(
    key: PoolKey,
    pool: Pool,
    reservoirs: Mapping[GroupKey, Reservoir],
    robots: Mapping[str, Reservoir],
    options: Options,
) -> Task:
    samples = {group: reservoir.rows() for group, reservoir in reservoirs.items()}
    rng = np.random.default_rng((options.seed, 2))
    space = Space(list(samples.values()), options, rng)
    points = {group: space.place(sample) for group, sample in samples.items()}
    boot = Bootstrap(options.resamples, options.seed)
    found = tuple(
        Group(
            segment=group.segment.name,
            actor=group.actor,
            steps=reservoirs[group].seen,
            sampled=len(points[group]),
            measures={
                **_compare(space, group, points, boot, options.steps, rng),
                **measures.motion(space, samples[group], boot),
            },
        )
        for group in samples
    )
    by_segment = _by_segment(points)
    stretches = [(number, stretch) for _, number, stretch in pool.stretches]
    odd, elsewhere, scored = outliers.find(space, stretches, by_segment, rng)
    return Task(
        *key,
        fields=pool.fields,
        skipped=pool.skipped,
        numbers=space.numbers,
        state_radius=space.state_radius,
        step_radius=space.step_radius,
        groups=found,
        robots=tuple(
            (name, measures.diversity(space, space.place(reservoir.rows()), boot))
            for name, reservoir in robots.items()
        ),
        cloud=_cloud(space, pool, by_segment, rng),
        outliers=tuple(odd),
        elsewhere=tuple(elsewhere),
        scored=scored,
    )


def _compare(
    space: Space,
    group: GroupKey,
    points: Mapping[GroupKey, Points],
    boot: Bootstrap,
    limit: int,
    rng: np.random.Generator,
) -> dict[str, Estimate]:
    own = points[group]
    others = [p for g, p in points.items() if g.segment == group.segment and g != group]
    if others:
        joined = Points.join(others)
        joined = joined.take(rng.permutation(len(joined))[:limit])
        disagreement = measures.disagreement(space, own, joined, boot)
    else:
        disagreement = Estimate.none("nobody else acted in this segment")
    return {
        "divergence": measures.divergence(space, own, boot),
        "disagreement": disagreement,
        "diversity": measures.diversity(space, own, boot),
        "situations": measures.situations(space, own, boot),
    }


def _by_segment(points: Mapping[GroupKey, Points]) -> dict[Segment, Points]:
    found: dict[Segment, list[Points]] = {}
    for group, some in points.items():
        found.setdefault(group.segment, []).append(some)
    return {segment: Points.join(parts) for segment, parts in found.items()}


def _cloud(
    space: Space, pool: Pool, points: Mapping[Segment, Points], rng: np.random.Generator
) -> Cloud | None:
    """Return the states on their first two principal components; None where there are not two."""
    state = np.concatenate([p.state for p in points.values()])
    segment = np.concatenate([np.full(len(p), int(s)) for s, p in points.items()])
    if space.numbers < 2 or len(state) < 3:
        return None
    values, vectors = np.linalg.eigh(np.cov(state, rowvar=False))
    axes = vectors[:, [-1, -2]]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), [0, 1]])
    some = rng.permutation(len(state))[:_DOTS]
    names = np.array(pool.numbers)[space.kept]
    shares = values[[-1, -2]] / values.sum()
    return Cloud(
        dots=(state[some] - state.mean(0)) @ axes * np.sqrt(space.numbers),
        segment=tuple(Segment(s).name for s in segment[some]),
        explained=(float(shares[0]), float(shares[1])),
        fields=(_mostly(names, axes[:, 0]), _mostly(names, axes[:, 1])),
    )


def _mostly(names: Array, axis: Array) -> tuple[str, ...]:
    """Return up to two fields that make most of a direction."""
    parts = {name: float(np.square(axis[names == name]).sum()) for name in dict.fromkeys(names)}
    ranked = sorted(parts, key=lambda name: -parts[name])
    return tuple(str(name) for name in ranked[:2] if parts[name] > 0.15) or (str(ranked[0]),)
