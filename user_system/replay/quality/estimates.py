"""Numbers that say how sure they are, or why there is none."""

from dataclasses import dataclass

import numpy as np

from user_system.core.types import Array
from user_system.replay.quality.options import MIN_EPISODES, MIN_STEPS

BLOCKS = 100
"""Blocks that episodes are dealt into: what is drawn anew in a bootstrap, since steps of one
episode are no independent readings. With up to so many episodes each is a block of its own."""

_Z95 = 1.959964
_PERCENTILES = (2.5, 97.5)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval; without them where there is too little to say one."""

    value: float | None
    low: float | None = None
    high: float | None = None
    steps: int = 0
    """Steps that it rests on."""
    episodes: int = 0
    """Episodes that these are of."""
    why: str = ""
    """Why there is no value."""

    @classmethod
    def none(cls, why: str, steps: int = 0, episodes: int = 0) -> "Estimate":
        """Return that there is none, and why."""
        return cls(None, steps=steps, episodes=episodes, why=why)

    def above(self, other: "Estimate") -> bool:
        """Return whether all of this interval lies above all of the other's."""
        return self.low is not None and other.high is not None and self.low > other.high


def too_few(steps: int, episodes: int, what: str = "") -> str:
    """Return how far so many steps of so many episodes are from enough; empty if they are."""
    if episodes < MIN_EPISODES:
        return f"too few: {episodes} of {MIN_EPISODES} episodes{what}"
    return f"too few: {steps} of {MIN_STEPS} steps{what}" if steps < MIN_STEPS else ""


def blocks(episodes: Array) -> Array:
    """Return the block of every step ``[n]``, 0, 1, 2 … without gaps, by its episode ``[n]``."""
    _, number = np.unique(episodes, return_inverse=True)
    return number % BLOCKS


def draws(count: int, resamples: int, rng: np.random.Generator) -> Array:
    """Return how often each of ``count`` blocks was drawn ``[resamples, count]`` float64."""
    return rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def interval(values: Array) -> tuple[float, float]:
    """Return the 95 % percentile interval of bootstrapped values, those that are none left out."""
    low, high = np.percentile(values[np.isfinite(values)], _PERCENTILES)
    return float(low), float(high)


def mean(values: Array, episodes: Array, resamples: int, rng: np.random.Generator) -> Estimate:
    """Return the mean of ``values`` ``[n]``, bootstrapped over episodes; NaN are left out."""
    known = np.isfinite(values)
    values, episodes = values[known], episodes[known]
    count = len(np.unique(episodes))
    if why := too_few(len(values), count):
        return Estimate.none(why, len(values), count)
    block = blocks(episodes)
    sums = np.bincount(block, weights=values)
    sizes = np.bincount(block).astype(np.float64)
    w = draws(len(sums), resamples, rng)
    low, high = interval((w @ sums) / (w @ sizes))
    return Estimate(float(values.mean()), low, high, len(values), count)


def mean_of_episodes(values: Array, resamples: int, rng: np.random.Generator) -> Estimate:
    """Return the mean of values ``[n]``, one for each episode, bootstrapped."""
    count = len(values)
    if count < MIN_EPISODES:
        return Estimate.none(too_few(0, count), episodes=count)
    means = np.array([rng.choice(values, count).mean() for _ in range(resamples)])
    low, high = interval(means)
    return Estimate(float(values.mean()), low, high, episodes=count)


def root(squared: Estimate) -> Estimate:
    """Return the estimate of the root of what was estimated."""
    if squared.value is None or squared.low is None or squared.high is None:
        return squared
    value, low, high = (max(0.0, v) ** 0.5 for v in (squared.value, squared.low, squared.high))
    return Estimate(value, low, high, squared.steps, squared.episodes)


def share(hits: int, of: int) -> Estimate:
    """Return a share of independent episodes with its Wilson interval (Wilson 1927).

    ``(p + z²/2n ± z √(p (1 - p) / n + z²/4n²)) / (1 + z²/n)``
    """
    if of < MIN_EPISODES:
        return Estimate.none(too_few(0, of), episodes=of)
    p, z2 = hits / of, _Z95 * _Z95
    middle, scale = p + z2 / (2 * of), 1 + z2 / of
    half = _Z95 * (p * (1 - p) / of + z2 / (4 * of * of)) ** 0.5
    low, high = max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
    return Estimate(p, low, high, episodes=of)


@dataclass(frozen=True, slots=True)
class Spread:
    """Where most of some values lie."""

    low: float
    """A tenth lies below it."""
    median: float
    high: float
    """A tenth lies above it."""
    count: int

    @classmethod
    def of(cls, values: Array) -> "Spread | None":
        """Return that of some values; None where they are too few."""
        if len(values) < MIN_EPISODES:
            return None
        low, median, high = np.percentile(values, (10, 50, 90))
        return cls(float(low), float(median), float(high), len(values))
