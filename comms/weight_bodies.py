"""What travels of one version to one receiver: the tensors that it lacks, as one run of bytes."""

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from comms.pb import weights_pb2 as pb
from comms.wire_specs import manifest_to_proto
from user_system.codec import arrays, deltas
from user_system.codec.arrays import Buffer
from user_system.core.ports import Manifest, Shelf, TensorEntry

HELD, NEAR = "", "near"
"""Forms beside those of ``codec.deltas``: the receiver has it; it reads it where it is."""

_KEPT = 64 << 20
"""Bytes of encoded tensors that are remembered: many receivers want the same ones."""

_MADE = 4
"""Bodies that are remembered; what they refer to lies on the shelf, or is remembered anyway."""


_RECENT = 16
"""Pieces that are remembered of a body: hosts that began together ask for the same ones."""


@dataclass(frozen=True)
class Body:
    """A version on its way to receivers. Thread-safe."""

    begin: pb.Begin
    """As every receiver is told, without what is its own: offset, age, serial."""
    parts: Sequence[Buffer]
    """What travels, in order, without what is empty."""
    name: str
    total: int

    _recent: "OrderedDict[tuple[int, int], pb.PullEvent]" = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def piece(self, offset: int, size: int) -> pb.PullEvent:
        """Return up to ``size`` bytes from ``offset`` on as they are said to whoever asks."""
        size = min(size, self.total - offset)
        with self._lock:
            event = self._recent.get((offset, size))
        if event is None:
            event = pb.PullEvent()
            event.piece.offset, event.piece.data = offset, self.read(offset, size)
            with self._lock:
                self._recent[offset, size] = event
                while len(self._recent) > _RECENT:
                    self._recent.popitem(last=False)
        return event

    def read(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes from ``offset`` on."""
        found: list[Buffer] = []
        for part in self.parts:
            if offset >= len(part):
                offset -= len(part)
                continue
            piece = memoryview(part)[offset : offset + size]
            found.append(piece)
            size -= len(piece)
            offset = 0
            if not size:
                break
        return b"".join(found)


class Bodies:
    """Makes bodies, and remembers what cost time. Thread-safe.

    Args:
        shelf: where tensors are.
    """

    def __init__(self, shelf: Shelf):
        self._shelf = shelf
        self._making = threading.Lock()
        self._made: OrderedDict[tuple[str | int | bool, ...], Body] = OrderedDict()
        self._kept: OrderedDict[tuple[str, str, bool], tuple[str, Buffer]] = OrderedDict()
        self._size = 0

    def body(self, manifest: Manifest, want: pb.Want) -> Body:
        """Return what travels of ``manifest`` to whoever wants that.

        Raises:
            SpecError: a tensor is not there any more.
        """
        who = want.held, want.held_hash, want.near, want.pack
        key = manifest.policy, manifest.version, manifest.hash, *who
        # Many receivers of one kind come together.
        with self._making:
            body = self._made.get(key)
            if body is None:
                body = self._made[key] = self._make(manifest, want)
                while len(self._made) > _MADE:
                    self._made.popitem(last=False)
        return body

    def _make(self, manifest: Manifest, want: pb.Want) -> Body:
        held = self._held(want)
        has = {entry.hash for entry in held.values()}
        travels: list[pb.Travel] = []
        parts: list[Buffer] = []
        rows: list[list[str | int]] = []
        for entry in manifest.tensors:
            if entry.hash in has:
                travels.append(pb.Travel())
                continue
            has.add(entry.hash)
            if want.near:
                place = self._shelf.near(entry.hash)
                travels.append(
                    pb.Travel(form=NEAR, file=place.file, at=place.at, check=place.check)
                )
                continue
            base = held.get((entry.module, entry.name))
            form, data = self._encoded(entry, base, pack=want.pack)
            travels.append(pb.Travel(form=form, size=len(data)))
            rows.append([entry.hash, form, base.hash if base else "", len(data)])
            if len(data):
                parts.append(data)
        name = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:32]
        begin = pb.Begin(manifest=manifest_to_proto(manifest), travels=travels, body=name)
        return Body(begin, parts, name, sum(map(len, parts)))

    def _held(self, want: pb.Want) -> dict[tuple[str, str], TensorEntry]:
        """Return what the receiver has, if it is what the shelf knows by that number."""
        known = self._shelf.get(want.policy, want.held) if want.held else None
        if known is None or known.hash != want.held_hash:
            return {}
        return {(entry.module, entry.name): entry for entry in known.tensors}

    def _encoded(
        self, entry: TensorEntry, base: TensorEntry | None, *, pack: bool
    ) -> tuple[str, Buffer]:
        key = entry.hash, base.hash if base else "", pack
        found = self._kept.get(key)
        if found is None:
            found = self._encode(entry, base, pack=pack)
            self._remember(key, found)
        else:
            self._kept.move_to_end(key)
        return found

    def _encode(
        self, entry: TensorEntry, base: TensorEntry | None, *, pack: bool
    ) -> tuple[str, Buffer]:
        data = self._shelf.tensor(entry.hash)
        old: Buffer | None = None
        if base is not None and (base.dtype, tuple(base.shape)) == (
            entry.dtype,
            tuple(entry.shape),
        ):
            old = self._shelf.tensor(base.hash)
        return deltas.encode(data, arrays.width(entry.dtype), old, pack=pack)

    def _remember(self, key: tuple[str, str, bool], found: tuple[str, Buffer]) -> None:
        # What travels as it is lies on the shelf and costs nothing, but its map is kept by it.
        self._kept[key] = found
        self._size += len(found[1])
        while self._size > _KEPT:
            _, (_, oldest) = self._kept.popitem(last=False)
            self._size -= len(oldest)
