"""What was promised, and whether it was kept: an append-only history and its checker.

A history is a text file per process, one line per event, each written by one system call, so that
what a killed process wrote down is there::

    S producer epoch sequence hash [episode]    submitted: the fragment left its maker
    A producer epoch below            acked: everything below is on disk, says the other side
    R producer epoch sequence         refused by name: dealt with, never stored
    F producer epoch below            forgotten: a spool may drop what the head has
    E producer epoch                  a new epoch was begun; nobody gets it a second time
    D episode                         an engineer begins to delete an episode
    X episode                         the deletion returned
    L episode version hash            a label is about to be written
    K episode version                 the label's write returned

Rules, for what is stored in the end: everything acked is there exactly once, in the order of its
sequence within its epoch and without gaps, every byte as it was submitted, and nothing is there
that nobody submitted. What was submitted and not acked may be there or not. A deleted episode is
gone; one whose deletion did not return is there as a whole or gone as a whole. Labels keep order.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import NamedTuple

Source = tuple[str, int]
"""(producer, epoch)."""


class Stored(NamedTuple):
    """One fragment as it was read back."""

    producer: str
    epoch: int
    sequence: int
    hash: str


class StoredLabel(NamedTuple):
    """One label as it was read back."""

    episode: str
    version: str
    hash: str


class Journal:
    """One process writes events here; they outlive it."""

    def __init__(self, path: Path | str):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._file = os.open(path, flags, 0o600)

    def note(self, kind: str, *values: object) -> None:
        """Append one event; it survives the end of this process when this returns."""
        os.write(self._file, (" ".join(map(str, (kind, *values))) + "\n").encode())

    def close(self) -> None:
        os.close(self._file)


@dataclass
class Verdict:
    """What is wrong; nothing, if all is well."""

    acked: int = 0
    stored: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    invented: list[str] = field(default_factory=list)
    undeleted: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Return how many of each wrong."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: len(value) for name, value in values.items() if isinstance(value, list)}

    @property
    def ok(self) -> bool:
        return not any(self.counts().values())

    def __str__(self) -> str:
        wrong = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = {n: v[:8] for n, v in wrong.items() if isinstance(v, list) and v}
        return f"{self.acked} acked, {self.stored} stored, wrong: {shown or 'nothing'}"


class History:
    """What is known of all processes' promises; takes in events and files of them."""

    def __init__(self) -> None:
        self.submitted: dict[Source, dict[int, str]] = defaultdict(dict)
        self.below: Counter[Source] = Counter()
        self.forgotten: Counter[Source] = Counter()
        self.refused: dict[Source, set[int]] = defaultdict(set)
        self.episode_of: dict[tuple[str, int, int], str] = {}
        self.epochs: Counter[str] = Counter()
        self.deleting: set[str] = set()
        self.deleted: set[str] = set()
        self.labels: list[StoredLabel] = []
        self.labelled: set[tuple[str, str]] = set()
        self._read: dict[Path, int] = {}

    def submit(
        self, producer: str, epoch: int, sequence: int, hash: str, episode: str = ""
    ) -> None:
        self.episode_of[producer, epoch, sequence] = episode
        known = self.submitted[producer, epoch].setdefault(sequence, hash)
        if known != hash:
            raise AssertionError(f"{producer} {epoch} {sequence} was submitted with two contents")

    def ack(self, producer: str, epoch: int, below: int) -> None:
        """Note that all below is promised; one that was never submitted is a lie of its own."""
        source = producer, epoch
        self.below[source] = max(self.below[source], below)

    def event(self, line: str) -> None:
        """Take in one line of a journal."""
        kind, *rest = line.split()
        if kind == "S":
            self.submit(rest[0], int(rest[1]), int(rest[2]), *rest[3:])
        elif kind == "A":
            self.ack(rest[0], int(rest[1]), int(rest[2]))
        elif kind == "R":
            self.refused[rest[0], int(rest[1])].add(int(rest[2]))
        elif kind == "F":
            source = rest[0], int(rest[1])
            self.forgotten[source] = max(self.forgotten[source], int(rest[2]))
        elif kind == "E":
            self.epochs[rest[0]] = max(self.epochs[rest[0]], int(rest[1]))
        elif kind in "DX":
            (self.deleting if kind == "D" else self.deleted).add(rest[0])
        elif kind == "L":
            self.labels.append(StoredLabel(rest[0], rest[1], rest[2]))
        elif kind == "K":
            self.labelled.add((rest[0], rest[1]))
        else:
            raise AssertionError(f"unknown event {line!r}")

    def read(self, paths: Iterable[Path]) -> "History":
        """Take in what journals hold that was not read before; a torn last line is no event."""
        for path in paths:
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            for line in whole.decode().splitlines():
                self.event(line)
        return self

    @property
    def acked(self) -> int:
        """How many fragments were promised."""
        return sum(self.below.values())

    def check(self, stored: Sequence[Stored], labels: Sequence[StoredLabel] = ()) -> Verdict:
        """Compare what is stored, in the order of the store, with what was promised."""
        verdict = Verdict(self.acked, len(stored))
        there: dict[Source, list[int]] = defaultdict(list)
        for row in stored:
            self._check_row(row, there[row.producer, row.epoch], verdict)
        left = {self.episode_of.get(row[:3], "") for row in stored} & self.deleting
        for source in sorted({*self.below, *there}):
            self._check_source(source, there[source], self.deleting - left, verdict)
        verdict.undeleted += sorted(left & self.deleted)
        self._check_labels(labels, verdict)
        return verdict

    def _check_row(self, row: Stored, before: list[int], verdict: Verdict) -> None:
        name = f"{row.producer}/{row.epoch}/{row.sequence}"
        if before and row.sequence <= before[-1]:
            (verdict.doubled if row.sequence in before else verdict.reordered).append(name)
        before.append(row.sequence)
        wanted = self.submitted[row.producer, row.epoch].get(row.sequence)
        if wanted is None:
            verdict.invented.append(name)
        elif wanted != row.hash:
            verdict.corrupt.append(name)

    def _check_source(
        self, source: Source, sequences: list[int], gone: set[str], verdict: Verdict
    ) -> None:
        producer, epoch = source
        there, below = set(sequences), self.below[source]
        for sequence in range(self.forgotten[source], max([below, *(s + 1 for s in there)])):
            name = f"{producer}/{epoch}/{sequence}"
            excused = sequence in there or sequence in self.refused[source]
            if not excused and self.episode_of.get((*source, sequence), "") not in gone:
                (verdict.lost if sequence < below else verdict.gaps).append(name)
        for sequence in range(below):
            if sequence not in self.submitted[source]:
                verdict.invented.append(f"ack of {producer}/{epoch}/{sequence}")

    def _check_labels(self, labels: Sequence[StoredLabel], verdict: Verdict) -> None:
        """The labels stored are the ones written, in order, with none of the acked ones missing."""
        at = 0
        for label in labels:
            while at < len(self.labels) and self.labels[at] != label:
                self._check_missing_label(self.labels[at], verdict)
                at += 1
            if at == len(self.labels):
                verdict.labels.append(f"not written, or not in this order: {label}")
                return
            at += 1
        for label in self.labels[at:]:
            self._check_missing_label(label, verdict)

    def _check_missing_label(self, label: StoredLabel, verdict: Verdict) -> None:
        if (label.episode, label.version) in self.labelled and label.episode not in self.deleting:
            verdict.labels.append(f"lost: {label}")
