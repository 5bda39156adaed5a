"""Action divergence, transition diversity and what else is said of a group of steps.

The two notions are those of Belkhale, Cui and Sadigh, "Data Quality in Imitation Learning", NeurIPS
2023 (arXiv 2306.02437): *action divergence*, the mismatch between the expert and the learned
policy at a state, which grows with how differently the expert acts there; and *transition
diversity*, the noise in where the system goes from a state and action. Both are properties of
distributions, of which a log has single draws. They are estimated here from pairs (i, j) of
steps of different episodes whose states, or states and actions, are similar (``space``).

Action divergence of a group, with N(i) the steps of the group similar to i, D the numbers of an
action, r its part that no straight line in the state explains and v its variance over the task::

    d² = mean over i of mean over j in N(i) of 1/D Σ_k (r_ik - r_jk)² / 2 v_k

Half the squared difference of two draws estimates the variance of one, so d² is the variance of
the action given the state, as a share of its variance over the task, and d a standard deviation:
0 where the same state always meets the same action, about 1 where states say nothing about it.

Disagreement with others: m² = d² with j among the others' steps near i, less half of d² at i and
half of the others' own d² at j. What is left of the squared difference when both sides' own
variance is taken away is half the squared difference of their mean actions, so √2 m says by how
many standard deviations of the task the actor's mean action differs from that of the others.

Transition diversity is the same with steps (s, a) that are similar, and the change of state
Δ = s' - s in place of the action (r: its part that no straight line in s and a explains)::

    t² = mean over i of mean over j in N(i) of ½ ‖r_i - r_j‖² / variance of ‖Δ‖ over the task

Situations are the inverse of the chance that two steps of different episodes are similar: the
number of states, each as likely, among which one would meet as often by chance (Simpson's index).

Intervals are percentiles of a bootstrap that draws whole episodes. For pairs, a draw that takes
episode b w_b times takes the pairs of b and c w_b w_c times.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from user_system.core.types import Array
from user_system.replay.quality import estimates
from user_system.replay.quality.estimates import Estimate
from user_system.replay.quality.samples import Columns
from user_system.replay.quality.space import Points, Space, distances

_CHUNK = 256
_STILL = 0.1
"""A step moved nothing if the state changed by less than this share of a usual step's change."""

_NOTHING = "the state or the action has no number that varies"
_ALIKE = " with similar ones"

MEASURES = (
    "divergence",
    "disagreement",
    "diversity",
    "situations",
    "magnitude",
    "jerkiness",
    "idle",
)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Sums over pairs of steps of different episodes; ``[B, C]`` by the blocks of both."""

    spread: Array
    """Half squared differences, averaged over what is similar to a step."""
    weight: Array
    """Steps that have similar ones, likewise."""
    similar: Array
    """Pairs that are similar."""
    pairs: Array
    """All pairs."""
    steps: int
    episodes: int
    """Those of them that have similar ones."""


def compared(
    near: tuple[Array, Array], value: tuple[Array, Array], episode: tuple[Array, Array], r: float
) -> Iterator[tuple[slice, Array, Array, Array]]:
    """Compare steps ``[n]`` with steps ``[m]``, some at a time.

    Args:
        near: coordinates of both in which distances are taken.
        value: what is compared of both.
        episode: of both; steps of the same one are no pair.
        r: how near is similar.

    Yields:
        Which of the ``n`` they are, and of them ``[part, m]``: half the squared differences, which
        are similar, and which are pairs.
    """
    (x, y), (u, w), (e, f) = near, value, episode
    for low in range(0, len(x), _CHUNK):
        part = slice(low, low + _CHUNK)
        apart = e[part, None] != f[None]
        similar = apart & (distances(x[part], y) <= r * r)
        yield part, distances(u[part], w) / 2, similar, apart


def pair(
    near: tuple[Array, Array],
    value: tuple[Array, Array],
    episode: tuple[Array, Array],
    r: float,
    less: tuple[Array, Array] | None = None,
) -> Pairs:
    """Add up all pairs of ``compared`` by blocks of episodes.

    Args:
        near: see ``compared``.
        value: see ``compared``.
        episode: see ``compared``.
        r: see ``compared``.
        less: what is taken from the half squared differences, for each step of both ``[n] [m]``.
    """
    blocks = [estimates.blocks(e) for e in episode]
    mine, theirs = (np.argsort(b, kind="stable") for b in blocks)
    rows, columns = blocks[0][mine], blocks[1][theirs]
    starts = np.flatnonzero(np.diff(columns, prepend=-1))
    sums = np.zeros((4, rows.max() + 1, len(starts)))
    matched = np.zeros(len(rows), bool)
    sides = [(a[mine], b[theirs]) for a, b in (near, value, episode)]
    for part, half, similar, apart in compared(sides[0], sides[1], sides[2], r):
        if less is not None:
            half = half - less[0][mine][part, None] - less[1][theirs][None]
        count = similar.sum(1)
        matched[part] = count > 0
        share = similar / np.maximum(count, 1)[:, None]
        for total, kind in zip(sums, (half * share, share, similar, apart), strict=True):
            added = np.add.reduceat(kind.astype(np.float64), starts, axis=1)
            np.add.at(total, rows[part], added)
    episodes = len(np.unique(episode[0][mine][matched]))
    return Pairs(sums[0], sums[1], sums[2], sums[3], int(matched.sum()), episodes)


class Bootstrap:
    """Draws of whole episodes, the same for every measure of a report with the same seed."""

    def __init__(self, resamples: int, seed: int):
        self._resamples, self._seed = resamples, seed

    def rng(self) -> np.random.Generator:
        """Return a fresh source of the draws of one measure."""
        return np.random.default_rng((self._seed, 1))

    def mean(self, values: Array, episode: Array) -> Estimate:
        """Return the mean of values ``[n]``; see ``estimates.mean``."""
        return estimates.mean(values, episode, self._resamples, self.rng())

    def each(self, values: Array) -> Estimate:
        """Return the mean of one value for each episode."""
        return estimates.mean_of_episodes(values, self._resamples, self.rng())

    def ratio(self, top: Array, bottom: Array, *, same: bool) -> tuple[float, float]:
        """Return the interval of the ratio of two sums over pairs ``[B, C]``.

        Args:
            top: of the ratio.
            bottom: of the ratio.
            same: both sides of a pair are of one group, so that one draw is for both.
        """
        rng = self.rng()
        v = estimates.draws(top.shape[0], self._resamples, rng)
        w = v if same else estimates.draws(top.shape[1], self._resamples, rng)
        above, below = ((v @ m * w).sum(1) for m in (top, bottom))
        return estimates.interval(np.divide(above, below, where=below > 0, out=below * np.nan))


def divergence(space: Space, points: Points, boot: Bootstrap) -> Estimate:
    """Return how differently the actions of a group go in similar states."""
    if not space.numbers or not space.action_numbers:
        return Estimate.none(_NOTHING)
    state, action, episode = points.state, points.action, points.episode
    found = pair((state, state), (action, action), (episode, episode), space.state_radius)
    return estimates.root(_mean_spread(found, boot, same=True))


def disagreement(space: Space, points: Points, others: Points, boot: Bootstrap) -> Estimate:
    """Return how far the mean action of a group is from that of others in similar states."""
    if not space.numbers or not space.action_numbers:
        return Estimate.none(_NOTHING)
    own = [local(space, some) for some in (points, others)]
    known = [np.flatnonzero(np.isfinite(values)) for values in own]
    mine, theirs = points.take(known[0]), others.take(known[1])
    if not len(mine) or not len(theirs):
        return Estimate.none(estimates.too_few(0, 0, _ALIKE))
    found = pair(
        (mine.state, theirs.state),
        (mine.action, theirs.action),
        (mine.episode, theirs.episode),
        space.state_radius,
        less=(own[0][known[0]] / 2, own[1][known[1]] / 2),
    )
    return estimates.root(_scaled(_mean_spread(found, boot, same=False), 2.0))


def local(space: Space, points: Points) -> Array:
    """Return d² at every step ``[n]``; NaN where no other episode came near."""
    found = np.full(len(points), np.nan)
    state, action, episode = points.state, points.action, points.episode
    both = (state, state), (action, action), (episode, episode)
    for part, half, similar, _ in compared(*both, space.state_radius):
        count = similar.sum(1)
        mean = (half * similar).sum(1) / np.maximum(count, 1)
        found[part] = np.where(count > 0, mean, np.nan)
    return found


def diversity(space: Space, points: Points, boot: Bootstrap) -> Estimate:
    """Return how differently states change after similar steps."""
    if not space.change_variance:
        return Estimate.none("the state has no number that changes")
    step, change, episode = points.step, points.change, points.episode
    found = pair((step, step), (change, change), (episode, episode), space.step_radius)
    squared = _mean_spread(found, boot, same=True)
    return estimates.root(_scaled(squared, 1 / space.change_variance))


def situations(space: Space, points: Points, boot: Bootstrap) -> Estimate:
    """Return among how many states the steps of the group are spread."""
    if not space.numbers:
        return Estimate.none("the state has no number that varies")
    state, episode = points.state, points.episode
    found = pair((state, state), (state, state), (episode, episode), space.state_radius)
    if why := estimates.too_few(found.steps, found.episodes, _ALIKE):
        return Estimate.none(why, found.steps, found.episodes)
    value = float(found.pairs.sum() / found.similar.sum())
    low, high = boot.ratio(found.similar, found.pairs, same=True)
    return Estimate(value, 1 / high, 1 / max(low, 1e-12), found.steps, found.episodes)


def motion(space: Space, sample: Columns, boot: Bootstrap) -> Mapping[str, Estimate]:
    """Return how large, how jerky and how idle the actions of a group are.

    ``magnitude``: root mean square of the action, each number in units of its root mean square
    over the task. ``jerkiness``: the divergence of successive actions, d with j the step
    before i: 0 for a steady action, about 1 where each has nothing to do with the one before.
    ``idle``: the share of steps in which the state hardly changed, by less than ``_STILL`` of the
    root mean square change of the task.
    """
    episode, size = sample["episode"], space.action_size
    relative = sample["action"][:, size > 0].astype(np.float64) / size[size > 0]
    squares = np.square(relative).mean(1) if relative.shape[1] else np.full(len(episode), np.nan)
    still = np.full(len(episode), np.nan)
    if space.change_size:
        still = (space.moved(sample["change"]) < _STILL * space.change_size) * 1.0
    jumps = space.jumps(sample["action"], sample["before"])
    return {
        "magnitude": estimates.root(boot.mean(squares, episode)),
        "jerkiness": estimates.root(boot.mean(jumps, episode)),
        "idle": boot.mean(still, episode),
    }


def _mean_spread(found: Pairs, boot: Bootstrap, *, same: bool) -> Estimate:
    if why := estimates.too_few(found.steps, found.episodes, _ALIKE):
        return Estimate.none(why, found.steps, found.episodes)
    value = float(found.spread.sum() / found.weight.sum())
    low, high = boot.ratio(found.spread, found.weight, same=same)
    return Estimate(value, low, high, found.steps, found.episodes)


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    value, low, high = estimate.value, estimate.low, estimate.high
    if value is None or low is None or high is None:
        return estimate
    return Estimate(value * factor, low * factor, high * factor, estimate.steps, estimate.episodes)
