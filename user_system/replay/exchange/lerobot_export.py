"""Our episodes as a LeRobotDataset v3.

Every step is a frame. The observation after the last step has no frame: the datasets pair each
frame with an action, and there is none. It is kept beside them, in ``user_system/last``, as are
what fragments say of themselves and the streams; ``docs/exchange.md`` says what stands where.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from user_system.core.errors import ConfigError
from user_system.core.types import Segment
from user_system.replay.episodes import Episodes
from user_system.replay.exchange import lerobot_form as form
from user_system.replay.exchange import parquet, picture, stats, video
from user_system.replay.exchange.lerobot_form import Feature, Form
from user_system.replay.exchange.lerobot_side import Fragments, Last, StreamFiles
from user_system.replay.exchange.lerobot_values import ABOUT, Values, about
from user_system.replay.exchange.parquet import IMAGE, FileSeries
from user_system.replay.exchange.staging import check_free, hashes, staged
from user_system.replay.exchange.stretches import Stretch, Survey, stretches

Images = Literal["png", "video"]
Progress = Callable[[int, int], None]
"""Told (steps done, steps in all)."""

_EPISODES_PER_GROUP = 64
_SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class Options:
    """How to export."""

    images: Images = "png"
    """``png`` keeps every pixel; ``video`` is far smaller and lossy."""
    segments: frozenset[Segment] = frozenset()
    """Only the stretches of these segments, without what a rewind undid; empty: all, marked."""
    fps: int | None = None
    """Frames per second that the dataset states; where not given, the median rate, rounded."""
    data_mb: float = form.DATA_MB
    video_mb: float = form.VIDEO_MB


@dataclass(slots=True)
class Exported:
    """What an export did."""

    path: Path
    episodes: int = 0
    steps: int = 0
    found: Mapping[str, float] = field(default_factory=dict)
    """What was read, and what was damaged or missing: ``Episodes.stats``."""
    loss: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Camera -> what encoding it as video cost."""


def export(
    episodes: Episodes, target: Path, options: Options, progress: Progress = lambda *_: None
) -> Exported:
    """Write a dataset to ``target``: whole, or nothing.

    Raises:
        ConfigError: ``target`` exists, or there is nothing to export.
        SpecError: the episodes fit no common table.
        StoreError: the disk failed.
    """
    check_free(target)
    survey = Survey.of(episodes, options.segments)
    with staged(target) as work:
        writer = _Writer(work, survey, options)
        done = 0
        try:
            for episode in episodes.walk(check_images=True):
                for stretch in stretches(episode, options.segments):
                    writer.write(stretch)
                    done += len(stretch)
                    progress(done, survey.steps)
            return writer.finish(target, episodes.stats())
        finally:
            writer.close()


class _Writer:
    """The files of one dataset under way."""

    def __init__(self, root: Path, survey: Survey, options: Options):
        self._root, self._survey, self._options = root, survey, options
        self._fps = _fps(options, survey)
        rows = Form(survey.action, survey.fields, survey.cameras, survey.extras, survey.labels)
        self._state = rows.state_parts()
        self._features = rows.features(video=options.images == "video")
        stored = [f for f in self._features if f.stored and f.dtype != form.VIDEO]
        self._columns = {feature.key: feature.column for feature in stored}
        limit = int(options.data_mb * parquet.MEGABYTE)
        sizes: dict[str, int] = {"limit_bytes": limit, "chunk_files": form.CHUNK_FILES}
        self._data = FileSeries(root / "data", **sizes)
        self._episodes = FileSeries(root / form.EPISODES, **sizes)
        self._last = Last(FileSeries(root / form.LAST, **sizes), self._features)
        self._fragments = Fragments(FileSeries(root / form.FRAGMENTS, **sizes), self._features)
        self._streams = StreamFiles(root, () if options.segments else survey.streams, sizes)
        self._videos = {
            f.key: video.VideoSeries(
                root / "videos" / f.key,
                root / _SCRATCH / f.key,
                fps=self._fps,
                limit_bytes=int(options.video_mb * parquet.MEGABYTE),
                chunk_files=form.CHUNK_FILES,
            )
            for f in self._features
            if f.dtype == form.VIDEO
        }
        self._totals = {f.key: stats.Total() for f in self._features if _counted(f)}
        cameras = {f.key: f.tail[2] for f in self._features if f.kind == "camera"}
        self._bins = {key: stats.Histogram(channels) for key, channels in cameras.items()}
        self._tasks: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        self._done = Exported(Path())

    def write(self, stretch: Stretch) -> None:
        """Write one episode of the dataset."""
        number, first, steps = self._done.episodes, self._done.steps, len(stretch)
        task = self._tasks.setdefault(stretch.episode.header.task, len(self._tasks))
        values = Values(stretch, self._fps, number, first, task, self._state)
        counted: dict[str, stats.Stats | None] = {}
        columns: dict[str, Any] = {}
        row: dict[str, Any] = {"episode_index": number, "length": steps}
        row["tasks"] = [stretch.episode.header.task]
        for feature in self._features:
            if feature.kind == "camera":
                columns[feature.key], counted[feature.key] = self._camera(feature, stretch, row)
            elif feature.stored:
                columns[feature.key] = values.of(feature)
                if _counted(feature):
                    counted[feature.key] = stats.of_values(columns[feature.key])
        place = self._data.write(parquet.table(self._columns, columns))
        row["data/chunk_index"], row["data/file_index"] = place
        row["dataset_from_index"], row["dataset_to_index"] = first, first + steps
        self._beside(stretch, number)
        self._count(row, counted)
        self._rows.append(row | about(stretch))
        if len(self._rows) == _EPISODES_PER_GROUP:
            self._flush()
        self._done.episodes, self._done.steps = number + 1, first + steps

    def finish(self, target: Path, found: Mapping[str, float]) -> Exported:
        """Write what is known only now, and close everything."""
        self._flush()
        self.close()
        for series in self._videos.values():
            series.close()
        shutil.rmtree(self._root / _SCRATCH, ignore_errors=True)
        tasks: dict[str, list[Any]] = {
            "task_index": list(self._tasks.values()),
            "task": list(self._tasks),
        }
        made = parquet.plain(tasks, {"task_index": "int64", "task": "string"})
        parquet.write(self._root / form.TASKS, parquet.indexed(made, "task"))
        names = {f.key: f.name for f in self._features}
        self._done.loss = {names[k]: series.loss.psnr() for k, series in self._videos.items()}
        self._done.path, self._done.found = target, found
        self._json(form.INFO, self._info())
        self._json(form.STATS, self._stats())  # not hashed: others may count anew
        return self._done

    def _stats(self) -> dict[str, dict[str, Any]]:
        found = {key: total.stats() for key, total in self._totals.items()}
        found |= {key: bins.stats() for key, bins in self._bins.items()}
        return {
            key: {name: value.tolist() for name, value in of.items()}
            for key, of in found.items()
            if of is not None
        }

    def close(self) -> None:
        """Close all Parquet files; safe to repeat."""
        for series in (self._data, self._episodes, self._last, self._fragments, self._streams):
            series.close()

    def _camera(
        self, feature: Feature, stretch: Stretch, row: dict[str, Any]
    ) -> tuple[Any, stats.Stats | None]:
        """Return a camera's column, if it has one, and its statistics; a video is written here."""
        bins = stats.Histogram(feature.tail[2])
        if feature.dtype == form.VIDEO:
            place = self._videos[feature.key].write(lambda: stretch.frames(feature.name))
            names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            row |= {f"videos/{feature.key}/{n}": v for n, v in zip(names, place, strict=True)}
        cells: list[Any] = []
        for image in stretch.frames(feature.name):
            bins.add(image)
            if feature.dtype == IMAGE:
                cells.append(picture.encode(image))
            elif feature.dtype != form.VIDEO:
                cells.append(image)
        self._bins[feature.key].merge(bins)
        values = cells if feature.dtype in (IMAGE, form.VIDEO) else np.stack(cells)
        return values, bins.stats()

    def _beside(self, stretch: Stretch, number: int) -> None:
        """Write what the dataset's frames cannot hold."""
        if stretch.last:
            self._last.write(stretch, number)
        self._fragments.write(stretch, number)
        self._streams.write(stretch, number)

    def _count(self, row: dict[str, Any], counted: Mapping[str, stats.Stats | None]) -> None:
        for key, found in counted.items():
            for name in stats.NAMES:
                row[f"stats/{key}/{name}"] = None if found is None else found[name].tolist()
            if found is not None and key not in self._bins:
                self._totals[key].add(found)

    def _flush(self) -> None:
        """Write the rows of the episodes since the last time."""
        if not self._rows:
            return
        columns: dict[str, list[Any]] = {
            name: [row[name] for row in self._rows] for name in self._rows[0]
        }
        for name in ("chunk_index", "file_index"):
            columns[f"meta/episodes/{name}"] = [0] * len(self._rows)
        types = {name: ABOUT[name] for name in columns if name in ABOUT}
        types["tasks"] = "*string"
        for feature in self._features:
            rank = 3 if feature.kind == "camera" else len(feature.shape)
            for name in stats.NAMES if _counted(feature) else ():
                kind = "*int64" if name == "count" else "*" * rank + "float64"
                types[f"stats/{feature.key}/{name}"] = kind
        place = self._episodes.reserve(parquet.plain(columns, types))
        for name, number in zip(("chunk_index", "file_index"), place, strict=True):
            columns[f"meta/episodes/{name}"] = [number] * len(self._rows)
        self._episodes.write(parquet.plain(columns, types))
        self._rows = []

    def _info(self) -> dict[str, Any]:
        features = {f.key: f.describe() for f in self._features if f.stored}
        for feature in self._features:
            if feature.dtype == form.VIDEO:
                features[feature.key]["info"] = _video_info(feature, self._fps)
        robots = self._survey.robots
        return {
            "codebase_version": form.VERSION,
            "robot_type": robots[0] if len(robots) == 1 else None,
            "total_episodes": self._done.episodes,
            "total_frames": self._done.steps,
            "total_tasks": len(self._tasks),
            "chunks_size": form.CHUNK_FILES,
            "data_files_size_in_mb": form.DATA_MB,
            "video_files_size_in_mb": form.VIDEO_MB,
            "fps": self._fps,
            "splits": {"train": f"0:{self._done.episodes}"},
            "data_path": form.DATA_PATH,
            "video_path": form.VIDEO_PATH if self._videos else None,
            "features": features,
            form.OURS: {
                "format": form.OURS_FORMAT,
                "images": self._options.images,
                "segments": sorted(s.name for s in self._options.segments),
                "rate": self._survey.rate,
                "features": form.block(self._features),
                "streams": self._streams.describe(),
                "loss": self._done.loss,
                "read": self._done.found,
                "files": hashes(self._root),
            },
        }

    def _json(self, name: str, value: Any) -> None:
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value, indent=4, allow_nan=False) + "\n")


def _counted(feature: Feature) -> bool:
    """Whether a column gets statistics: our own are for looking up, not for normalising."""
    if feature.kind in ("step", "label") or not feature.stored:
        return False
    return feature.kind == "camera" or int(np.prod(feature.shape)) <= stats.MAX_ELEMENTS


def _fps(options: Options, survey: Survey) -> int:
    fps = max(1, round(survey.rate)) if options.fps is None else options.fps
    if not 1 <= fps <= 100_000:
        raise ConfigError("frames per second", got=fps, allowed="1..100000", todo="Say --fps N.")
    return fps


def _video_info(feature: Feature, fps: int) -> dict[str, Any]:
    height, width, channels = feature.tail
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": video.CODEC_NAME,
        "video.pix_fmt": video.pixel_format(height, width),
        "video.fps": fps,
        "video.channels": channels,
        "is_depth_map": False,
        "has_audio": False,
    }
