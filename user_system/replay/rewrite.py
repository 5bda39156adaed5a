"""One store written into another, entry by entry: to compact, to merge, to change the format.

Every record and image is checked on the way; images stay as they were encoded. What the source had
removed is not there to be copied, and what it knew of its producers goes along, so that a host that
sends again what it sent to the old store is understood by the new one.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from user_system.codec import arrays, fragments
from user_system.core.durable import sync
from user_system.core.errors import DamageError, UserSystemError
from user_system.replay import (
    books,
    disk,
    entries,
    images,
    layout,
    legacy,
    order,
    retention,
    tables,
    verify,
)
from user_system.replay.entries import Entry
from user_system.replay.env import Env, Txn
from user_system.replay.progress import Progress
from user_system.replay.schema import Schema
from user_system.replay.store import Store
from user_system.replay.tables import U64

log = logging.getLogger(__name__)

_BATCH_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What was copied."""

    records: int
    steps: int
    labels: int
    damaged: int
    """Records and groups of images that are not what was written: left out."""
    repeated: int
    """Records that the target had already."""
    backwards: int
    """Records that go back in time within their episode; copied as they are, and named in the log.
    A robot's host is refused such a one today."""


def compact(path: Path | str, *, progress: Progress = lambda *_: None) -> Rewritten:
    """Write a store anew in its place: in today's format, without what was removed from it.

    The old one is deleted when every byte of the new one was read back and is right.

    Raises:
        StoreError: there is no store, or somebody writes to it.
        DamageError: it is damaged; nothing was changed. Salvage it instead.
    """
    path = Path(path)
    with disk.explained(f"cannot write {path} anew"):
        return _compact(path, progress)


def _compact(path: Path, progress: Progress) -> Rewritten:
    fresh, old = (path.with_name(f"{path.name}.{name}") for name in ("compacting", "before"))
    if old.exists() and not path.exists():
        old.rename(path)  # the power went between the two last steps
    for left in (fresh, layout.made_mark(fresh)):
        layout.remove(left)
    with layout.writer_lock(path):
        layout.remove(old)
        try:
            done = rewrite([path], fresh, progress=progress)
            if done.damaged:
                hint = layout.verify_hint(path)
                raise DamageError(f"{path} is damaged", got=f"{done.damaged} values", todo=hint)
        except UserSystemError:
            for left in (fresh, layout.made_mark(fresh)):
                layout.remove(left)
            raise
        progress("checking what was written", 0, 1)
        findings = verify.verify(fresh)
        if not findings.ok:
            raise DamageError(f"{fresh} is not what was written", got=findings.damaged[:5])
        progress("checking what was written", 1, 1)
        path.rename(old)
        fresh.rename(path)
        sync(path.parent)
    layout.remove(layout.made_mark(fresh))
    layout.remove(old)
    return done


def rewrite(
    sources: Sequence[Path | str], target: Path | str, *, progress: Progress = lambda *_: None
) -> Rewritten:
    """Write all that some stores hold into a new one, or into one that is there.

    Raises:
        StoreError: a source is not a store.
        SpecError: rows of one do not stack with those of the others.
    """
    with disk.explained(f"cannot write {target}"):
        return _rewrite([Path(source) for source in sources], Path(target), progress)


def _rewrite(sources: Sequence[Path], target: Path, progress: Progress) -> Rewritten:
    create = not (target / layout.MANIFEST).exists()
    for source in sources if create else ():
        with _environment(source).open():
            pass  # so that nothing is made for one that is none
    with Store(target).open(create=create) as store:
        before = store.stats()
        copies = [_Copy(source, store, progress) for source in sources]
        for copy in copies:
            copy.run()
        after = store.stats()
    gained = {key: int(after[key] - before[key]) for key in ("fragments", "labels")}
    return Rewritten(
        gained["fragments"],
        int(after["appended_steps"]),
        gained["labels"],
        sum(copy.damaged for copy in copies),
        int(after["duplicates"]),
        sum(copy.backwards for copy in copies),
    )


def _environment(source: Path) -> Env:
    """Return an environment on a store of this format or of the first; any other is refused."""
    old = layout.format_of(source) == legacy.FORMAT
    names, format = (legacy.TABLES, legacy.FORMAT) if old else (tables.TABLES, None)
    return Env(source, tables.KIND, names, readonly=True, ahead=True, format=format)


class _Copy:
    """One source on its way into a store."""

    def __init__(self, source: Path, store: Store, progress: Progress):
        self._env = _environment(source)
        self._format = layout.format_of(source)
        self._store = store
        self._progress = progress
        self.damaged = 0
        """Values that were left out."""
        self.backwards = 0
        """Records that go back in time within their episode."""

    def run(self) -> None:
        """Copy everything."""
        with self._env.open():
            with self._env.read() as txn:
                of = legacy.schemas if self._format == legacy.FORMAT else tables.schemas
                self._schemas = {schema.id: schema for schema in of(txn, self._env)}
                self._store.require_same(self._progress_of(txn))
            start = 0
            while (start := self._copy_from(start)) >= 0:
                pass
            self._copy_labels()
            if self._format != legacy.FORMAT:
                self._copy_removals()
            with self._env.read() as txn:
                self._store.carry(self._progress_of(txn), self._sealed_text(txn))

    def _copy_from(self, start: int) -> int:
        """Copy one batch from offset ``start``; return where to go on, -1 at the end."""
        batch: list[Entry] = []
        size, following = 0, -1
        with self._env.read() as txn:
            total = self._total(txn)
            for offset, value in tables.entries(txn, self._env, "log", start):
                if size > _BATCH_BYTES:
                    following = offset
                    break
                try:
                    batch.append(self._entry(txn, offset, bytes(value)))
                    size += batch[-1].size
                except DamageError as error:
                    self.damaged += 1
                    log.error("record %d of %s is left out: %s", offset, self._env.path, error)
        self.backwards += order.report(self._env.path, self._store.adopt(batch))
        self._progress(
            f"copying {self._env.path.name}", total if following < 0 else following, total
        )
        return following

    def _entry(self, txn: Txn, offset: int, record: bytes) -> Entry:
        header = fragments.decode(record).header
        schema = self._schemas.get(header.schema)
        if schema is None:
            raise DamageError(f"schema {header.schema!r} is missing")
        values = [
            value
            for camera, number, data in self._images(txn, offset)
            if (value := self._image_value(entries.identity(header), camera, number, data, schema))
        ]
        return entries.adopt(record, schema, values)

    def _images(self, txn: Txn, offset: int) -> Iterator[tuple[int, int, memoryview]]:
        cursor = txn.cursor(self._env.table("images"))
        there = cursor.set_range(images.key(offset, 0, 0))
        while there and bytes(cursor.key()).startswith(U64.pack(offset)):
            camera, number = images.parse_key(bytes(cursor.key()))[1:]
            yield camera, number, cursor.value()
            there = cursor.next()

    def _image_value(
        self, identity: int, camera: int, number: int, data: memoryview, schema: Schema
    ) -> images.Value | None:
        """Return a value as today's format has it; None where it is not readable."""
        try:
            if self._format == legacy.FORMAT:
                return images.repack(legacy.parse_group(data), identity, camera, number)
            shape = list(schema.images.values())[camera]
            group = images.parse(data, shape, (identity, camera, number))
            # Not copied as it is: what an earlier version wrote does not begin at pages.
            return images.repack(group, identity, camera, number)
        except (DamageError, IndexError) as error:
            self.damaged += 1
            log.error("images of %s are left out: %s", self._env.path, error)
            return None

    def _copy_labels(self) -> None:
        with self._env.read() as txn:
            found = [
                (number, bytes(v)) for number, v in tables.entries(txn, self._env, "labels", 0)
            ]
        records = []
        for number, record in found:
            try:
                meta, blocks = arrays.unpack(record)
                records.append(arrays.pack({"wall_ns": number, **meta}, blocks))
            except DamageError as error:
                self.damaged += 1
                log.error("label %d of %s is left out: %s", number, self._env.path, error)
        self._store.adopt_labels(records)

    def _copy_removals(self) -> None:
        """Pass on what was removed, by whom and why; the offsets meant something there only."""
        with self._env.read() as txn:
            found = [bytes(v) for _, v in tables.entries(txn, self._env, "gone", 0)]
        records = []
        for record in found:
            try:
                records.append(retention.elsewhere(record))
            except DamageError as error:
                self.damaged += 1
                log.error("a removal of %s is left out: %s", self._env.path, error)
        self._store.adopt_removals(records)

    def _total(self, txn: Txn) -> int:
        if self._format == legacy.FORMAT:
            return legacy.peek(txn, self._env, "offset")
        return tables.peek(txn, self._env, "offset")

    def _progress_of(self, txn: Txn) -> dict[bytes, books.Progress]:
        rows = self._rows(txn, "next")
        return {source: books.Progress.parse(value) for source, value in rows}

    def _sealed_text(self, txn: Txn) -> dict[bytes, bytes]:
        return dict(self._rows(txn, "refused"))

    def _rows(self, txn: Txn, table: str) -> Iterator[tuple[bytes, bytes]]:
        cursor = txn.cursor(self._env.table(table))
        there = cursor.first()
        while there:
            key, value = bytes(cursor.key()), bytes(cursor.value())
            yield key, value if self._format == legacy.FORMAT else tables.unseal(key, value)
            there = cursor.next()
