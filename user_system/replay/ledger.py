r"""Who holds how much of a store, and who has to go first when it is full.

Tables::

    episodes  key                    -> first and last offset, fragments, bytes, segments, flags,
                                        rank, then producer \0 epoch \0 episode
    pieces    key offset             -> bytes of one fragment, images included
    order     rank first-offset      -> key: the front of it goes first
    live      producer               -> key of the episode that it is recording

``key`` is a hash of (producer, epoch, episode). Episodes go as a whole, the oldest of the lowest
rank first: what a robot did by itself goes before what a person corrected, and that before
demonstrations. An episode that is still being recorded never goes.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import xxhash

from user_system.core.types import Fragment, FragmentHeader, Segment
from user_system.replay import tables
from user_system.replay.env import Env, Txn
from user_system.replay.tables import U64

_ENTRY = struct.Struct("<QQIQHBB")
_SIZE = struct.Struct("<Q")
_RANK = struct.Struct(">BQ")
_KEY_BYTES = 16

COMPLETE, LIVE = 1, 2
_RECORDING = 255
"""Rank of an episode that is being recorded: behind all others."""

_HELPED = (1 << Segment.RECOVERY) | (1 << Segment.CORRECTION)


class Entry(NamedTuple):
    """What the ledger knows of an episode."""

    first: int
    last: int
    fragments: int
    size: int
    """Bytes of its records and images."""
    segments: int
    """Bit ``1 << Segment`` of each segment that it has a step of."""
    flags: int
    rank: int


class Piece(NamedTuple):
    """One fragment that is stored."""

    offset: int
    fragment: Fragment
    size: int
    """Bytes of its record and images."""


@dataclass(frozen=True, slots=True)
class Held:
    """One episode in the store."""

    key: bytes
    producer: str
    epoch: int
    episode: str
    entry: Entry


def key_of(producer: str, epoch: int, episode: str) -> bytes:
    """Return the key of an episode."""
    return xxhash.xxh3_128_digest("\0".join((producer, str(epoch), episode)).encode())


def _episode_of(piece: Piece) -> bytes:
    header = piece.fragment.header
    return key_of(header.producer, header.epoch, header.episode)


def rank(segments: int) -> int:
    """Return when an episode with these segments has to go: 0 first, 2 last."""
    if segments >> Segment.DEMO & 1:
        return 2
    return 1 if segments & _HELPED else 0


class Ledger:
    """Books of one store; every method works inside the caller's transaction and keeps no state."""

    def __init__(self, env: Env):
        self._env = env

    def add(self, txn: Txn, stored: Iterable[Piece]) -> None:
        """Enter what one transaction stores, in its order.

        What follows one another of an episode is entered at once.
        """
        # Episodes of several producers come mixed, and know nothing of one another.
        by_producer = sorted(stored, key=lambda each: each.fragment.header.producer)
        for key, group in groupby(by_producer, key=_episode_of):
            self._enter(txn, key, list(group))

    def _enter(self, txn: Txn, key: bytes, group: Sequence[Piece]) -> None:
        """Enter fragments of one episode."""
        header = group[0].fragment.header
        old = self._get(txn, key)
        if old is None:
            self._begin(txn, header, key)
            old = Entry(group[0].offset, group[0].offset, 0, 0, 0, LIVE, _RECORDING)
        labels = {label for each in group for label in each.fragment.segment.tolist()}
        segments = old.segments | sum(1 << label for label in labels)
        flags = COMPLETE if any(each.fragment.final for each in group) else old.flags
        new = Entry(
            old.first,
            group[-1].offset,
            old.fragments + len(group),
            old.size + sum(each.size for each in group),
            segments,
            flags,
            _RECORDING if flags & LIVE else rank(segments),
        )
        name = "\0".join((header.producer, str(header.epoch), header.episode)).encode()
        self._put(txn, key, new, name, None if old.fragments == 0 else old.rank)
        for each in group:
            piece = key + U64.pack(each.offset)
            tables.put(txn, self._env, "pieces", piece, _SIZE.pack(each.size))

    def remove(self, txn: Txn, key: bytes) -> list[int]:
        """Strike an episode out; return the offsets of its fragments."""
        entry = self._get(txn, key)
        if entry is None:
            return []
        offsets = []
        pieces = self._env.table("pieces")
        cursor = txn.cursor(pieces)
        there = cursor.set_range(key)
        while there and (piece := bytes(cursor.key())).startswith(key):
            tables.unseal(piece, cursor.value())
            offsets.append(int(U64.unpack(piece[_KEY_BYTES:])[0]))
            there = cursor.next()
        for offset in offsets:
            txn.delete(key + U64.pack(offset), db=pieces)
        txn.delete(_RANK.pack(entry.rank, entry.first), db=self._env.table("order"))
        txn.delete(key, db=self._env.table("episodes"))
        return offsets

    def last(self, txn: Txn, key: bytes) -> int | None:
        """Return the offset of an episode's last fragment; None: there is no such episode."""
        entry = self._get(txn, key)
        return None if entry is None else entry.last

    def oldest(self, txn: Txn, size: int) -> Sequence[bytes]:
        """Return keys of the episodes to remove next, until they hold ``size`` bytes.

        Fewer where none may go.
        """
        found: list[bytes] = []
        cursor = txn.cursor(self._env.table("order"))
        there = cursor.first()
        while there and size > 0 and _RANK.unpack(cursor.key())[0] != _RECORDING:
            key = tables.unseal(bytes(cursor.key()), cursor.value())
            entry = self._get(txn, key)
            found.append(key)
            size -= 0 if entry is None else entry.size
            there = cursor.next()
        return found

    def held(self, txn: Txn) -> Iterator[Held]:
        """Yield every episode."""
        cursor = txn.cursor(self._env.table("episodes"))
        there = cursor.first()
        while there:
            value = tables.unseal(bytes(cursor.key()), cursor.value())
            producer, epoch, episode = value[_ENTRY.size :].decode().split("\0", 2)
            entry = Entry(*_ENTRY.unpack_from(value))
            yield Held(bytes(cursor.key()), producer, int(epoch), episode, entry)
            there = cursor.next()

    def _begin(self, txn: Txn, header: FragmentHeader, key: bytes) -> None:
        """Note which episode a producer records; what it recorded before is over, ended or not."""
        producer = header.producer.encode()
        before = tables.get(txn, self._env, "live", producer)
        tables.put(txn, self._env, "live", producer, key)
        value = before and tables.get(txn, self._env, "episodes", before)
        if not before or not value:
            return
        entry = Entry(*_ENTRY.unpack_from(value))
        if entry.flags & LIVE:
            over = entry._replace(flags=entry.flags & ~LIVE, rank=rank(entry.segments))
            self._put(txn, before, over, value[_ENTRY.size :], entry.rank)

    def _get(self, txn: Txn, key: bytes) -> Entry | None:
        value = tables.get(txn, self._env, "episodes", key)
        return None if value is None else Entry(*_ENTRY.unpack_from(value))

    def _put(self, txn: Txn, key: bytes, entry: Entry, name: bytes, old_rank: int | None) -> None:
        tables.put(txn, self._env, "episodes", key, _ENTRY.pack(*entry) + name)
        if old_rank == entry.rank:
            return
        order = self._env.table("order")
        if old_rank is not None:
            txn.delete(_RANK.pack(old_rank, entry.first), db=order)
        tables.put(txn, self._env, "order", _RANK.pack(entry.rank, entry.first), key)
