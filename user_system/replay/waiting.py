"""What waits in a spool: each source, its size, its times, and why it is stuck where it is."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from user_system.codec import fragments
from user_system.core.errors import DamageError
from user_system.core.types import FragmentHeader
from user_system.replay import layout
from user_system.replay.books import Books
from user_system.replay.entries import source_key
from user_system.replay.queue import Queue
from user_system.replay.store import reader


@dataclass(frozen=True, slots=True)
class Waiting:
    """One source."""

    producer: str
    epoch: int
    boot: str
    """Of the process that recorded it; empty: neither books nor fragments say it."""
    fragments: int
    bytes: int
    oldest_ns: int | None
    """When its first step was recorded, estimated UTC, ns since 1970; None: not readable."""
    newest_ns: int | None
    """The same of its last fragment."""
    stuck: str
    """Why no head takes it; empty: none said so."""

    def line(self, now_ns: int) -> Sequence[str]:
        """Return it as cells of a table."""
        return (
            self.producer,
            str(self.epoch),
            self.boot or "?",
            str(self.fragments),
            f"{self.bytes / 1e6:.1f}",
            _age(self.oldest_ns, now_ns),
            _age(self.newest_ns, now_ns),
            f"STUCK: {self.stuck}" if self.stuck else "waits for its head",
        )


COLUMNS = ("producer", "epoch", "boot", "fragments", "MB", "oldest", "newest", "state")


@dataclass(frozen=True, slots=True)
class Overview:
    """What a spool holds."""

    path: str
    in_use: bool
    """Whether an agent has it open."""
    waiting: tuple[Waiting, ...]
    aside: Mapping[str, int]
    """Why fragments were set aside, and how many: they are kept, and never sent."""

    @property
    def stuck(self) -> list[Waiting]:
        """What no head takes."""
        return [source for source in self.waiting if source.stuck]

    def lines(self) -> Iterator[str]:
        """Yield what stands above the table."""
        count = sum(source.fragments for source in self.waiting)
        size = sum(source.bytes for source in self.waiting)
        use = "; an agent has it open" if self.in_use else ""
        yield f"{self.path}: {count} fragments wait, {size / 1e6:.1f} MB{use}"
        for reason, number in self.aside.items():
            yield f"set aside, {number}: {reason}"


def look(path: Path, store: Path | None = None) -> Overview:
    """Return what a spool holds; it may be in use.

    Args:
        path: the directory of its queue.
        store: what is a stranger to this one is stuck, whatever its head said.

    Raises:
        StoreError: there is none.
    """
    in_use = layout.is_written(path)
    with Queue(path, readonly=True).open() as queue:
        found = [_look(queue, *source) for source in queue.sources()]
        aside = Counter(item.reason for item in queue.aside())
    if store is not None:
        found = _compared(found, store)
    return Overview(str(path), in_use, tuple(found), dict(aside))


def _look(queue: Queue, producer: str, epoch: int) -> Waiting:
    count, size = queue.held(producer, epoch)
    first = _header(queue, producer, epoch, queue.first(producer, epoch) or 0)
    last = _header(queue, producer, epoch, queue.next_sequence(producer, epoch) - 1)
    return Waiting(
        producer=producer,
        epoch=epoch,
        boot=queue.boot(producer, epoch) or (first.boot if first else ""),
        fragments=count,
        bytes=size,
        oldest_ns=first.wall_ns if first else None,
        newest_ns=last.wall_ns if last else None,
        stuck=queue.stuck(producer, epoch),
    )


def _header(queue: Queue, producer: str, epoch: int, sequence: int) -> FragmentHeader | None:
    """Return what the first fragment from a sequence on says of itself; None: it is damaged."""
    try:
        items = queue.read(producer, epoch, sequence, 1)
        return fragments.decode(items[0].data).header if items else None
    except DamageError:
        return None  # it is set aside, and said, when somebody needs it


def _compared(found: Sequence[Waiting], store: Path) -> list[Waiting]:
    """Return sources with those stuck that are strangers to a store."""
    why = f"{store} has fragments of that name from another process"
    with reader(store).open() as env, env.read() as txn:
        books = Books(txn, env)
        strange = [books.strange(source_key(s.producer, s.epoch), s.boot) for s in found]
    return [
        replace(source, stuck=source.stuck or (why if other else ""))
        for source, other in zip(found, strange, strict=True)
    ]


def _age(then_ns: int | None, now_ns: int) -> str:
    """Return how long ago something was, as people say it."""
    if then_ns is None:
        return "?"
    seconds = max(0, now_ns - then_ns) / 1e9
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {name}"
    return f"{seconds:.0f} s"
