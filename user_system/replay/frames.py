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
from typing import NamedTuple

import numpy as np

from user_system.codec import images as codecs
from user_system.core.errors import DamageError, StoreError
from user_system.core.types import Array
from user_system.replay import copies, images, mapped, places, tables
from user_system.replay.cache import Cache
from user_system.replay.columns import Column
from user_system.replay.env import Env, Txn
from user_system.replay.places import Place
from user_system.replay.rows import Rows

log = logging.getLogger(__name__)

_STAY_COLD = 64
"""Fills that read with ``pread`` after one that had to wait for the disk."""

_PLACES = 512
"""Fragments whose places are remembered."""


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

    def know(self, row: int, piece: _Piece) -> None:
        """Remember where the image of a row lies."""
        self.position.data[row] = piece.position
        self.length.data[row] = piece.length
        self.codec.data[row] = codecs.CODECS.index(piece.codec)

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
        self._places: dict[tuple[int, int], Mapping[tuple[int, int], Place]] = {}
        """By offset and identity of a fragment, then camera and group: of fragments that were
        looked at lately, since steps that come new are drawn one by one."""
        self.read = 0
        """Images served."""
        self.checked = 0
        """Of these, those whose checksum was made."""

    def caches(self) -> list[Cache]:
        """Return the caches of decoded images that there are."""
        return [camera.cache for camera in self._cameras.values() if camera.cache is not None]

    def fill(self, txn: Txn, rows: Array, outs: Mapping[str, Array]) -> dict[str, Array]:
        """Copy the images of observation ``rows`` ``[N]`` to ``outs``, camera -> ``[N, H, W, C]``.

        Args:
            txn: a snapshot in which all of them are stored.
            rows: -1 stands for no observation: zeros.
            outs: contiguous.

        Returns:
            By camera those of ``rows`` whose images are damaged; what ``outs`` hold for them is
            arbitrary.
        """
        cameras = [self._cameras[name] for name in outs]
        for camera in cameras:
            camera.pad(len(self._rows.robot_ns))
        starts = [camera.position.data[rows] for camera in cameras]
        if len(rows) and self._plain(cameras, rows, starts):
            self._take(txn, cameras, starts, list(outs.values()))
            self.read += len(rows) * len(outs)
            return {}
        damaged = {
            name: self._fill(txn, camera, rows, out)
            for camera, (name, out) in zip(cameras, outs.items(), strict=True)
        }
        return {name: rows[slots] for name, slots in damaged.items() if slots}

    def _plain(self, cameras: Sequence[_Camera], rows: Array, starts: Sequence[Array]) -> bool:
        """Return whether all images are known, raw and warm: nearly always, so it is quick."""
        if self._cold or rows.min() < 0:
            return False
        return all(at.min() >= 0 and c.cache is None for c, at in zip(cameras, starts, strict=True))

    def _take(
        self, txn: Txn, cameras: Sequence[_Camera], starts: Sequence[Array], outs: Sequence[Array]
    ) -> None:
        """Copy images whose checksum was right when they were wanted for the first time."""
        source, waited = self._env.whole(txn), _waited()
        for camera, at, out in zip(cameras, starts, outs, strict=True):
            copies.take(source, camera.size, at, out)
        if _waited() != waited:
            self._cold = _STAY_COLD

    def _fill(self, txn: Txn, camera: _Camera, rows: Array, out: Array) -> list[int]:
        """Copy the images of one camera; return the places in ``rows`` of damaged ones."""
        missing = rows < 0
        located = (camera.position.data[rows] >= 0) & ~missing
        fresh, known = np.flatnonzero(~located & ~missing), np.flatnonzero(located)
        self.read += len(fresh) + len(known)
        damaged = self._check(txn, camera, rows, fresh, out) if len(fresh) else []
        if damaged:
            return damaged
        if camera.cache is None and not self._cold and len(known) and 4 * len(fresh) <= len(rows):
            # Beside a writer nearly every batch has a few fresh ones. To copy these once more, and
            # anything in the place of those missing, is cheaper than to copy one by one.
            at = camera.position.data[np.where(missing, rows[known[0]], rows)]
            self._take(txn, [camera], [at], [out])
        else:
            damaged = self._copy(txn, camera, rows, known, out)
        out[missing] = 0
        return damaged

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
            source, waited = self._env.whole(txn), _waited()
            copies.scatter(source, camera.size, camera.position.data[at], out, slots)
            if _waited() != waited:
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
        sound = [piece for piece in pieces if piece.slot not in damaged]
        # Before they are known: if there is no memory for a cache, they must not pass for raw ones.
        if coded := [piece.slot for piece in sound if piece.codec != "raw"]:
            camera.keep(rows[coded], out[coded])
        for piece in sound:
            camera.know(int(rows[piece.slot]), piece)
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
        found = self._places.get((offset, identity))
        if found is None:
            if len(self._places) >= _PLACES:
                self._places.clear()
            found = self._places[offset, identity] = self._read_places(txn, offset, identity)
        return found.get((camera.number, group))

    def _read_places(self, txn: Txn, offset: int, identity: int) -> Mapping[tuple[int, int], Place]:
        data = txn.get(tables.U64.pack(offset), db=self._env.table("places"))
        try:
            # A copy: what LMDB returned is gone with the snapshot.
            found = () if data is None else places.decode(memoryview(bytes(data)), identity)
            return {(place.camera, place.group): place for place in found}
        except DamageError as error:
            log.warning("places of fragment %d are damaged: %s", offset, error)
        return {}

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


def _waited() -> int:
    """Return how often this thread waited for the disk because a page was not in memory."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt
