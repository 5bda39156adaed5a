"""What a writer does beside writing: blocks, so that readers start fast, and a look at readers."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

from user_system.core.types import Fragment
from user_system.replay import tables
from user_system.replay.blocks import Block
from user_system.replay.env import Env, Txn
from user_system.replay.filling import Filling
from user_system.replay.index import read_fragments
from user_system.replay.pinning import Pinning
from user_system.replay.recent import Recent, Stored

log = logging.getLogger(__name__)

BLOCK_STEPS = 4096
"""Steps that share a block: a few megabytes, of which none is ever written twice. Fewer where they
are huge, see ``filling``."""

_MOST_BEHIND = 16 * BLOCK_STEPS
"""Steps that are not in blocks yet at which who appends has to help: readers pay for each."""

_FAR_BEHIND = 3 * BLOCK_STEPS
"""Steps at which it hurries."""

_PAUSE_S = 0.002
"""How long it leaves the interpreter to others after each millisecond in which it makes a block."""

_PERIOD_S = 1.0
"""How often it looks at the readers."""

_REST_S = 10.0
"""How long it leaves a block that could not be made: each try takes as long as a whole block."""


class Keeper:
    """A thread beside one writer.

    Args:
        env: the writer's environment.
        pinning: watches the readers.
    """

    def __init__(self, env: Env, pinning: Pinning):
        self._env = env
        self._pinning = pinning
        self._recent = Recent()
        self._behind = 0
        """Steps that were appended here and are not in blocks yet."""
        self._again = 0.0
        """When to try the next block again, monotonic s; 0 where the last one could be made."""
        self._due = threading.Event()
        self._over = threading.Event()
        self._lock = threading.Lock()
        """Held while a block is made."""
        self._counting = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look after the store."""
        self._over.clear()
        self._due.set()  # what a killed writer left undone
        self._thread = threading.Thread(target=self._run, name="keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, with everything in blocks that is enough for one; safe to repeat."""
        if self._thread is None:
            return
        self._over.set()
        self._due.set()
        self._thread.join()
        self._thread = None
        try:
            self.tend()
        except Exception:
            # Readers go on with the log itself, so who closes the store need not hear of it; and
            # whatever it was, the environment is to be closed after this.
            log.exception("%s is left with a part that is not in blocks", self._env.path)

    def appended(self, stored: Sequence[Stored]) -> None:
        """Hear what a transaction stored."""
        self._recent.add(stored)
        with self._counting:
            self._behind += sum(len(each.fragment) for each in stored)
            behind = self._behind
        if behind >= BLOCK_STEPS or self._recent.full:
            self._due.set()
        while self._behind >= _MOST_BEHIND and self._try_next():
            pass

    def tend(self) -> None:
        """Put into blocks what is enough for one."""
        while self._seal_next():
            pass

    def _seal_next(self, pause: Callable[[], object] = lambda: None) -> bool:
        with self._lock:
            sealed = self._seal(pause)
        with self._counting:
            self._behind = max(0, self._behind - sealed)
        return sealed > 0

    def _try_next(self, pause: Callable[[], object] = lambda: None) -> bool:
        """Make the next blocks for somebody who must not hear of it where that fails."""
        if time.monotonic() < self._again:
            return False
        try:
            sealed = self._seal_next(pause)
        except Exception:
            # Whatever it was: this is the top of the keeper's thread, which would end in silence;
            # and what somebody appended is on disk, so he must hear of that and of nothing else.
            # Nothing is lost, readers go on with the log itself.
            log.exception("%s could not be put into blocks", self._env.path)
            self._again = time.monotonic() + _REST_S
            return False
        self._again = 0.0
        return sealed

    def _run(self) -> None:
        while not self._over.is_set():
            due = self._due.wait(_PERIOD_S) or self._again > 0
            self._due.clear()
            if self._over.is_set():
                return
            try:
                self._pinning.clear(time.monotonic())
            except Exception:
                # The top of the thread: without it no reader is looked at and no block is made.
                log.exception("%s could not look at its readers", self._env.path)
            while due and not self._over.is_set() and self._try_next(self._pause):
                pass

    def _pause(self) -> None:
        """Let those work who keep robots waiting, unless they are far ahead."""
        if self._behind < _FAR_BEHIND and not self._over.is_set():
            time.sleep(_PAUSE_S)

    def _seal(self, pause: Callable[[], object]) -> int:
        """Make the next blocks where there are steps enough; return how many they took."""
        with self._env.read() as txn:
            start = tables.blocked(txn, self._env)
            stop = tables.peek(txn, self._env, "offset")
            found = self._remembered(txn, start, stop)
        if found is None:
            found = self._read(start, stop)
        if not found:
            return 0
        end = found[-1][0] + 1
        schemas = sorted({fragment.header.schema for _, fragment in found})
        blocks = [
            Block.of([e for e in found if e[1].header.schema == schema], pause).encode()
            for schema in schemas
        ]

        def work(txn: Txn) -> None:
            for part, block in enumerate(blocks):
                tables.put_block(txn, self._env, start, part, end, block)

        self._env.write(work)
        self._recent.forget(end)
        return sum(len(fragment) for _, fragment in found)

    def _remembered(self, txn: Txn, start: int, stop: int) -> list[tuple[int, Fragment]] | None:
        """Return the next block's worth of what was appended here; none where it is too little.

        None where it cannot be made of that: some was not kept, or was removed meanwhile.
        """
        found = self._recent.since(start, stop, Filling(BLOCK_STEPS))
        if not found:
            return found
        there = sum(1 for _ in tables.numbers(txn, self._env, "log", start, found[-1][0] + 1))
        return found if there == len(found) else None

    def _read(self, start: int, stop: int) -> list[tuple[int, Fragment]]:
        """Return the next block's worth of the log; none where it is too little."""
        filling = Filling(BLOCK_STEPS)
        found = list(read_fragments(self._env, start, stop, filling))
        return found if filling.enough else []
