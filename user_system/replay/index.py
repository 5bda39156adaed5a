"""The reader's index: everything but images, in memory, brought up to date from the log.

``refresh`` reads what the writer committed since the last one, and costs a few microseconds where
that is nothing. The index is a function of (how much of the log, how many labels) and of nothing
else, whatever the steps in which it got there: that is what makes draws repeatable. What was
removed since is left out of it, whenever it was removed.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from user_system.codec import arrays, fragments
from user_system.core.errors import DamageError, SpecError
from user_system.core.types import Array, Fragment
from user_system.replay import layout, tables
from user_system.replay.blocks import Block
from user_system.replay.columns import Column
from user_system.replay.env import Env, Txn
from user_system.replay.filling import Filling
from user_system.replay.rows import Label, Rows
from user_system.replay.schema import Schema

log = logging.getLogger(__name__)

Take = Callable[[int, Any], None]
"""Takes over one entry: number, value."""

_PER_SNAPSHOT = 4096
"""Entries read per transaction: a long one keeps the writer from reusing pages."""

_HEADROOM = 1.125
"""Space for so many times of what the log is expected to hold; what is not used costs nothing."""

_MAX_WANTED = 64
"""Versions of labels that have a column each."""


class Mark(NamedTuple):
    """How far a reader has read: the next entry of the log, and of the labels."""

    log: int = 0
    label: int = 0


class Index:
    """Rows of every schema in a store. For one thread.

    Args:
        env: an open environment on the store, the writer's own or a read-only one.
    """

    def __init__(self, env: Env):
        self.env = env
        self.mark = Mark()
        self.rows: dict[str, Rows] = {}
        self.damaged_records = 0
        self._labels: dict[str, dict[str, Label]] = {}
        self._wanted: set[str] = set()
        """Columns ``<label>@<version>``."""
        self._removals = 0
        """Entries of ``gone`` taken over."""
        self._gone = Column("uint64")
        """Offsets of all fragments that were removed."""
        self._compared: int | None = None
        """How far the rows were compared with what the log has; None: every removal is known."""
        self._snapshot = -1
        self._bad_blocks: set[int] = set()

    def refresh(self, limit: Mark | None = None) -> bool:
        """Take over what is new, up to ``limit``; return whether there was anything."""
        if self.env.transaction() == self._snapshot:
            return False
        snapshot = self.env.snapshot()
        before = self.mark, self._removals
        stop = limit or Mark(1 << 63, 1 << 63)
        while self._read_entries("labels", self.mark.label, stop.label, self._take_label):
            pass
        while self._read_log(stop.log):
            pass
        while self._read_entries("gone", self._removals, 1 << 63, self._take_removal):
            pass
        self._leave_out_absent()
        # A limit leaves the rest for later, so the next call must look again.
        self._snapshot = snapshot if limit is None else -1
        return (self.mark, self._removals) != before

    def want(self, column: str) -> None:
        """Have what one version of a label says as a column, ``<label>@<version>``, from now on.

        Raises:
            SpecError: too many were wanted.
        """
        if column in self._wanted:
            return
        if len(self._wanted) >= _MAX_WANTED:
            raise SpecError("versions of labels", got=column, allowed=f"{_MAX_WANTED} at a time")
        self._wanted.add(column)
        start = 0

        def take(number: int, value: Any) -> None:
            nonlocal start
            start = number + 1
            read = self._unpack("label", number, value, count=False)
            if read is not None and f"{read[0]['name']}@{read[0]['version']}" == column and read[1]:
                self._say(read[0]["episode"], column, read[1]["values"].copy())

        while self._read_entries("labels", start, self.mark.label, take):
            pass

    def outdated(self, txn: Txn) -> bool:
        """Return whether a snapshot lacks something that this index still has."""
        return tables.peek(txn, self.env, "gone") != self._removals

    def stats(self) -> dict[str, float]:
        """Return sizes and what was found damaged."""
        rows = self.rows.values()
        return {
            "steps": float(sum(len(r) - int(r["gone"].sum()) for r in rows)),
            "episodes": float(sum(len(r.episodes) for r in rows)),
            "schemas": float(len(self.rows)),
            "index_bytes": float(sum(r.nbytes for r in rows)),
            "damaged_records": float(self.damaged_records),
            "damaged_steps": float(sum(int(r["damaged"].sum()) for r in rows)),
            "removed_steps": float(sum(int(r["gone"].sum()) for r in rows)),
            "ignored_columns": float(sum(r.extras.ignored + r.streams.ignored for r in rows)),
        }

    # --- the log ---------------------------------------------------------------------------------

    def _read_log(self, stop: int) -> bool:
        """Take over one block, or one snapshot's worth of entries; return whether to go on."""
        start = self.mark.log
        if start >= stop:
            return False
        with self.env.read() as txn:
            if self._take_blocks(txn, start, stop):
                return True
            end = min(tables.next_block(txn, self.env, start + 1), stop)
            end = min(end, tables.peek(txn, self.env, "offset"))
            found = self.decode(txn, start, end, Filling())
        by_schema: dict[str, list[tuple[int, Fragment]]] = {}
        for offset, fragment in found:
            by_schema.setdefault(fragment.header.schema, []).append((offset, fragment))
        for entries in by_schema.values():
            self._extend(Block.of(entries))
        return self.mark.log != start

    def _take_blocks(self, txn: Txn, start: int, stop: int) -> bool:
        """Take over the blocks that begin at ``start``, one per schema; False: there is none."""
        if start in self._bad_blocks:
            return False
        try:
            places = list(tables.blocks(txn, self.env, start))
            self._ask_next(txn, places)
            blocks = [Block.decode(self.env.file.read(p.position, p.length)) for p in places]
        except DamageError as error:
            self._bad_blocks.add(start)
            log.error("block %d of %s is damaged, reading its log: %s", start, self.env.path, error)
            return False
        times = self._to_come(txn, start, places[0].end) if places else 1.0
        for block in blocks:
            if len(part := block.until(stop)):
                self._extend(part, times)
        if places:
            self.mark = self.mark._replace(log=min(places[0].end, stop))
        return bool(places)

    def _ask_next(self, txn: Txn, places: Sequence[tables.BlockPlace]) -> None:
        """Have the disk read the blocks after some while these are taken over."""
        # Whether the place of a block can be believed is found out when it is its turn.
        with contextlib.suppress(DamageError):
            for place in tables.blocks(txn, self.env, places[0].end) if places else ():
                self.env.file.ask(place.position, place.length)

    def _to_come(self, txn: Txn, start: int, end: int) -> float:
        """Guess how many times of the blocks of ``[start, end)`` the log holds from there on."""
        left = tables.peek(txn, self.env, "offset") - start
        # Where the first fragments are much longer than those that follow, as many as there are.
        blocks = txn.stat(self.env.table("blocks"))["entries"]
        return _HEADROOM * min(left / max(end - start, 1), blocks + 1)

    def decode(
        self, txn: Txn, start: int, stop: int, filling: Filling
    ) -> list[tuple[int, Fragment]]:
        """Return entries of the log, copied: they outlive the transaction.

        As many as one snapshot may read or as fill a block; ``mark`` says how far that is.
        """
        found: list[tuple[int, Fragment]] = []
        for offset, value in tables.entries(txn, self.env, "log", start):
            if offset >= stop:
                break
            if len(found) == _PER_SNAPSHOT or filling.enough:
                return found
            self.mark = self.mark._replace(log=offset + 1)
            try:
                found.append((offset, fragments.decode(bytes(value))))
                filling.add(found[-1][1], len(value))
            except DamageError as error:
                self.damaged_records += 1
                path = self.env.path
                log.error("record %d of %s is damaged and left out: %s", offset, path, error)
        # What is missing before the end was removed.
        self.mark = self.mark._replace(log=max(stop, start))
        return found

    def _extend(self, block: Block, times: float = 1.0) -> None:
        if block.schema not in self.rows:
            with self.env.read() as txn:
                self.rows[block.schema] = self._new_rows(txn, block.schema)
        rows = self.rows[block.schema]
        rows.reserve(block, times)
        rows.extend(block, self._labels)
        if len(self._gone):
            offsets = block.fragments["offset"]
            rows.remove(offsets[np.isin(offsets, self._gone.data)])

    def _new_rows(self, txn: Txn, schema: str) -> Rows:
        key = schema.encode()
        text = tables.get(txn, self.env, "schemas", key)
        if text is None:
            raise DamageError(
                f"schema {schema!r} of {self.env.path} is missing",
                todo=layout.verify_hint(self.env.path),
            )
        return Rows(Schema.parse(key, text))

    # --- what is said of it later ----------------------------------------------------------------

    def _read_entries(self, table: str, start: int, stop: int, take: Take) -> bool:
        """Take one snapshot's worth of entries; return whether there may be more."""
        with self.env.read() as txn:
            for count, (number, value) in enumerate(tables.entries(txn, self.env, table, start)):
                if number >= stop:
                    return False
                if count == _PER_SNAPSHOT:
                    return True
                take(number, value)
        return False

    def _take_label(self, number: int, value: Any) -> None:
        self.mark = self.mark._replace(label=number + 1)
        read = self._unpack("label", number, value)
        if read is None:
            return
        meta, blocks = read
        episode, name = meta["episode"], meta["name"]
        label: Label = blocks["values"].copy() if blocks else meta["success"]
        self._say(episode, name, label)
        if blocks and (version := f"{name}@{meta['version']}") in self._wanted:
            self._say(episode, version, label)

    def _say(self, episode: str, name: str, label: Label) -> None:
        """Write a label over the episodes of an id that are here, and over those that come."""
        self._labels.setdefault(episode, {})[name] = label
        for rows in self.rows.values():
            for found in rows.by_id.get(episode, ()):
                rows.retract(found, name)
                rows.apply(found, name, label)

    def _take_removal(self, number: int, value: Any) -> None:
        self._removals = number + 1
        read = self._unpack("removal", number, value)
        if read is None:
            self._compared = 0
        else:
            self._leave_out(read[1]["offsets"])

    def _leave_out(self, offsets: Array) -> None:
        self._gone.extend(offsets)
        for rows in self.rows.values():
            rows.remove(offsets)

    def _leave_out_absent(self) -> None:
        """Take for removed what the log lacks, where nobody can read any more what was.

        Other images lie by now where those of removed fragments were found.
        """
        start, stop = self._compared, self.mark.log
        if start is None or start >= stop:
            return
        with self.env.read() as txn:
            there = list(tables.numbers(txn, self.env, "log", start, stop))
        for rows in self.rows.values():
            known = rows.pieces["offset"].data
            known = known[known >= start]
            self._leave_out(known[~np.isin(known, np.array(there, np.uint64))])
        self._compared = stop

    def _unpack(
        self, what: str, number: int, value: Any, *, count: bool = True
    ) -> tuple[Any, dict[str, Array]] | None:
        try:
            return arrays.unpack(value)
        except DamageError as error:
            self.damaged_records += count
            path = self.env.path
            log.error("%s %d of %s is damaged and left out: %s", what, number, path, error)
            return None


def read_fragments(
    env: Env, start: int, stop: int, filling: Filling
) -> Iterator[tuple[int, Fragment]]:
    """Yield (offset, fragment) of the log's sound entries in ``[start, stop)`` until enough."""
    index = Index(env)
    index.mark = Mark(start)
    while not filling.enough:
        with env.read() as txn:
            found = index.decode(txn, index.mark.log, stop, filling)
        if not found:
            return
        yield from found
