"""What a spool holds, brought into a store under a new name: exactly once, whatever ends it when.

A fragment keeps its epoch and its number, and its ``boot`` says under which name it was recorded.
So the store's own books say how far this is: they move in the transaction that stores, the spool
forgets only what they count, and repeating it goes on there. Whoever else has, or gets, that name
and epoch is a stranger to the source, as ever.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from user_system.core.errors import SpecError
from user_system.core.ports import Outbox, Refused
from user_system.core.types import Fragment
from user_system.replay import entries
from user_system.replay.entries import Entry
from user_system.replay.items import Source
from user_system.replay.progress import Progress
from user_system.replay.store import Store

log = logging.getLogger(__name__)

_TOGETHER = 64
"""Fragments in one transaction."""


@dataclass(slots=True)
class Adopted:
    """How many fragments were moved."""

    fragments: int = 0
    """Stored by this call."""
    steps: int = 0
    """In these."""
    repeated: int = 0
    """Stored by an earlier call that was ended before the spool could forget them."""
    backwards: int = 0
    """Go back in time within their episode; stored as they are, and named in the log."""


class Adoption:
    """Moves sources of a spool into a store.

    Args:
        outbox: the spool, which nobody else uses.
        store: the store, open.
        name: what their producer, and their robot, is called from now on.
        progress: told how far it is.
    """

    def __init__(
        self, outbox: Outbox, store: Store, name: str, progress: Progress = lambda *_: None
    ):
        self._outbox, self._store, self._name = outbox, store, name
        self._progress = progress
        self.done = Adopted()

    def run(self, sources: Sequence[Source]) -> None:
        """Move sources, oldest epoch first.

        Raises:
            SpecError: the name is taken, or the store has some of it under its own name: nothing
                was changed. Or a fragment does not stack with what the store has: it stays in the
                spool, with all behind it.
            StoreError: a disk failed; what was moved is moved, what was not is in the spool.
        """
        for source in sources:
            self._check(source)
        for source in sorted(sources, key=lambda source: source[1]):
            self._move(source)

    def _move(self, source: Source) -> None:
        boot = self._mark(source)
        before = self._store.expected(self._name, source[1])
        while source in self._outbox.sources():
            fragments = self._outbox.read(*source, 0, _TOGETHER)
            # What an earlier call stored is passed over, and then forgotten like the others.
            ready = [entry for f in fragments if (entry := self._entry(source, boot, f))]
            if not ready:
                continue  # these were set aside: each turn of this takes some out of the spool
            late = self._store.adopt(ready)
            for reason in late:
                log.warning("stored as it is: %s", reason)
            self._outbox.forget(*source, ready[-1].fragment.header.sequence + 1)
            self._count(ready, before, len(late))

    def _count(self, ready: Sequence[Entry], before: int, late: int) -> None:
        fresh = [e.fragment for e in ready if e.fragment.header.sequence >= before]
        self.done.fragments += len(fresh)
        self.done.steps += sum(map(len, fresh))
        self.done.repeated += len(ready) - len(fresh)
        self.done.backwards += late
        self._progress("adopting", self.done.fragments + self.done.repeated, 0)

    def _mark(self, source: Source) -> str:
        """Return the boot under which a source comes in: no process that records has it.

        Raises:
            SpecError: nobody knows whose it is, so that it could pass for another one.
        """
        if not (boot := self._outbox.boot(*source)):
            raise SpecError("a source does not say which process recorded it", got=source)
        return f"{boot}/{source[0]}"

    def _check(self, source: Source) -> None:
        producer, epoch = source
        mark = self._mark(source)
        if self._name == producer:
            todo = "Its host sends under its own name what its head takes; a new one is needed."
            raise SpecError("a source would keep its name", got=producer, todo=todo)
        if not self._store.free(self._name, epoch, mark):
            raise SpecError(
                f"the store has epoch {epoch} of {self._name!r} from somebody else",
                allowed="a name that nobody has",
                todo="Choose another one. Nothing was stored or taken out of the spool.",
            )
        first = next(iter(self._outbox.read(producer, epoch, 0, 1)), None)
        boot = self._outbox.boot(producer, epoch)
        if first is None or self._store.strange(producer, epoch, boot):
            return
        if (expected := self._store.expected(producer, epoch)) > first.header.sequence:
            raise SpecError(
                f"epoch {epoch} of {producer!r} is no stranger to this store",
                got=f"it has all below {expected}, the spool all from {first.header.sequence} on",
                todo="Start its host: it sends what is missing there, and nothing is doubled.",
            )

    def _entry(self, source: Source, boot: str, fragment: Fragment) -> Entry | None:
        """Return a fragment under its new name, encoded; None: it was set aside."""
        header = replace(fragment.header, producer=self._name, boot=boot)
        if fragment.header.robot == source[0]:
            header = replace(header, robot=self._name)
        entry = entries.prepare(replace(fragment, header=header), {})
        if not entry.refusal:
            return entry
        # Before the spool forgets what is stored around it.
        sequence = fragment.header.sequence
        self._outbox.set_aside(Refused(*source, sequence, entry.refusal))
        log.error("fragment %d of %s/%d is set aside: %s", sequence, *source, entry.refusal)
        return None
