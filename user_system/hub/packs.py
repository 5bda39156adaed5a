"""Files of tensors: all that one version brought anew lies in one file, mapped to be read.

    directory/incoming/<upload>.bin      an upload under way
    directory/<policy>/<version>.bin     tensors one behind the other, each at a multiple of 64

Which tensor lies where stands in the manifest of the version that brought it. Files are written
once and never changed, so a map of one stays right when the file's name is removed.
"""

import hashlib
import mmap
import os
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from user_system.codec.arrays import ALIGN, Buffer, checksum
from user_system.codec.weights import tensor_digest
from user_system.core.errors import DamageError, SpecError, StoreError
from user_system.core.ports import TensorEntry
from user_system.hub import manifests

_CHECKERS = 2
"""Threads that look at a file that is taken over."""

Table = dict[str, int]
"""Hash -> where the tensor begins in its file."""


def layout(entries: Iterable[TensorEntry]) -> tuple[Table, int]:
    """Return where each tensor begins in a file of its own kind, and the file's size in bytes."""
    table: Table = {}
    end = 0
    for entry in entries:
        if entry.hash not in table:
            table[entry.hash] = end + -end % ALIGN
            end = table[entry.hash] + manifests.nbytes(entry)
    return table, end


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies."""

    file: str
    """Relative to the store's directory."""
    at: int
    size: int
    check: int
    """xxh3-64 of its bytes when they were verified, for whoever reads them there."""


class Packs:
    """Tensors of all files by hash. The store's lock guards it.

    Args:
        directory: of the store.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._places: dict[str, Place] = {}
        self._maps: dict[str, memoryview] = {}
        self._users: dict[str, set[str]] = {}
        """File -> tensors in it that were found there first."""

    @property
    def files(self) -> Collection[str]:
        """Files of which at least one tensor is known."""
        return self._maps.keys()

    def add(
        self,
        file: str,
        table: Table,
        entries: Sequence[TensorEntry],
        checks: Mapping[str, int] | None = None,
    ) -> None:
        """Know the tensors of a file.

        Args:
            file: relative to the directory.
            table: where its tensors begin.
            entries: of these tensors, among others.
            checks: xxh3-64 of each, where they have been verified; None: look at every byte first.

        Raises:
            StoreError: it cannot be read.
            DamageError: it is shorter than its tensors.
            SpecError: a tensor is not what its entry says.
        """
        view = map_file(self._directory / file)
        places: dict[str, Place] = {}
        for entry in entries:
            if entry.hash in table and entry.hash not in places:
                at, size = table[entry.hash], manifests.nbytes(entry)
                data = view[at : at + size]
                if len(data) != size:
                    raise DamageError(f"{file} is cut", got=len(view), allowed=at + size)
                check = _verified(entry, data) if checks is None else checks[entry.hash]
                places[entry.hash] = Place(file, at, size, check)
        self._maps[file] = view
        for tensor in places.keys() - self._places.keys():
            self._places[tensor] = places[tensor]
            self._users.setdefault(file, set()).add(tensor)

    def __contains__(self, tensor: str) -> bool:
        return tensor in self._places

    def place(self, tensor: str) -> Place:
        """Return where a tensor lies.

        Raises:
            SpecError: nowhere.
        """
        place = self._places.get(tensor)
        if place is None:
            raise SpecError(
                "no such tensor",
                got=tensor[:80],
                todo="Get the manifest again: its version is gone.",
            )
        return place

    def read(self, tensor: str) -> memoryview:
        """Return the bytes of a tensor, mapped.

        Raises:
            SpecError: no such tensor.
        """
        place = self.place(tensor)
        return self._maps[place.file][place.at : place.at + place.size]

    def keep(self, needed: set[str]) -> list[str]:
        """Forget what is not needed; return the files of which nothing is any more."""
        for tensor in self._places.keys() - needed:
            self._users[self._places.pop(tensor).file].discard(tensor)
        idle = [file for file in self._maps if not self._users.get(file)]
        for file in idle:
            del self._maps[file]
            self._users.pop(file, None)
        return idle


class Upload:
    """A version on its way in: the tensors that were lacking, in a file, checked as they come.

    Args:
        path: of the file.
        lacking: entries of the tensors that are expected.
    """

    def __init__(self, path: Path, lacking: Sequence[TensorEntry]):
        self.path = path
        self.table, self._size = layout(lacking)
        self.checks: dict[str, int] = {}
        """xxh3-64 of those tensors that are here, by hash."""
        self._entries = {entry.hash: entry for entry in lacking}
        self._missing = dict.fromkeys(self.table)
        self._got: dict[str, int] = {}
        self._digests: dict[str, hashlib._Hash] = {}
        self._file = -1
        self._view: memoryview | None = None
        """The file, mapped, once it has its size."""
        self._lock = threading.Lock()
        """Two streams may bring the same version."""
        self._sealed = False
        """A whole file was taken over: nothing is written into it any more."""

    @property
    def missing(self) -> list[str]:
        """Hashes of the tensors that have not come yet."""
        return sorted(self._missing)

    def put(self, tensor: str, offset: int, total: int, data: Buffer) -> None:
        """Take the next bytes of a tensor.

        Raises:
            SpecError: not offered, a gap, a wrong size, other bytes than offered, or numbers that
                are not finite, and what came of the tensor is forgotten; or a file was taken over.
            StoreError: the disk refused.
        """
        entry = self._entries.get(tensor)
        if entry is None:
            raise SpecError("a tensor that was not offered", got=tensor[:80])
        with self._lock:
            self._require_open()
            try:
                self._put(entry, offset, total, data)
            except SpecError:
                self._got.pop(tensor, None)
                raise

    def _put(self, entry: TensorEntry, offset: int, total: int, data: Buffer) -> None:
        if entry.hash not in self._missing:
            return  # whoever sends it a second time did not hear that it is here
        size, got = manifests.nbytes(entry), self._got.get(entry.hash, 0) if offset else 0
        if total != size or offset + len(data) > size:
            raise SpecError("a tensor of the wrong size", got=total, allowed=size)
        if offset != got:
            raise SpecError("a gap in a tensor", got=offset, allowed=got)
        if not offset:
            self._digests[entry.hash] = tensor_digest(entry.dtype, entry.shape)
        self._digests[entry.hash].update(data)
        self._write(self.table[entry.hash] + offset, data)
        self._got[entry.hash] = offset + len(data)
        if offset + len(data) == size:
            self._finish(entry, self._digests.pop(entry.hash).hexdigest())

    def _write(self, at: int, data: Buffer) -> None:
        try:
            if self._file < 0:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
                os.ftruncate(self._file, self._size)
            if len(data) and os.pwrite(self._file, data, at) != len(data):
                raise OSError("not all of it was written")
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be written", got=str(error), todo="Free space on its disk."
            ) from error

    def _finish(self, entry: TensorEntry, digest: str) -> None:
        name = f"{entry.module}/{entry.name}"
        if digest != entry.hash:
            raise SpecError(f"tensor {name} is not the one offered", todo="Send it again.")
        at, size = self.table[entry.hash], manifests.nbytes(entry)
        if self._view is None:
            self._view = map_file(self.path)
        data = self._view[at : at + size]
        floats = entry.dtype.startswith("float")
        if floats and not np.isfinite(np.frombuffer(data, entry.dtype)).all():
            raise SpecError(f"tensor {name} is not finite", todo="The learner has diverged.")
        self.checks[entry.hash] = checksum(data)
        del self._missing[entry.hash]

    def adopt(self, path: Path) -> None:
        """Take over a file in which all that is lacking lies as ``layout`` has it, and check it.

        Raises:
            SpecError: it is no such file, or not what was offered, and all that came is forgotten;
                or it is not the first one.
        """
        try:
            with self._lock:
                self._require_open()
                if path.is_symlink() or not path.is_file():
                    raise OSError("not a file")
                os.replace(path, self.path)
                # Whoever still sends tensors of it would write into what is being checked.
                self._sealed = True
                self.close()
        except OSError as error:
            raise SpecError("no file with tensors", got=f"{path.name}: {error}") from error
        try:
            self._check_adopted()
        except Exception:
            self._start_over()
            raise

    def _start_over(self) -> None:
        """Forget a file that was not what was offered: it may still be sent."""
        with self._lock:
            self.discard()
            self.checks.clear()
            self._got.clear()
            self._digests.clear()
            self._missing = dict.fromkeys(self.table)
            self._sealed = False

    def _check_adopted(self) -> None:
        try:
            view = map_file(self.path)
        except StoreError as error:
            raise SpecError("no file with tensors", got=error) from error
        if len(view) != self._size:
            raise SpecError("a file of the wrong size", got=len(view), allowed=self._size)
        entries = [self._entries[tensor] for tensor in self.table]

        def check(some: Sequence[TensorEntry]) -> dict[str, int]:
            found = {}
            for entry in some:
                at = self.table[entry.hash]
                found[entry.hash] = _verified(entry, view[at : at + manifests.nbytes(entry)])
            return found

        # Hashing is all the work there is, and lets other threads run.
        first, *others = [entries[n::_CHECKERS] for n in range(_CHECKERS)]
        with ThreadPoolExecutor(_CHECKERS) as pool:
            beside = [pool.submit(check, some) for some in others if some]
            self.checks |= check(first)
            for one in beside:
                self.checks |= one.result()
        self._missing.clear()

    def _require_open(self) -> None:
        if self._sealed:
            raise SpecError(
                "a file was taken over for this upload", todo="Offer the version again."
            )

    def close(self) -> None:
        """Let go of the file; it is still there."""
        self._view = None
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def discard(self) -> None:
        """Remove what came."""
        self.close()
        self.path.unlink(missing_ok=True)


def _verified(entry: TensorEntry, data: Buffer) -> int:
    """Return the xxh3-64 of a tensor that is what its entry says.

    Raises:
        SpecError: it is not.
    """
    manifests.check_tensor(entry, data)
    return checksum(data)


def map_file(path: Path) -> memoryview:
    """Return a file's bytes, mapped; an empty one as no bytes.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
    except OSError as error:
        raise StoreError(f"{path} cannot be read", got=str(error)) from error
