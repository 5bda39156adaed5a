"""A producer's outbox in memory: makes fragments of 30 KiB and takes note of what became of each.

It stands where the spool of a robot host stands. A fragment is *submitted* when it is put here, or,
where the outbox is never empty (``flood``), when the client takes it: no earlier could it have been
sent. It is *acknowledged* when the client forgets it.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from user_system.cluster.bench.replay_work import ACTION, PERIOD_NS, STATE
from user_system.core.errors import StoreError
from user_system.core.ports import Refused
from user_system.core.types import Array, End, Fragment, FragmentHeader, Purpose, Segment

EPOCH = 1
BOOT = "bench"
SHAPE = (96, 104, 3)
"""Of the one image of a fragment: 29,952 bytes, with the columns 30 KiB."""
EPISODE = 100
_POOL = 128
"""Images that fragments take in turn; each is noise, which no codec shrinks."""


class Factory:
    """Makes fragments of one step.

    Args:
        producer: its name.
        shape: of the one image.
    """

    def __init__(self, producer: str, shape: tuple[int, int, int] = SHAPE):
        rng = np.random.Generator(np.random.SFC64(5))
        size = int(np.prod(shape))
        self._pool = np.frombuffer(rng.bytes((_POOL + 1) * size), np.uint8).reshape(-1, *shape)
        self._states = rng.standard_normal((_POOL + 1, STATE), np.float32)
        self._stamps = np.arange(EPISODE + 1, dtype=np.int64) * PERIOD_NS
        self._step = _step(producer)
        self._last = replace(self._step, end=np.full(1, End.TIMEOUT, np.uint8))

    def make(self, sequence: int) -> Fragment:
        """Return fragment number ``sequence``."""
        episode, k = divmod(sequence, EPISODE)
        final = k == EPISODE - 1
        made = self._last if final else self._step
        at, rows = sequence % _POOL, 1 + final
        header = replace(
            made.header, sequence=sequence, start=k, episode=f"{made.header.producer}-{episode}"
        )
        seen: dict[str, Array] = {
            "camera": self._pool[at : at + rows],
            "state": self._states[at : at + rows],
        }
        stamps = self._stamps[k : k + rows]
        return replace(made, header=header, observation=seen, robot_ns=stamps)


def _step(producer: str) -> Fragment:
    action = np.zeros((1, ACTION), np.float32)
    header = FragmentHeader(
        producer=producer,
        epoch=EPOCH,
        sequence=0,
        run="bench",
        task="bench",
        episode="",
        start=0,
        purpose=Purpose.TRAIN,
        schema="bench",
        robot=producer,
        embodiment="bench",
        boot=BOOT,
        wall_ns=1,
        wall_bound_ns=1,
    )
    return Fragment(
        header=header,
        observation={},
        executed=action,
        proposed=action,
        reward=np.zeros(1, np.float32),
        segment=np.full(1, Segment.AUTO, np.uint8),
        end=np.full(1, End.NONE, np.uint8),
        robot_ns=np.zeros(1, np.int64),
        policy=np.zeros(1, np.uint16),
        version=np.zeros(1, np.int64),
        operator=np.zeros(1, np.uint16),
        chunk=np.zeros(1, np.int32),
        position=np.zeros(1, np.int32),
    )


@dataclass(slots=True)
class Sent:
    """What became of one fragment; monotonic ns, 0: not yet."""

    fragment: Fragment | None
    submitted: int = 0
    acked: int = 0


class Outbox:
    """Implements ``core.ports.Outbox``. Thread-safe.

    Args:
        producer: whose fragments these are.
        shape: of their image.
    """

    def __init__(self, producer: str, shape: tuple[int, int, int] = SHAPE):
        self.producer = producer
        self.sent: list[Sent] = []
        """By sequence."""
        self.flood = False
        """Whether there is always one more."""
        self.refused: list[Refused] = []
        self._factory = Factory(producer, shape)
        self._news = threading.Condition()
        self._acked = self._seen = 0

    @property
    def acked(self) -> int:
        """Fragments that are known to be on the head's disk."""
        return self._acked

    def put(self) -> None:
        """Submit one more fragment."""
        with self._news:
            self.sent.append(Sent(self._factory.make(len(self.sent)), time.monotonic_ns()))
            self._news.notify_all()

    def begin_flood(self) -> None:
        """Never be empty from now on."""
        with self._news:
            self.flood = True
            self._news.notify_all()

    def drain(self, timeout_s: float) -> None:
        """End a flood, and wait until all that was submitted is acknowledged.

        Raises:
            StoreError: it was not, or something was refused.
        """
        with self._news:
            self.flood = False
            done = self._news.wait_for(lambda: self._acked == len(self.sent), timeout_s)
        if self.refused:
            raise StoreError("the replay refused a fragment", got=self.refused[0].reason)
        if not done:
            left = len(self.sent) - self._acked
            raise StoreError(f"{left} fragments were not acknowledged in {timeout_s:.0f} s")

    # --- as the client sees it -------------------------------------------------------------------

    def sources(self) -> Sequence[tuple[str, int]]:
        """Return the one source while it holds anything."""
        waiting = self.flood or self._acked < len(self.sent)
        return [(self.producer, EPOCH)] if waiting else []

    def boot(self, producer: str, epoch: int) -> str:
        """Return what every fragment says of who recorded it."""
        return BOOT

    def read(self, producer: str, epoch: int, start: int, limit: int) -> Sequence[Fragment]:
        """Return up to ``limit`` fragments from ``start`` on; makes them in a flood."""
        with self._news:
            while self.flood and len(self.sent) < start + limit:
                self.sent.append(Sent(self._factory.make(len(self.sent)), time.monotonic_ns()))
            found = self.sent[start : start + limit]
            return [sent.fragment for sent in found if sent.fragment is not None]

    def forget(self, producer: str, epoch: int, below: int) -> None:
        """Take note that everything below a sequence is on the head's disk."""
        now = time.monotonic_ns()
        with self._news:
            for sent in self.sent[self._acked : below]:
                sent.acked, sent.fragment = now, None
            self._acked = max(self._acked, below)
            self._news.notify_all()

    def set_aside(self, refused: Refused) -> None:
        """Take note of a refusal: the benchmark's fragments are sound, so it fails."""
        self.refused.append(refused)

    def lost(self, producer: str, epoch: int, sequence: int) -> Refused | None:
        """Nothing is ever lost here."""
        return None

    def note_stuck(self, producer: str, epoch: int, why: str) -> None:
        """Nothing is told: what is stuck is not acknowledged, and fails the benchmark."""

    def wait(self, timeout_s: float) -> bool:
        """Wait for something put since the last call returned."""
        with self._news:
            came = self._news.wait_for(lambda: self.flood or len(self.sent) > self._seen, timeout_s)
            self._seen = len(self.sent)
            return came
