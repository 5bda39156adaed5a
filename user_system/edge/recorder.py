"""What becomes of one robot's steps: fragments on this host's disk, and what they came to.

The loop opens a step when its period begins and closes it when the next one does; judgements may
come with that or later. Whatever the disk refuses waits here, in order, and is tried again.
"""

import collections
import time
from typing import Protocol

from user_system.core.clock import MS
from user_system.core.errors import StoreError
from user_system.core.specs import PolicySpec
from user_system.core.types import Array, Fragment, Segment
from user_system.edge.adder import Adder, Totals
from user_system.edge.chunks import Proposal
from user_system.edge.effects import Finish
from user_system.edge.messages import Assignment
from user_system.edge.wire import Telemetry

BACKLOG = 256
"""Fragments that may wait for the head before an episode opens a new epoch."""


class Putting(Protocol):
    """The spool as the loop sees it."""

    @property
    def full(self) -> bool:
        """Whether no further episode should begin."""

    def backlog(self, producer: str, epoch: int) -> int:
        """Return how many fragments of this epoch the head does not have."""

    def begin_epoch(self, producer: str) -> int:
        """Open the producer's next epoch."""

    def put(self, fragment: Fragment) -> None:
        """Keep a fragment, whatever happens to this process."""


class Recorder:
    """Records one robot's episodes. One thread's business.

    Args:
        adder: where steps become fragments.
        spool: where fragments are kept.
        backlog: fragments that may wait for the head before an episode opens a new epoch.
    """

    def __init__(self, adder: Adder, spool: Putting, backlog: int = BACKLOG):
        self.adder, self._spool, self._backlog = adder, spool, backlog
        self._open: tuple[Telemetry, Segment] | None = None
        self._waiting: collections.deque[Fragment] = collections.deque()
        self._judged_late = 0
        self._put_ms = 0.0

    @property
    def recording(self) -> bool:
        """Whether an episode is open."""
        return self.adder.recording

    @property
    def step(self) -> int:
        """Index of the step that is open, or that will be opened next."""
        return self.adder.step

    @property
    def segment(self) -> Segment:
        """What the step that was opened last is; HOLD where none was."""
        return self._open[1] if self._open else Segment.HOLD

    @property
    def full(self) -> bool:
        """Whether no further episode should begin."""
        return self._spool.full

    @property
    def totals(self) -> Totals:
        """What the episode at hand came to so far."""
        return self.adder.totals if self.recording else Totals()

    # --- an episode, in order -----------------------------------------------------------------

    def begin(self, assignment: Assignment, policy: PolicySpec | None) -> None:
        """Open an episode."""
        producer = self.adder.producer
        if self._spool.backlog(producer.name, producer.epoch) > self._backlog:
            # There was an outage: live data goes ahead of what piled up in it.
            self.adder.renew(self._spool.begin_epoch(producer.name))
        self.adder.begin(assignment, policy)

    def open(
        self, seen: Telemetry, segment: Segment, proposal: Proposal | None, operator: str
    ) -> None:
        """A step of the episode begins with ``seen``."""
        reading = seen.reading
        self.adder.open(
            reading.fields, reading.robot_ns, reading.wall_ns, segment, proposal, operator
        )
        self.adder.sense(seen.samples)
        self._open = seen, segment

    def close(self, seen: Telemetry) -> Array | None:
        """The step ended with ``seen``; return what was executed in it ``(Da,)``, if one was."""
        if self._open is None:
            return None
        action = self.adder.producer.spec.action
        executed = action.between(self._open[0].accepted, seen.accepted)
        self.adder.close(executed)
        return executed

    def forget(self) -> None:
        """What is open has no successor: the driver is away, or nothing is recorded now."""
        self._open = None

    def judge(self, step: int, reward: float) -> None:
        """Give a step its reward; one that is spooled already stays without for good."""
        self._judged_late += not self.adder.judge(step, reward)

    def void(self, first: int) -> None:
        """The steps from ``first`` on were undone by a rewind."""
        self.adder.void(first)

    def keep(self) -> str:
        """Put on the disk what is ready; return why it refused, "" where it did not."""
        return self._put(self.adder.ready() if self.recording else [])

    def finish(self, finish: Finish, last: Telemetry | None) -> tuple[Totals, str]:
        """End the episode; return what it came to, and why the disk refused it, "" if not.

        Args:
            finish: how it ends.
            last: the newest reading. Between two readings the open step has no next observation:
                this one is the last.
        """
        self._open = None
        if not self.recording:
            return Totals(), ""
        border = None
        if last is not None and not self.adder.opened:
            border = last.reading
            self.adder.sense(last.samples)
        fragments, totals = self.adder.finish(
            finish.end,
            finish.success,
            finish.reward,
            finish.index,
            (border.fields, border.robot_ns) if border else None,
        )
        return totals, self._put(fragments)

    def _put(self, fragments: list[Fragment]) -> str:
        self._waiting.extend(fragments)
        began = time.monotonic_ns()
        while self._waiting:
            try:
                self._spool.put(self._waiting[0])
            except StoreError as error:
                return str(error)
            self._waiting.popleft()
            took = (time.monotonic_ns() - began) / MS
            self._put_ms += 0.05 * (took - self._put_ms)
        return ""

    def stats(self) -> dict[str, float]:
        """Return counters and gauges.

        ``judged_late``: steps whose reward came when they were spooled already, which no learner
        knows. ``put_ms``: wall time to make a fragment durable, moving average. ``unspooled``:
        fragments that the disk refused.
        """
        return {
            "judged_late": float(self._judged_late),
            "put_ms": self._put_ms,
            "unspooled": float(len(self._waiting)),
        }
