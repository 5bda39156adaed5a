"""Who did what that mattered: an append-only file of hash-chained JSON lines.

Each record holds the hash of the one before, so a line that was changed, removed or put in between
breaks the chain and ``verify`` names it. What a chain alone cannot show is a cut-off end; so
``head`` is shown elsewhere: in ``user-system status``, in the report of a run, and at the end of
``user-system audit``, which compares it with the one that is asked for by ``--head``.
"""

import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from user_system.core.deeds import Deed
from user_system.core.durable import sync
from user_system.core.errors import DamageError, StoreError

MAX_LINE = 1 << 16
"""Bytes of a record; the largest real one has a few hundred."""

GENESIS = "0" * 64
"""What the first record names as the hash before it."""


def record_hash(record: dict[str, Any]) -> str:
    """Return the hash of a record: sha256 over its JSON without the hash itself."""
    body = {key: value for key, value in record.items() if key != "hash"}
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def verify(path: Path) -> tuple[int, str]:
    """Return (number of records, hash of the last).

    Raises:
        DamageError: naming the first line that is not what was written.
    """
    count, previous = 0, GENESIS
    for record in records(path):
        count, previous = count + 1, record["hash"]
    return count, previous


def records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records in order, each one checked against those before it.

    Raises:
        DamageError: naming the first line that is not what was written.
    """
    if not path.exists():
        return
    previous = GENESIS
    with path.open("rb") as file:
        for count, line in enumerate(iter(lambda: file.readline(MAX_LINE), b"")):
            record = _follow(path, line, count, previous)
            previous = record["hash"]
            yield record


def _follow(path: Path, line: bytes, count: int, previous: str) -> dict[str, Any]:
    where = f"line {count + 1} of {path}"
    try:
        record: dict[str, Any] = json.loads(line)
        genuine = (
            line == _line(record)
            and record["sequence"] == count
            and record["previous"] == previous
            and record["hash"] == record_hash(record)
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{where} is not a record of the audit log", got=str(error)) from error
    if not genuine:
        raise DamageError(f"{where} does not follow from the one before: it was tampered with")
    return record


def _line(record: dict[str, Any]) -> bytes:
    """Return a record as it stands in the file; one that only means the same was changed."""
    return json.dumps(record, sort_keys=True).encode() + b"\n"


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StoreError(
            f"another process writes to the audit log {path}", todo="End the run first."
        ) from error


class Audit:
    """The log as its one writer sees it. Thread-safe.

    Args:
        path: the file; made on ``open``.
        wall_ns: civil time in ns since 1970, for people who read the log.
    """

    def __init__(self, path: Path, wall_ns: Callable[[], int]):
        self._path, self._wall_ns = path, wall_ns
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._count, self._head, self._size = 0, GENESIS, 0

    def open(self) -> None:
        """Verify what is there and go on after it.

        A last line without its end is what a power cut in the middle of a write leaves. It is moved
        to a file beside the log, and the log says so.

        Raises:
            DamageError: a record was tampered with; the hub must not go on as if nothing was.
            StoreError: another process writes to it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            _lock(descriptor, self._path)
            torn = self._set_torn_end_aside()
            self._count, self._head = verify(self._path)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        self._size = os.fstat(self._descriptor).st_size
        sync(self._path.parent)
        if torn:
            self.write(Deed.TORN, "", bytes=torn)

    def write(self, action: str, who: str, **details: Any) -> str:
        """Append one record, on disk when this returns; return its hash.

        Raises:
            StoreError: the disk refused it; the log is as it was before.
        """
        with self._lock:
            if self._descriptor is None:
                raise StoreError("the audit log is not open", todo="Call open() first.")
            record: dict[str, Any] = {
                "sequence": self._count,
                "wall_ns": self._wall_ns(),
                "action": action,
                "who": who,
                "details": details,
                "previous": self._head,
            }
            record["hash"] = record_hash(record)
            self._append(self._descriptor, _line(record))
            self._count, self._head = self._count + 1, record["hash"]
            return self._head

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    @property
    def head(self) -> str:
        """Hash of the newest record."""
        return self._head

    @property
    def count(self) -> int:
        """Number of records."""
        return self._count

    def stats(self) -> dict[str, float]:
        """Return the number of records."""
        return {"audit_records": float(self._count)}

    def _append(self, descriptor: int, line: bytes) -> None:
        try:
            written = os.write(descriptor, line)
            if written < len(line):
                raise OSError(f"only {written} of {len(line)} bytes fitted")
            os.fsync(descriptor)
        except OSError as error:
            os.ftruncate(descriptor, self._size)
            raise StoreError(
                f"the audit log {self._path} cannot be written",
                got=str(error),
                todo="Free space on its disk; what it should have recorded was not done.",
            ) from error
        self._size += len(line)

    def _set_torn_end_aside(self) -> int:
        if not self._path.exists():
            return 0
        data = self._path.read_bytes()
        whole = data.rfind(b"\n") + 1
        torn = data[whole:]
        if torn:
            self._path.with_name(self._path.name + ".torn").write_bytes(torn)
            os.truncate(self._path, whole)
        return len(torn)
