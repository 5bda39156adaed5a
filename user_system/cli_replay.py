"""``user-system replay``: what people do with a replay buffer from the command line.

Results go to standard output, progress and warnings to standard error.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from user_system.core.errors import ConfigError

if TYPE_CHECKING:
    from user_system.core.types import Segment
    from user_system.replay.episodes import Episodes

replay_app = typer.Typer(help="The replay buffer, and its exchange with others.")

Store = Annotated[Path, typer.Argument(metavar="STORE", help="Directory, e.g. runs/demo/replay.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Names = list[str] | None


class Format(StrEnum):
    """What an export is."""

    LEROBOT = "lerobot"
    MCAP = "mcap"


class Images(StrEnum):
    """How a dataset keeps its images."""

    PNG = "png"
    VIDEO = "video"


class Reward(StrEnum):
    """What a dataset without rewards meant."""

    UNKNOWN = "unknown"
    ZERO = "zero"
    SPARSE = "sparse"


@replay_app.command("export")
def export(
    store: Store,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="What is made; not there yet.")],
    form: Annotated[Format, typer.Option("--format", help="lerobot: dataset v3; mcap: viewers.")],
    images: Annotated[
        Images, typer.Option(help="png keeps every pixel; video is small and lossy.")
    ] = Images.PNG,
    run: Annotated[Names, typer.Option(metavar="RUN", help="Only of these runs.")] = None,
    task: Annotated[Names, typer.Option(metavar="TASK", help="Only of these tasks.")] = None,
    robot: Annotated[Names, typer.Option(metavar="ROBOT", help="Only of these robots.")] = None,
    segments: Annotated[
        Names, typer.Option(metavar="SEGMENT", help="Only these stretches, e.g. DEMO,CORRECTION.")
    ] = None,
    fps: Annotated[int | None, typer.Option(help="Frames per second; else the median.")] = None,
    as_json: Json = False,
) -> None:
    """Write episodes as a LeRobotDataset v3 or an MCAP file; the store is only read."""
    from user_system.replay.exchange import require

    require(*(("mcap", "PIL") if form is Format.MCAP else ("pyarrow", "av", "PIL")))
    chosen = _segments(segments)
    if form is Format.MCAP and (images is not Images.PNG or fps is not None):
        raise ConfigError("mcap keeps images as PNG and has no frame rate", allowed="--format mcap")
    with _episodes(store, run, task, robot) as episodes, bar() as progress:

        def told(done: int, total: int) -> None:
            progress("exporting", done, total)

        if form is Format.MCAP:
            from user_system.replay.exchange import mcap_export

            result: Any = mcap_export.export(episodes, target, chosen, told)
        else:
            from user_system.replay.exchange import lerobot_export

            options = lerobot_export.Options(images.value, chosen, fps)
            result = lerobot_export.export(episodes, target, options, told)
    _warn(result.found)
    if as_json:
        print(json.dumps(asdict(result), indent=1, default=str))
        return
    print(f"{target}: {result.episodes} episodes, {result.steps} steps")
    for camera, loss in getattr(result, "loss", {}).items():
        print(f"video {camera}: {_decibels(loss)}")


@replay_app.command("import")
def import_(
    store: Store,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A LeRobotDataset v3.")],
    robot: Annotated[str, typer.Option(help="Name of the robot; else the dataset's.")] = "",
    task: Annotated[str, typer.Option(help="Name of the task; else the dataset's.")] = "",
    run: Annotated[str, typer.Option(help="Name of the run; else the dataset's.")] = "",
    reward: Annotated[
        Reward,
        typer.Option(help="Where it has none: not known, 0, or 1 at the end of each episode."),
    ] = Reward.UNKNOWN,
    create: Annotated[bool, typer.Option("--create", help="Make the store if need be.")] = False,
    as_json: Json = False,
) -> None:
    """Store a LeRobotDataset v3; repeating it stores nothing twice."""
    from user_system.replay.exchange import require

    require("pyarrow", "av", "PIL")
    from user_system.replay.exchange import lerobot_import

    options = lerobot_import.Options(robot, task, run, reward.value)
    with bar() as progress:
        done = lerobot_import.import_dataset(
            store, source, options, create=create, progress=progress
        )
    for column, why in done.ignored.items():
        print(f"warning: column {column} was left out: {why}", file=sys.stderr)
    if as_json:
        print(json.dumps(asdict(done), indent=1))
        return
    kind = "an export of ours" if done.ours else "demonstrations"
    print(
        f"{store}: {done.steps} steps in {done.fragments} fragments from {done.episodes} episodes "
        f"({kind}), {done.labels} labels; {done.present} fragments were there already"
    )


@replay_app.command("report")
def report(
    store: Store,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page; report.html if not said.")
    ] = None,
    run: Annotated[Names, typer.Option(metavar="RUN", help="Only of these runs.")] = None,
    task: Annotated[Names, typer.Option(metavar="TASK", help="Only of these tasks.")] = None,
    robot: Annotated[Names, typer.Option(metavar="ROBOT", help="Only of these robots.")] = None,
    field: Annotated[
        Names, typer.Option(metavar="FIELD", help="Observation fields that make the state.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the samples it is made with.", min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Say how good the data are to learn from, by who drove: one HTML page; the store is only read.

    With --json the numbers are printed, and a page is made only where --out names one.
    """
    from user_system.cluster import quality_page
    from user_system.replay import quality

    page = out if as_json else out or Path("report.html")
    if page is not None:
        quality_page.prepare(page)
    options = quality.Options(seed=seed, fields=tuple(field or ()))
    with _episodes(store, run, task, robot) as episodes, bar() as progress:
        found = quality.examine(episodes, options, progress)
    if page is not None:
        quality_page.write(found, page)
    if as_json:
        print(json.dumps(found.plain(), indent=1))
        return
    for finding in found.findings:
        print(f"{finding.about}: {finding.text}")
    read = found.read
    print(f"{page}: {read['episodes']} episodes, {read['steps']} steps")


@contextmanager
def _episodes(store: Path, run: Names, task: Names, robot: Names) -> "Iterator[Episodes]":
    """Open a store for reading and yield what is asked for."""
    from user_system.replay.episodes import Episodes
    from user_system.replay.store import reader

    with reader(store).open() as env:
        yield Episodes(env, runs=run or (), tasks=task or (), robots=robot or ())


def _segments(names: Names) -> "frozenset[Segment]":
    from user_system.core.types import Segment

    wanted = [part.strip().upper() for name in names or () for part in name.split(",")]
    unknown = [name for name in wanted if name not in Segment.__members__]
    if unknown:
        raise ConfigError("unknown segment", got=unknown, allowed=", ".join(Segment.__members__))
    return frozenset(Segment[name] for name in wanted)


@contextmanager
def bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yield what shows (what is done, how much of it, of how much) on standard error."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    console = Console(stderr=True)
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        tasks: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done)

        yield show


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns; plain text, so that other programs can read it."""
    texts = [tuple(columns), *(tuple(map(str, row)) for row in rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(columns))]
    for row in texts:
        print(
            "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        )


def _warn(found: Mapping[str, float]) -> None:
    """Say what was not exported, since it is damaged or missing."""
    said = {
        "damaged_records": "damaged records were left out; run `user-system replay verify`",
        "damaged_images": "fragments with damaged images were left out",
        "gaps": "times a fragment is missing: what follows is an episode of its own",
        "sparse_extras": "times a large extra was left out, since few steps of its episode have it",
        "breaks": "times a fragment does not continue the one before it: an episode of its own",
    }
    for name, text in said.items():
        if found.get(name):
            print(f"warning: {found[name]:.0f} {text}", file=sys.stderr)


def _decibels(loss: Mapping[str, Any]) -> str:
    if loss["psnr_db"] is None:
        return f"no loss in {loss['frames']} frames"
    worst = loss["worst_frame_db"]
    return f"PSNR {loss['psnr_db']:.1f} dB over {loss['frames']} frames, worst {worst:.1f} dB"
