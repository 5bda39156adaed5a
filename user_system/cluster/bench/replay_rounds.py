"""Rounds: every backend once per round, in an order that turns round, and ratios inside a round.

What a shared machine does to one backend it does to its neighbours of the same minute, so only
figures of one round are divided by one another; what is said of several rounds is their median.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from user_system.cluster.bench.figures import Figure, Goal, judged

Reading = Mapping[str, float]
ONE_THREAD = 1.1
"""Processor time over wall time of what counts as one thread."""


@dataclass
class Rounds:
    """What the backends did, round by round."""

    readings: dict[str, list[Reading]] = field(default_factory=dict)

    def run(self, meters: Mapping[str, Callable[[], Reading]], count: int) -> "Rounds":
        """Measure each backend once per round."""
        for number in range(count):
            order = list(meters)[:: 1 if number % 2 == 0 else -1]
            for name in order:
                self.readings.setdefault(name, []).append(meters[name]())
        return self

    def values(self, name: str, what: str = "rate") -> list[float]:
        """Return one number of each round."""
        return [reading[what] for reading in self.readings[name]]

    def ratios(self, name: str, reference: str = "ring", what: str = "rate") -> list[float]:
        """Return one number of a backend over that of another, per round."""
        pairs = zip(self.values(name, what), self.values(reference, what), strict=True)
        return [mine / other for mine, other in pairs]


def spread(values: Sequence[float], digits: str = ".2f") -> str:
    """Return ``median (least to largest)``."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{digits}} ({low:{digits}} to {high:{digits}})"


def ratio_figure(name: str, rounds: Rounds, goal: Goal, note: str = "") -> Figure:
    """Return the store's rate over the ring's; None where it took more than one thread."""
    others = [other for other in rounds.readings if other not in ("store", "ring")]
    words = [f"{_WORDS[other]} {spread(rounds.ratios(other))}" for other in others]
    cpus = max(rounds.values("store", "cpus"))
    ratios = rounds.ratios("store")
    notes = [
        f"{len(ratios)} rounds: {spread(ratios)}",
        f"store {spread(rounds.values('store'), ',.0f')} transitions/s",
        f"ring {spread(rounds.values('ring'), ',.0f')}",
        f"longest draw {max(rounds.values('store', 'longest_s')) * 1e3:.0f} ms",
        f"{cpus:.2f} processors",
        note,
    ]
    value = statistics.median(ratios) if cpus <= ONE_THREAD else None
    return judged(
        name,
        value,
        goal,
        reference="; ".join(["ring in memory 1", *words]),
        note="; ".join(word for word in notes if word),
    )


def worst_figure(name: str, values: Sequence[float], goal: Goal, unit: str, **words: Any) -> Figure:
    """Return the largest of ``values`` as a figure."""
    return judged(name, max(values, default=None), goal, unit, **words)


_WORDS = {"plain": "plain LMDB loop", "copy": "copying the bytes"}
