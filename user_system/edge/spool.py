"""The spool: no fragment that a loop put here is lost with any process, until the head has it.

``Spool`` is the edge's ``core.ports.Outbox``: robots' loops put fragments in, the experience client
takes them out. Putting must not wait for a disk (a sync takes several periods of a fast robot
clock), so a fragment goes into a journal first: one ring per robot, in a file, hence in the page
cache, which outlives every process. A thread carries it on into ``user_system.replay.queue``, which
syncs; only what is there travels, so only what survives a power cut is ever acknowledged. After a
kill the journal's rest is carried on by the next life.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from user_system.codec import fragments as codec
from user_system.core.errors import DamageError, LinkError, StoreError
from user_system.core.ports import Refused
from user_system.core.types import Fragment
from user_system.edge.rings import Ring

log = logging.getLogger(__name__)

JOURNAL_FRAGMENTS = 8
"""Fragments of the largest size that a journal holds."""


class Item(Protocol):
    """One kept record."""

    @property
    def sequence(self) -> int:
        """Its number within producer and epoch."""

    @property
    def data(self) -> bytes:
        """Its bytes."""


class Keeper(Protocol):
    """A durable queue of byte strings; ``user_system.replay.queue.Queue`` is one."""

    @property
    def size_bytes(self) -> int:
        """Bytes kept."""

    def __len__(self) -> int:
        """Return how many records wait."""

    def begin_epoch(self, producer: str) -> int:
        """Return the next epoch of ``producer``."""

    def next_sequence(self, producer: str, epoch: int) -> int:
        """Return the sequence that ``append`` takes next."""

    def boot(self, producer: str, epoch: int) -> str:
        """Return the boot of whoever recorded (producer, epoch); empty: nobody said it."""

    def append(
        self, producer: str, epoch: int, sequence: int, data: bytes, *, boot: str = ""
    ) -> None:
        """Keep a record, and whose it is; both survive a power cut when this returns."""

    def sources(self) -> Sequence[tuple[str, int]]:
        """Return each (producer, epoch) with records, newest epoch first."""

    def read(self, producer: str, epoch: int, start: int, limit: int) -> Sequence[Item]:
        """Return records in order."""

    def forget(self, producer: str, epoch: int, below: int) -> int:
        """Drop records."""

    def first(self, producer: str, epoch: int) -> int | None:
        """Return the sequence of the oldest record; None: there is none."""

    def note_stuck(self, producer: str, epoch: int, why: str) -> None:
        """Note why the other side takes none of (producer, epoch); empty: it does."""

    def set_aside(self, producer: str, epoch: int, sequence: int, reason: str) -> bool:
        """Move a record to quarantine."""

    def lose(self, producer: str, epoch: int, below: int, reason: str, *, boot: str = "") -> int:
        """Give up the records up to ``below`` that were never appended; return how many."""

    def reason(self, producer: str, epoch: int, sequence: int) -> str | None:
        """Return why a record was set aside; None: it was not."""

    def stats(self) -> Mapping[str, float]:
        """Return counters and gauges."""


class Spool:
    """Fragments on their way to the head. Thread-safe; one thread per producer puts.

    Args:
        queue: opened; its own quota must leave room above ``quota_bytes`` for the episodes at hand.
        quota_bytes: above this the spool says that it is full; episodes at hand are finished.
        journal_bytes: size of each journal at least.
    """

    def __init__(self, queue: Keeper, quota_bytes: int, journal_bytes: int = 4 << 20):
        self._queue, self._quota = queue, quota_bytes
        self._journal_bytes = journal_bytes
        self._directory: Path
        self._journals: dict[str, Ring] = {}
        self._news = threading.Condition()
        self._work = threading.Condition()
        self._open = False
        self._thread = threading.Thread(target=self._carry, name="spool", daemon=True)
        self._count = self._seen = self._lost = 0
        self._error = ""

    @property
    def full(self) -> bool:
        """Whether no further episode should begin: the quota is used up, or the disk refuses."""
        return bool(self._error) or self._queue.size_bytes >= self._quota

    @property
    def depth(self) -> int:
        """Fragments that the head has not acknowledged."""
        return len(self._queue)

    def start(self, directory: Path) -> None:
        """Begin to carry fragments from the journals, which lie in ``directory``, to the disk."""
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._open = True
        self._thread.start()

    def begin_epoch(self, producer: str, largest: int = 0) -> int:
        """Open the next uninterrupted life of ``producer``; what the last one left is carried on.

        Args:
            producer: a robot's name.
            largest: bytes of its largest fragment; the journal holds several.

        Raises:
            StoreError: the disk does not take what the last life left.
        """
        if producer not in self._journals:
            path = self._directory / f"{producer}.journal"
            if path.exists():
                self._finish(Ring(path))
            journal = Ring(path, max(self._journal_bytes, JOURNAL_FRAGMENTS * largest))
            journal.open()
            with self._work:
                self._journals[producer] = journal
        return self._queue.begin_epoch(producer)

    def carry_on(self, directory: Path) -> None:
        """Carry on what earlier lives left in any journal of ``directory``; for a spool at rest.

        Raises:
            StoreError: the disk does not take it.
        """
        for path in sorted(directory.glob("*.journal")):
            self._finish(Ring(path))

    def _finish(self, left: Ring) -> None:
        """Carry on what the last life left in its journal.

        A journal is not flushed, so a power cut may leave any part of it. One that is none is put
        aside: what it held was not on disk, and the robot must be able to start.
        """
        try:
            left.open()
        except LinkError as error:
            aside = left.path.with_suffix(f".damaged-{time.time_ns()}")
            left.path.rename(aside)
            log.error("%s is no journal and was put aside as %s: %s", left.path, aside.name, error)
            return
        try:
            while left.waiting:
                self._carry_one(left)
        finally:
            left.close()

    def backlog(self, producer: str, epoch: int) -> int:
        """Return how many fragments of this life of the producer the head does not have."""
        oldest = self._queue.first(producer, epoch)
        return 0 if oldest is None else self._queue.next_sequence(producer, epoch) - oldest

    def put(self, fragment: Fragment) -> None:
        """Keep ``fragment``; it survives the end of any process when this returns.

        Raises:
            StoreError: the journal is full, because the disk has refused for long.
            SpecError: it breaks a rule that readers rely on; nothing was kept.
        """
        codec.check(fragment)
        if not self._journals[fragment.header.producer].put(codec.encode(fragment)):
            raise StoreError(
                "the spool's journal is full",
                got=self._error or "a disk that is too slow",
                todo="See to the disk.",
            )
        with self._work:
            self._work.notify()

    def _carry(self) -> None:
        while self._open or self.waiting:
            with self._work:
                if not self.waiting:
                    self._work.wait(0.2)
                journals = list(self._journals.values())
            try:
                for journal in journals:
                    self._carry_one(journal)
            except StoreError as error:
                if not self._error:
                    log.error("the spool waits for its disk: %s", error)
                self._error = str(error)
                if not self._open:
                    return  # the journal keeps it for the next life
                time.sleep(0.5)
            else:
                self._error = ""

    def _carry_one(self, journal: Ring) -> None:
        """Carry one fragment to the disk; one that is there already was carried before a kill."""
        data = journal.peek()
        if data is None:
            return
        try:
            header = codec.decode(data).header
        except DamageError as error:
            log.error("%s: a fragment is lost: %s", journal.path, error)
            self._lost += 1
            journal.advance(data)
            return
        source = header.producer, header.epoch
        expected = self._queue.next_sequence(*source)
        if header.sequence > expected:
            # Only damage to the journal can do that; those behind it would be refused for ever.
            why = "damaged in the spool's journal"
            self._lost += self._queue.lose(*source, header.sequence, why, boot=header.boot)
            log.error("%s: fragments %d.. are lost", journal.path, expected)
        if header.sequence >= expected:
            self._queue.append(*source, header.sequence, data, boot=header.boot)
        journal.advance(data)
        with self._news:
            self._count += 1
            self._news.notify_all()

    @property
    def waiting(self) -> int:
        """Bytes that no process can lose but a power cut could."""
        return sum(journal.waiting for journal in list(self._journals.values()))

    def close(self) -> None:
        """Carry on what is in the journals, then stop; the queue stays open."""
        self._open = False
        with self._work:
            self._work.notify()
        if self._thread.is_alive():
            self._thread.join(30.0)
        for journal in self._journals.values():
            journal.close()

    def sources(self) -> Sequence[tuple[str, int]]:
        """Return each (producer, epoch) with unacknowledged fragments, newest epoch first."""
        return self._queue.sources()

    def read(self, producer: str, epoch: int, start: int, limit: int) -> Sequence[Fragment]:
        """Return up to ``limit`` fragments in order, from the first kept one >= ``start`` on.

        A damaged one is set aside, so that it neither travels nor blocks those behind it.
        """
        while True:
            try:
                items = self._queue.read(producer, epoch, start, limit)
                break
            except DamageError as error:
                if not self._quarantine(producer, epoch, start, str(error)):
                    raise
        found = []
        for item in items:
            try:
                found.append(codec.decode(item.data))
            except DamageError as error:
                self._queue.set_aside(producer, epoch, item.sequence, str(error))
                self._lost += 1
                break  # those behind it come with the next call, from a start past it
        return found

    def _quarantine(self, producer: str, epoch: int, start: int, reason: str) -> bool:
        """Set the first record from ``start`` on aside; the queue found it damaged."""
        self._lost += 1
        ahead = range(start, self._queue.next_sequence(producer, epoch))
        return any(self._queue.set_aside(producer, epoch, number, reason) for number in ahead)

    def forget(self, producer: str, epoch: int, below: int) -> None:
        """Drop everything of (producer, epoch) below a sequence: it is on the head's disk."""
        self._queue.forget(producer, epoch, below)

    def set_aside(self, refused: Refused) -> None:
        """Move a refused fragment to quarantine, so that it neither blocks nor is lost."""
        self._queue.set_aside(refused.producer, refused.epoch, refused.sequence, refused.reason)

    def lost(self, producer: str, epoch: int, sequence: int) -> Refused | None:
        """Return why a fragment will never be read, and whose it was; None: it may be."""
        reason = self._queue.reason(producer, epoch, sequence)
        if reason is None:
            return None
        return Refused(producer, epoch, sequence, reason, self.boot(producer, epoch))

    def boot(self, producer: str, epoch: int) -> str:
        """Return the boot of the process that recorded (producer, epoch); empty: nobody knows.

        The queue's books say it, whatever became of the fragments. Those of an earlier version do
        not; there it is what the first fragment says that can be read.
        """
        known = self._queue.boot(producer, epoch)
        if known:
            return known
        # One that cannot be read is set aside by reading it, so this ends.
        while self._queue.first(producer, epoch) is not None:
            if found := self.read(producer, epoch, 0, 1):
                return found[0].header.boot
        return ""

    def note_stuck(self, producer: str, epoch: int, why: str) -> None:
        """Note why the head takes none of (producer, epoch); empty: it does.

        A disk that refuses must not end the session of all others: it is only not known then.
        """
        try:
            self._queue.note_stuck(producer, epoch, why)
        except StoreError as error:
            log.error("that %s/%d is stuck could not be noted: %s", producer, epoch, error)

    def wait(self, timeout_s: float) -> bool:
        """Wait for something new to send; False on timeout."""
        with self._news:
            came = self._news.wait_for(lambda: self._count > self._seen, timeout_s)
            self._seen = self._count
            return came

    def stats(self) -> dict[str, float]:
        """Return counters and gauges."""
        queue = {f"spool_{name}": value for name, value in self._queue.stats().items()}
        return {
            **queue,
            "spool_put": float(self._count),
            "spool_lost": float(self._lost),
            "spool_journal_bytes": float(self.waiting),
        }
