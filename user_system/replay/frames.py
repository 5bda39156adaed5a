"""Images of one schema's observations, copied from the store into batches.

The first time an image is wanted its checksum is made and compared; from then on it is known where
its bytes lie in the file, and they are copied from LMDB's map without asking LMDB. What is served
was checked once since the store was opened.

Copies from the map are as fast as from any memory while the file is in the page cache; where it is
not, each 4 KiB of it is a fault of its own. So what is touched for the first time, and what was
found to be cold, is asked for ahead of time and read with ``pread``.
"""

import logging
import resource
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from user_system.codec import images as codecs
from user_system.core.errors import DamageError, StoreError
from user_system.core.types import Array
from user_system.replay import images, mapped, places, tables
from user_system.replay.cache import Cache
from user_system.replay.columns import Column
from user_system.replay.env import Env, Txn
from user_system.replay.places import Place
from user_system.replay.rows import Rows

log = logging.getLogger(__name__)

_STAY_COLD = 64
"""Fills that read with ``pread`` after one that had to wait for the disk."""


class _Piece(NamedTuple):
    """One encoded image of one destination."""

    slot: int
    position: int
    length: int
    codec: codecs.Codec
    checksum: int | None
    """None: it was right before."""


class _Camera:
    """Where the images of one camera lie, by observation row."""

    def __init__(self, number: int, shape: tuple[int, ...], cache_bytes: int):
        self.number = number
        self.shape = shape
        self.size = int(np.prod(shape))
        self.cache_bytes = cache_bytes
        self.cache: Cache | None = None
        """Decoded images; None: all of them are stored raw, as far as was seen."""
        self.position = Column("int64")
        """In the file; -1: not looked at yet."""
        self.length = Column("int32")
        self.codec = Column("uint8")

    def pad(self, rows: int) -> None:
        self.position.pad(rows, -1)
        self.length.pad(rows, 0)
        self.codec.pad(rows, 0)

    def keep(self, rows: Array, pixels: Array) -> None:
        """Keep decoded images ``[N, H, W, C]`` of ``rows`` ``[N]``, none of which is kept."""
        if self.cache is None:
            self.cache = Cache(self.shape, np.uint8, self.cache_bytes)
        rows, first = np.unique(rows, return_index=True)
        self.cache.put(rows, pixels[first])


Find = Callable[[Txn, _Camera, int, int, int], Place | None]
"""Returns where a group lies, given offset and identity of its fragment; None: nowhere."""


class Frames:
    """Reads images of ``rows``. For one thread.

    Args:
        env: the open store.
        rows: whose observations have images.
        cache_bytes: camera -> memory for its images where these have to be decoded.
    """

    def __init__(self, env: Env, rows: Rows, cache_bytes: Mapping[str, int] | None = None):
        self._env = env
        self._rows = rows
        room = cache_bytes or {}
        self._cameras = {
            name: _Camera(i, shape, room.get(name, 0))
            for i, (name, shape) in enumerate(rows.schema.images.items())
        }
        self._cold = 0
        self.read = 0
        """Images served."""
        self.checked = 0
        """Of these, those whose checksum was made."""

    def caches(self) -> list[Cache]:
        """Return the caches of decoded images that there are."""
        return [camera.cache for camera in self._cameras.values() if camera.cache is not None]

    def fill(self, txn: Txn, name: str, rows: Array, out: Array) -> Array:
        """Copy the images of observation ``rows`` ``[N]`` to ``out`` ``[N, H, W, C]``.

        Args:
            txn: a snapshot in which all of them are stored.
            name: the image field.
            rows: -1 stands for no observation: zeros.
            out: contiguous.

        Returns:
            Those of ``rows`` whose images are damaged; what ``out`` holds for them is arbitrary.
        """
        camera = self._cameras[name]
        camera.pad(len(self._rows.robot_ns))
        position = camera.position.data[rows]
        located = position >= 0
        if located.all() and (rows >= 0).all():
            self.read += len(rows)
            damaged = self._copy(txn, camera, rows, np.arange(len(rows)), out)
            return rows[damaged] if damaged else rows[:0]
        missing = rows < 0
        out[missing] = 0
        known = np.flatnonzero(located & ~missing)
        fresh = np.flatnonzero(~located & ~missing)
        self.read += len(fresh) + len(known)
        damaged = self._copy(txn, camera, rows, known, out)
        if len(fresh):
            damaged = [*damaged, *self._check(txn, camera, rows, fresh, out)]
        return rows[damaged] if damaged else rows[:0]

    # --- known ones ------------------------------------------------------------------------------

    def _copy(self, txn: Txn, camera: _Camera, rows: Array, slots: Array, out: Array) -> list[int]:
        """Copy images whose checksum was right when they were wanted for the first time.

        Returns:
            Those of ``slots`` whose image does not decode any more.
        """
        at = rows[slots]
        if camera.cache is not None and camera.codec.data[at].any():
            return self._decode(self._env.whole(txn), camera, at, slots, out)
        if self._cold:
            self._cold -= 1
            pieces = zip(slots.tolist(), camera.position.data[at].tolist(), strict=True)
            known = [_Piece(slot, start, camera.size, "raw", None) for slot, start in pieces]
            self._pull(sorted(known, key=lambda piece: piece.position), camera, out)
        else:
            waited = resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
            _copy_raw(self._env.whole(txn), camera.size, slots, camera.position.data[at], out)
            if resource.getrusage(resource.RUSAGE_THREAD).ru_majflt != waited:
                self._cold = _STAY_COLD
        return []

    def _decode(
        self, source: memoryview, camera: _Camera, at: Array, slots: Array, out: Array
    ) -> list[int]:
        """Copy the images of rows ``at`` to ``slots``, from the cache or decoded."""
        cache = camera.cache
        if cache is None:
            raise ValueError("nothing of this camera was decoded before")
        kept = cache.find(at)
        hit = kept >= 0
        out[slots[hit]] = cache.values[kept[hit]]
        wrong: list[int] = []
        at, slots = at[~hit], slots[~hit]
        columns = (camera.position, camera.length, camera.codec)
        values = (column.data[at].tolist() for column in columns)
        for slot, start, length, codec in zip(slots.tolist(), *values, strict=True):
            data = source[start : start + length]
            try:
                out[slot] = codecs.decode(data, codecs.CODECS[codec], camera.shape)
            except DamageError:
                wrong.append(slot)
        if sound := [i for i, slot in enumerate(slots.tolist()) if slot not in wrong]:
            camera.keep(at[sound], out[slots[sound]])
        return wrong

    # --- those wanted for the first time ---------------------------------------------------------

    def _check(self, txn: Txn, camera: _Camera, rows: Array, slots: Array, out: Array) -> list[int]:
        """Read and check images; remember where the sound ones lie; return slots of the others."""
        pieces, lost = self._locate(txn, camera, rows, slots, self._noted)
        wrong = self._pull(pieces, camera, out)
        if again := sorted(lost | wrong):
            # What the places say is wrong: ask for the values themselves.
            more, lost = self._locate(txn, camera, rows, np.array(again), self._stored)
            wrong = self._pull(more, camera, out)
            pieces = [piece for piece in pieces if piece.slot not in again] + more
        damaged = lost | wrong
        self.checked += len(pieces)
        for piece in pieces:
            if piece.slot not in damaged:
                row = rows[piece.slot]
                camera.position.data[row] = piece.position
                camera.length.data[row] = piece.length
                camera.codec.data[row] = codecs.CODECS.index(piece.codec)
        coded = [p.slot for p in pieces if p.codec != "raw" and p.slot not in damaged]
        if coded:
            camera.keep(rows[coded], out[coded])
        return sorted(damaged)

    def _locate(
        self, txn: Txn, camera: _Camera, rows: Array, slots: Array, find: Find
    ) -> tuple[list[_Piece], set[int]]:
        """Return where the images of ``slots`` lie, in the order of the file, and the lost ones."""
        piece = self._rows.piece_of.data[rows[slots]]
        within = rows[slots] - self._rows.pieces["obs"].data[piece]
        offsets = self._rows.pieces["offset"].data[piece].tolist()
        identities = self._rows.pieces["identity"].data[piece].tolist()
        groups, indexes = np.divmod(within, images.per_group(camera.shape))
        known: dict[tuple[int, int, int], Place | None] = {}
        pieces: list[_Piece] = []
        lost: set[int] = set()
        columns = (groups.tolist(), indexes.tolist(), slots.tolist())
        for offset, who, group, index, slot in zip(offsets, identities, *columns, strict=True):
            at = offset, who, group
            if at not in known:
                known[at] = find(txn, camera, *at)
            place = known[at]
            if place is None or index >= len(place.starts):
                lost.add(slot)
                continue
            figures = (int(v[index]) for v in (place.starts, place.lengths, place.checksums))
            start, length, checksum = figures
            pieces.append(_Piece(slot, start, length, place.codec, checksum))
        return sorted(pieces, key=lambda piece: piece.position), lost

    def _noted(
        self, txn: Txn, camera: _Camera, offset: int, identity: int, group: int
    ) -> Place | None:
        """Return where the writer noted that a group lies."""
        data = txn.get(tables.U64.pack(offset), db=self._env.table("places"))
        try:
            found = () if data is None else places.decode(data, identity)
            for place in found:
                if (place.camera, place.group) == (camera.number, group):
                    return place
        except DamageError as error:
            log.warning("places of fragment %d are damaged: %s", offset, error)
        return None

    def _stored(
        self, txn: Txn, camera: _Camera, offset: int, identity: int, group: int
    ) -> Place | None:
        """Return where LMDB finds a group; reads all of its pages."""
        value = txn.get(images.key(offset, camera.number, group), db=self._env.table("images"))
        try:
            found = images.parse(value, camera.shape, (identity, camera.number, group))
            return places.of(found, mapped.position(value))
        except (DamageError, StoreError) as error:
            log.warning("images %d of fragment %d are damaged: %s", group, offset, error)
            return None

    def _pull(self, pieces: Sequence[_Piece], camera: _Camera, out: Array) -> set[int]:
        """Read images with ``pread`` into their slots; return the slots of those that are wrong."""
        for piece in pieces:
            self._env.file.ask(piece.position, piece.length)
        return {piece.slot for piece in pieces if not self._pull_one(piece, camera, out)}

    def _pull_one(self, piece: _Piece, camera: _Camera, out: Array) -> bool:
        """Read one image into its slot; return whether it is what was written."""
        raw = piece.codec == "raw"
        data = out[piece.slot].reshape(-1).data if raw else memoryview(bytearray(piece.length))
        if len(data) != piece.length:
            return False
        if not self._env.file.read_into(data, piece.position):
            return False
        if piece.checksum is not None and codecs.checksum(data) != piece.checksum:
            return False
        if not raw:
            try:
                out[piece.slot] = codecs.decode(data, piece.codec, camera.shape)
            except DamageError:
                return False
        return True


def _copy_raw(source: memoryview, size: int, slots: Array, positions: Array, out: Array) -> None:
    """Copy ``size`` bytes from each of ``positions`` to each of ``slots``.

    A thousand times per batch, so what can be made ahead is; the order is such that what a step
    saw and what it saw next, which lie side by side in the file, are copied one after the other.
    """
    target = out.reshape(-1).data
    if len(slots) == len(out):
        order, parts = _in_pairs(len(out), size)
        starts = positions[order]
        for part, start, end in zip(parts, starts.tolist(), (starts + size).tolist(), strict=True):
            target[part] = source[start:end]
    else:
        for to, start in zip((slots * size).tolist(), positions.tolist(), strict=True):
            target[to : to + size] = source[start : start + size]


@lru_cache(maxsize=16)
def _in_pairs(n: int, size: int) -> tuple[Array, list[slice]]:
    """Return an order of ``n`` slots that takes one of the first half, then of the second."""
    order = np.argsort(np.arange(n) % max(1, (n + 1) // 2), kind="stable")
    return order, [slice(slot * size, (slot + 1) * size) for slot in order.tolist()]
