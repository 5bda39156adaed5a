"""Numbers that one transaction goes on from: read once, written once, however much it stores."""

from user_system.replay import tables
from user_system.replay.env import Env, Txn
from user_system.replay.tables import U64


class Books:
    """The next offset of the log, and the next sequence of each source, within one transaction.

    Args:
        txn: the transaction.
        env: the writer's environment.
    """

    def __init__(self, txn: Txn, env: Env):
        self._txn, self._env = txn, env
        self._first = self._offset = tables.peek(txn, env, "offset")
        self._expected: dict[bytes, int] = {}
        self._moved: set[bytes] = set()

    def expected(self, source: bytes) -> int:
        """Return the next sequence of a source; see ``entries.source_key``."""
        if source not in self._expected:
            stored = tables.get(self._txn, self._env, "next", source)
            self._expected[source] = 0 if stored is None else int(U64.unpack(stored)[0])
        return self._expected[source]

    def move(self, source: bytes, expected: int) -> None:
        """Say that everything of a source below ``expected`` is dealt with."""
        self._expected[source] = expected
        self._moved.add(source)

    def take_offset(self) -> int:
        """Return the offset of the next entry of the log."""
        self._offset += 1
        return self._offset - 1

    def write(self) -> None:
        """Write what has changed; the last thing that a transaction does."""
        if self._offset != self._first:
            tables.put(self._txn, self._env, "meta", b"offset", U64.pack(self._offset))
        for source in self._moved:
            tables.put(self._txn, self._env, "next", source, U64.pack(self._expected[source]))
