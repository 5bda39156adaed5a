"""What a reader has to wait for: its first batch, its first answer, a full check, a checkpoint."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from user_system.cluster.bench.figures import Figure, Goal, judged
from user_system.cluster.bench.replay_cache import disk_bytes, drop
from user_system.cluster.bench.replay_progress import Clock, Shown
from user_system.cluster.bench.replay_rounds import Rounds, spread, worst_figure
from user_system.cluster.bench.replay_stage import BACKENDS, READER, Stage
from user_system.core.errors import DamageError

COLD_IDS = ("replay.cold_first_batch_s",)
OPEN_IDS = ("replay.open_s",)
VERIFY_IDS = ("replay.verify_mb_s",)
CHECKPOINT_IDS = ("replay.checkpoint_stall_s",)
COLD, OPEN, VERIFY, STALL = Goal("<=", 0.2), Goal("<=", 3), Goal(">=", 200), Goal("<=", 1)
_READ = 1 << 20
_SHARE = 0.3
"""Share of its time after which a part begins no further round."""


def cold(stage: Stage, clock: Clock, shown: Shown) -> Sequence[Figure]:
    """Time the first batch of a fresh process whose store is not in the page cache."""
    path, plain = stage.images(clock, shown), stage.directory / "plain"
    if not plain.exists():
        shown.step("making a plain LMDB")
        stage.require(stage.image_disk(stage.sizes.steps))
        with stage.child(BACKENDS, "plain") as child:
            child.ask(
                "prepare", clock.left(), kind="plain", sizes=stage.sizes_plain, path=str(plain)
            )
    stayed: list[float] = []

    def meter(place: Path, do: str) -> dict[str, float]:
        shown.step(f"first batch of a cold start, {place.name}")
        values = {"path": str(place), "sizes": stage.sizes_plain}
        return _fresh(stage, clock, place, do, stayed, **values)

    meters = {
        "store": lambda: meter(path, "first_batch"),
        "plain": lambda: meter(plain, "first_batch_plain"),
    }
    return [cold_figure(Rounds().run(meters, stage.sizes.cold_rounds), max(stayed))]


def cold_figure(rounds: Rounds, stayed: float) -> Figure:
    """Return what cold starts came to."""
    totals = rounds.values("store", "total_s")
    opened, drawn = rounds.values("store", "open_s"), rounds.values("store", "batch_s")
    return judged(
        COLD_IDS[0],
        statistics.median(totals),
        COLD,
        "s",
        reference=f"plain LMDB loop {spread(rounds.values('plain', 'total_s'))} s",
        note=f"{spread(totals, '.3f')}: open and index {spread(opened, '.3f')}, "
        f"batch {spread(drawn, '.3f')}; {_said(stayed)}",
    )


def opening(stage: Stage, clock: Clock, shown: Shown) -> Sequence[Figure]:
    """Time how long a fresh process takes until it can say how many records there are."""
    path, stayed = stage.records(clock, shown), list[float]()
    found: list[dict[str, float]] = []
    while len(found) < stage.sizes.open_rounds and _more(clock, len(found)):
        shown.step(f"cold start with {stage.sizes.records} records")
        found.append(_fresh(stage, clock, path, "first_count", stayed, path=str(path)))
    return [open_figure(found, stage.sizes.records, max(stayed), disk_bytes(path))]


def open_figure(
    found: Sequence[dict[str, float]], records: int, stayed: float, size: int
) -> Figure:
    """Return what cold starts with many records came to.

    Raises:
        DamageError: one of them saw another number of records than were stored.
    """
    if wrong := [each["count"] for each in found if each["count"] != records]:
        raise DamageError("a reader saw another number of steps", got=wrong, allowed=records)
    times = [each["seconds"] for each in found]
    memory = max(each["private_mb"] for each in found)
    return judged(
        OPEN_IDS[0],
        statistics.median(times),
        OPEN,
        "s",
        note=f"{len(times)} times, {spread(times)}; {records} fragments of one step, "
        f"{size / 1e9:.2f} GB on disk, reader {memory:.0f} MB private; imports excluded; "
        f"{_said(stayed)}",
    )


def verifying(stage: Stage, clock: Clock, shown: Shown) -> Sequence[Figure]:
    """Time a full check, from the page cache and from the disk."""
    path = stage.images(clock, shown)
    images = stage.sizes.images(stage.sizes.steps)
    size = images * stage.sizes.image_bytes
    found: dict[str, list[float]] = {"warm": [], "cold": [], "reading": []}
    stayed: list[float] = []
    with stage.child(READER, "verify") as child:

        def check_all() -> float:
            took: float = child.ask("check_all", clock.left(), path=str(path), images=images)
            return size / 1e6 / took

        for number in range(stage.sizes.verify_rounds):
            shown.step(f"full check {number + 1} of {stage.sizes.verify_rounds}")
            stayed.append(drop(path))
            began = time.perf_counter()
            _read(path)
            found["reading"].append(size / 1e6 / (time.perf_counter() - began))
            found["warm"].append(check_all())
            stayed.append(drop(path))
            found["cold"].append(check_all())
    return [verify_figure(found, max(stayed))]


def verify_figure(found: dict[str, list[float]], stayed: float) -> Figure:
    """Return what full checks came to: the slower of warm and cold."""
    return judged(
        VERIFY_IDS[0],
        min(statistics.median(found[kind]) for kind in ("warm", "cold")),
        VERIFY,
        "MB/s",
        reference=f"reading the file from the disk {spread(found['reading'], '.0f')} MB/s",
        note=f"MB of images; warm {spread(found['warm'], '.0f')}, "
        f"cold {spread(found['cold'], '.0f')}; {_said(stayed)}",
    )


def checkpoints(stage: Stage, clock: Clock, shown: Shown) -> Sequence[Figure]:
    """Time how long a learner stands still for a checkpoint, with a small and a large store."""
    found: dict[str, list[float]] = {}
    for path in (stage.images(clock, shown), stage.records(clock, shown)):
        shown.step(f"checkpoints beside the store {path.name}")
        place = stage.directory / f"checkpoints-{path.name}"
        with stage.child(READER, "learner") as child:
            answer = child.ask(
                "save", clock.left(), path=str(path), directory=str(place), sizes=stage.sizes_plain
            )
        found[path.name] = answer["seconds"]
    return [checkpoint_figure(found, stage.sizes.learner_bytes)]


def checkpoint_figure(found: dict[str, list[float]], size: int) -> Figure:
    """Return what checkpoints came to: the longest of all."""
    each = "; ".join(f"store {name} {spread(times, '.3f')}" for name, times in found.items())
    times = [value for values in found.values() for value in values]
    note = f"longest of {len(times)}, {size / 1e6:.0f} MB of learner; {each}"
    return worst_figure(CHECKPOINT_IDS[0], times, STALL, "s", note=note)


def _fresh(
    stage: Stage, clock: Clock, place: Path, do: str, stayed: list[float], **values: Any
) -> dict[str, float]:
    """Ask a process that has just started, after the store has left the page cache."""
    with stage.child(READER, "fresh") as child:
        child.ask("hello", clock.left())
        stayed.append(drop(place))
        answer: dict[str, float] = child.ask(do, clock.left(), **values)
        return answer


def _read(path: Path) -> None:
    """Read all files of a directory once."""
    for file in sorted(path.rglob("*")):
        if file.is_file():
            with file.open("rb", buffering=0) as handle:
                while handle.read(_READ):
                    pass


def _more(clock: Clock, done: int) -> bool:
    return not done or clock.took_s < _SHARE * clock.limit_s


def _said(stayed: float) -> str:
    """Say whether the store had really left the page cache."""
    gone = "page cache dropped"
    return gone if stayed == 0.0 else f"{stayed:.1%} of the files stayed in the page cache"
