"""The spool of a robot host from outside: what it holds, and how that gets into a store.

A host keeps its spool in a directory of its own: the queue, and in ``tokens`` the journals, which
may hold what a killed agent had not carried on yet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from user_system.cluster.edges import NAME
from user_system.cluster.layout import JOURNALS, QUEUE
from user_system.core.errors import ConfigError, LinkError, StoreError
from user_system.edge.rings import Ring
from user_system.edge.spool import Spool
from user_system.replay import layout, waiting
from user_system.replay.adopting import Adopted, Adoption
from user_system.replay.items import Source
from user_system.replay.progress import Progress
from user_system.replay.queue import KIND, Queue
from user_system.replay.store import Store
from user_system.replay.waiting import Overview

_ROOM = 1 << 62
"""Bytes: what is in a spool already is never too much for it."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What was taken out of a spool."""

    done: Adopted
    aside: int
    """Fragments that were damaged, or that no store takes: set aside in the spool, and kept."""
    left: tuple[Source, ...]
    """What still waits there."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which sources are meant."""

    producer: str = ""
    """Only those of this one; empty: of the only one that is stuck."""
    everything: bool = False
    """Also those that no head has refused."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the parts of a spool lie."""

    queue: Path
    journals: Path

    @classmethod
    def of(cls, path: Path) -> "Place":
        """Return the parts of the spool of a host, from its directory or that of its queue.

        Raises:
            StoreError: there is none, or it is another kind of store.
        """
        queue = path if (path / layout.MANIFEST).exists() else path / QUEUE
        if (kind := layout.kind(queue)) != KIND:
            todo = "Name the directory of a robot host, e.g. runs/demo/edge/host-1."
            raise StoreError(f"{queue} is no spool", got=kind, allowed=KIND, todo=todo)
        return cls(queue, queue.parent / JOURNALS)


def look(path: Path, store: Path | None = None) -> tuple[Overview, dict[str, int]]:
    """Return what a spool holds, and producer -> bytes in its journals; it may be in use.

    Raises:
        StoreError: there is none.
    """
    place = Place.of(path)
    return waiting.look(place.queue, store), _journals(place.journals)


def _journals(directory: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for path in sorted(directory.glob("*.journal")):
        ring = Ring(path)
        try:
            ring.open()
        except LinkError:
            continue  # it holds nothing that anybody could read
        found[path.stem] = ring.waiting
        ring.close()
    return found


def adopt(
    path: Path,
    target: Path,
    name: str,
    choice: Choice | None = None,
    *,
    create: bool = False,
    progress: Progress = lambda *_: None,
) -> Moved:
    """Move what is stuck in a spool into a store, under a new name; see ``replay.adopting``.

    Args:
        path: the host's directory, or that of its queue.
        target: the store, which nobody writes to.
        name: the new one.
        choice: of what.
        create: make the store if need be.
        progress: told how far it is.

    Raises:
        StoreError: somebody has the spool or the store open, or a disk failed.
        ConfigError: it is not clear what is meant.
        SpecError: see ``Adoption.run``.
    """
    if not NAME.fullmatch(name):
        raise ConfigError("not a name of a robot", got=repr(name), allowed=NAME.pattern)
    place, choice = Place.of(path), choice or Choice()
    if layout.is_written(place.queue):
        raise StoreError(
            f"an agent has the spool {place.queue} open",
            todo="End its robot host first, e.g. with `user-system down`. Nothing was changed.",
        )
    with Queue(place.queue, max_bytes=_ROOM).open() as queue:
        spool = Spool(queue, quota_bytes=_ROOM)
        spool.carry_on(place.journals)
        aside = queue.stats()["aside"]
        fresh = create and not (target / layout.MANIFEST).exists()
        if not queue.sources() or (fresh and not _chosen(queue, choice, lambda source: False)):
            return Moved(Adopted(), 0, tuple(queue.sources()))  # and no empty store is made
        with Store(target).open(create=create) as store:
            chosen = _chosen(
                queue, choice, lambda source: store.strange(*source, spool.boot(*source))
            )
            total = sum(queue.held(*source)[0] for source in chosen)
            adoption = Adoption(spool, store, name, lambda what, n, _: progress(what, n, total))
            adoption.run(chosen)
        aside = queue.stats()["aside"] - aside
        return Moved(adoption.done, int(aside), tuple(queue.sources()))


def _chosen(queue: Queue, choice: Choice, strange: Callable[[Source], bool]) -> Sequence[Source]:
    """Return the sources that are meant: of one producer, or two robots would become one.

    Args:
        queue: the spool's.
        choice: what was asked for.
        strange: says of what the store has fragments of another process, whatever the head said.

    Raises:
        ConfigError: several could be meant.
    """
    found = [
        source
        for source in queue.sources()
        if choice.producer in ("", source[0])
        and (choice.everything or queue.stuck(*source) or strange(source))
    ]
    if len(producers := sorted({producer for producer, _ in found})) > 1:
        raise ConfigError(
            "several robots' fragments would get one name",
            got=", ".join(producers),
            allowed="one of them",
            todo="Choose with --from, and give each a name of its own. Nothing was changed.",
        )
    return found
