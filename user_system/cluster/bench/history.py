"""Whether a history is whole: every step that was kept is there once, in order. Pure.

A *log* is what the replay buffer holds, in its own order. Beside it stand two numbers per source
(producer, epoch): how many fragments the robot's host ever spooled, and how many the buffer ever
acknowledged. Whatever died in between, the log must hold fragments 0, 1, 2 … of each source up to
the last one, but for those that still wait in the spool; and the fragments of an episode must join
step by step.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from itertools import pairwise

Source = tuple[str, int]
"""(producer, epoch)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One fragment of the log."""

    producer: str
    epoch: int
    sequence: int
    episode: str
    start: int
    """Index within the episode of its first step."""
    steps: int
    final: bool = False
    last_ns: int = 0
    """Robot time at which its last step began, ns."""

    @property
    def source(self) -> Source:
        """Whose it is."""
        return (self.producer, self.epoch)

    @property
    def end(self) -> int:
        """Index within the episode of the step after its last."""
        return self.start + self.steps


@dataclass
class Verdict:
    """What is wrong with a history, in steps."""

    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    checked: int = 0
    """Steps that were looked at."""
    faults: list[str] = field(default_factory=list)
    """One line per finding."""

    @property
    def total(self) -> int:
        """Steps that are not where they belong."""
        return self.lost + self.doubled + self.disordered

    def say(self, kind: str, steps: int, text: str) -> None:
        """Add a finding."""
        setattr(self, kind, getattr(self, kind) + steps)
        self.faults.append(f"{steps} steps {kind}: {text}")


def check(
    log: Sequence[Entry],
    spooled: Mapping[Source, int],
    acked: Mapping[Source, int],
    waiting: Mapping[Source, Set[int]],
) -> Verdict:
    """Compare a log with what it should hold.

    Args:
        log: all fragments in the order of the log.
        spooled: source -> fragments ever spooled.
        acked: source -> fragments known to be acknowledged at any time.
        waiting: source -> sequences that are in the spool still.
    """
    verdict = Verdict(checked=sum(entry.steps for entry in log))
    sources: dict[Source, list[Entry]] = defaultdict(list)
    for entry in log:
        sources[entry.source].append(entry)
    for source in sorted({*sources, *spooled, *acked}):
        entries = _once_in_order(sources[source], verdict)
        here = {entry.sequence for entry in entries}
        due = range(max(spooled.get(source, 0), acked.get(source, 0), max(here, default=-1) + 1))
        excused = {s for s in waiting.get(source, ()) if s >= acked.get(source, 0)}
        missing = sorted(set(due) - here - excused)
        _missing(source, missing, {entry.sequence: entry for entry in entries}, verdict)
        _joined(entries, verdict)
    return verdict


def _once_in_order(entries: Iterable[Entry], verdict: Verdict) -> list[Entry]:
    """Note repeats and swaps; return each sequence once, sorted."""
    seen: dict[int, Entry] = {}
    newest = -1
    for entry in entries:
        name = f"fragment {entry.sequence} of {entry.producer} epoch {entry.epoch}"
        if entry.sequence in seen:
            verdict.say("doubled", entry.steps, f"{name} is there again")
            continue
        if entry.sequence < newest:
            verdict.say("disordered", entry.steps, f"{name} stands behind {newest}")
        newest = max(newest, entry.sequence)
        seen[entry.sequence] = entry
    return [seen[sequence] for sequence in sorted(seen)]


def _missing(
    source: Source, missing: Sequence[int], here: Mapping[int, Entry], verdict: Verdict
) -> None:
    """Note runs of missing fragments; how many steps they had follows from their neighbours."""
    runs: list[list[int]] = []
    for sequence in missing:
        if runs and runs[-1][-1] == sequence - 1:
            runs[-1].append(sequence)
        else:
            runs.append([sequence])
    for run in runs:
        before, after = here.get(run[0] - 1), here.get(run[-1] + 1)
        same = before is not None and after is not None and before.episode == after.episode
        gap = after.start - before.end if same and before and after else 0
        verdict.say(
            "lost",
            max(gap, len(run)),
            f"fragments {run[0]}..{run[-1]} of {source[0]} epoch {source[1]} are missing",
        )


def _joined(entries: Sequence[Entry], verdict: Verdict) -> None:
    """Note steps that are missing or doubled between fragments that follow each other."""
    for before, after in pairwise(entries):
        name = f"{after.producer} epoch {after.epoch} fragment {after.sequence}"
        if after.sequence != before.sequence + 1:
            continue  # noted already
        if after.episode != before.episode:
            if after.start:
                verdict.say("lost", after.start, f"{name} begins its episode at {after.start}")
        elif after.start > before.end:
            verdict.say("lost", after.start - before.end, f"{name} leaves a gap")
        elif after.start < before.end:
            verdict.say("doubled", before.end - after.start, f"{name} overlaps")
    if entries and entries[0].sequence == 0 and entries[0].start:
        verdict.say("lost", entries[0].start, f"{entries[0].episode} has no beginning")
