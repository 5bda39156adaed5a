"""Which CPUs are whose: learners have those they reserve, everything else has the rest.

A learner computes all the time, and the processes of a robot wake hundreds of times a second: on
the same CPU each costs the other its caches and, far worse, its turn. While nothing is to be
learned, the rest may use the learners' CPUs as well.
"""

import contextlib
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil


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


def confine(processes: Iterable[psutil.Process], cpus: Sequence[int]) -> None:
    """Have processes, with what they started, keep to ``cpus``: every thread they have now.

    What a thread starts later begins where it is itself.
    """
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for member in (process, *process.children(recursive=True)):
                for thread in member.threads():
                    with contextlib.suppress(ProcessLookupError):
                        os.sched_setaffinity(thread.id, cpus)
