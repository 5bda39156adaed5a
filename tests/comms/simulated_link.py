"""A link as a plain queueing model: one bottleneck, a fixed way, and acknowledgements that jitter.

Bytes wait in one unbounded queue, are served at the rate, and take half the base to the other end;
answers take the other half, some jitter more, and stay in order. Echoes wait in the same queue.
Time is simulated: ten minutes pass in a second.
"""

import heapq
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from comms.delay import Delay
from comms.lanes import Lane, Pipe

ECHO_BYTES = 150
ECHO_S, SOON_S = 0.1, 0.03


@dataclass
class SimulatedLink:
    """One direction of a link with a pipe whose bytes it carries.

    Args:
        rate: bytes/s.
        base_s: round trip without any queue.
        jitter_s: acknowledgements and echoes come up to so much later.
        seed: of the jitter.
    """

    rate: float
    base_s: float
    jitter_s: float = 0.0
    seed: int = 0
    now: float = 0.0
    free_at: float = 0.0
    """When the bottleneck has served all that waits."""
    queues: list[tuple[float, float]] = field(default_factory=list)
    """(time, s that an urgent byte would wait), at every arrival at the queue."""
    delivered: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.trip, self.way = Delay(), Delay()
        self.pipe = Pipe(self.way, self.trip, now=lambda: self.now)
        self.lane: Lane = self.pipe.lane("bulk")
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.last_answer = 0.0
        self.timer = False
        self.offered: Callable[[], int] = lambda: 1 << 30
        """Bytes that wait to be sent."""

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.numbers), what))

    def enqueue(self, size: int) -> float:
        """Put bytes into the queue; return when they have arrived at the other end."""
        self.queues.append((self.now, max(0.0, self.free_at - self.now)))
        self.free_at = max(self.now, self.free_at) + size / self.rate
        return self.free_at + self.base_s / 2

    def answer_at(self, there: float) -> float:
        """Return when the answer to what arrives at ``there`` is back; answers keep their order."""
        back = there + self.base_s / 2 + self.chance.uniform(0, self.jitter_s)
        self.last_answer = max(self.last_answer, back)
        return self.last_answer

    def echo(self) -> None:
        sent = self.now
        there = self.enqueue(ECHO_BYTES)
        back = there + self.base_s / 2 + self.chance.uniform(0, self.jitter_s)
        self.at(back, lambda: self.echoed(sent, there))
        soon = self.pipe.growing or self.pipe.emptying
        self.at(self.now + (SOON_S if soon else ECHO_S), self.echo)

    def echoed(self, sent: float, there: float) -> None:
        self.trip.sample(self.now - sent, self.now)
        self.way.sample(there - sent + self.chance.uniform(0, self.jitter_s), self.now)
        self.pump()

    def pump(self) -> None:
        """Send as much as may be under way."""
        while self.offered() > 0 and (ticket := self.lane.take(self.lane.chunk(), 0.0)):
            taken = ticket
            there = self.enqueue(taken.size)
            self.at(self.answer_at(there), lambda taken=taken: self.arrived(taken))  # type: ignore[misc]
        if not self.timer:
            self.timer = True
            self.at(self.now + max(0.0005, self.pipe.wait_s()), self.look)

    def look(self) -> None:
        self.timer = False
        self.pump()

    def arrived(self, ticket) -> None:
        self.delivered += ticket.size
        self.lane.done(ticket)
        self.pump()

    def run(self, seconds: float) -> None:
        """Let time pass, saturated by bulk."""
        end = self.now + seconds
        if not self.events:
            self.at(self.now, self.echo)
        self.at(end, lambda: None)
        while self.now < end:
            self.now, _, what = heapq.heappop(self.events)
            what()

    def waits(self, after: float = 0.0) -> list[float]:
        return sorted(wait for at, wait in self.queues if at >= after)
