"""What a disk may hold after the power went: rebuilt from a record of system calls.

The model is as mean as disks are allowed to be, and no meaner:

- Written bytes are safe once a sync of their file that began after the write has returned, or when
  a write through an ``O_DSYNC`` handle has. Until then any 512-byte sector of them may be on disk
  or not, each for itself, in any version it had since the last sync.
- A file is as long as it was at the last sync, or as any later write made it; what was not written
  in between reads as zeros.
- Names (made, renamed, removed) are safe once their directory was synced. Until then a directory
  holds some first part of its changes; what one directory has says nothing about another.

A call that this model does not know is an error, not a guess.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from kit.files import File, Folder, Mapped, Unmodelled, Write, nodes, write_folder
from kit.syscalls import Call, Moment


@dataclass
class _Handle:
    node: File | Folder
    dsync: bool = False
    append: bool = False
    position: int = 0


class Disk:
    """Takes in moments of a record and knows what a disk may hold at each.

    Args:
        root: only what lies below it exists here.
        mapped: ends of the names of files that are written through memory.
    """

    def __init__(self, root: Path, mapped: tuple[str, ...] = ("lock.mdb",)):
        self.root = PurePosixPath(root)
        self._mapped = mapped
        self.top = Folder()
        self._handles: dict[int, _Handle | None] = {}
        self._under_way: dict[int, Iterable[Write]] = {}
        """Thread -> what the call it is in writes or syncs."""

    def take(self, moment: Moment) -> None:
        """Take in one moment."""
        call = moment.call
        act = getattr(self, f"_{call.name}", None)
        if act is None:
            if call.name in _HARMLESS:
                return
            raise Unmodelled(f"{call.name}({call.arguments[:200]})")
        act(call, moment.done)

    @property
    def unsafe(self) -> int:
        """How many writes and names are not safe yet."""
        return sum(len(node.pending) for node in nodes(self.top))

    def file(self, *parts: str) -> "File | Folder":
        """Return what a path below the root names."""
        place = self._find(str(self.root.joinpath(*parts)).encode())
        if place is None or place[1] not in place[0].live:
            raise Unmodelled(f"there is no {parts}")
        return place[0].live[place[1]]

    def crash(self, rng: random.Random, target: Path) -> None:
        """Write one state that the disk may be in now to ``target``."""
        keep = rng.choice([0.0, 0.1, 0.5, 0.9, 1.0])
        write_folder(self.top, rng, keep, target)

    # --- handles ---------------------------------------------------------------------------------

    def _find(self, path: bytes) -> tuple[Folder, str] | None:
        """Return the folder and the name of a path below the root."""
        whole = PurePosixPath(path.decode())
        if self.root not in whole.parents:
            return None
        folder = self.top
        *above, name = whole.relative_to(self.root).parts
        for part in above:
            inner = folder.live.get(part)
            if not isinstance(inner, Folder):
                raise Unmodelled(f"{whole} lies in no folder known here")
            folder = inner
        return folder, name

    def _openat(self, call: Call, done: bool) -> None:
        if not done or call.result is None or call.result < 0:
            return
        flags = call.numbers()[2]
        path = call.strings()[0]
        if PurePosixPath(path.decode()) == self.root:
            self._handles[call.result] = _Handle(self.top)
            return
        place = self._find(path)
        if place is None:
            self._handles[call.result] = None
            return
        folder, name = place
        node = folder.live.get(name)
        if node is None and "O_CREAT" not in flags:
            raise Unmodelled(f"{path!r} was there before the record began")
        if node is None:
            node = Mapped() if name.endswith(self._mapped) else File()
            folder.change("", name, node)
        elif "O_TRUNC" in flags and isinstance(node, File) and node.size:
            raise Unmodelled(f"{path!r} was cut on opening")
        # O_DSYNC is one of the bits that strace may print as O_SYNC.
        self._handles[call.result] = _Handle(node, "SYNC" in flags, "O_APPEND" in flags)

    def _close(self, call: Call, done: bool) -> None:
        if not done:
            self._handles.pop(int(call.numbers()[0]), None)

    def _fcntl(self, call: Call, done: bool) -> None:
        # Both numbers then stand for one opening, its place in the file included.
        handle = self._handle(call)
        if done and "F_DUPFD" in call.arguments and handle is not None:
            self._handles[call.result] = handle

    def _dup(self, call: Call, done: bool) -> None:
        if done and self._handle(call) is not None:
            raise Unmodelled(f"{call.name}({call.arguments})")

    _dup2 = _dup3 = _dup

    def _handle(self, call: Call, which: int = 0) -> _Handle | None:
        number = call.numbers()[which]
        return self._handles.get(int(number)) if number.lstrip("-").isdigit() else None

    def _mmap(self, call: Call, done: bool) -> None:
        if done and "PROT_WRITE" in call.arguments and "MAP_SHARED" in call.arguments:
            handle = self._handle(call, 4)
            if handle is not None and not isinstance(handle.node, Mapped):
                raise Unmodelled("a file is written through memory")

    # --- bytes -----------------------------------------------------------------------------------

    def _begin(self, call: Call, handle: _Handle, offset: int) -> None:
        if not isinstance(handle.node, File):
            raise Unmodelled(f"{call.name} to a directory")
        writes = []
        for data in call.strings():
            writes.append(handle.node.write(offset, data))
            offset += len(data)
        self._under_way[call.thread] = writes

    def _end(self, call: Call, handle: _Handle) -> None:
        writes = list(self._under_way.pop(call.thread, []))
        if call.result is not None and call.result != sum(len(write.data) for write in writes):
            raise Unmodelled(f"{call.name} wrote {call.result} bytes")
        for write in writes:
            write.done = True
        if handle.dsync and isinstance(handle.node, File):
            handle.node.settle(writes)

    def _at(self, call: Call, done: bool, offset: int) -> None:
        handle = self._handle(call)
        if handle is None:
            return
        if done:
            self._end(call, handle)
        else:
            self._begin(call, handle, offset)

    def _pwrite64(self, call: Call, done: bool) -> None:
        self._at(call, done, int(call.numbers()[-1]))

    def _pwritev(self, call: Call, done: bool) -> None:
        self._at(call, done, int(call.numbers()[-1]))

    def _write(self, call: Call, done: bool) -> None:
        handle = self._handle(call)
        if handle is None:
            return
        if handle.append and isinstance(handle.node, File) and not done:
            handle.position = handle.node.size
        self._at(call, done, handle.position)
        if done and call.result is not None and call.result > 0:
            handle.position += call.result

    _writev = _write

    def _lseek(self, call: Call, done: bool) -> None:
        handle = self._handle(call)
        if done and handle is not None and call.result is not None and call.result >= 0:
            handle.position = call.result

    def _ftruncate(self, call: Call, done: bool) -> None:
        handle = self._handle(call)
        if done and handle is not None and not isinstance(handle.node, Mapped):
            raise Unmodelled("a file is cut or grown")

    _fallocate = _ftruncate

    def _fdatasync(self, call: Call, done: bool) -> None:
        handle = self._handle(call)
        if handle is None:
            return
        if isinstance(handle.node, Folder):
            if done and call.result == 0:
                handle.node.settle()
            return
        if not done:
            self._under_way[call.thread] = handle.node.written()
            return
        writes = self._under_way.pop(call.thread)
        if call.result == 0:
            handle.node.settle(writes)

    _fsync = _fdatasync

    # --- names -----------------------------------------------------------------------------------

    def _mkdir(self, call: Call, done: bool) -> None:
        if done and call.result == 0 and (place := self._find(call.strings()[0])):
            place[0].change("", place[1], Folder())

    def _unlink(self, call: Call, done: bool) -> None:
        if done and call.result == 0 and (place := self._find(call.strings()[0])):
            place[0].change(place[1], "", None)

    _rmdir = _unlink

    def _rename(self, call: Call, done: bool) -> None:
        if not done or call.result != 0:
            return
        old, new = (self._find(path) for path in call.strings())
        if old is None and new is None:
            return
        if old is None or new is None or old[0] is not new[0]:
            raise Unmodelled(f"rename({call.strings()})")
        folder, name = old
        folder.change(name, new[1], folder.live[name])


_HARMLESS = {"sendto"}
"""Calls on other things than files."""


def choose(moments: Sequence[Moment], count: int, rng: random.Random) -> Iterable[int]:
    """Return how many moments each of ``count`` crashes lets happen, in order.

    Most of them where something is being written or synced: elsewhere all states are alike.
    """
    busy = [
        i + 1
        for i, moment in enumerate(moments)
        if moment.call.name not in ("sendto", "lseek", "mmap", "fcntl", "close")
    ]
    anywhere = rng.choices(range(len(moments) + 1), k=count // 10)
    return sorted([*anywhere, *rng.choices(busy, k=count - len(anywhere))])
