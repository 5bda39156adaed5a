"""What happens to packets on one direction of a link. Pure: times and packets in, packets out.

A packet waits for the line where that has a rate, takes its time on it, and is then under way for
the delay. All times are those it should happen at, not those at which somebody looked: a late look
makes no packet later than itself.
"""

import heapq
from collections import deque
from collections.abc import Callable
from random import Random

from user_system.cluster.lab.profiles import Line

NEVER = float("inf")
_COUNTERS = (
    "packets",
    "bytes",
    "delivered",
    "delivered_bytes",
    "lost",
    "dropped",
    "cut",
    "duplicated",
    "reordered",
)


class Direction:
    """The packets of one direction. Times are monotonic seconds.

    Args:
        line: what it does to them.
        rng: by which it does; the same packets at the same times meet the same fate.
    """

    def __init__(self, line: Line, rng: Random):
        self.line = line
        self.cut = False
        """Whether the link is down: what arrives meanwhile, or is under way, is gone."""
        self.counters = dict.fromkeys(_COUNTERS, 0)
        self._rng = rng
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._waiting_bytes = 0
        self._free = 0.0
        """When the line is done with all that it has begun."""
        self._flying: list[tuple[float, int, bytes]] = []
        self._number = 0
        self._latest = 0.0
        """When the last packet that nobody may overtake arrives."""

    def send(self, packet: bytes, now: float) -> None:
        """Take a packet at one end; ``now`` never goes back."""
        counters, size = self.counters, len(packet)
        counters["packets"] += 1
        counters["bytes"] += size
        if self.cut:
            counters["cut"] += 1
            return
        if not self.line.rate_bps and not self._waiting:
            self._launch(packet, now)
            return
        self._serve(now)
        if self._waiting and self._waiting_bytes + size > self.line.queue_bytes:
            counters["dropped"] += 1
            return
        self._waiting.append((now, packet))
        self._waiting_bytes += size
        self._serve(now)

    def due(self) -> float:
        """Return when something is to be done next."""
        flying = self._flying[0][0] if self._flying else NEVER
        return min(flying, self._free) if self._waiting else flying

    def deliver(self, now: float, write: Callable[[bytes], object]) -> float:
        """Hand over what has arrived by ``now``; return by how much the latest was late, s."""
        self._serve(now)
        flying, counters, late = self._flying, self.counters, 0.0
        while flying and flying[0][0] <= now:
            due, _, packet = heapq.heappop(flying)
            if self.cut:
                counters["cut"] += 1
                continue
            late = max(late, now - due)
            counters["delivered"] += 1
            counters["delivered_bytes"] += len(packet)
            write(packet)
        return late

    def change(self, line: Line, now: float) -> None:
        """Become another line: for what waits, and what comes."""
        self._serve(now)
        self.line = line

    def _serve(self, now: float) -> None:
        """Put packets on the line as it came free."""
        rate, waiting = self.line.rate_bps, self._waiting
        while waiting and self._free <= now:
            came, packet = waiting.popleft()
            self._waiting_bytes -= len(packet)
            start = max(self._free, came)
            self._free = start + (len(packet) * 8 / rate if rate else 0.0)
            self._launch(packet, self._free)

    def _launch(self, packet: bytes, at: float) -> None:
        """Send a packet on its way, whose last bit leaves the line at ``at``."""
        line, draw, counters = self.line, self._rng.random, self.counters
        if line.loss and draw() < line.loss:
            counters["lost"] += 1
            return
        due = at + line.delay_ms / 1e3
        if line.jitter_ms:
            due += draw() * line.jitter_ms / 1e3
        if line.reorder and draw() < line.reorder:
            counters["reordered"] += 1
            self._push(due + line.reorder_ms / 1e3, packet)
            return
        due = self._latest = max(due, self._latest)
        self._push(due, packet)
        if line.duplicate and draw() < line.duplicate:
            counters["duplicated"] += 1
            self._push(due, packet)

    def _push(self, due: float, packet: bytes) -> None:
        self._number += 1
        heapq.heappush(self._flying, (due, self._number, packet))
