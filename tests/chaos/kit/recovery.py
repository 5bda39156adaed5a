"""Recording work, disturbing it, and what must hold of a store afterwards."""

import contextlib
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kit import made, syscalls
from kit.history import History, Stored, StoredLabel, Verdict
from kit.syscalls import Moment
from kit.zygote import Zygote

ERRORS = ("EIO", "ENOSPC")
SWEPT = 200
"""The first so many system calls of some work are let fail."""

RESUME = 3
"""Fragments that each producer goes on with."""


def reopened(
    zygote: Zygote, path: Path, history: History, producers: int = 3, side: int = 24
) -> Verdict:
    """Open a store as its next writer does; check what it holds, and that it goes on right."""
    answer = zygote.call("stores:recover", path=path, producers=producers, resume=RESUME, side=side)
    assert "error" not in answer, answer["error"]
    rows = [Stored(*row) for row in answer["rows"]]
    verdict = history.check(rows, [StoredLabel(*label) for label in answer["labels"]])
    assert verdict.ok, verdict
    assert answer["kept"], "what was there is not there any more after an append"
    wanted = []
    for producer, end in answer["ends"].items():
        assert end >= history.below[producer, 1]
        for sequence in range(end, end + RESUME):
            hash = made.digest(made.fragment(producer, 1, sequence, side))
            wanted.append(Stored(producer, 1, sequence, hash))
    assert [Stored(*row) for row in answer["fresh"]] == wanted
    return verdict


def recorded(zygote: Zygote, place: Path, task: str, **arguments: object) -> list[Moment]:
    """Return the moments of a task that worked in ``place / "disk"``."""
    (place / "disk").mkdir()
    with (
        zygote.start(task, **arguments) as child,
        syscalls.attached(child.pid, place / "record", *syscalls.record()),
    ):
        child.send("go")
        while (word := child.receive()) != "done":
            assert "error" not in word, word
        assert child.wait() == 0
    with (place / "record").open() as lines:
        return list(syscalls.parse(lines))


@dataclass
class Failure:
    """What came of work of which one system call failed."""

    name: str
    number: int
    error: str
    path: Path
    history: History = field(default_factory=History, repr=False)
    complaints: list[str] = field(default_factory=list, repr=False)
    status: int = 0
    """How its process ended."""


def failures(
    zygote: Zygote, place: Path, task: str, count: int, rng: random.Random, **arguments: object
) -> Iterator[Failure]:
    """Yield a failure for each of ``count`` of the first ``SWEPT`` calls, and for each error."""
    known = _calls(zygote, place, task, arguments)[:SWEPT]
    if len(known) < SWEPT:
        raise AssertionError(f"the work has only {len(known)} system calls")
    for at in range(SWEPT) if count >= SWEPT else sorted(rng.sample(range(SWEPT), count)):
        for error in ERRORS:
            failure = Failure(*known[at], error, place / "disk" / "it")
            _fail(zygote, place, task, arguments, failure)
            yield failure


def _calls(
    zygote: Zygote, place: Path, task: str, arguments: dict[str, object]
) -> list[tuple[str, int]]:
    """Return (name, number among those of its name) of each call that some work makes, in order."""
    output = place / "record"
    _clean(place)
    options = ["-e", f"trace={','.join(syscalls.DISTURBED)}", "-e", "signal=none"]
    with (
        zygote.start(task, path=place / "disk" / "it", **arguments) as child,
        syscalls.attached(child.pid, output, *options),
    ):
        child.send("go")
        while child.receive() != "done":
            pass
        child.wait()
    seen: Counter[str] = Counter()
    found = []
    with output.open() as lines:
        for moment in syscalls.parse(lines):
            if moment.done and moment.call.thread == child.pid:
                seen[moment.call.name] += 1
                found.append((moment.call.name, seen[moment.call.name]))
    return found


def _fail(
    zygote: Zygote, place: Path, task: str, arguments: dict[str, object], failure: Failure
) -> None:
    """Do the work once more and let one of its calls fail; note what was promised meanwhile."""
    _clean(place)
    options = syscalls.refuse(failure.name, failure.number, failure.error)
    with (
        zygote.start(task, path=failure.path, **arguments) as child,
        syscalls.attached(child.pid, place / "record", *options),
    ):
        child.send("go")
        with contextlib.suppress(EOFError):
            while (word := child.receive()) != "done":
                _hear(word, failure)
        failure.status = child.wait()


def _hear(word: object, failure: Failure) -> None:
    if isinstance(word, dict):
        failure.complaints.append(word["error"])
        if len(failure.complaints) > 200:
            raise AssertionError(f"it tries for ever: {failure}")
    elif " " in str(word):
        failure.history.event(str(word))


def _clean(place: Path) -> None:
    shutil.rmtree(place / "disk", ignore_errors=True)
    (place / "disk").mkdir()
