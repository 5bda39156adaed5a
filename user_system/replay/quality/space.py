"""Which recorded steps are alike: the states and actions of one task on a common scale.

Coordinates. Each number of a state is taken in units of its standard deviation over the task, and a
distance is the root mean square over the numbers: two states at random are about 1.4 apart,
whatever the robot. A step (s, a) has the coordinates of s and, with the same weight, those of a.
Numbers that are far off in an episode (``_FAR``) are left out of deviations and trends: one episode
on another planet must not make all others look alike.

Near. Two steps are *similar* if they are of different episodes and closer than a radius, one for
all groups of a task: it is what half of all sampled steps need to have ``neighbours`` similar ones.
One radius, rather than the k nearest of each group, since a group with few steps would have to look
further for its k, and would seem to act less consistently for that alone. The radius lies between
``_NARROWEST`` and ``_WIDEST``; where states are so sparse that they have no similar ones within the
latter, groups get no number.

Trends. Within the radius the states still differ, and actions follow them: a person who aims well
moves differently 2 cm further left. What a straight line through all steps of the task explains is
therefore taken away from actions (given the state) and from changes of state (given state and
action) before they are compared. Absolute targets are nearly all trend.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from user_system.core.types import Array
from user_system.replay.quality.options import Options
from user_system.replay.quality.samples import Columns

_NARROWEST, _WIDEST = 0.05, 0.7
_FAR = 5.0
"""A number is far off in an episode if its root mean square is so many times that in others."""
_OTHERS = 90
"""These others are so many of 100 episodes: what every tenth one shows is no stray."""
_CONSTANT = 1e-6
"""Numbers that vary by less than this share of their size are not part of a state."""
_ROWS_PER_WEIGHT = 10
"""Steps for each coefficient of a trend; with fewer none is taken away."""
_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Points:
    """Sampled steps on the scale of their task; ``[n, …]`` each."""

    state: Array
    step: Array
    """State and action together."""
    action: Array
    """Without its trend, in standard deviations; mean squares are over its numbers."""
    change: Array
    """Of the state, without its trend, in standard deviations of the state; likewise."""
    episode: Array

    def __len__(self) -> int:
        return len(self.episode)

    def take(self, rows: Array) -> "Points":
        """Return some of them."""
        return Points(*(getattr(self, name)[rows] for name in self.__slots__))

    @staticmethod
    def join(points: Sequence["Points"]) -> "Points":
        """Return all of several."""
        return Points(
            *(np.concatenate([getattr(p, name) for p in points]) for name in Points.__slots__)
        )


class Space:
    """The scale of one task, and how near is similar.

    Args:
        samples: steps that were drawn, of all groups.
        options: see ``Options``.
        rng: draws the steps that the radius is found with.
    """

    def __init__(self, samples: Sequence[Columns], options: Options, rng: np.random.Generator):
        names = "state", "action", "change", "episode"
        all_ = {n: np.concatenate([sample[n] for sample in samples]) for n in names}
        episode = all_["episode"]
        self._state = _Scale(all_["state"], episode)
        self._action = _Scale(all_["action"], episode)
        self.kept = self._state.kept
        """Which numbers make a state: those that vary."""
        self.numbers = len(self.kept)
        moved = self._moved(all_["change"])
        near = _near(moved, episode)
        self.change_variance = float(np.nanvar(near, axis=0).mean()) if self.numbers else 0.0
        """Of what a state changes by in a step, mean over its numbers."""
        self.change_size = float(np.sqrt(np.nanmean(np.square(near)))) if self.numbers else 0.0
        """Root mean square of the same."""
        near = _near(all_["action"].astype(np.float64), episode)
        self.action_size = np.sqrt(np.nanmean(np.square(near), axis=0))
        """Root mean square of each number of an action."""
        self.action_numbers = len(self._action.kept)
        state, action = self._state(all_["state"]), self._action(all_["action"])
        self._action_trend = _Trend(state, action, episode)
        self._change_trend = _Trend(np.hstack([state, action]), moved, episode)
        placed = [self.place(sample) for sample in samples]
        among = Points.join(placed)
        among = among.take(rng.permutation(len(among))[: options.steps])
        self.state_radius = _radius(among.state, among.episode, options.neighbours)
        self.step_radius = _radius(among.step, among.episode, options.neighbours)

    def place(self, sample: Columns) -> Points:
        """Return sampled steps on this scale."""
        state, action = self._state(sample["state"]), self._action(sample["action"])
        both = np.hstack([state, action])
        moved = self._moved(sample["change"])
        return Points(
            state=_even(state),
            step=np.hstack([_even(state), _even(action)]) / np.sqrt(2),
            action=_even(action - self._action_trend(state)),
            change=_even(moved - self._change_trend(both)),
            episode=sample["episode"],
        )

    def place_actions(self, state: Array, action: Array, episode: Array) -> Points:
        """Return steps whose change is not known, and not looked at."""
        placed = self._state(state)
        residual = self._action(action) - self._action_trend(placed)
        none = np.zeros((len(state), 0))
        return Points(_even(placed), none, _even(residual), none, episode)

    def moved(self, change: Array) -> Array:
        """Return how far states moved ``[n]``, root mean square in standard deviations."""
        moved: Array = np.sqrt(np.square(_even(self._moved(change))).sum(1))
        return moved

    def jumps(self, action: Array, before: Array) -> Array:
        """Return half the mean square change of the action ``[n]``, in its variances."""
        kept = self._action.kept
        difference = (action[:, kept].astype(np.float64) - before[:, kept]) / self._action.size
        half: Array = np.square(_even(difference)).sum(1) / 2
        return half

    def _moved(self, change: Array) -> Array:
        moved: Array = change[:, self._state.kept].astype(np.float64) / self._state.size
        return moved


class _Scale:
    """Numbers in units of their standard deviations; those that do not vary are left out."""

    def __init__(self, rows: Array, episode: Array):
        near = _near(rows.astype(np.float64), episode)
        mean, spread = np.nanmean(near, axis=0), np.nanstd(near, axis=0)
        self.kept = np.flatnonzero(spread > _CONSTANT * (np.abs(mean) + _CONSTANT))
        self._mean, self.size = mean[self.kept], spread[self.kept]

    def __call__(self, rows: Array) -> Array:
        scaled: Array = (rows[:, self.kept].astype(np.float64) - self._mean) / self.size
        return scaled


class _Trend:
    """The straight line from ``x`` ``[n, p]`` to ``y`` ``[n, q]``, by least squares."""

    def __init__(self, x: Array, y: Array, episode: Array):
        self._weights = np.zeros((x.shape[1] + 1, y.shape[1]))
        usual = np.isfinite(_near(np.hstack([x, y]), episode)).all(1)
        if usual.sum() >= _ROWS_PER_WEIGHT * len(self._weights):
            self._weights = np.linalg.lstsq(_with_one(x[usual]), y[usual], rcond=1e-6)[0]

    def __call__(self, x: Array) -> Array:
        line: Array = _with_one(x) @ self._weights
        return line


def _near(rows: Array, episode: Array) -> Array:
    """Return rows ``[n, p]`` with NaN in place of numbers that are far off in their episode.

    Whole episodes, since a single value may be far from most and still belong to the task: forces
    are 0 until something is touched, and then they are not.
    """
    _, which = np.unique(episode, return_inverse=True)
    squares = np.square(rows - np.median(rows, axis=0))
    sums = np.zeros((which.max() + 1, rows.shape[1]))
    np.add.at(sums, which, squares)
    means = sums / np.bincount(which)[:, None]
    usual = np.percentile(means, _OTHERS, axis=0, method="lower")
    far = (means > _FAR**2 * usual) & (usual > 0)
    return np.where(far[which], np.nan, rows)


def _with_one(x: Array) -> Array:
    return np.hstack([x, np.ones((len(x), 1))])


def _even(rows: Array) -> Array:
    """Return rows whose sum of squares is the mean of squares over their numbers."""
    even: Array = rows / np.sqrt(max(1, rows.shape[1]))
    return even


def distances(x: Array, y: Array) -> Array:
    """Return the squared distances ``[n, m]`` between rows."""
    found: Array = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None] - 2 * (x @ y.T)
    np.maximum(found, 0, out=found)
    return found


def _radius(x: Array, episode: Array, neighbours: int) -> float:
    """Return the distance within which half of the rows have so many of other episodes."""
    reach = []
    for low in range(0, len(x), _CHUNK):
        part = slice(low, low + _CHUNK)
        squared = distances(x[part], x)
        squared[episode[part, None] == episode[None]] = np.inf
        k = min(neighbours, len(x)) - 1
        reach.append(np.partition(squared, k, axis=1)[:, k])
    middle = float(np.sqrt(np.median(np.concatenate(reach)))) if reach else np.inf
    return float(np.clip(middle, _NARROWEST, _WIDEST))
