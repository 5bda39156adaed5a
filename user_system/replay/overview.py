"""What a store holds, in a page of numbers."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from user_system.core.types import Segment
from user_system.replay import tables
from user_system.replay.index import Index
from user_system.replay.ledger import LIVE, Ledger
from user_system.replay.progress import Progress
from user_system.replay.rows import Rows
from user_system.replay.store import reader


@dataclass(frozen=True, slots=True)
class Overview:
    """What a store holds."""

    path: str
    file_bytes: int
    live_bytes: int
    """Bytes of pages that hold something; the rest of the file will be used again."""
    records: int
    labels: int
    removals: int
    damaged_records: int
    steps: Mapping[str, Mapping[str, int]]
    """By what (robot, task, run, operator, segment), by which: steps that are not void."""
    void_steps: int
    episodes: tuple[Mapping[str, object], ...]
    readers: int

    def lines(self) -> Iterator[str]:
        """Yield the page."""
        total = sum(self.steps.get("segment", {}).values())
        yield (
            f"{self.path}: {total} steps of {len(self.episodes)} episodes in {self.records} "
            f"records, {self.labels} labels, {self.void_steps} void steps"
        )
        yield (
            f"file {self.file_bytes / 1e6:.1f} MB, in use {self.live_bytes / 1e6:.1f} MB, "
            f"{self.removals} removals, {self.readers} readers, "
            f"{self.damaged_records} damaged records"
        )
        for what, counts in self.steps.items():
            parts = ", ".join(f"{name or '-'} {n}" for name, n in sorted(counts.items()))
            yield f"{what}: {parts}"

    def episode_lines(self) -> Iterator[str]:
        """Yield a line per episode."""
        for episode in self.episodes:
            yield "  ".join(str(value) for value in episode.values())


def look(path: Path | str, progress: Progress = lambda *_: None) -> Overview:
    """Return what a store holds; it may be in use.

    Raises:
        StoreError: there is none.
    """
    with reader(path).open() as env:
        index = Index(env)
        progress("reading the index", 0, 1)
        index.refresh()
        progress("reading the index", 1, 1)
        with env.read() as txn:
            counts = {name: tables.peek(txn, env, name) for name in ("label", "gone")}
            episodes = tuple(
                {
                    "episode": held.episode,
                    "producer": held.producer,
                    "epoch": held.epoch,
                    "fragments": held.entry.fragments,
                    "bytes": held.entry.size,
                    "state": "recording" if held.entry.flags & LIVE else f"rank {held.entry.rank}",
                }
                for held in Ledger(env).held(txn)
            )
            live = env.used(txn)
            records = int(txn.stat(env.table("log"))["entries"])
        steps: dict[str, Counter[str]] = {}
        void = 0
        for rows in index.rows.values():
            void += _count(rows, steps)
        stats = env.stats()
    return Overview(
        str(path),
        int(stats["file_bytes"]),
        live,
        records,
        counts["label"],
        counts["gone"],
        index.damaged_records,
        {name: dict(found) for name, found in steps.items()},
        void,
        episodes,
        int(stats["readers"]),
    )


def _count(rows: Rows, steps: dict[str, Counter[str]]) -> int:
    """Add the steps of one schema to ``steps``; return how many are void."""
    there = ~rows["gone"]
    shown = np.flatnonzero(there & ~rows["void"])
    names = list(rows.names)
    for what in ("robot", "task", "run", "operator", "segment"):
        codes, counts = np.unique(rows.of(what, shown), return_counts=True)
        found = steps.setdefault(what, Counter())
        for code, n in zip(codes.tolist(), counts.tolist(), strict=True):
            found[Segment(code).name if what == "segment" else names[code]] += n
    return int((there & rows["void"]).sum())
