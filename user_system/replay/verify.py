"""Checking every byte of a store or spool, and setting a damaged one aside.

    python -m user_system.replay.verify DIRECTORY [--quarantine]

The pass runs in a child process (``probe``), because touching a page that is not there kills; it
may run while the directory is written. Quarantine renames: it never deletes, and makes no new one.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from user_system.codec import arrays, fragments
from user_system.core.durable import sync
from user_system.core.errors import DamageError, StoreError, UserSystemError
from user_system.core.types import Fragment
from user_system.replay import disk, entries, images, items, layout, places, probe, queue, tables
from user_system.replay.blocks import Block
from user_system.replay.env import Env
from user_system.replay.progress import Progress
from user_system.replay.schema import Schema

log = logging.getLogger(__name__)

_BATCH = 256
"""Entries per transaction, so that a pass over a live store does not pin its pages."""

_RECORDS = ("log", "items")
"""Tables whose entries are called records."""

_TELL_BYTES = 64 << 20
"""How often the child says how far it is."""

Check = Callable[[bytes, Any, "Owners"], int]
"""Raises DamageError, or returns how many images a value holds."""


def verify(path: Path | str, *, progress: Progress = lambda *_: None) -> probe.Findings:
    """Check every record and image of a directory, in a child process.

    Raises:
        StoreError: there is nothing to check, or the child could not work.
    """
    layout.kind(Path(path))  # so that a path that is none is said plainly, and not by a child
    return probe.run(path, progress=progress)


def quarantine(path: Path | str) -> Path:
    """Rename a directory to ``<name>.corrupt-<UTC time>`` and return the new path.

    Raises:
        StoreError: somebody writes to it.
    """
    path = Path(path)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = path.with_name(f"{path.name}.corrupt-{stamp}")
    with disk.explained(f"cannot move {path} to {target}"), layout.writer_lock(path):
        if target.exists():
            raise StoreError(f"{target} is there already", todo="Try again in a second.")
        path.rename(target)
        layout.made_mark(path).unlink(missing_ok=True)  # a new one is what is asked for
        sync(path.parent)
    log.warning("%s was moved to %s", path, target)
    return target


def replace(path: Path, fresh: Path) -> Path:
    """Move a damaged directory aside and put ``fresh`` in its place; return where the old one is.

    Raises:
        StoreError: somebody writes to it.
    """
    aside = quarantine(path)
    with disk.explained(f"cannot move {fresh} to {path}"):
        fresh.rename(path)
        layout.remember_made(path)
        layout.made_mark(fresh).unlink(missing_ok=True)
        sync(path.parent)
    return aside


def inspect(path: Path) -> probe.Findings:
    """Check every entry in this process, which may die of it."""
    kind = layout.kind(path)
    if kind not in _KINDS:
        raise StoreError(f"{path} is of an unknown kind", got=kind, allowed=", ".join(_KINDS))
    names, checks = _KINDS[kind]
    with disk.explained(f"cannot read {path}"):
        layout.missing_pages(path)
    records = pictures = size = 0
    damaged: list[str] = []
    owners = Owners()
    env = Env(path, kind, names, readonly=True, ahead=True, careful=False).open()
    total = env.size()
    told = 0
    try:
        for table, check in checks.items():
            for key, value in _entries(env, table):
                size += len(value)
                try:
                    found = check(key, value, owners)
                    records, pictures = records + (table in _RECORDS), pictures + found
                except DamageError as error:
                    damaged.append(f"{table} {key.hex()}: {error}")
                if size > told + _TELL_BYTES:
                    told = size
                    probe.tell(min(size, total), total)
        if kind == tables.KIND:
            damaged += owners.missing(env)
    except DamageError as error:
        damaged.append(str(error))
    finally:
        env.close()
    return probe.Findings(records, pictures, size, tuple(damaged))


class Owners:
    """Which images there are, and which there should be."""

    def __init__(self) -> None:
        self._there: dict[tuple[int, int, int], int | None] = {}
        """By offset, camera and group: whose it is; None: damaged, which was said already."""
        self._wanted: list[tuple[int, int, str, int]] = []

    def look(self, key: bytes, value: Any) -> int:
        """Check a group of images and note whose it is; return how many images it holds.

        Raises:
            DamageError: it is not what was written, or lies under a key that is not its own.
        """
        at = images.parse_key(key)
        self._there[at] = None
        group = images.Group.parse(value)
        if at[1:] != (group.camera, group.number):
            raise DamageError("images lie under another key", got=(group.camera, group.number))
        for i in range(len(group)):
            group.bytes(i)
        self._there[at] = group.identity
        return len(group)

    def wanted(self, offset: int, fragment: Fragment) -> None:
        """Note a sound record, whose images must be there."""
        header = fragment.header
        rows = len(fragment.robot_ns)
        self._wanted.append((offset, entries.identity(header), header.schema, rows))

    def missing(self, env: Env) -> list[str]:
        """Return a line for each record that lacks images."""
        with env.read() as txn:
            schemas = {schema.id: schema for schema in tables.schemas(txn, env)}
        lines = []
        for offset, identity, name, rows in self._wanted:
            if name not in schemas:
                lines.append(f"log {offset}: its schema {name!r} is missing")
                continue
            lost = sum(
                self._there.get((offset, camera, number), -1) not in (identity, None)
                for camera, shape in enumerate(schemas[name].images.values())
                for number in range(-(-rows // images.per_group(shape)))
            )
            if lost:
                lines.append(f"log {offset}: {lost} groups of its images are missing")
        return lines


def _entries(env: Env, table: str) -> Iterator[tuple[bytes, Any]]:
    """Yield every (key, value) of a table, over several short transactions."""
    key: bytes | None = b"\0"
    while key is not None:
        with env.read() as txn:
            cursor = txn.cursor(env.table(table))
            there = cursor.set_range(key)
            key = None
            for count in range(_BATCH + 1):
                if not there:
                    break
                if count == _BATCH:
                    key = bytes(cursor.key())
                    break
                yield bytes(cursor.key()), cursor.value()
                there = cursor.next()


def _check_record(key: bytes, value: Any, owners: Owners) -> int:
    owners.wanted(tables.U64.unpack(key)[0], fragments.decode(value))
    return 0


def _check_label(key: bytes, value: Any, owners: Owners) -> int:
    arrays.unpack(value)
    return 0


def _check_block(key: bytes, value: Any, owners: Owners) -> int:
    Block.decode(value)
    return 0


def _check_places(key: bytes, value: Any, owners: Owners) -> int:
    for _ in places.decode(value):
        pass
    return 0


def _check_images(key: bytes, value: Any, owners: Owners) -> int:
    return owners.look(key, value)


def _check_schema(key: bytes, value: Any, owners: Owners) -> int:
    Schema.parse(key, tables.unseal(key, value))
    return 0


def _check_item(key: bytes, value: Any, owners: Owners) -> int:
    if not items.sound(value):
        raise DamageError("spooled item is not what was written")
    return 0


def _check_sealed(key: bytes, value: Any, owners: Owners) -> int:
    tables.unseal(key, value)
    return 0


def _check_nothing(key: bytes, value: Any, owners: Owners) -> int:
    return 0


_KINDS: Mapping[str, tuple[Sequence[str], Mapping[str, Check]]] = {
    tables.KIND: (
        tables.TABLES,
        dict.fromkeys(tables.SEALED, _check_sealed)
        | {
            "log": _check_record,
            "labels": _check_label,
            "gone": _check_label,
            "columns": _check_block,
            "places": _check_places,
            "images": _check_images,
            "schemas": _check_schema,
        },
    ),
    queue.KIND: (
        queue.TABLES,
        dict.fromkeys(queue.TABLES, _check_nothing) | {"items": _check_item},
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 where all is sound, 1 where something is damaged."""
    parser = argparse.ArgumentParser(prog="python -m user_system.replay.verify")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--quarantine", action="store_true", help="move it aside if damaged")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        if options.child:
            return _child(options.directory)
        return _report(options.directory, quarantine_it=options.quarantine)
    except DamageError as error:
        print(error, file=sys.stderr)
        return 1
    except UserSystemError as error:
        print(error, file=sys.stderr)
        return 2


def _child(path: Path) -> int:
    try:
        findings = inspect(path)
    except DamageError as error:
        findings = probe.Findings(damaged=(error.what,))
    print(findings.json())
    return 0


def _report(path: Path, *, quarantine_it: bool) -> int:
    findings = verify(path)
    print(
        f"{path}: {findings.records} records and {findings.images} images, "
        f"{findings.size / 1e6:.1f} MB, {len(findings.damaged)} damaged"
    )
    for line in findings.damaged:
        print(f"  {line}")
    if not findings.ok and quarantine_it:
        print(f"moved to {quarantine(path)}")
    return 0 if findings.ok else 1


if __name__ == "__main__":
    sys.exit(main())
