"""What leaves a store, and how: by quota, or because an engineer said so.

A removal is one transaction: the records and images go, and an entry of the table ``gone`` says
which, why and by whom, so that no reader serves them again. LMDB uses their pages again once no
reader's snapshot is older; the file does not shrink.
"""

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from user_system.codec import arrays, fragments
from user_system.core.errors import SpecError, StoreError
from user_system.replay import entries, images, mapped, places, tables
from user_system.replay.env import Env, Txn
from user_system.replay.ledger import COMPLETE, LIVE, Ledger
from user_system.replay.pinning import Pinning
from user_system.replay.tables import U64

log = logging.getLogger(__name__)

_ROOM = 0.02
"""Share of the quota that is made free at once: small enough for one transaction, large enough that
it is not needed with each append."""

_OUTGROWN = 1.2
"""File size, as a share of the quota, from which a reader's snapshot is not waited for."""

_PATIENCE_S = 1.0
"""Age of a snapshot that nobody of ours needs."""

_LOOK_S = 0.005

_LEEWAY = 64 << 20
"""Bytes that are made free in the file where the disk has no more to give."""

_MOST_AT_ONCE = 256 << 20
"""Bytes removed in one transaction, or those who wait for an ack would notice."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a store may get."""

    quota_bytes: int | None = None
    """Of all it holds; None: no limit but the disk's. The file may be a quarter larger."""
    reserve_bytes: int = 0
    """Disk space that it leaves free."""


def elsewhere(record: bytes) -> bytes:
    """Return an entry of ``gone`` for another store: without offsets, which are others there.

    Raises:
        DamageError: it is none.
    """
    meta, columns = arrays.unpack(record)
    none = np.empty(0, np.uint64)
    return arrays.pack(meta, {"offsets": none, "identities": columns["identities"]})


class Retention:
    """Keeps one store within its limits.

    Args:
        env: the writer's environment.
        ledger: its books.
        pinning: knows who keeps pages from being used again.
        limits: how large it may get.
    """

    def __init__(self, env: Env, ledger: Ledger, pinning: Pinning, limits: Limits):
        self._env = env
        self._ledger = ledger
        self._pinning = pinning
        self._quota = limits.quota_bytes
        self._reserve = limits.reserve_bytes

    def live_bytes(self, txn: Txn) -> int:
        """Return the bytes of all pages that hold something."""
        return self._env.used(txn)

    def make_room(self, txn: Txn) -> None:
        """Remove the oldest episodes of the lowest rank where a limit is reached.

        Raises:
            StoreError: it is reached, and nothing that is left may go.
        """
        self._check_file()
        live = self.live_bytes(txn)
        wanted, limit = self._excess(live)
        if wanted <= 0:
            return
        keys = self._ledger.oldest(txn, min(wanted, _MOST_AT_ONCE))
        self.remove(txn, keys, who="retention", why=limit)
        if not keys and (self._quota is None or live > self._quota):
            raise StoreError(
                f"{self._env.path} has reached its limit, and all it holds is being recorded",
                got=f"{live >> 20} MiB",
                allowed=limit,
                todo="Make space on the disk, or give the replay a larger quota.",
            )

    def _excess(self, live: int) -> tuple[int, str]:
        """Return how many bytes have to go, and which limit says so; 0: none have to."""
        if self._quota is not None and live > self._quota * (1 - _ROOM):
            room = int(self._quota * _ROOM)
            return live - (self._quota - room) + room, f"quota of {self._quota >> 20} MiB"
        # Space within the file is as good as space beside it.
        if self._reserve and self._env.size() - live < _LEEWAY:
            free = shutil.disk_usage(self._env.path).free
            if free < self._reserve:
                return _LEEWAY, f"{self._reserve >> 20} MiB of the disk stay free"
        return 0, ""

    def _check_file(self) -> None:
        """Refuse to let the file grow while somebody keeps what was removed from being used again.

        Raises:
            StoreError: the file has outgrown its quota, and a reader's snapshot is why.
        """
        if self._quota is None or self._env.size() < _OUTGROWN * self._quota:
            return
        newest = self._env.transaction()
        while (pinned := self._pinning.look(time.monotonic())) is not None:
            pin, age_s = pinned
            if pin.transaction >= newest:
                return  # what it keeps is not removed yet
            if age_s > _PATIENCE_S:
                raise StoreError(
                    f"{self._env.path} may not grow: process {pin.pid} keeps what was removed",
                    got=f"{self._env.size() >> 20} MiB, a snapshot of {age_s:.0f} s",
                    allowed=f"{int(_OUTGROWN * self._quota) >> 20} MiB",
                    todo="It goes on when that process does, or is ended, which happens by itself.",
                )
            time.sleep(_LOOK_S)

    def delete(self, episode: str, *, who: str, why: str) -> int:
        """Remove every episode of this id; see ``Store.delete``."""

        def work(txn: Txn) -> int:
            held = [h for h in self._ledger.held(txn) if h.episode == episode]
            if not held:
                raise SpecError("no such episode", got=episode, todo="`replay stats` lists them.")
            if any(h.entry.flags & LIVE and not h.entry.flags & COMPLETE for h in held):
                raise SpecError(
                    "episode is being recorded", got=episode, todo="Wait until it has ended."
                )
            return len(self.remove(txn, [h.key for h in held], who=who, why=why))

        return self._env.write(work)

    def remove(self, txn: Txn, keys: Sequence[bytes], *, who: str, why: str) -> list[int]:
        """Remove episodes by their keys in the ledger; return the offsets of their fragments."""
        offsets = sorted(offset for key in keys for offset in self._ledger.remove(txn, key))
        identities = [self._identity(txn, offset) for offset in offsets]
        for offset in offsets:
            txn.delete(U64.pack(offset), db=self._env.table("log"))
            self._remove_images(txn, offset)
        if offsets:
            number = tables.count(txn, self._env, "gone")
            meta: dict[str, arrays.Json] = {"who": who, "why": why, "episodes": len(keys)}
            meta["wall_ns"] = time.time_ns()
            columns = {"offsets": offsets, "identities": identities}
            record = arrays.pack(meta, {n: np.array(v, np.uint64) for n, v in columns.items()})
            tables.append(txn, self._env, "gone", U64.pack(number), record)
            self._remove_blocks(txn)
        return offsets

    def _identity(self, txn: Txn, offset: int) -> int:
        """Return who a fragment is, so that it stays removed whatever is made of this store."""
        value = txn.get(U64.pack(offset), db=self._env.table("log"))
        return 0 if value is None else entries.identity(fragments.decode(value).header)

    def _remove_images(self, txn: Txn, offset: int) -> None:
        key, table = U64.pack(offset), self._env.table("places")
        data = txn.get(key, db=table)
        if data is None:
            return
        # By name: a cursor would read what it walks over, from disk where need be.
        for place in list(places.decode(data)):
            name = images.key(offset, place.camera, place.group)
            mapped.require_header(self._env.file, place.position, place.size)
            txn.delete(name, db=self._env.table("images"))
        txn.delete(key, db=table)

    def _remove_blocks(self, txn: Txn) -> None:
        """Remove the oldest blocks as long as nothing is left of what they repeat."""
        first = next(tables.entries(txn, self._env, "log", 0), None)
        lowest = tables.peek(txn, self._env, "offset") if first is None else first[0]
        while (start := tables.next_block(txn, self._env, 0)) < 1 << 63:
            end = max(place.end for place in tables.blocks(txn, self._env, start))
            # The newest stays: it says how far the log is in blocks.
            if end > lowest or end == tables.blocked(txn, self._env):
                return
            tables.remove_blocks(txn, self._env, start)
