"""Which CPUs are whose: learners have those they reserve, everything else has the rest.

A learner computes all the time, and the processes of a robot wake hundreds of times a second: on
the same CPU each costs the other its caches and, far worse, its turn.
"""

import math
from collections.abc import Sequence
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
