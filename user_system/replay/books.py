"""Numbers that one transaction goes on from: read once, written once, however much it stores."""

import struct
from collections.abc import Mapping
from typing import NamedTuple

import xxhash

from user_system.replay import tables
from user_system.replay.env import Env, Txn
from user_system.replay.tables import U64

_PROGRESS = struct.Struct(">QQ")
SIZES = (U64.size, _PROGRESS.size)
"""Bytes of a value of the table ``next``."""


class Progress(NamedTuple):
    """How far one source is."""

    expected: int = 0
    """The next sequence wanted."""
    life: int = 0
    """Of whoever began it, see ``life``; 0: not known."""

    @classmethod
    def parse(cls, value: bytes) -> "Progress":
        """Return what a value of the table ``next`` says; older ones do not say whose it is."""
        if len(value) == U64.size:
            return cls(*U64.unpack(value))
        return cls(*_PROGRESS.unpack(value))


def life(boot: str) -> int:
    """Return a number that tells one process that records from another; 0 for no name."""
    return int(xxhash.xxh3_64_intdigest(boot.encode(errors="surrogatepass"))) or 1 if boot else 0


class Books:
    """The next offset of the log, and the next sequence of each source, within one transaction.

    Args:
        txn: the transaction.
        env: the writer's environment.
    """

    def __init__(self, txn: Txn, env: Env):
        self._txn, self._env = txn, env
        self._offset: int | None = None
        self._known: dict[bytes, Progress] = {}
        self._moved: set[bytes] = set()

    def of(self, source: bytes) -> Progress:
        """Return how far a source is; see ``entries.source_key``."""
        if source not in self._known:
            stored = tables.get(self._txn, self._env, "next", source)
            self._known[source] = Progress() if stored is None else Progress.parse(stored)
        return self._known[source]

    def expected(self, source: bytes) -> int:
        """Return the next sequence of a source."""
        return self.of(source).expected

    def strange(self, source: bytes, boot: str) -> bool:
        """Return whether what is stored of a source was recorded by another process.

        Whoever does not say who it is may be any: it is not taken for the one that is known.
        """
        known = self.of(source).life
        return bool(known) and known != life(boot)

    def move(self, source: bytes, expected: int, boot: str = "") -> None:
        """Say that everything of a source below ``expected`` is dealt with."""
        self._known[source] = Progress(expected, self.of(source).life or life(boot))
        self._moved.add(source)

    def carry(self, sources: Mapping[bytes, Progress]) -> None:
        """Take over how far sources were in another store, where they were further there."""
        for source, there in sources.items():
            here = self.of(source)
            if there.expected > here.expected:
                self._known[source] = Progress(there.expected, here.life or there.life)
                self._moved.add(source)

    def take_offset(self) -> int:
        """Return the offset of the next entry of the log."""
        if self._offset is None:
            self._offset = tables.peek(self._txn, self._env, "offset")
        self._offset += 1
        return self._offset - 1

    def write(self) -> None:
        """Write what has changed; the last thing that a transaction does."""
        if self._offset is not None:
            tables.put(self._txn, self._env, "meta", b"offset", U64.pack(self._offset))
        for source in self._moved:
            value = _PROGRESS.pack(*self._known[source])
            tables.put(self._txn, self._env, "next", source, value)
