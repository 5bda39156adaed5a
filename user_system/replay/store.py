"""The writer: fragments in, exactly once, on disk before the call returns. See ``tables``."""

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from user_system.codec import fragments as codec
from user_system.codec import images as image_codecs
from user_system.core.errors import ConfigError, SpecError
from user_system.core.ports import Refused
from user_system.core.types import Array, Fragment, FragmentHeader, Parcel
from user_system.replay import entries, images, labels, layout, mapped, places, tables
from user_system.replay.books import Books, Progress, life
from user_system.replay.entries import Entry, source_key
from user_system.replay.env import Env, Txn
from user_system.replay.keeper import Keeper
from user_system.replay.kinds import Kind, Kinds
from user_system.replay.ledger import Ledger, Piece
from user_system.replay.order import Order
from user_system.replay.pinning import LIMIT_S, Pinning
from user_system.replay.recent import Stored
from user_system.replay.retention import Limits, Retention
from user_system.replay.schema import Schema
from user_system.replay.tables import KIND, TABLES, U64


def reader(path: Path | str) -> Env:
    """Return an unopened read-only environment on a store, for whatever process of its host."""
    return Env(path, KIND, TABLES, readonly=True)


@dataclass(slots=True)
class _Outcome:
    """What one transaction did."""

    refused: list[Refused] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    steps: int = 0
    duplicates: int = 0
    gaps: int = 0
    new_schemas: bool = False
    moments: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    """See ``order``."""
    kinds: dict[str, frozenset[Kind]] = field(default_factory=dict)
    """See ``kinds``."""

    def counts(self) -> dict[str, int]:
        """Return how many of each."""
        return {
            "appended_fragments": len(self.stored),
            "appended_steps": self.steps,
            "duplicates": self.duplicates,
            "gaps": self.gaps,
            "refused": len(self.refused),
        }


_MAX_REASON = 2000
"""Characters that are kept of why a fragment was refused; it may quote what was sent."""

_TOTALS = (*_Outcome().counts(), "skipped", "appended_labels")


class Store:
    """The replay buffer's only writer; implements ``core.ports.Ingest``. Thread-safe.

    Args:
        path: its directory.
        codecs: image field -> codec; ``raw`` where not named.
        quota_bytes: of what is stored; the oldest autonomous episodes go first when it is reached.
            None: the disk is the quota. The file may be a quarter larger.
        reserve_bytes: disk space that stays free; where it does not, as with the quota.
        reader_limit_s: age of a snapshot at which its process is ended, see ``pinning``.

    Example::

        with Store(run / "replay").open(create=True) as store:
            refused = store.append(fragments)
    """

    def __init__(
        self,
        path: Path | str,
        *,
        codecs: Mapping[str, image_codecs.Codec] | None = None,
        quota_bytes: int | None = None,
        reserve_bytes: int = 0,
        reader_limit_s: float = LIMIT_S,
    ):
        self.env = Env(path, KIND, TABLES)
        self._ledger = Ledger(self.env)
        self._order = Order(self.env, self._ledger)
        self._kinds = Kinds(self.env)
        pinning = Pinning(self.env, reader_limit_s)
        limits = Limits(quota_bytes, reserve_bytes)
        self._retention = Retention(self.env, self._ledger, pinning, limits)
        self._keeper = Keeper(self.env, pinning)
        self._codecs = dict(codecs or {})
        if unknown := set(self._codecs.values()) - set(image_codecs.CODECS):
            raise ConfigError(
                "unknown image codec", got=sorted(unknown), allowed=", ".join(image_codecs.CODECS)
            )
        self._schemas: dict[str, Schema] = {}
        """Those that a snapshot had: what a transaction puts may yet be rolled back."""
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()

    def open(self, *, create: bool = False) -> "Store":
        """Open it; ``create`` makes it where there is none. Never starts empty by itself.

        Raises:
            StoreError: not there, of another format, or another process writes it.
            DamageError: damaged; the message says what and which command helps.
        """
        self.env.open(create=create)
        try:
            with self.env.read() as txn:
                tables.check_books(txn, self.env)
                self._schemas = {schema.id: schema for schema in tables.schemas(txn, self.env)}
            self._kinds.open()
        except BaseException:
            self.env.close()
            raise
        if self._schemas.keys() != layout.read_schemas(self.env.path).keys():
            layout.write_schemas(self.env.path, self._schemas.values())
        self._keeper.start()
        return self

    def close(self) -> None:
        """Let go of the directory; safe to repeat."""
        try:
            self._keeper.stop()
        finally:
            self.env.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def expected(self, producer: str, epoch: int) -> int:
        """Return the next sequence wanted; everything below it is on disk."""
        with self.env.read() as txn:
            return Books(txn, self.env).expected(source_key(producer, epoch))

    def strange(self, producer: str, epoch: int, boot: str) -> bool:
        """Return whether somebody else records (producer, epoch); see ``core.ports.Ingest``."""
        with self.env.read() as txn:
            return Books(txn, self.env).strange(source_key(producer, epoch), boot)

    def free(self, producer: str, epoch: int, boot: str) -> bool:
        """Return whether nobody but ``boot`` is known to have stored under (producer, epoch)."""
        with self.env.read() as txn:
            known = Books(txn, self.env).of(source_key(producer, epoch))
        return known == Progress() or known.life == life(boot)

    def append(self, fragments: Sequence[Fragment | Parcel]) -> Sequence[Refused]:
        """Store fragments in one synchronous transaction; see ``core.ports.Ingest.append``.

        A parcel is stored as it came: whoever made it has checked it.
        """
        ready = [entries.prepare(fragment, self._codecs) for fragment in fragments]
        outcome = self.env.write(lambda txn: self._append(txn, ready))
        self._took(outcome)
        return outcome.refused

    def require_same(self, sources: Mapping[bytes, Progress]) -> None:
        """Make sure that another store means by its sources the same as this one.

        Args:
            sources: rows of its table ``next``.

        Raises:
            SpecError: one was begun by two processes; what is missing here would pass for stored.
        """
        with self.env.read() as txn:
            books = Books(txn, self.env)
            for source, there in sources.items():
                here = books.of(source).life
                if here and there.life and here != there.life:
                    raise SpecError(
                        "two stores hold fragments of two processes under one name",
                        got=source[: -U64.size - 1].decode(errors="replace"),
                        allowed="one process for each producer and epoch",
                        todo="Keep them in stores of their own.",
                    )

    def adopt(self, ready: Sequence[Entry]) -> Sequence[str]:
        """Store entries of another store, in order, as they are; what is missing is passed over.

        One that this store has already, by producer, epoch and sequence, is left out.

        Returns:
            What ``append`` would have said of those that go back in time; see ``order``.

        Raises:
            SpecError: one does not stack with what is here; nothing of this call is stored.
        """

        def work(txn: Txn) -> tuple[_Outcome, list[str]]:
            outcome, books = _Outcome(), Books(txn, self.env)
            late: list[str] = []
            for item in ready:
                if item.fragment.header.sequence < books.expected(item.source):
                    outcome.duplicates += 1
                    continue
                if reason := self._unlike(txn, item, outcome):
                    raise SpecError(reason, todo="Take it into a store of its own.")
                late += filter(None, [self._order.refusal(txn, item.fragment, outcome.moments)])
                self._put(txn, books, item, outcome)
            self._write_books(txn, books, outcome)
            return outcome, late

        outcome, late = self.env.write(work)
        self._took(outcome)
        return late

    def adopt_labels(self, records: Sequence[bytes]) -> None:
        """Store labels of another store, in order, after those that are here."""

        def work(txn: Txn) -> int:
            for record in records:
                number = tables.count(txn, self.env, "label")
                tables.append(txn, self.env, "labels", U64.pack(number), record)
            return len(records)

        written = self.env.write(work)
        with self._lock:
            self._totals["appended_labels"] += written

    def adopt_removals(self, records: Sequence[bytes]) -> None:
        """Keep what another store says of its removals; see ``retention.elsewhere``."""

        def work(txn: Txn) -> None:
            for record in records:
                number = tables.count(txn, self.env, "gone")
                tables.append(txn, self.env, "gone", U64.pack(number), record)

        self.env.write(work)

    def carry(self, expected: Mapping[bytes, Progress], refused: Mapping[bytes, bytes]) -> None:
        """Know how far producers were elsewhere: what they sent there is not taken again.

        Args:
            expected: rows of the table ``next``.
            refused: rows of the table ``refused``.
        """

        def work(txn: Txn) -> None:
            books = Books(txn, self.env)
            books.carry(expected)
            books.write()
            for key, why in refused.items():
                tables.put(txn, self.env, "refused", key, why)

        self.env.write(work)

    def skip(self, refused: Refused) -> None:
        """Move ``expected`` past a fragment that never comes; see ``core.ports.Ingest.skip``."""
        source = source_key(refused.producer, refused.epoch)

        def work(txn: Txn) -> bool:
            books = Books(txn, self.env)
            due = books.expected(source) == refused.sequence
            due = due and not books.strange(source, refused.boot)
            if due:
                self._refuse(txn, books, source, refused)
                books.write()
            return due

        skipped = self.env.write(work)
        with self._lock:
            self._totals["skipped"] += skipped

    def refused(self, producer: str, epoch: int, start: int) -> Sequence[Refused]:
        """Return what was refused or skipped of a source from sequence ``start`` on."""
        source, found = source_key(producer, epoch), []
        with self.env.read() as txn:
            cursor = txn.cursor(self.env.table("refused"))
            there = cursor.set_range(source + U64.pack(start))
            while there and (key := bytes(cursor.key())).startswith(source):
                sequence = U64.unpack(key[-U64.size :])[0]
                why = tables.unseal(key, cursor.value()).decode()
                found.append(Refused(producer, epoch, sequence, why))
                there = cursor.next()
        return found

    def label(
        self, episode: str, name: str, version: str, success: bool | None, values: Array | None
    ) -> None:
        """Write a late label as a new version; a repeat of the newest one is no news.

        Args:
            episode: id of the episode; it may arrive later than its label.
            name: ``success``, ``reward``, or the name of a further per-step column.
            version: of whoever says so.
            success: for ``success``: the verdict; None: not known after all.
            values: for the others: float ``[T]``, from the episode's first step on.

        Raises:
            SpecError: neither of these.
        """
        label = labels.encode(episode, name, version, success, values)

        def work(txn: Txn) -> bool:
            if tables.get(txn, self.env, "versions", label.of) == label.says:
                return False
            number = tables.count(txn, self.env, "label")
            tables.append(txn, self.env, "labels", U64.pack(number), label.record)
            tables.put(txn, self.env, "versions", label.of, label.says)
            return True

        written = self.env.write(work)
        with self._lock:
            self._totals["appended_labels"] += written

    def delete(self, episode: str, *, who: str, why: str) -> int:
        """Remove every episode of this id; return how many fragments that were.

        Readers stop serving them before this returns to anybody who asks later; the bytes leave the
        disk when their pages are used again, or with ``replay compact``. The removal stays in the
        store's books with who asked for it, and why.

        Raises:
            SpecError: there is no such episode, or it is being recorded.
        """
        return self._retention.delete(episode, who=who, why=why)

    def tend(self) -> None:
        """Do now what is otherwise done every second: put the log in blocks, make room."""
        self._keeper.tend()

    def stats(self) -> Mapping[str, float]:
        """Return what is stored, what was done since opening, and how the file is."""
        with self.env.read() as txn:
            names = {"fragments": "offset", "labels": "label", "removals": "gone"}
            stored = {name: tables.peek(txn, self.env, key) for name, key in names.items()}
            stored["live_bytes"] = self._retention.live_bytes(txn)
        return {
            **{name: float(value) for name, value in stored.items()},
            **{name: float(self._totals[name]) for name in _TOTALS},
            **self.env.stats(),
        }

    def _took(self, outcome: _Outcome) -> None:
        """Note what a transaction did that is on disk now."""
        if outcome.new_schemas:
            with self.env.read() as txn:
                self._schemas = {schema.id: schema for schema in tables.schemas(txn, self.env)}
            layout.write_schemas(self.env.path, self._schemas.values())
        self._order.took(outcome.moments)
        self._kinds.took(outcome.kinds)
        self._keeper.appended(outcome.stored)
        with self._lock:
            self._totals.update(outcome.counts())

    # --- inside a transaction --------------------------------------------------------------------

    def _append(self, txn: Txn, ready: Sequence[Entry]) -> _Outcome:
        """Take what is next of each source. Runs again where the map had to grow: no state."""
        outcome = _Outcome()
        self._retention.make_room(txn)
        books = Books(txn, self.env)
        for item in ready:
            source = item.source
            if not source:
                outcome.refused.append(_refused(item.fragment, item.refusal))
                continue
            header = item.fragment.header
            if item.arrived and books.strange(source, header.boot):
                outcome.refused.append(_refused(item.fragment, _stranger(header)))
                continue
            expected = books.expected(source)
            if header.sequence < expected:
                self._repeat(txn, source, item.fragment, outcome)
            elif header.sequence > expected:
                outcome.gaps += 1
            elif reason := item.refusal or self._unfit(txn, item, outcome):
                refused = _refused(item.fragment, reason)
                self._refuse(txn, books, source, refused)
                outcome.refused.append(refused)
            else:
                self._put(txn, books, item, outcome)
        self._write_books(txn, books, outcome)
        return outcome

    def _write_books(self, txn: Txn, books: Books, outcome: _Outcome) -> None:
        """Write down what was counted, with what it counts."""
        self._kinds.write(txn, outcome.kinds)
        books.write()
        self._ledger.add(txn, outcome.pieces)

    def _repeat(self, txn: Txn, source: bytes, fragment: Fragment, outcome: _Outcome) -> None:
        """Answer a sequence that was dealt with before as it was answered then."""
        key = source + U64.pack(fragment.header.sequence)
        why = tables.get(txn, self.env, "refused", key)
        if why is None:
            outcome.duplicates += 1
        else:
            outcome.refused.append(_refused(fragment, why.decode()))

    def _refuse(self, txn: Txn, books: Books, source: bytes, refused: Refused) -> None:
        key = source + U64.pack(refused.sequence)
        reason = refused.reason[:_MAX_REASON].encode(errors="backslashreplace")
        tables.put(txn, self.env, "refused", key, reason)
        books.move(source, refused.sequence + 1, refused.boot)

    def _unfit(self, txn: Txn, item: Entry, outcome: _Outcome) -> str:
        """Return why a fragment does not go with what is here."""
        return (
            self._order.refusal(txn, item.fragment, outcome.moments)
            or self._kinds.refusal(txn, item.fragment, outcome.kinds)
            or self._unlike(txn, item, outcome)
        )

    def _unlike(self, txn: Txn, item: Entry, outcome: _Outcome) -> str:
        """Return how a fragment differs from the others of its schema; the first one defines it."""
        schema = item.schema
        if schema is None:
            raise SpecError("a fragment was neither prepared nor refused")
        first = self._schemas.get(schema.id)
        if first is None:
            key = schema.id.encode()
            stored = tables.get(txn, self.env, "schemas", key)
            if stored is None:
                tables.put(txn, self.env, "schemas", key, schema.text())
                outcome.new_schemas = True
                return ""
            first = Schema.parse(key, stored)
        try:
            first.require(schema)
        except SpecError as error:
            return str(error)
        return ""

    def _put(self, txn: Txn, books: Books, item: Entry, outcome: _Outcome) -> None:
        offset, table, placed = books.take_offset(), self.env.table("images"), []
        tables.append(txn, self.env, "log", U64.pack(offset), item.record)
        for value in item.values:
            key = images.key(offset, value.camera, value.group)
            tables.append(txn, self.env, "images", key, value.data)
            # Where it lies is written down while its pages are at hand.
            placed.append((value, mapped.position(txn.get(key, db=table))))
        if placed:
            data = places.encode(entries.identity(item.fragment.header), placed)
            tables.append(txn, self.env, "places", U64.pack(offset), data)
        outcome.pieces.append(Piece(offset, item.fragment, item.size))
        header = item.fragment.header
        books.move(item.source, header.sequence + 1, header.boot)
        self._order.note(item.fragment, outcome.moments)
        self._kinds.note(txn, item.fragment, outcome.kinds)
        outcome.stored.append(Stored(offset, item.fragment, len(item.record)))
        outcome.steps += len(item.fragment)


def _stranger(header: FragmentHeader) -> str:
    what = f"epoch {header.epoch} of {header.producer!r} was begun by another process"
    return str(SpecError(what, got=f"boot {header.boot!r}", allowed="the one that began it"))


def _refused(fragment: Fragment, reason: str) -> Refused:
    """Return the answer to a fragment of which nothing may be as it is declared."""
    reason = reason[:_MAX_REASON]
    try:
        header = codec.header_of(fragment)
    except SpecError:
        return Refused("", 0, 0, reason)
    boot = header.boot if isinstance(header.boot, str) else ""
    return Refused(header.producer, header.epoch, header.sequence, reason, boot)
