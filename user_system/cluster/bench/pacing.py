"""Reference loops for the period: how exactly this machine lets a process keep time.

    python -m user_system.cluster.bench.pacing KIND HZ FILE

KIND ``relative`` is the pacing of the peers: sleep for what is left of the period. ``absolute``
sleeps to a grid of deadlines, and ``floor`` does so under SCHED_FIFO where that is permitted: what
no loop on this machine can undercut. The body does almost nothing. On SIGTERM the start times of
the periods, monotonic ns, go to FILE, and how it was scheduled.
"""

import itertools
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from user_system.core.clock import SECOND
from user_system.core.priority import prefer

KINDS = ("relative", "absolute", "floor")
PRIORITY = 20


def relative(period_ns: int) -> Iterator[int]:
    """Yield at the start of each period; whatever the loop is late by, it stays late by."""
    while True:
        began = time.monotonic_ns()
        yield began
        left = period_ns - (time.monotonic_ns() - began)
        if left > 0:
            time.sleep(left / SECOND)


def absolute(period_ns: int) -> Iterator[int]:
    """Yield at the start of each period of a grid; lateness does not add up."""
    deadline = time.monotonic_ns()
    while True:
        yield time.monotonic_ns()
        deadline += period_ns
        while (left := deadline - time.monotonic_ns()) > 0:
            time.sleep(left / SECOND)


def errors_ms(starts: list[int], period_ns: int) -> list[float]:
    """Return by how much each period differed from the wanted one, ms."""
    return [abs(b - a - period_ns) / 1e6 for a, b in itertools.pairwise(starts)]


def slow_share(starts: list[int], period_ns: int) -> float:
    """Return by which share the loop ran too slowly over all: its drift."""
    return (starts[-1] - starts[0]) / ((len(starts) - 1) * period_ns) - 1.0


def main() -> None:
    """Keep time until SIGTERM."""
    kind, hz, path = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    open_ = True

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal open_
        open_ = False

    signal.signal(signal.SIGTERM, end)
    fifo = kind == "floor" and prefer(PRIORITY)
    starts: list[int] = []
    pace = relative if kind == "relative" else absolute
    for start in pace(round(SECOND / hz)):
        starts.append(start)
        if not open_:
            break
    path.write_text(json.dumps({"kind": kind, "fifo": fifo, "starts": starts}))


if __name__ == "__main__":
    main()
