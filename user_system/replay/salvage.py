"""Taking everything that is whole out of a damaged store, into a new one.

The damaged file is never opened with LMDB. Every record and every group of images says which
fragment it belongs to and bears a checksum, so they are found wherever they lie, put together
again, and stored in a new place. What an engineer or the quota removed stays removed, as far as the
list of removals is readable.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from user_system.codec import arrays, fragments
from user_system.core.errors import DamageError, StoreError
from user_system.core.types import FragmentHeader
from user_system.replay import books, disk, entries, images, layout, pages, retention, tables
from user_system.replay.entries import Entry
from user_system.replay.order import report
from user_system.replay.progress import Progress
from user_system.replay.schema import Schema
from user_system.replay.store import Store

_BATCH_BYTES = 32 << 20
_MOST = 1 << 48
"""Sequence that no source reaches: a thousand fragments a second for nine thousand years."""


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What was taken out of a damaged store."""

    records: int
    steps: int
    images: int
    labels: int
    lost_records: int
    """Missing in a sequence, or of a schema that is not readable."""
    lost_images: int
    """Of the records that were saved; steps that see them are never drawn, the others are."""


@dataclass(slots=True)
class _Record:
    """Where a fragment's record lies."""

    header: FragmentHeader
    position: int
    length: int
    steps: int
    observations: int


@dataclass(slots=True)
class _Found:
    """What the pages hold."""

    records: dict[int, _Record] = field(default_factory=dict)
    """By identity of the fragment."""
    groups: dict[int, dict[tuple[int, int], tuple[int, int]]] = field(default_factory=dict)
    """By identity: (camera, group) -> position and length."""
    labels: dict[bytes, int] = field(default_factory=dict)
    """Record of a label -> when it was written."""
    removed: set[int] = field(default_factory=set)
    removals: dict[bytes, int] = field(default_factory=dict)
    """Entry that says what was removed -> when that was."""
    schemas: dict[str, Schema] = field(default_factory=dict)
    expected: dict[bytes, books.Progress] = field(default_factory=dict)


def salvage(
    path: Path | str, target: Path | str, *, progress: Progress = lambda *_: None
) -> Salvaged:
    """Copy what is whole in the store at ``path`` into a new one at ``target``.

    Args:
        path: the damaged store; it is only read.
        target: where there is nothing yet.
        progress: told how far it is.

    Raises:
        StoreError: there is no store, somebody writes to it, or ``target`` is taken.
    """
    path, target = Path(path), Path(target)
    with disk.explained(f"cannot salvage {path} to {target}"):
        return _salvage(path, target, progress)


def _salvage(path: Path, target: Path, progress: Progress) -> Salvaged:
    if target.exists():
        raise StoreError(f"{target} is there already", allowed="a new place")
    if not (path / layout.DATA).exists():
        raise StoreError(f"there is no {layout.DATA} in {path}", todo="Check the path.")
    with contextlib.suppress(DamageError):
        if (kind := layout.kind(path)) != tables.KIND:
            raise StoreError(
                f"{path} is no replay buffer",
                got=kind,
                allowed=tables.KIND,
                todo="An agent sets damaged items of its spool aside by itself.",
            )
        if (format := layout.format_of(path)) > layout.FORMATS[tables.KIND]:
            raise StoreError(
                f"{path} was written by a later version",
                got=f"format {format}",
                allowed=f"<= {layout.FORMATS[tables.KIND]}",
                todo="Salvage it with the version of user-system that wrote it.",
            )
    with layout.writer_lock(path):
        found = _look(path, progress)
        with Store(target).open(create=True) as store, (path / layout.DATA).open("rb") as file:
            return _Copy(path, found, store, file.fileno(), progress).run()


def _look(path: Path, progress: Progress) -> _Found:
    """Find out what the pages hold."""
    found = _Found(schemas=dict(layout.read_schemas(path)))
    file = path / layout.DATA
    size, seen = file.stat().st_size, 0

    def done(count: int) -> None:
        nonlocal seen
        seen += count
        progress("looking at pages", seen, size)

    with file.open("rb") as handle:
        for item in pages.walk(file, done):
            if isinstance(item, pages.Small):
                _take_small(found, item)
            else:
                _take_large(found, item, handle.fileno())
    return found


def _take_small(found: _Found, item: pages.Small) -> None:
    if item.value.startswith(arrays.MAGIC):
        _take_message(found, item.value, item.position)
    elif item.value.startswith(b"{"):
        with contextlib.suppress(DamageError, UnicodeDecodeError):
            schema = Schema.parse(item.key, tables.unseal(item.key, item.value))
            found.schemas.setdefault(schema.id, schema)
    else:
        # How far each producer was; the table is not named, but the checksum covers the key. Keys
        # and values of other tables are hashes, which few of either look like; those of ``order``
        # look like a source without a name.
        with contextlib.suppress(DamageError):
            value = tables.unseal(item.key, item.value)
            named = item.key[:1] != b"\0" and entries.is_source_key(item.key)
            if len(value) in books.SIZES and named:
                progress = books.Progress.parse(value)
                if progress.expected < _MOST:
                    found.expected[item.key] = max(progress, found.expected.get(item.key, progress))


def _take_large(found: _Found, item: pages.Large, handle: int) -> None:
    if item.head.startswith(arrays.MAGIC):
        length = arrays.stated_size(item.head)
        if 0 < length <= arrays.MAX_BYTES:
            data = pages.read(handle, item.position, length)
            _take_message(found, data, item.position)
        return
    length = images.stated_size(item.head)
    if not length:
        # A table of many images may be longer than the first page.
        length = images.stated_size(pages.read(handle, item.position, 1 << 20))
    if length:
        with contextlib.suppress(DamageError):
            group = images.Group.parse(pages.read(handle, item.position, length))
            of = found.groups.setdefault(group.identity, {})
            of.setdefault((group.camera, group.number), (item.position, length))


def _take_message(found: _Found, data: bytes, position: int) -> None:
    try:
        meta, blocks = arrays.unpack(data)
        if "fragment" in meta:
            fragment = fragments.decode(data)
            record = _Record(
                fragment.header, position, len(data), len(fragment), len(fragment.robot_ns)
            )
            found.records.setdefault(entries.identity(fragment.header), record)
        elif "name" in meta and "episode" in meta:
            found.labels[data] = int(meta["wall_ns"])
        elif "identities" in blocks:
            found.removed |= {int(i) for i in blocks["identities"]}
            found.removals[retention.elsewhere(data)] = int(meta["wall_ns"])
    except (DamageError, KeyError):
        return  # not of ours, or no longer


class _Copy:
    """Stores what was found, in order."""

    def __init__(self, path: Path, found: _Found, store: Store, handle: int, progress: Progress):
        self._path = path
        self._found = found
        self._store = store
        self._handle = handle
        self._progress = progress
        self._images = self._lost_images = 0

    def run(self) -> Salvaged:
        order = self._order()
        readable = [item for item in order if item[1].header.schema in self._found.schemas]
        batch: list[Entry] = []
        for count, (identity, record) in enumerate(readable):
            batch.append(self._entry(identity, record))
            if sum(entry.size for entry in batch) > _BATCH_BYTES:
                self._store_batch(batch)
                batch = []
                self._progress("storing records", count, len(readable))
        self._store_batch(batch)
        self._progress("storing records", len(readable), len(readable))
        self._store.carry(self._found.expected, {})
        labels = sorted(self._found.labels.items(), key=lambda item: item[1])
        self._store.adopt_labels([record for record, _ in labels])
        removals = sorted(self._found.removals.items(), key=lambda item: item[1])
        self._store.adopt_removals([record for record, _ in removals])
        return Salvaged(
            len(readable),
            sum(record.steps for _, record in readable),
            self._images,
            len(labels),
            len(order) - len(readable) + _missing(order),
            self._lost_images,
        )

    def _store_batch(self, batch: list[Entry]) -> None:
        report(self._path, self._store.adopt(batch))

    def _order(self) -> list[tuple[int, _Record]]:
        """Return records by time, those of one (producer, epoch) by sequence."""
        removed = self._found.removed
        records = [item for item in self._found.records.items() if item[0] not in removed]
        records.sort(key=lambda r: (r[1].header.producer, r[1].header.epoch, r[1].header.sequence))
        # Clocks may be set back; a record is never earlier than those before it of its source.
        latest: dict[tuple[str, int], int] = {}
        times = {}
        for identity, record in records:
            source = record.header.producer, record.header.epoch
            times[identity] = latest[source] = max(latest.get(source, 0), record.header.wall_ns)
        return sorted(records, key=lambda r: times[r[0]])

    def _entry(self, identity: int, record: _Record) -> Entry:
        """Return a record with those of its images that are there, sound or not.

        An unsound one keeps the checksum that it fails, so that nobody is ever served it.
        """
        schema = self._found.schemas[record.header.schema]
        places = self._found.groups.get(identity, {})
        values = []
        sound = 0
        for _, place in sorted(places.items()):
            group = images.Group.parse(pages.read(self._handle, *place))
            values.append(images.Value.of(group))
            sound += _count_sound(group)
        self._images += sound
        self._lost_images += record.observations * len(schema.images) - sound
        data = pages.read(self._handle, record.position, record.length)
        return entries.adopt(data, schema, values)


def _count_sound(group: images.Group) -> int:
    sound = 0
    for i in range(len(group)):
        with contextlib.suppress(DamageError):
            group.bytes(i)
            sound += 1
    return sound


def _missing(order: Sequence[tuple[int, _Record]]) -> int:
    """Return how many sequences are missing between those found."""
    seen: dict[tuple[str, int], list[int]] = {}
    for _, record in order:
        source = record.header.producer, record.header.epoch
        seen.setdefault(source, []).append(record.header.sequence)
    return sum(max(s) - min(s) + 1 - len(s) for s in seen.values())
