"""What an LMDB directory of ours looks like from outside, checked before LMDB maps a byte of it.

LMDB trusts its file: a page that is not there is a SIGBUS, a wrong version undefined. So the size
and the two meta pages are read with plain I/O first, and a manifest beside them says what is in it.

    ../NAME.made    beside the directory: it was made once, so it is never made anew unasked
    schemas.json    shapes of the rows, once more: what a damaged file is useless without
    manifest.json   kind, format version of our records, major version of LMDB's file format
    data.mdb        LMDB's pages
    lock.mdb        LMDB's reader table; worth nothing once nobody has it open
    writer.lock     held (flock) by the one process that writes
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from user_system.core.durable import sync, write_bytes
from user_system.core.errors import DamageError, StoreError
from user_system.replay import disk
from user_system.replay.schema import Schema

FORMATS = {"replay": 2}
"""Version of our records by kind, 1 where not named; another one is refused, never guessed at."""

LMDB_FORMAT = "0.9"
"""LMDB 1.0 files are not readable by 0.9 and the other way round."""

MANIFEST, SCHEMAS, DATA = "manifest.json", "schemas.json", "data.mdb"
LOCK = "writer.lock"

log = logging.getLogger(__name__)

_LOCK_S = 0.2
"""How long a writer tries before it takes the lock for another writer's."""

_MAGIC, _DATA_VERSION = 0xBEEFC0DE, 1
_PAGE_HEADER = 16
_META = struct.Struct("<II8xQI")  # magic, version, (address), map size, page size
_META_TAIL = struct.Struct("<QQ")  # last page used, transaction id
_TAIL_OFFSET = _PAGE_HEADER + 120


def verify_hint(path: Path) -> str:
    """Return the sentence that every report of damage ends with."""
    return (
        f"Run `user-system replay verify {path}` to see what is damaged, and `user-system replay "
        f"salvage {path}` to put in its place a new one with all that is whole."
    )


def write_manifest(path: Path, kind: str) -> None:
    """Write the manifest of a new directory: whole or not at all."""
    manifest = {"kind": kind, "format": FORMATS.get(kind, 1), "lmdb": LMDB_FORMAT}
    text = json.dumps(manifest, indent=1) + "\n"
    write_bytes(path / MANIFEST, text.encode())


def write_schemas(path: Path, schemas: Iterable[Schema]) -> None:
    """Keep schemas beside the file that they are needed for."""
    texts = {schema.id: json.loads(schema.text()) for schema in schemas}
    write_bytes(path / SCHEMAS, (json.dumps(texts, indent=1) + "\n").encode())


def read_schemas(path: Path) -> Mapping[str, Schema]:
    """Return the schemas that were kept beside the file; none where that is not readable."""
    if not (path / SCHEMAS).exists():
        return {}
    try:
        texts = json.loads((path / SCHEMAS).read_text())
        parsed = [Schema.parse(name.encode(), json.dumps(text)) for name, text in texts.items()]
    except (OSError, ValueError, AttributeError, DamageError) as error:
        log.warning("%s is not readable: %s", path / SCHEMAS, error)
        return {}
    return {schema.id: schema for schema in parsed}


def made_mark(path: Path) -> Path:
    """Return the file beside a directory that says: there was one, so never start empty."""
    return path.with_name(f"{path.name}.made")


def remember_made(path: Path) -> None:
    """Leave the mark, so that a directory that goes missing is noticed instead of made anew."""
    mark = made_mark(path)
    if not mark.exists():
        mark.touch(mode=0o600)
        sync(path.parent)


def remove(path: Path) -> None:
    """Delete a file or a directory, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def lock_writer(path: Path) -> int:
    """Return a file handle that makes this process the only writer until it is closed.

    Raises:
        StoreError: another process is, or there is no such directory.
    """
    with disk.explained(f"cannot write to {path}"):
        if not path.is_dir():
            raise StoreError(f"there is no store in {path}", todo="Check the path.")
        handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_S
    while not _flock(handle, fcntl.LOCK_EX):
        # A reader that asks whether there is a writer holds it for an instant.
        if time.monotonic() > deadline:
            os.close(handle)
            raise StoreError(
                f"another process writes to {path}",
                allowed="one writer",
                todo="Stop it, or open this one read-only.",
            )
        time.sleep(_LOCK_S / 20)
    return handle


def _flock(handle: int, how: int) -> bool:
    """Return whether a lock was there to be had."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return False
    return True


@contextmanager
def writer_lock(path: Path) -> Iterator[None]:
    """Be the only writer for a while."""
    handle = lock_writer(path)
    try:
        yield
    finally:
        os.close(handle)


def is_written(path: Path) -> bool:
    """Return whether somebody writes to a directory now."""
    try:
        handle = os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not _flock(handle, fcntl.LOCK_SH)
    finally:
        os.close(handle)


def kind(path: Path) -> str:
    """Return what a directory says it holds.

    Raises:
        StoreError: there is no store.
        DamageError: its manifest is not readable.
    """
    return str(_read_manifest(path).get("kind"))


def format_of(path: Path) -> int:
    """Return the format number that a directory was written in.

    Raises:
        StoreError: there is none.
        DamageError: its manifest is not readable.
    """
    number = _read_manifest(path).get("format")
    if type(number) is not int:
        raise DamageError(f"{path / MANIFEST} is not readable", got=number, todo=verify_hint(path))
    return number


def check_manifest(path: Path, kind: str, format: int | None = None) -> None:
    """Refuse a directory that is not of this kind and format; None: today's.

    Raises:
        StoreError: there is none, or one that this version cannot read.
        DamageError: its manifest is not readable.
    """
    manifest = _read_manifest(path)
    format = FORMATS.get(kind, 1) if format is None else format
    found = {key: manifest.get(key) for key in ("kind", "format", "lmdb")}
    wanted = {"kind": kind, "format": format, "lmdb": LMDB_FORMAT}
    if found != wanted and found == {**wanted, "format": 1}:
        raise StoreError(
            f"{path} was written by an earlier version",
            got=found,
            allowed=wanted,
            todo=f"Run `user-system replay compact {path}`: it writes the store anew, as of today.",
        )
    if found != wanted:
        raise StoreError(
            f"{path} was written in a format that this version does not read",
            got=found,
            allowed=wanted,
            todo="Open it with the version of user-system that wrote it.",
        )


def _read_if_there(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise StoreError(
            f"there is no store in {path.parent}: {path.name} is missing",
            todo="Check the path; a new store is made only when that is asked for.",
        ) from error


def _read_manifest(path: Path) -> Mapping[str, Any]:
    try:
        with disk.explained(f"cannot read {path / MANIFEST}"):
            text = _read_if_there(path / MANIFEST)
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamageError(
            f"{path / MANIFEST} is not readable", got=error, todo=verify_hint(path)
        ) from error
    if not isinstance(manifest, dict):
        raise DamageError(f"{path / MANIFEST} is not readable", todo=verify_hint(path))
    return manifest


def missing_pages(path: Path) -> int:
    """Return how many pages the file lacks that its newest meta page counts on.

    A few may be missing in a sound file: pages taken and given back within one transaction at the
    end of the file are never written. Whether they matter is for ``verify`` to find out, in a
    process that may die of it.

    Raises:
        DamageError: neither meta page is one; LMDB could not open this.
    """
    metas, size = _read_metas(path)
    if len(metas) < 2:
        raise DamageError(
            f"{path / DATA} has lost its meta pages",
            got=f"{len(metas)} of 2 readable, {size} bytes",
            todo=verify_hint(path),
        )
    newest = max(metas, key=lambda meta: meta["transaction"])
    return max(0, int(newest["last"]) + 1 - size // int(newest["page"]))


def newest_transaction(path: Path) -> int:
    """Return the number of the newest transaction that the meta pages name; 0: none is readable."""
    return max((meta["transaction"] for meta in _read_metas(path)[0]), default=0)


def _read_metas(path: Path) -> tuple[list[dict[str, int]], int]:
    """Return the readable meta pages, and the size of the file.

    Raises:
        DamageError: there is no file.
    """
    file = path / DATA
    try:
        with file.open("rb") as handle:
            first = _read_meta(handle.read(_TAIL_OFFSET + _META_TAIL.size))
            # Both metas name the page size; where the first is lost, 4096 is the usual one.
            handle.seek(first["page"] if first else 4096)
            second = _read_meta(handle.read(_TAIL_OFFSET + _META_TAIL.size))
            size = os.fstat(handle.fileno()).st_size
    except FileNotFoundError as error:
        raise DamageError(f"{file} is missing", todo=verify_hint(path)) from error
    except IsADirectoryError as error:
        raise DamageError(f"{file} is no file", todo=verify_hint(path)) from error
    return [meta for meta in (first, second) if meta], size


def _read_meta(page: bytes) -> dict[str, int] | None:
    if len(page) < _TAIL_OFFSET + _META_TAIL.size:
        return None
    magic, version, _, page_size = _META.unpack_from(page, _PAGE_HEADER)
    last, transaction = _META_TAIL.unpack_from(page, _TAIL_OFFSET)
    if magic != _MAGIC or version != _DATA_VERSION:
        return None
    if not 512 <= page_size <= 65536 or page_size & (page_size - 1):
        return None
    return {"page": page_size, "last": last, "transaction": transaction}
