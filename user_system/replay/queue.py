r"""A durable first-in first-out queue per source: what the edge's spool stands on.

Each item is bytes under (producer, epoch, sequence). ``append`` returns when the item is on disk;
``forget`` drops what the other side has on its own disk; what it refuses is set aside and kept.

Tables::

    items    producer \0 epoch sequence -> xxh3-64, bytes
    sources  producer \0 epoch          -> next sequence to append, whose it is (see ``origin``)
    epochs   producer                   -> the newest epoch begun
    aside    producer \0 epoch sequence -> length of reason, reason, bytes
"""

import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from user_system.core.errors import DamageError, StoreError
from user_system.replay.env import Env, Txn
from user_system.replay.origin import Origin

KIND = "spool"
TABLES = ("items", "sources", "epochs", "aside")
_U64 = struct.Struct(">Q")
_CHECKSUM = struct.Struct("<Q")
_LENGTH = struct.Struct("<I")

Source = tuple[str, int]
"""(producer, epoch)."""


@dataclass(frozen=True, slots=True)
class Item:
    """One queued message."""

    sequence: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Aside:
    """One message that the other side will never take, and why."""

    producer: str
    epoch: int
    sequence: int
    reason: str
    data: bytes


class Queue:
    """The queue of one host. Thread-safe; one process writes it.

    Args:
        path: its directory.
        max_bytes: quota of the bytes of items, those set aside included; a full queue refuses, it
            never drops.
        first_epoch: of producers that it does not know. Where it may replace a queue that was lost
            it must lie above all epochs of that one, or the other side takes new items for old
            ones: seconds since 1970 do.

    Example::

        queue = Queue(run / "spool", max_bytes=2 << 30).open(create=True)
        epoch = queue.begin_epoch("arm-1")
        queue.append("arm-1", epoch, 0, data)
    """

    def __init__(self, path: Path | str, *, max_bytes: int = 4 << 30, first_epoch: int = 1):
        self._env = Env(path, KIND, TABLES)
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
            epoch = self._first_epoch if stored is None else int(_U64.unpack(stored)[0]) + 1
            txn.put(key, _U64.pack(epoch), db=table)
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
            key, stamp = _key(source, sequence), _CHECKSUM.pack(xxhash.xxh3_64_intdigest(data))

            def work(txn: Txn) -> None:
                expected = self._origin(txn, source).following
                if sequence != expected:
                    raise StoreError(
                        f"item of {producer} epoch {epoch} is out of order",
                        got=sequence,
                        allowed=expected,
                    )
                txn.put(key, stamp + data, db=self._env.table("items"))
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
        items: list[Item] = []
        size = 0
        prefix = _prefix((producer, epoch))
        with self._env.read() as txn:
            cursor = txn.cursor(self._env.table("items"))
            there = cursor.set_range(_key((producer, epoch), start))
            while there and len(items) < limit and bytes(cursor.key()).startswith(prefix):
                sequence = _U64.unpack(cursor.key()[-8:])[0]
                size += len(cursor.value())
                if items and size > max_bytes:
                    break
                if not sound(cursor.value()):
                    if items:
                        break
                    raise _damage(producer, epoch, sequence)
                items.append(Item(sequence, bytes(cursor.value()[_CHECKSUM.size :])))
                there = cursor.next()
        return items

    def forget(self, producer: str, epoch: int, below: int) -> int:
        """Drop the items of (producer, epoch) below a sequence; return how many there were."""
        source = (producer, epoch)
        end = _key(source, below)

        def work(txn: Txn) -> tuple[int, int]:
            table = self._env.table("items")
            doomed: list[tuple[bytes, int]] = []
            cursor = txn.cursor(table)
            there = cursor.set_range(_prefix(source))
            while there and bytes(cursor.key()) < end:
                doomed.append((bytes(cursor.key()), len(cursor.value()) - _CHECKSUM.size))
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
        key, why = _key(source, sequence), reason.encode()

        def work(txn: Txn) -> int | None:
            value = txn.get(key, db=self._env.table("items"))
            if value is None:
                return None
            data = bytes(value[_CHECKSUM.size :])
            txn.put(key, _LENGTH.pack(len(why)) + why + data, db=self._env.table("aside"))
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
        value = _LENGTH.pack(len(reason.encode())) + reason.encode()

        def work(txn: Txn) -> int:
            missing = range(self._origin(txn, source).following, below)
            for sequence in missing:
                txn.put(_key(source, sequence), value, db=self._env.table("aside"))
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
            value = txn.get(_key((producer, epoch), sequence), db=self._env.table("aside"))
            return None if value is None else _parse_aside(bytes(value))[0]

    def first(self, producer: str, epoch: int) -> int | None:
        """Return the sequence of the oldest item of (producer, epoch); None: there is none."""
        prefix = _prefix((producer, epoch))
        with self._env.read() as txn:
            cursor = txn.cursor(self._env.table("items"))
            if not cursor.set_range(prefix):
                return None
            key = bytes(cursor.key())
            return int(_U64.unpack(key[-_U64.size :])[0]) if key.startswith(prefix) else None

    def aside(self) -> Sequence[Aside]:
        """Return what was set aside."""
        found: list[Aside] = []
        with self._env.read() as txn:
            cursor = txn.cursor(self._env.table("aside"))
            there = cursor.first()
            while there:
                producer, epoch, sequence = _parse(bytes(cursor.key()))
                reason, data = _parse_aside(bytes(cursor.value()))
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
        stored = txn.get(_prefix(source), db=self._env.table("sources"))
        return Origin() if stored is None else Origin.parse(bytes(stored))

    def _move(self, txn: Txn, source: Source, following: int, boot: str) -> None:
        """Note which item comes next, and whose it is where nobody had said that."""
        known = self._origin(txn, source)
        moved = known._replace(following=following, boot=known.boot or boot)
        txn.put(_prefix(source), moved.pack(), db=self._env.table("sources"))

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
                producer, epoch, _ = _parse(bytes(cursor.key()))
                self._count((producer, epoch), 1, len(cursor.value()) - _CHECKSUM.size)
                there = cursor.next()
            cursor = txn.cursor(self._env.table("aside"))
            there = cursor.first()
            while there:
                value = cursor.value()
                self._aside += 1
                self._aside_bytes += len(value) - _LENGTH.size - _LENGTH.unpack_from(value)[0]
                there = cursor.next()


def _prefix(source: Source) -> bytes:
    return source[0].encode() + b"\0" + _U64.pack(source[1])


def _key(source: Source, sequence: int) -> bytes:
    return _prefix(source) + _U64.pack(sequence)


def _parse(key: bytes) -> tuple[str, int, int]:
    return (key[:-17].decode(), _U64.unpack(key[-16:-8])[0], _U64.unpack(key[-8:])[0])


def _parse_aside(value: bytes) -> tuple[str, bytes]:
    end = _LENGTH.size + _LENGTH.unpack_from(value)[0]
    return value[_LENGTH.size : end].decode(), value[end:]


def sound(value: memoryview) -> bool:
    """Return whether the checksum of a stored item is right."""
    if len(value) < _CHECKSUM.size:
        return False
    stored = _CHECKSUM.unpack_from(value)[0]
    return bool(xxhash.xxh3_64_intdigest(value[_CHECKSUM.size :]) == stored)


def _damage(producer: str, epoch: int, sequence: int) -> DamageError:
    return DamageError(
        f"spooled item {sequence} of {producer} epoch {epoch} is not what was written",
        todo="Set it aside; the items behind it are sound.",
    )
