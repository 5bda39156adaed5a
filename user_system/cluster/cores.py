"""Which CPUs are whose: learners have those they reserve, everything else has the rest.

A learner computes all the time, and the processes of a robot wake hundreds of times a second: on
the same CPU each costs the other its caches and, far worse, its turn.
"""

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cores:
    """CPUs by number; empty: whichever the kernel chooses."""

    robots: tuple[int, ...] = ()
    """Of every process but the learners."""
    learners: tuple[int, ...] = ()


def divide(cpus: Sequence[int], wanted: float) -> Cores:
    """Return who gets which of ``cpus``, where learners reserve ``wanted`` of them.

    Nobody gets CPUs of their own where nothing would be left for robots, or nothing is reserved.
    """
    own = math.ceil(wanted)
    if not 0 < own < len(cpus):
        return Cores()
    ordered = tuple(sorted(cpus))
    return Cores(ordered[:-own], ordered[-own:])


def keep_to(cpus: Sequence[int]) -> None:
    """Run this thread, and whatever it starts, on ``cpus`` only; none: wherever it may already."""
    if cpus:
        os.sched_setaffinity(0, cpus)


@contextlib.contextmanager
def kept_to(cpus: Sequence[int]) -> Iterator[None]:
    """Keep to ``cpus`` for the length of a ``with`` block."""
    before = os.sched_getaffinity(0)
    keep_to(cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
