"""The store's writer in a process of its own: fills a store, or appends beside a reader.

python -m user_system.cluster.bench.replay_writer
"""

import itertools
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from user_system.cluster.bench.replay_child import private_mb, serve
from user_system.cluster.bench.replay_work import Recorder, Sizes, records
from user_system.core.errors import StoreError
from user_system.core.types import Fragment
from user_system.replay.store import Store

GROUP = 4
"""Fragments of W per transaction: 4 MB, after which the ingest service commits."""
SMALL_GROUP = 2_000
"""Fragments without images per transaction."""


def fill(path: str, sizes: dict[str, Any], steps: int) -> dict[str, float]:
    """Make a store of so many steps of W; return how it went and the memory it took."""
    return _fill(Path(path), Recorder(Sizes(**sizes)).fragments(steps), GROUP)


def fill_records(path: str, sizes: dict[str, Any]) -> dict[str, float]:
    """Make a store of records of one step each."""
    return _fill(Path(path), records(Sizes(**sizes)), SMALL_GROUP)


def _fill(path: Path, fragments: Iterable[Fragment], size: int) -> dict[str, float]:
    most, began, count = 0.0, time.perf_counter(), 0
    with Store(path).open(create=True) as store:
        todo = iter(fragments)
        while group := list(itertools.islice(todo, size)):
            append(store, group)
            count += sum(map(len, group))
            most = max(most, private_mb())
        took = time.perf_counter() - began
    return {"seconds": took, "steps": float(count), "private_mb": most}


def append(store: Store, group: list[Fragment]) -> None:
    """Append, and make sure that all was taken.

    Raises:
        StoreError: something was refused.
    """
    if refused := store.append(group):
        raise StoreError("the store refused a fragment of the benchmark", got=refused[0].reason)


class Pacer:
    """Appends a number of steps per second, a fragment at a time, until it is told to stop."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._steps, self._began, self._took = 0, 0.0, 0.0
        self._error = ""

    def begin(self, path: str, sizes: dict[str, Any]) -> None:
        """Begin in a thread."""
        made = Sizes(**sizes)
        store = Store(Path(path)).open()
        self._thread = threading.Thread(target=self._run, args=(store, made), daemon=True)
        self._began = time.perf_counter()
        self._thread.start()

    def end(self) -> dict[str, float]:
        """Stop; return the steps per second that were appended.

        Raises:
            StoreError: it had ended by itself.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        if self._error:
            raise StoreError("the writer ended", got=self._error)
        return {"steps_hz": self._steps / max(self._took, 1e-9)}  # of whole periods

    def _run(self, store: Store, sizes: Sizes) -> None:
        try:
            with store:
                due = self._began
                for fragment in Recorder(sizes, "writer").fragments():
                    append(store, [fragment])
                    due += len(fragment) / sizes.writer_hz
                    if self._stop.wait(max(0.0, due - time.perf_counter())):
                        break
                    self._steps += len(fragment)
                    self._took = time.perf_counter() - self._began
        except Exception as error:  # top of a thread: ``end`` says it
            self._error = f"{type(error).__name__}: {error}"


def main() -> None:
    """Write what is asked for."""
    pacer = Pacer()
    serve({"fill": fill, "fill_records": fill_records, "begin": pacer.begin, "end": pacer.end})


if __name__ == "__main__":
    main()
