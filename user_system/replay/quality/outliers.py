"""Episodes that went differently from all others where they met the same states."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from user_system.core.types import Array, Segment
from user_system.replay.quality import measures
from user_system.replay.quality.space import Points, Space
from user_system.replay.quality.survey import Stretch

SHOWN = 10
COMPARED = 1000
"""Steps of the others that each step is compared with, at most."""
_MIN_STEPS = 6
"""Steps of an episode that must have similar ones in other episodes."""
_ELSEWHERE = 0.75
"""Share of steps that are alone from which an episode went elsewhere: if usually less than half as
many are."""
_LONG = 10
"""Steps of a segment in an episode before it may be said to have gone anywhere."""
_MIN_STRETCHES = 10
"""Episodes of a segment that there must be before one of them is called unusual."""


@dataclass(frozen=True, slots=True)
class Outlier:
    """One segment of one episode whose actions differ from the others' in similar states."""

    episode: str
    producer: str
    epoch: int
    run: str
    task: str
    robot: str
    segment: str
    actors: tuple[str, ...]
    steps: int
    success: bool | None
    divergence: float | None
    """As of a group, of the steps of this episode from those of all others in the segment; None:
    too few of them can be compared."""
    times: float | None
    """How many times the median episode's of this task and segment."""
    alone: float
    """Share of its steps to whose states no other episode came near."""


def find(
    space: Space,
    stretches: Sequence[tuple[int, Stretch]],
    samples: Mapping[Segment, Points],
    rng: np.random.Generator,
) -> tuple[list[Outlier], list[Outlier], int]:
    """Return the most divergent stretches, those that went elsewhere, and how many were looked at.

    Args:
        space: the scale of the task.
        stretches: (number of the episode, a stretch of it).
        samples: what they are compared with, by segment.
        rng: draws so many of them.
    """
    divergent: list[Outlier] = []
    elsewhere: list[Outlier] = []
    looked = 0
    for segment, points in sorted(samples.items()):
        mine = [(number, s) for number, s in stretches if s.segment == segment]
        if len(mine) < _MIN_STRETCHES:
            continue
        looked += len(mine)
        against = points.take(rng.permutation(len(points))[:COMPARED])
        found = _outliers(mine, *_scores(space, mine, against))
        divergent += [o for o in found if o.times is not None and o.times > 1]
        usual = float(np.median([o.alone for o in found]))
        if usual < _ELSEWHERE / 2:
            elsewhere += [o for o in found if o.alone >= _ELSEWHERE and o.steps >= _LONG]
    divergent.sort(key=lambda o: (-(o.times or 0.0), o.episode, o.segment))
    elsewhere.sort(key=lambda o: (-o.alone, -o.steps, o.episode, o.segment))
    return divergent[:SHOWN], elsewhere[:SHOWN], looked


def _scores(
    space: Space, mine: Sequence[tuple[int, Stretch]], against: Points
) -> tuple[Array, Array]:
    """Return of each stretch: divergence, NaN where unknown; share of steps that are alone."""
    sizes = [len(stretch.state) for _, stretch in mine]
    placed = space.place_actions(
        np.concatenate([s.state for _, s in mine]),
        np.concatenate([s.action for _, s in mine]),
        np.repeat([number for number, _ in mine], sizes),
    )
    spread, matched = np.zeros(len(placed)), np.zeros(len(placed))
    near, value = (placed.state, against.state), (placed.action, against.action)
    episodes = placed.episode, against.episode
    for part, half, similar, _ in measures.compared(near, value, episodes, space.state_radius):
        count = similar.sum(1)
        spread[part] = (half * similar).sum(1) / np.maximum(count, 1)
        matched[part] = count > 0
    starts = np.cumsum([0, *sizes[:-1]])
    steps = np.add.reduceat(matched, starts)
    total = np.add.reduceat(spread * matched, starts)
    enough = steps >= _MIN_STEPS
    mean = np.divide(total, steps, where=enough, out=np.full(len(steps), np.nan))
    return np.sqrt(mean), 1 - steps / np.array(sizes)


def _outliers(mine: Sequence[tuple[int, Stretch]], scores: Array, alone: Array) -> list[Outlier]:
    known = scores[np.isfinite(scores)]
    middle = float(np.median(known)) if len(known) >= _MIN_STRETCHES else 0.0
    return [
        _outlier(stretch, float(score) if middle and np.isfinite(score) else None, middle, share)
        for (_, stretch), score, share in zip(mine, scores, alone.tolist(), strict=True)
    ]


def _outlier(stretch: Stretch, divergence: float | None, middle: float, alone: float) -> Outlier:
    header = stretch.header
    return Outlier(
        episode=header.episode,
        producer=header.producer,
        epoch=header.epoch,
        run=header.run,
        task=header.task,
        robot=header.robot,
        segment=stretch.segment.name,
        actors=stretch.actors,
        steps=stretch.steps,
        success=stretch.success,
        divergence=divergence,
        times=None if divergence is None else divergence / middle,
        alone=alone,
    )
