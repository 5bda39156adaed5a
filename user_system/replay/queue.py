r"""A durable first-in first-out queue per source: what the edge's spool stands on.

Each item is bytes under (producer, epoch, sequence). ``append`` returns when the item is on disk;
``forget`` drops what the other side has on its own disk; what it refuses is set aside and kept.

Tables::

    items    producer \0 epoch sequence -> what waits (see ``items``)
    sources  producer \0 epoch          -> next sequence, whose it is, why stuck (see ``origin``)
    epochs   producer                   -> the newest epoch begun
    aside    producer \0 epoch sequence -> why, and what (see ``items``)
"""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from user_system.core.errors import StoreError
from user_system.replay import items
from user_system.replay.env import Env, Txn
from user_system.replay.items import Aside, Item, Source
from user_system.replay.origin import Origin
from user_system.replay.tables import U64

KIND = "spool"
TABLES = ("items", "sources", "epochs", "aside")


class Queue:
    """The queue of one host. Thread-safe; one process writes it.

    Args:
        path: its directory.
        max_bytes: quota of the bytes of items, those set aside included; a full queue refuses, it
            never drops.
        first_epoch: of producers that it does not know. Where it may replace a queue that was lost
            it must lie above all epochs of that one, or the other side takes new items for old
            ones: seconds since 1970 do.
        readonly: only look, beside whoever writes it; what is counted is as of opening.

    Example::

        queue = Queue(run / "spool", max_bytes=2 << 30).open(create=True)
        epoch = queue.begin_epoch("arm-1")
        queue.append("arm-1", epoch, 0, data)
    """

    def __init__(
        self,
        path: Path | str,
        *,
        max_bytes: int = 4 << 30,
        first_epoch: int = 1,
        readonly: bool = False,
    ):
        self._env = Env(path, KIND, TABLES, readonly=readonly)
        self._first_epoch = first_epoch
        self.max_bytes = max_bytes
        self._lock = threading.Lock()
        self._bytes: dict[Source, int] = {}
        self._counts: dict[Source, int] = {}
        self._aside = self._aside_bytes = 0
        self._appended = 0
        self._forgotten = 0

    def open(self, *, create: bool = False) -> "Queue":
        """Open it; what was appended before is there. See ``Env.open``."""
        self._env.open(create=create)
        self._tally()
        return self

    def close(self) -> None:
        """Let go of the directory; safe to repeat."""
        self._env.close()

    def __enter__(self) -> "Queue":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin_epoch(self, producer: str) -> int:
        """Return a new epoch of ``producer``, greater than every earlier one, remembered."""
        key = producer.encode()

        def work(txn: Txn) -> int:
            table = self._env.table("epochs")
            stored = txn.get(key, db=table)
            epoch = self._first_epoch if stored is None else int(U64.unpack(stored)[0]) + 1
            txn.put(key, U64.pack(epoch), db=table)
            return epoch

        return self._env.write(work)

    def next_sequence(self, producer: str, epoch: int) -> int:
        """Return the sequence that ``append`` takes next."""
        with self._env.read() as txn:
            return self._origin(txn, (producer, epoch)).following

    def boot(self, producer: str, epoch: int) -> str:
        """Return the boot of whoever recorded (producer, epoch); empty: nobody said it."""
        with self._env.read() as txn:
            return self._origin(txn, (producer, epoch)).boot

    def stuck(self, producer: str, epoch: int) -> str:
        """Return why the other side takes none of (producer, epoch); empty: it never said so."""
        with self._env.read() as txn:
            return self._origin(txn, (producer, epoch)).stuck

    def note_stuck(self, producer: str, epoch: int, why: str) -> None:
        """Note why the other side takes none of (producer, epoch); empty: it does again."""
        source = (producer, epoch)

        def work(txn: Txn) -> None:
            value = self._origin(txn, source)._replace(stuck=why).pack()
            txn.put(items.prefix(source), value, db=self._env.table("sources"))

        if self.stuck(producer, epoch) != why:
            self._env.write(work)

    def held(self, producer: str, epoch: int) -> tuple[int, int]:
        """Return how many items of (producer, epoch) wait, and their bytes."""
        with self._lock:
            source = (producer, epoch)
            return self._counts.get(source, 0), self._bytes.get(source, 0)

    def append(
        self, producer: str, epoch: int, sequence: int, data: bytes, *, boot: str = ""
    ) -> None:
        """Put one item at the end of (producer, epoch); on disk when this returns.

        Args:
            producer: whose it is.
            epoch: of its life.
            sequence: its number, the next one.
            data: what is kept.
            boot: of the process that recorded it; the first one that is said stays.

        Raises:
            StoreError: the quota or the disk is full, or ``sequence`` is not the next one; nothing
                was stored.
        """
        source = (producer, epoch)
        with self._lock:
            self._check_room(len(data))
            key, value = items.key(source, sequence), items.pack(data)

            def work(txn: Txn) -> None:
                expected = self._origin(txn, source).following
                if sequence != expected:
                    raise StoreError(
                        f"item of {producer} epoch {epoch} is out of order",
                        got=sequence,
                        allowed=expected,
                    )
                txn.put(key, value, db=self._env.table("items"))
                self._move(txn, source, sequence + 1, boot)

            self._env.write(work)
            self._count(source, 1, len(data))
            self._appended += 1

    def sources(self) -> Sequence[Source]:
        """Return each (producer, epoch) that holds items, newest epoch first."""
        with self._lock:
            waiting = [source for source, count in self._counts.items() if count]
        return sorted(waiting, key=lambda source: (-source[1], source[0]))

    def read(
        self, producer: str, epoch: int, start: int, limit: int, *, max_bytes: int = 64 << 20
    ) -> Sequence[Item]:
        """Return up to ``limit`` items of (producer, epoch) from sequence ``start``, in order.

        Stops before ``max_bytes``, but never returns nothing where there is something.

        Raises:
            DamageError: the first item's bytes are not those appended; set it aside. A later
                damaged one ends the answer before it.
        """
        found: list[Item] = []
        size = 0
        prefix = items.prefix((producer, epoch))
        with self._env.read() as txn:
            cursor = txn.cursor(self._env.table("items"))
            there = cursor.set_range(items.key((producer, epoch), start))
            while there and len(found) < limit and bytes(cursor.key()).startswith(prefix):
                sequence = U64.unpack(cursor.key()[-8:])[0]
                size += len(cursor.value())
                if found and size > max_bytes:
                    break
                if not items.sound(cursor.value()):
                    if found:
                        break
                    raise items.damage((producer, epoch), sequence)
                found.append(Item(sequence, items.unpack(cursor.value())))
                there = cursor.next()
        return found

    def forget(self, producer: str, epoch: int, below: int) -> int:
        """Drop the items of (producer, epoch) below a sequence; return how many there were."""
        source = (producer, epoch)
        end = items.key(source, below)

        def work(txn: Txn) -> tuple[int, int]:
            table = self._env.table("items")
            doomed: list[tuple[bytes, int]] = []
            cursor = txn.cursor(table)
            there = cursor.set_range(items.prefix(source))
            while there and bytes(cursor.key()) < end:
                doomed.append((bytes(cursor.key()), items.size(cursor.value())))
                there = cursor.next()
            for key, _ in doomed:
                txn.delete(key, db=table)
            return len(doomed), sum(size for _, size in doomed)

        with self._lock:
            if not self._counts.get(source):
                return 0
            count, size = self._env.write(work)
            self._count(source, -count, -size)
            self._forgotten += count
            return count

    def set_aside(self, producer: str, epoch: int, sequence: int, reason: str) -> bool:
        """Move one item to the quarantine; return whether it was there."""
        source = (producer, epoch)
        key = items.key(source, sequence)

        def work(txn: Txn) -> int | None:
            value = txn.get(key, db=self._env.table("items"))
            if value is None:
                return None
            data = items.unpack(value)
            txn.put(key, items.pack_aside(reason, data), db=self._env.table("aside"))
            txn.delete(key, db=self._env.table("items"))
            return len(data)

        with self._lock:
            size = self._env.write(work)
            if size is None:
                return False
            self._count(source, -1, -size)
            self._aside += 1
            self._aside_bytes += size
            return True

    def lose(self, producer: str, epoch: int, below: int, reason: str, *, boot: str = "") -> int:
        """Give up the items up to ``below`` that were never appended; return how many.

        Their places are kept aside, empty, so that the other side can be told to pass them over.
        ``boot`` as in ``append``.
        """
        source = (producer, epoch)
        value = items.pack_aside(reason, b"")

        def work(txn: Txn) -> int:
            missing = range(self._origin(txn, source).following, below)
            for sequence in missing:
                txn.put(items.key(source, sequence), value, db=self._env.table("aside"))
            if missing:
                self._move(txn, source, below, boot)
            return len(missing)

        with self._lock:
            count = self._env.write(work)
            self._aside += count
            return count

    def reason(self, producer: str, epoch: int, sequence: int) -> str | None:
        """Return why one item was set aside; None: it was not."""
        with self._env.read() as txn:
            value = txn.get(items.key((producer, epoch), sequence), db=self._env.table("aside"))
            return None if value is None else items.unpack_aside(value)[0]

    def first(self, producer: str, epoch: int) -> int | None:
        """Return the sequence of the oldest item of (producer, epoch); None: there is none."""
        prefix = items.prefix((producer, epoch))
        with self._env.read() as txn:
            cursor = txn.cursor(self._env.table("items"))
            if not cursor.set_range(prefix):
                return None
            key = bytes(cursor.key())
            return int(U64.unpack(key[-U64.size :])[0]) if key.startswith(prefix) else None

    def aside(self) -> Sequence[Aside]:
        """Return what was set aside."""
        found: list[Aside] = []
        with self._env.read() as txn:
            cursor = txn.cursor(self._env.table("aside"))
            there = cursor.first()
            while there:
                producer, epoch, sequence = items.parse(bytes(cursor.key()))
                reason, data = items.unpack_aside(cursor.value())
                found.append(Aside(producer, epoch, sequence, reason, data))
                there = cursor.next()
        return found

    @property
    def size_bytes(self) -> int:
        """Bytes of the items waiting, and of those set aside: the disk holds both."""
        return sum(self._bytes.values()) + self._aside_bytes

    def __len__(self) -> int:
        return sum(self._counts.values())

    def stats(self) -> Mapping[str, float]:
        """Return depth, bytes, quota, and counts since opening."""
        return {
            "items": float(len(self)),
            "bytes": float(self.size_bytes),
            "aside": float(self._aside),
            "max_bytes": float(self.max_bytes),
            "appended": float(self._appended),
            "forgotten": float(self._forgotten),
            **{f"disk_{key}": value for key, value in self._env.stats().items()},
        }

    def _check_room(self, size: int) -> None:
        if self.size_bytes + size > self.max_bytes:
            raise StoreError(
                f"the spool {self._env.path} is full",
                got=f"{len(self)} items waiting and {self._aside} set aside, "
                f"{self.size_bytes >> 20} MiB",
                allowed=f"{self.max_bytes >> 20} MiB",
                todo="Restore the link to the head, or give the spool a larger quota.",
            )

    def _origin(self, txn: Txn, source: Source) -> Origin:
        stored = txn.get(items.prefix(source), db=self._env.table("sources"))
        return Origin() if stored is None else Origin.parse(bytes(stored))

    def _move(self, txn: Txn, source: Source, following: int, boot: str) -> None:
        """Note which item comes next, and whose it is where nobody had said that."""
        known = self._origin(txn, source)
        moved = known._replace(following=following, boot=known.boot or boot)
        txn.put(items.prefix(source), moved.pack(), db=self._env.table("sources"))

    def _count(self, source: Source, items: int, size: int) -> None:
        self._counts[source] = self._counts.get(source, 0) + items
        self._bytes[source] = self._bytes.get(source, 0) + size
        if not self._counts[source]:
            del self._counts[source], self._bytes[source]

    def _tally(self) -> None:
        self._counts.clear()
        self._bytes.clear()
        self._aside = self._aside_bytes = 0
        with self._env.read() as txn:
            cursor = txn.cursor(self._env.table("items"))
            there = cursor.first()
            while there:
                producer, epoch, _ = items.parse(bytes(cursor.key()))
                self._count((producer, epoch), 1, items.size(cursor.value()))
                there = cursor.next()
            cursor = txn.cursor(self._env.table("aside"))
            there = cursor.first()
            while there:
                value = cursor.value()
                self._aside += 1
                self._aside_bytes += items.size_aside(value)
                there = cursor.next()
