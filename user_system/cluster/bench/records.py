"""What a run's replay buffer and spools hold, read beside their writers, who may be dead."""

import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from user_system.cluster.bench.history import Entry, Source
from user_system.cluster.configs import EdgeHostConfig
from user_system.cluster.parse import read_json
from user_system.codec import fragments
from user_system.core.types import Fragment
from user_system.replay import queue, store, tables
from user_system.replay.books import Progress
from user_system.replay.env import Env
from user_system.replay.origin import Origin
from user_system.replay.txn import Cursor

_U64 = struct.Struct(">Q")


class Records:
    """Read-only views of one run; open inside a ``with`` block.

    Args:
        run: its directory.
        spools: those of its robot hosts; None: of the hosts that its configs name.
    """

    def __init__(self, run: Path, spools: Sequence[Path] | None = None):
        hosts = [read_json(path, EdgeHostConfig) for path in run.glob("config/edge-*.json")]
        places = [host.directory / "spool" for host in hosts] if spools is None else spools
        self._replay = store.reader(run / "replay")
        self._spools = [Env(place, queue.KIND, queue.TABLES, readonly=True) for place in places]
        self._stack = ExitStack()

    def __enter__(self) -> "Records":
        for env in (self._replay, *self._spools):
            self._stack.enter_context(env.open())
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def acked(self) -> dict[Source, int]:
        """Return source -> fragments that the replay buffer has taken and may have acknowledged."""
        rows = _rows(self._replay, "next")
        return {
            _source(key): Progress.parse(tables.unseal(key, value)).expected for key, value in rows
        }

    def refused(self) -> int:
        """Return how many fragments the replay buffer refused for good."""
        with self._replay.read() as txn:
            return sum(1 for _ in _keys(txn.cursor(self._replay.table("refused"))))

    def spooled(self) -> dict[Source, int]:
        """Return source -> fragments that its host has ever spooled."""
        found: dict[Source, int] = {}
        for env in self._spools:
            rows = _rows(env, "sources")
            found.update({_source(key): Origin.parse(value).following for key, value in rows})
        return found

    def waiting(self) -> dict[Source, set[int]]:
        """Return source -> sequences in the spool that are not known to be acknowledged."""
        found: dict[Source, set[int]] = {}
        for env in self._spools:
            with env.read() as txn:
                for key in _keys(txn.cursor(env.table("items"))):
                    found.setdefault(_source(key[:-8]), set()).add(_U64.unpack(key[-8:])[0])
        return found

    def log(self) -> list[Entry]:
        """Return all fragments of the replay buffer, in its order, as a history needs them.

        Raises:
            DamageError: a record is not what was written.
        """
        return [entry(fragment) for fragment in self.fragments()]

    def fragments(self) -> list[Fragment]:
        """Return all fragments of the replay buffer, in its order; raises as ``log``."""
        with self._replay.read() as txn:
            return [
                fragments.decode(bytes(value))
                for _, value in tables.entries(txn, self._replay, "log", 0)
            ]


def entry(fragment: Fragment) -> Entry:
    """Return what a history needs to know of a fragment."""
    header, steps = fragment.header, len(fragment)
    return Entry(
        producer=header.producer,
        epoch=header.epoch,
        sequence=header.sequence,
        episode=header.episode,
        start=header.start,
        steps=steps,
        final=fragment.final,
        last_ns=int(fragment.robot_ns[steps - 1]),
    )


def _rows(env: Env, table: str) -> list[tuple[bytes, bytes]]:
    with env.read() as txn:
        cursor = txn.cursor(env.table(table))
        return [(key, bytes(cursor.value())) for key in _keys(cursor)]


def _keys(cursor: Cursor) -> Iterator[bytes]:
    there = cursor.first()
    while there:
        yield bytes(cursor.key())
        there = cursor.next()


def _source(key: bytes) -> Source:
    return (key[:-9].decode(), _U64.unpack(key[-8:])[0])
