"""The only door to LMDB: opened safely, grown when full, explained when it fails.

What LMDB gives and what it does not:

- With ``sync`` and without ``WRITEMAP`` a commit survives power loss, and a full disk is an error;
  with ``WRITEMAP`` it is a SIGBUS, without ``sync`` every seventh power cut is a lost file. There
  is no option for either.
- A transaction that finds the map full is rolled back, the map doubled, and the work done again; so
  ``write`` takes a function that may be called twice. Readers in other processes notice the new
  size at their next transaction.
- It must not be opened twice in a process, nor used across ``fork``: both are refused here.
- A reader that was killed pins old pages for ever; the writer clears such every ten seconds.
"""

import mmap
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import lmdb

from user_system.core.durable import sync
from user_system.core.errors import DamageError, StoreError
from user_system.replay import disk, layout, probe, structure
from user_system.replay.datafile import DataFile
from user_system.replay.gate import Gate
from user_system.replay.mapped import FileMap
from user_system.replay.txn import Txn as Txn

T = TypeVar("T")

INITIAL_MAP = 64 << 20
"""Bytes; the file itself is only as large as what is in it."""

MAX_READERS = 254
READER_CHECK_S = 10.0
FULL_BELOW = 4 << 20
"""A short write with less free space than this is a full disk, whatever the errno says."""

_NO_RESERVE = 0x4000
"""``MAP_NORESERVE``, which Python does not name: address space, not memory, is asked for."""

_open_here: set[str] = set()
"""Directories that this process has open: LMDB must not open one twice."""


class Env:
    """One LMDB directory of named tables. Thread-safe; for one process, and not across ``fork``.

    Args:
        path: the directory.
        kind: what is stored, as in its manifest.
        tables: names of the tables.
        readonly: a reader beside the writer, in whatever process.
        ahead: whether the kernel is to read ahead: for passes over everything, where a look at a
            few pages would otherwise read megabytes.
        format: number of the format that it must be of; None: today's.
        careful: look at a suspicious file in a child process before mapping it; off in that child.
    """

    def __init__(
        self,
        path: Path | str,
        kind: str,
        tables: Sequence[str],
        *,
        readonly: bool = False,
        ahead: bool = False,
        format: int | None = None,
        careful: bool = True,
    ):
        self.path = Path(path)
        self.readonly = readonly
        self._ahead = ahead
        self._format = format
        self.careful = careful
        self._kind = kind
        self._names = tuple(tables)
        self._env: Any = None
        self._tables: dict[str, Any] = {}
        self._file: DataFile | None = None
        self._lock_file: int | None = None
        self._pid = 0
        self._name = ""
        """Its path while it is open, without links: what is in the way of a second opening."""
        self._failed = ""
        self._write_lock = threading.Lock()
        self._gate = Gate()
        self.map = FileMap(self.path / layout.DATA)
        self._checked_at = 0.0
        self.grown = 0

    def open(self, *, create: bool = False) -> "Env":
        """Open the directory; make it first where ``create`` says so and there is nothing.

        Raises:
            StoreError: it is not there, of another format, or open elsewhere; or the system does
                not let us.
            DamageError: its file is not what LMDB wrote; nothing was mapped.
        """
        name = os.path.realpath(self.path)
        if self._env is not None or name in _open_here:
            raise StoreError(
                f"{self.path} is open in this process already", todo="Share the object that has it."
            )
        with disk.explained(f"cannot open {self.path}"):
            self._open(create=create)
        self._name = name
        _open_here.add(name)
        self._pid = os.getpid()
        return self

    def _open(self, *, create: bool) -> None:
        if create and not (self.path / layout.MANIFEST).exists():
            self._create()
        layout.check_manifest(self.path, self._kind, self._format)
        missing = layout.missing_pages(self.path)
        if self.careful:
            if missing:
                probe.require_readable(self.path, missing)
            self._check_structure()
        if not self.readonly:
            self._lock_file = layout.lock_writer(self.path)
        try:
            self._env = self._open_lmdb(self.path)
            self._tables = {n: self._open_table(self._env, n) for n in self._names}
            self._file = DataFile(self.path / layout.DATA)
            if not self.readonly:
                layout.remember_made(self.path)
        except BaseException:
            self._release()
            raise

    def close(self) -> None:
        """Let go of the directory; safe to repeat."""
        if self._env is None:
            return
        if self._pid == os.getpid():
            with self._write_lock, self._gate.alone():
                _open_here.discard(self._name)
                self._release()
        self._env = None

    def __enter__(self) -> "Env":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def table(self, name: str) -> Any:
        """Return the handle of a table, for the ``db`` arguments of ``Txn``."""
        return self._tables[name]

    @property
    def file(self) -> DataFile:
        """The data file, for reads by position inside a read transaction."""
        if self._file is None:
            raise StoreError(f"{self.path} is not open", todo="Call open() first.")
        return self._file

    @contextmanager
    def read(self) -> Iterator[Txn]:
        """Yield a snapshot; values read are ``memoryview`` into the map, gone when this ends."""
        self._check_usable()
        txn = self._begin_read()
        try:
            yield txn
        except lmdb.Error as error:
            raise self._explain(error, "read") from error
        finally:
            txn.abort()
            self._gate.leave()

    def write(self, work: Callable[[Txn], T]) -> T:
        """Run ``work`` in one transaction; when this returns, what it wrote survives a power cut.

        Args:
            work: called again from the start where the map had to grow; keeps no state outside.

        Raises:
            StoreError: the disk is full or failed; nothing of this call is stored.
        """
        with self._write_lock:
            self._check_usable()
            if self._failed:
                raise StoreError(
                    f"{self.path} stopped after a write error: {self._failed}",
                    todo="Check the disk, then start the process again.",
                )
            self._check_readers()
            while True:
                try:
                    with self._env.begin(write=True, buffers=True) as txn:
                        return work(txn)
                except lmdb.MapFullError:
                    self._grow()
                except lmdb.Error as error:
                    raise self._explain(error, "write") from error

    def copy(self, target: Path) -> None:
        """Write the file as it is at this moment to an empty directory; positions stay the same.

        Raises:
            StoreError: the disk is full or failed.
        """
        self._check_usable()
        self._gate.enter()
        try:
            self._env.copy(str(target), compact=False)
        except lmdb.Error as error:
            raise StoreError(f"cannot copy {self.path} to {target}", got=error) from error
        finally:
            self._gate.leave()

    def transaction(self) -> int:
        """Return the number of the last committed transaction: unchanged, nothing is new.

        A writer publishes it in the file a moment before new snapshots see it, so what a reader has
        seen is ``snapshot``, not this.
        """
        self._check_usable()
        return int(self._env.info()["last_txnid"])

    def snapshot(self) -> int:
        """Return the number of the transaction that a snapshot taken now, or later, includes."""
        with self.read() as txn:
            return txn.id()

    def whole(self, txn: Txn) -> memoryview:
        """Return the file as mapped here; valid until ``txn`` ends. See ``FileMap``."""
        if not self.map.known:
            # Any value will do that a writer always leaves.
            value = txn.get(b"offset", db=self._tables["meta"])
            if value is None:
                raise StoreError(f"{self.path} holds nothing yet")
            self.map.learn(value, int(self._env.info()["map_size"]))
        return self.map.whole()

    def used(self, txn: Txn) -> int:
        """Return the bytes of the pages that tables take, free ones left out."""
        stats = (txn.stat(self._tables[name]) for name in self._names)
        pages = (s["branch_pages"] + s["leaf_pages"] + s["overflow_pages"] for s in stats)
        return int(sum(pages)) * int(self._env.stat()["psize"])

    def readers(self) -> str:
        """Return LMDB's table of readers: process, thread, snapshot; a line each."""
        self._check_usable()
        return str(self._env.readers())

    def size(self) -> int:
        """Return the bytes of the file that were ever used."""
        self._check_usable()
        return (int(self._env.info()["last_pgno"]) + 1) * int(self._env.stat()["psize"])

    def stats(self) -> dict[str, float]:
        """Return map size, file size, free disk space, readers and pages in use."""
        self._check_usable()
        info = self._env.info()
        with disk.explained(f"cannot look at {self.path}"):
            size = (self.path / layout.DATA).stat().st_size
            free = shutil.disk_usage(self.path).free
        return {
            "map_bytes": float(info["map_size"]),
            "file_bytes": float(size),
            "disk_free_bytes": float(free),
            "readers": float(info["num_readers"]),
            "pages": float(info["last_pgno"] + 1),
            "map_grown": float(self.grown),
        }

    # --- opening ---------------------------------------------------------------------------------

    def _create(self) -> None:
        """Make the directory beside its place and rename it: after a crash it is whole or not."""
        if self.path.exists() and any(self.path.iterdir()):
            raise StoreError(
                f"{self.path} holds files but no {layout.MANIFEST}",
                allowed="an empty or absent directory",
                todo=layout.verify_hint(self.path),
            )
        if (mark := layout.made_mark(self.path)).exists():
            raise StoreError(
                f"{self.path} is gone: it was made before, and starting empty would hide that",
                todo=f"Put it back; or delete {mark} to begin an empty one, knowing what is lost.",
            )
        new = self.path.with_name(self.path.name + ".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            self._fill(new)
            new.rename(self.path)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        sync(self.path.parent)

    def _fill(self, new: Path) -> None:
        """Make all that a directory without entries holds."""
        env = self._open_lmdb(new, INITIAL_MAP)
        try:
            for name in self._names:
                self._open_table(env, name)
        finally:
            env.close()
        layout.write_manifest(new, self._kind)

    def _check_structure(self) -> None:
        """Look at the tree with plain reads: LMDB ends the process where a page of it is none.

        A file that somebody writes was looked at when its writer opened it, and changes meanwhile.

        Raises:
            DamageError: it is not sound.
        """
        if self.readonly and layout.is_written(self.path):
            return
        before = layout.newest_transaction(self.path)
        damage = structure.check(self.path / layout.DATA)
        if damage and layout.newest_transaction(self.path) == before:
            hint = layout.verify_hint(self.path)
            raise DamageError(f"{self.path / layout.DATA} is damaged", got=damage[0], todo=hint)

    def _open_lmdb(self, path: Path, map_size: int = 0) -> Any:
        """Open; a map size of 0 means as large as the file's own record of it says."""
        try:
            return lmdb.open(
                str(path),
                map_size=map_size,
                readonly=self.readonly,
                create=not self.readonly,
                max_dbs=max(len(self._names), 16),
                max_readers=MAX_READERS,
                sync=True,
                metasync=True,
                writemap=False,
                readahead=self._ahead,
                mode=0o600,
            )
        except lmdb.Error as error:
            raise self._explain(error, "open") from error

    def _open_table(self, env: Any, name: str) -> Any:
        try:
            return env.open_db(name.encode(), create=not self.readonly)
        except lmdb.Error as error:
            raise self._explain(error, f"open table {name!r} of") from error

    def _release(self) -> None:
        self.map.forget()
        if self._env is not None:
            self._env.close()
            self._env = None
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    # --- running ---------------------------------------------------------------------------------

    def _check_usable(self) -> None:
        if self._env is None:
            raise StoreError(f"{self.path} is not open", todo="Call open() first.")
        if os.getpid() != self._pid:
            raise StoreError(
                f"{self.path} was opened before a fork",
                got=f"process {os.getpid()}",
                allowed=f"process {self._pid}",
                todo='Start processes with "spawn" and open the store in each.',
            )

    def _begin_read(self) -> Any:
        while True:
            self._gate.enter()
            try:
                return self._env.begin(buffers=True)
            except lmdb.MapResizedError:
                self._gate.leave()
                with self._gate.alone():
                    self.map.forget()
                    self._env.set_mapsize(0)
            except lmdb.Error as error:
                self._gate.leave()
                raise self._explain(error, "read") from error

    def _check_readers(self) -> None:
        now = time.monotonic()
        if now - self._checked_at >= READER_CHECK_S:
            self._checked_at = now
            self._env.reader_check()

    def _grow(self) -> None:
        size = 2 * int(self._env.info()["map_size"])
        _require_room(self.path, size)
        with self._gate.alone():
            self.map.forget()
            self._env.set_mapsize(size)
        self.grown += 1

    def _explain(self, error: Exception, verb: str) -> StoreError:
        """Return ``error`` in our words; a write that failed for no known reason is the last one.

        After a failed fsync the kernel may have dropped the pages it could not write, so that a
        second fsync would report success for data that is gone.
        """
        what = f"cannot {verb} {self.path}"
        if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError | lmdb.InvalidError):
            return DamageError(what, got=error, todo=layout.verify_hint(self.path))
        if isinstance(error, lmdb.ReadersFullError):
            return StoreError(what, got=error, allowed=f"{MAX_READERS} readers")
        if isinstance(error, lmdb.BadValsizeError):
            # Refused before anything was written: the disk is as good as it was.
            return StoreError(what, got=error, allowed="keys of 1..511 bytes, values below 4 GiB")
        if isinstance(error, lmdb.PanicError):
            self._failed = str(error)
            todo = "Check the disk, then start the process again."
            return StoreError(f"{self.path} stopped after a write error", got=error, todo=todo)
        if verb == "write":
            with disk.explained(what):
                free = shutil.disk_usage(self.path).free
            if isinstance(error, lmdb.DiskError) or free < FULL_BELOW:
                return StoreError(
                    f"the disk under {self.path} is full",
                    got=f"{free >> 10} KiB free",
                    todo="Free some space; writing goes on by itself.",
                )
            self._failed = str(error)
        return StoreError(what, got=error)


def _require_room(path: Path, size: int) -> None:
    """Make sure that this process may map ``size`` bytes more.

    LMDB lets go of its map before it asks for a larger one; refused then, it has none at all.

    Raises:
        StoreError: it may not.
    """
    try:
        mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE, 0).close()
    except (OSError, ValueError, OverflowError) as error:
        raise StoreError(
            f"{path} is full: this process may not map {size >> 20} MiB",
            got=error,
            todo="Raise its limit of address space (ulimit -v), or give the replay a quota.",
        ) from error
