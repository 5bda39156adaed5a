"""The reader's index: everything but images, in memory, brought up to date from the log.

``refresh`` reads what the writer committed since the last one, and costs a few microseconds where
that is nothing. The index is a function of (how much of the log, how many labels) and of nothing
else, whatever the steps in which it got there: that is what makes draws repeatable.
"""

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from user_system.codec import arrays, fragments
from user_system.core.errors import DamageError
from user_system.replay import layout
from user_system.replay.columns import Names
from user_system.replay.env import Env, Txn
from user_system.replay.rows import Label, Rows
from user_system.replay.schema import Schema
from user_system.replay.store import log_entries

log = logging.getLogger(__name__)

Take = Callable[[Txn, int, Any], None]
"""Takes over one entry: transaction, number, value."""

_PER_SNAPSHOT = 4096
"""Entries read per transaction: a long one keeps the writer from reusing pages."""


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
        self.names = Names()
        self.mark = Mark()
        self.rows: dict[str, Rows] = {}
        self.damaged_records = 0
        self._labels: dict[str, dict[str, Label]] = {}
        self._snapshot = -1

    def refresh(self, limit: Mark | None = None) -> bool:
        """Take over what is new, up to ``limit``; return whether there was anything."""
        if self.env.transaction() == self._snapshot:
            return False
        snapshot = self.env.snapshot()
        before = self.mark
        stop = limit or Mark(1 << 64, 1 << 64)
        while self._step("labels", self.mark.label, stop.label, self._take_label):
            pass
        while self._step("log", self.mark.log, stop.log, self._take_record):
            pass
        # A limit leaves the rest for later, so the next call must look again.
        self._snapshot = snapshot if limit is None else -1
        return self.mark != before

    def stats(self) -> dict[str, float]:
        """Return sizes and what was found damaged."""
        rows = self.rows.values()
        return {
            "steps": float(sum(len(r) for r in rows)),
            "episodes": float(sum(len(r.episodes) for r in rows)),
            "schemas": float(len(self.rows)),
            "index_bytes": float(sum(r.nbytes for r in rows)),
            "damaged_records": float(self.damaged_records),
            "damaged_steps": float(sum(int(r["damaged"].sum()) for r in rows)),
        }

    def _step(self, table: str, start: int, stop: int, take: Take) -> bool:
        """Take one snapshot's worth of entries; return whether there may be more."""
        count = 0
        with self.env.read() as txn:
            for number, value in log_entries(txn, self.env, table, start):
                if number >= stop:
                    return False
                if count == _PER_SNAPSHOT:
                    return True
                count += 1
                take(txn, number, value)
        return False

    def _take_record(self, txn: Txn, offset: int, value: Any) -> None:
        self.mark = self.mark._replace(log=offset + 1)
        try:
            fragment = fragments.decode(value)
        except DamageError as error:
            self.damaged_records += 1
            log.error("record %d of %s is damaged and left out: %s", offset, self.env.path, error)
            return
        header = fragment.header
        if header.schema not in self.rows:
            self.rows[header.schema] = self._new_rows(txn, header.schema)
        rows = self.rows[header.schema]
        rows.append(offset, fragment, self._labels.get(header.episode, {}))

    def _take_label(self, txn: Txn, number: int, value: Any) -> None:
        self.mark = self.mark._replace(label=number + 1)
        try:
            meta, blocks = arrays.unpack(value)
        except DamageError as error:
            self.damaged_records += 1
            log.error("label %d of %s is damaged and left out: %s", number, self.env.path, error)
            return
        episode, name = meta["episode"], meta["name"]
        label: Label = blocks["values"].copy() if blocks else meta["success"]
        self._labels.setdefault(episode, {})[name] = label
        for rows in self.rows.values():
            for found in rows.by_id.get(episode, ()):
                rows.retract(found, name)
                rows.apply(found, name, label)

    def _new_rows(self, txn: Txn, schema: str) -> Rows:
        key = schema.encode()
        text = txn.get(key, db=self.env.table("schemas"))
        if text is None:
            raise DamageError(
                f"schema {schema!r} of {self.env.path} is missing",
                todo=layout.verify_hint(self.env.path),
            )
        return Rows(Schema.parse(key, bytes(text)), self.names)
