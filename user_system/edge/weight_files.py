"""Versions of policies on a robot host's disk, as workers read them.

    directory/<policy>/<version>.json   which tensor lies where
    directory/<policy>/<version>.bin    tensors, each at a multiple of 64
    directory/<policy>/near-....bin     a file of the store itself, where both share a disk

A version is whole once its ``.json`` is there. Nothing is forced to disk, since all of it can be
fetched again; so what lies there when a host comes back is looked at, byte by byte, before use.
"""

import contextlib
import json
import logging
import mmap
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from user_system.codec.arrays import ALIGN, Buffer, checked_size
from user_system.codec.weights import STATISTICS, Entry, entries_hash, tensor_digest
from user_system.core.errors import DamageError, SpecError, StoreError
from user_system.core.ports import Manifest, TensorEntry
from user_system.core.types import Array, Weights

log = logging.getLogger(__name__)

BASES = "bases"
"""Directory beside those of the policies: frozen bases, by their hashes."""

MAX_BYTES = 4 << 30
"""Bytes of a version, at most: as many as the store takes."""


@dataclass(frozen=True)
class Laid:
    """A version that is whole and verified, mapped."""

    manifest: Manifest
    path: Path
    tensors: Mapping[str, Buffer]
    """By hash."""
    places: Mapping[str, tuple[str, int]]
    """By hash: the file's name, and where in it."""

    @property
    def files(self) -> set[str]:
        """Names of the files in which the tensors lie."""
        return {file for file, _ in self.places.values()}

    def tensor(self, like: TensorEntry) -> Buffer | None:
        """Return the tensor of the same name, dtype and shape; None: there is none."""
        for entry in self.manifest.tensors:
            if entry[:4] == like[:4]:
                return self.tensors[entry.hash]
        return None


def verify(entry: TensorEntry, data: Buffer) -> None:
    """Make sure that a tensor is what its entry says, and finite.

    Raises:
        DamageError: other bytes.
        SpecError: numbers that are not finite.
    """
    digest = tensor_digest(entry.dtype, entry.shape)
    digest.update(data)
    if digest.hexdigest() != entry.hash:
        raise DamageError(f"tensor {entry.module}/{entry.name} is not what its hash says")
    if not finite(entry.dtype, data):
        raise SpecError(f"tensor {entry.module}/{entry.name} is not finite")


def finite(dtype: str, data: Buffer) -> bool:
    """Return whether all numbers of a tensor are."""
    return not dtype.startswith("float") or bool(np.isfinite(np.frombuffer(data, dtype)).all())


def keep_only(directory: Path, source: str) -> None:
    """Forget the versions in a directory that somebody else than ``source`` gave numbers to.

    Numbers only rise, so that of a head that was taken over could be above all that come after it.
    A head that was made anew, with keys of its own, begins anew.

    Args:
        directory: with one of each policy.
        source: who gives numbers now; where nobody is noted, it was it.
    """
    note = directory / ".source"
    known = note.read_text() if note.exists() else source
    if known != source:
        log.warning("weights of another head are forgotten: its numbers say nothing here")
        for path in directory.iterdir():
            if path.is_dir() and path.name != BASES:
                shutil.rmtree(path)
    if known != source or not note.exists():
        directory.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(".part")
        part.write_text(source)
        part.replace(note)


class Folder:
    """Lays versions of one policy down and finds them again. One thread's business.

    Args:
        directory: holds nothing else.
    """

    def __init__(self, directory: Path):
        self._directory = directory

    def open(self) -> list[Laid]:
        """Return what lies there and is whole, oldest first; remove what is not."""
        self._directory.mkdir(parents=True, exist_ok=True)
        found: list[Laid] = []
        for path in self._directory.glob("*.json"):
            try:
                laid = read(path)
                for entry in laid.manifest.tensors:
                    verify(entry, laid.tensors[entry.hash])
            except (DamageError, SpecError, StoreError) as error:
                log.warning("weights are fetched again: %s", error)
                path.unlink()
                continue
            found.append(laid)
        return sorted(found, key=lambda laid: laid.manifest.version)

    def lay(
        self,
        manifest: Manifest,
        fresh: Mapping[str, Buffer],
        near: Mapping[str, tuple[Path, int]],
        held: Laid | None,
    ) -> Laid:
        """Lay a version down, and return it mapped.

        Args:
            manifest: what it consists of.
            fresh: tensors that came, by hash, verified.
            near: tensors that lie in files of the store, and where.
            held: version that has the other tensors.

        Raises:
            StoreError: the disk refused.
        """
        path = self._directory / f"{manifest.version}.json"
        places = dict(held.places) if held else {}
        blocks: list[Buffer] = []
        end = 0
        for tensor, data in fresh.items():
            pad = -end % ALIGN
            places[tensor] = path.with_suffix(".bin").name, end + pad
            blocks += [bytes(pad), data]
            end += pad + len(data)
        try:
            names = {file: self._link(file) for file in {file for file, _ in near.values()}}
            places |= {tensor: (names[file], at) for tensor, (file, at) in near.items()}
            if blocks:
                with open(path.with_suffix(".bin"), "wb") as out:
                    out.writelines(blocks)
            rows = [[*entry, *places[entry.hash]] for entry in manifest.tensors]
            path.with_suffix(".part").write_bytes(_to_json(manifest, rows))
            path.with_suffix(".part").replace(path)
            return _mapped(manifest, path, places)
        except OSError as error:
            raise StoreError(
                f"{path} cannot be written", got=error, todo="Free space on its disk."
            ) from error

    def _link(self, file: Path) -> str:
        """Give a file of the store a name of ours, so that it stays while we need it."""
        name = f"near-{file.name}"
        target = self._directory / name
        if not target.exists():
            part = target.with_suffix(".part")
            part.unlink(missing_ok=True)
            try:
                os.link(file, part)
            except OSError:  # another disk, or one that knows no links
                shutil.copyfile(file, part)
            part.replace(target)
        return name

    def keep(self, laid: Iterable[Laid]) -> None:
        """Remove whatever does not belong to ``laid``."""
        needed = {name for one in laid for name in (*one.files, one.path.name)}
        for path in [*self._directory.glob("*.json"), *self._directory.glob("*.bin")]:
            if path.name not in needed:
                path.unlink(missing_ok=True)


def read(path: Path) -> Laid:
    """Return the version that lies at ``path``, mapped and not looked at.

    Raises:
        StoreError: it cannot be read.
        DamageError: it is none.
    """
    try:
        value = json.loads(path.read_bytes())
        rows = [
            (TensorEntry(m, n, d, tuple(s), h), f, at) for m, n, d, s, h, f, at in value["tensors"]
        ]
        manifest = Manifest(
            policy=str(value["policy"]),
            version=int(value["version"]),
            hash=str(value["hash"]),
            tensors=tuple(entry for entry, _, _ in rows),
            bases=dict(value["bases"]),
        )
        places = {entry.hash: (Path(str(file)).name, int(at)) for entry, file, at in rows}
        laid = _mapped(manifest, path, places)
    except OSError as error:
        raise StoreError(f"cannot read {path}", got=error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DamageError(f"{path} is damaged", got=error) from error
    if entries_hash(Entry(*entry) for entry in manifest.tensors) != manifest.hash:
        raise DamageError(f"{path} is damaged", got="a hash that is not that of its tensors")
    return laid


def _mapped(manifest: Manifest, path: Path, places: Mapping[str, tuple[str, int]]) -> Laid:
    """Return a version of which is known where its tensors lie.

    Raises:
        OSError: a file cannot be read.
        DamageError: a tensor lies outside its file.
    """
    places = {entry.hash: places[entry.hash] for entry in manifest.tensors}
    views = {file: map_file(path.with_name(file)) for file in {f for f, _ in places.values()}}
    tensors: dict[str, Buffer] = {}
    for entry in manifest.tensors:
        file, at = places[entry.hash]
        size = checked_size(entry.dtype, tuple(entry.shape), MAX_BYTES)
        tensors[entry.hash] = views[file][at : at + size]
        if at < 0 or len(tensors[entry.hash]) != size:
            raise DamageError(f"{path} points outside its files", got=at)
    return Laid(manifest, path, tensors, places)


def load(path: Path) -> Weights:
    """Return the version that lies at ``path``, in memory of this process.

    Copied, not mapped: a policy must not wait for a disk, nor die with a file that is cut.

    Raises:
        StoreError: it cannot be read.
        DamageError: it is none.
    """
    laid = read(path)
    modules: dict[str, dict[str, Array]] = {}
    for entry in laid.manifest.tensors:
        array: Array = np.frombuffer(laid.tensors[entry.hash], entry.dtype).reshape(entry.shape)
        modules.setdefault(entry.module, {})[entry.name] = array.copy()
    statistics = modules.pop(STATISTICS, {})
    return Weights(
        policy=laid.manifest.policy,
        version=laid.manifest.version,
        hash=laid.manifest.hash,
        modules=modules,
        statistics=statistics,
        bases=dict(laid.manifest.bases),
    )


def map_file(path: Path) -> memoryview:
    """Return a file's bytes, mapped; an empty one as no bytes.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if not size:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))


def _to_json(manifest: Manifest, rows: list[list[Any]]) -> bytes:
    value = {
        "policy": manifest.policy,
        "version": manifest.version,
        "hash": manifest.hash,
        "bases": dict(manifest.bases),
        "tensors": rows,
    }
    return json.dumps(value).encode()


class Partial:
    """A body that is coming, and what is kept of it for a later life of this process.

    Args:
        path: of the file; its description lies beside it.
    """

    def __init__(self, path: Path):
        self._path, self._note = path, path.with_suffix(".note")
        self.body, self.version, self.held = "", 0, 0
        self.data = bytearray()
        self._kept = 0
        """Bytes that are on disk."""
        self._noted = True
        """Whether there may be files."""

    def open(self) -> None:
        """Go on from what an earlier life left."""
        try:
            note = json.loads(self._note.read_bytes())
            self.body, self.version, self.held = note["body"], note["version"], note["held"]
            self.data = bytearray(self._path.read_bytes()[:MAX_BYTES])
            self._kept = len(self.data)
        except FileNotFoundError:
            self.drop()
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("weights begin to come anew: %s", error)
            self.drop()

    def begin(self, body: str, version: int, held: int, offset: int) -> None:
        """Go on with a body at ``offset``; with another one than before, that is 0."""
        if (body, version, held) != (self.body, self.version, self.held) or offset != len(
            self.data
        ):
            self.drop()
            self.body, self.version, self.held = body, version, held

    def add(self, data: bytes, *, keep: bool) -> None:
        """Take the next bytes; ``keep``: and see to it that a later life finds them.

        Raises:
            StoreError: the disk refused; they are here nevertheless.
        """
        self.data += data
        if not keep:
            return
        try:
            self._noted = True
            if not self._kept:
                note = {"body": self.body, "version": self.version, "held": self.held}
                self._note.write_text(json.dumps(note))
            with open(self._path, "r+b" if self._kept else "wb") as file:
                file.seek(self._kept)
                file.write(memoryview(self.data)[self._kept :])
            self._kept = len(self.data)
        except OSError as error:
            raise StoreError(f"{self._path} cannot be written", got=error) from error

    def drop(self) -> None:
        """Forget it."""
        self.body, self.version, self.held = "", 0, 0
        self.data, self._kept = bytearray(), 0
        if not self._noted:
            return
        for path in (self._note, self._path):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
        self._noted = False
