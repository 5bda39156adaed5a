"""How fast batches are drawn from a warm store, alone and beside a writer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from user_system.cluster.bench.figures import Figure, Goal
from user_system.cluster.bench.replay_progress import Clock, Shown
from user_system.cluster.bench.replay_rounds import Reading, Rounds, ratio_figure, worst_figure
from user_system.cluster.bench.replay_stage import BACKENDS, WRITER, Stage
from user_system.core.errors import LinkError

SAMPLE = Goal(">=", 0.9)
SAMPLE_WRITING = Goal(">=", 0.8)
READER_MB = Goal("<=", 500)
ALONE_IDS = ("replay.sample_ratio", "replay.reader_rss_mb")
WRITING_IDS = ("replay.sample_ratio_writing",)
_ON_PACE = 0.95
"""Share of the writer's pace below which it was no such writer."""

Meters = Mapping[str, Callable[[], Reading]]


def alone(stage: Stage, clock: Clock, shown: Shown) -> Sequence[Figure]:
    """Measure draws while nobody writes."""
    path = stage.images(clock, shown)
    with _meters(stage, clock, shown, path, ("store", "ring", "plain", "copy")) as meters:
        rounds = _run(stage, shown, meters)
    return alone_figures(rounds)


def alone_figures(rounds: Rounds) -> Sequence[Figure]:
    """Return what rounds without a writer came to."""
    others = [name for name in rounds.readings if name != "store"]
    memory = {name: max(rounds.values(name, "private_mb")) for name in others}
    return [
        ratio_figure(ALONE_IDS[0], rounds, SAMPLE),
        worst_figure(
            ALONE_IDS[1],
            rounds.values("store", "private_mb"),
            READER_MB,
            "MB",
            reference=", ".join(f"{name} {size:.0f}" for name, size in memory.items()),
            note="private memory with a batch in hand, most of all rounds",
        ),
    ]


def writing(stage: Stage, clock: Clock, shown: Shown) -> Sequence[Figure]:
    """Measure draws while another process appends; the ring is measured beside it, too."""
    path = stage.images(clock, shown)
    with ExitStack() as stack:
        meters = stack.enter_context(_meters(stage, clock, shown, path, ("store", "ring")))
        writer = stack.enter_context(stage.child(WRITER, "pacer"))
        writer.ask("begin", clock.left(), path=str(path), sizes=stage.sizes_plain)
        rounds = _run(stage, shown, meters)
        reached = writer.ask("end", clock.left())["steps_hz"]
    return [writing_figure(rounds, reached, stage.sizes.writer_hz)]


def writing_figure(rounds: Rounds, reached: float, wanted: float) -> Figure:
    """Return what rounds beside a writer came to.

    Raises:
        LinkError: the writer fell behind, so that it was another measurement.
    """
    if reached < _ON_PACE * wanted:
        raise LinkError(
            "the writer beside the reader fell behind",
            got=f"{reached:.0f} steps/s",
            allowed=f"{wanted:g}",
        )
    note = f"writer at {reached:.0f} steps/s beside both"
    return ratio_figure(WRITING_IDS[0], rounds, SAMPLE_WRITING, note)


def _run(stage: Stage, shown: Shown, meters: Meters) -> Rounds:
    shown.step(f"drawing, {stage.sizes.rounds} rounds of {', '.join(meters)}")
    return Rounds().run(meters, stage.sizes.rounds)


@contextmanager
def _meters(
    stage: Stage, clock: Clock, shown: Shown, path: Path, names: Sequence[str]
) -> Iterator[Meters]:
    """Start a process per backend, and warm each: all are there while one is measured."""
    places = {"store": path, "plain": stage.directory / "plain"}
    if "plain" in names and not places["plain"].exists():
        stage.require(stage.image_disk(stage.sizes.steps))
    with ExitStack() as stack:
        meters: dict[str, Callable[[], Reading]] = {}
        for name in names:
            shown.step(f"filling and warming: {name}")
            child = stack.enter_context(stage.child(BACKENDS, name))
            place = str(places.get(name, stage.directory))
            child.ask("prepare", clock.left(), kind=name, sizes=stage.sizes_plain, path=place)
            ask = partial(child.ask, "rate", seconds=stage.sizes.round_s)
            meters[name] = lambda ask=ask: ask(limit_s=clock.left())  # type: ignore[misc]
        yield meters
