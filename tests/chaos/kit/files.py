"""Files and directories as a disk has them: what is safe, and what was written since.

See ``powerfail`` for the rules.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
PAGE = 4096


class Unmodelled(Exception):
    """A system call whose effect on a disk is not known here."""


@dataclass(eq=False)
class Write:
    """Bytes on their way; ``done`` once the call has returned."""

    offset: int
    data: bytes
    done: bool = False


class File:
    """A file: what is safe, and what was written since, by sector and in order."""

    def __init__(self) -> None:
        self.durable = bytearray()
        self.pending: dict[int, list[tuple[Write, int, bytes]]] = {}
        self.size = 0
        """As processes see it."""

    def write(self, offset: int, data: bytes) -> Write:
        write = Write(offset, data)
        for at, part in sectors(write):
            self.pending.setdefault(at // SECTOR, []).append((write, at, part))
        self.size = max(self.size, offset + len(data))
        return write

    def written(self) -> set[Write]:
        """Return the writes that have returned and are not safe: what a sync now is for."""
        return {write for pieces in self.pending.values() for write, *_ in pieces if write.done}

    def settle(self, writes: Iterable[Write]) -> None:
        """Make these writes safe; a sector takes with it what was written to it before."""
        chosen = set(writes)
        for number, pieces in sorted(self.pending.items()):
            count = max((i + 1 for i, piece in enumerate(pieces) if piece[0] in chosen), default=0)
            for _, at, part in pieces[:count]:
                put(self.durable, at, part)
            self.pending[number] = pieces[count:]
        self.pending = {number: pieces for number, pieces in self.pending.items() if pieces}

    def crashed(self, rng: random.Random, keep: float) -> bytes:
        """Return one content that a disk may have now.

        Args:
            rng: chooses sectors.
            keep: how likely a sector is as new as can be; else any version since the last sync.
        """
        data = bytearray(self.durable)
        ends = [len(data)]
        for _, pieces in sorted(self.pending.items()):
            count = len(pieces) if rng.random() < keep else rng.randint(0, len(pieces))
            for _, at, part in pieces[:count]:
                put(data, at, part)
            ends.append(max(len(self.durable), pieces[-1][1] + len(pieces[-1][2])))
        if rng.random() < 0.2:  # the data reached the disk and the new length did not
            del data[rng.choice(ends) :]
        return bytes(data)


class Mapped(File):
    """A file that is written through memory.

    No call shows what is in it; who has looked says it with ``look``. Each page may be on disk as
    it was at any look since the last sync, or, where there was none, never have got there.
    """

    def __init__(self) -> None:
        super().__init__()
        self._pages: dict[int, list[bytes]] = {}
        self._length = 0
        self._synced = False

    def look(self, content: bytes) -> None:
        """Take in what the file holds now."""
        self._length = len(content)
        for at in range(0, len(content), PAGE):
            versions = self._pages.setdefault(at, [])
            page = content[at : at + PAGE]
            if not versions or versions[-1] != page:
                versions.append(page)

    def settle(self, writes: Iterable[Write]) -> None:
        super().settle(writes)
        self._synced = True
        self._pages = {at: versions[-1:] for at, versions in self._pages.items()}

    def crashed(self, rng: random.Random, keep: float) -> bytes:
        if not self._length or (not self._synced and rng.random() < 0.1):
            return super().crashed(rng, keep)
        data = bytearray(self._length)
        for at, versions in self._pages.items():
            older = versions if self._synced else [b"", *versions]
            put(data, at, versions[-1] if rng.random() < keep else rng.choice(older))
        return bytes(data)


@dataclass
class Folder:
    """A directory: what is safe, what processes see, and the changes in between."""

    durable: dict[str, "File | Folder"] = field(default_factory=dict)
    live: dict[str, "File | Folder"] = field(default_factory=dict)
    pending: list[tuple[str, str, "File | Folder | None"]] = field(default_factory=list)
    """(name that goes, name that comes, what it names)."""

    def change(self, gone: str, new: str, node: "File | Folder | None") -> None:
        self.pending.append((gone, new, node))
        _apply(self.live, self.pending[-1:])

    def settle(self) -> None:
        _apply(self.durable, self.pending)
        self.pending.clear()

    def crashed(self, rng: random.Random) -> dict[str, "File | Folder"]:
        """Return names that a disk may have now."""
        names = dict(self.durable)
        _apply(names, self.pending[: rng.randint(0, len(self.pending))])
        return names


def _apply(
    names: dict[str, "File | Folder"],
    changes: Sequence[tuple[str, str, "File | Folder | None"]],
) -> None:
    for gone, new, node in changes:
        names.pop(gone, None)
        if node is not None:
            names[new] = node


def put(data: bytearray, offset: int, part: bytes) -> None:
    """Write into bytes as into a file: what was never written reads as zeros."""
    if len(data) < offset:
        data.extend(bytes(offset - len(data)))
    data[offset : offset + len(part)] = part


def sectors(write: Write) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of each sector that a write touches."""
    at, end = write.offset, write.offset + len(write.data)
    while at < end:
        following = min(end, (at // SECTOR + 1) * SECTOR)
        yield at, write.data[at - write.offset : following - write.offset]
        at = following


def nodes(folder: Folder) -> Iterator[File | Folder]:
    yield folder
    for node in folder.live.values():
        if isinstance(node, Folder):
            yield from nodes(node)
        else:
            yield node


def write_folder(folder: Folder, rng: random.Random, keep: float, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for name, node in folder.crashed(rng).items():
        if isinstance(node, Folder):
            write_folder(node, rng, keep, target / name)
        else:
            (target / name).write_bytes(node.crashed(rng, keep))
