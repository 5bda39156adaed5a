"""A LeRobotDataset v3 that may come from anywhere: what it says of itself, looked at first.

Nothing is believed that can be checked: paths stay inside the folder, counts add up before arrays
are made, rows are where they are said to be. What is not understood is named, not guessed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from user_system.core.errors import DamageError, SpecError
from user_system.replay.exchange import lerobot_form as form
from user_system.replay.exchange.lerobot_features import of_info
from user_system.replay.exchange.lerobot_form import Feature
from user_system.replay.exchange.lerobot_values import ABOUT
from user_system.replay.exchange.parquet import Source
from user_system.replay.exchange.staging import file_hash

MAX_JSON = 64 << 20
MAX_FPS = 100_000
_TEMPLATE = re.compile(r"(?:[A-Za-z0-9_./-]|\{video_key\}|\{(?:chunk|file)_index(?::0?\d?d)?\})+")
_NUMBERED = re.compile(r"chunk-(\d{3,9})/file-(\d{3,9})\.parquet")
_PLACE = ("chunk_index", "file_index")


@dataclass(frozen=True, slots=True)
class Video:
    """Where the frames of one camera in one episode are."""

    path: Path
    begin_s: float


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """One row of ``meta/episodes``."""

    index: int
    length: int
    task: str
    data: Path
    first: int
    """``index`` of its first frame."""
    videos: Mapping[str, Video]
    about: Mapping[str, Any] | None
    """Our columns, by their short names; None where it is not our export."""


@dataclass(slots=True)
class Dataset:
    """An opened dataset.

    Raises:
        SpecError: from all methods; it is not whole, or not what it says.
    """

    root: Path
    fps: int
    frames: int
    robot_type: str
    features: Sequence[Feature]
    ignored: Mapping[str, str]
    """Columns that are left out, and why."""
    ours: Mapping[str, Any] | None
    """Our part of ``info.json``; None where it is not our export."""
    episodes: Sequence[EpisodeRow] = ()
    files: list[Path] = field(default_factory=list)
    """All files that the rows come from."""

    @classmethod
    def open(cls, root: Path) -> "Dataset":
        """Read what there is about a dataset, but not its frames."""
        info = read_json(root / form.INFO)
        version = info.get("codebase_version")
        if version != form.VERSION:
            raise SpecError(
                f"{root} is a dataset of another version",
                got=version,
                allowed=form.VERSION,
                todo="Convert it with the tools of the datasets' own project.",
            )
        ours = info.get(form.OURS)
        if ours is not None:
            _check_ours(root, ours)
        features, ignored = of_info(info, ours)
        kind = info.get("robot_type")
        dataset = cls(
            root,
            _count(info, "fps", 1, MAX_FPS),
            _count(info, "total_frames", 1, 1 << 40),
            kind if isinstance(kind, str) else "",
            features,
            ignored,
            ours,
        )
        dataset.episodes = dataset._episodes(info)
        return dataset

    def beside(self, folder: str) -> list[Path]:
        """Return the numbered files of a folder, in order."""
        found = []
        for path in (self.root / folder).glob("chunk-*/file-*.parquet"):
            name = _NUMBERED.fullmatch(path.relative_to(self.root / folder).as_posix())
            if name:
                found.append((int(name[1]), int(name[2]), inside(self.root, path)))
        return [path for _, _, path in sorted(found)]

    def fingerprint(self) -> str:
        """Return a hash of all bytes that rows are made of.

        Raises:
            DamageError: a file of our own export is not what was exported.
        """
        info = inside(self.root, self.root / form.INFO)
        written: Mapping[str, Any] = (self.ours or {}).get("files", {})
        files = {*self.files, info, *(inside(self.root, self.root / name) for name in written)}
        names = {path: path.relative_to(self.root.resolve()).as_posix() for path in files}
        found = {name: file_hash(path) for path, name in names.items()}
        for path, name in names.items():
            if self.ours is not None and path != info and written.get(name) != found[name]:
                raise DamageError(
                    f"{self.root / name} is not what was exported",
                    todo="Copy the dataset again, or export it again.",
                )
        text = "".join(f"{name}\0{found[name]}\0" for name in sorted(found))
        return str(xxhash.xxh3_128_hexdigest(text.encode()))

    def _episodes(self, info: Mapping[str, Any]) -> list[EpisodeRow]:
        """Return the list of episodes, after it proved to be without gaps."""
        paths = self.beside(form.EPISODES)
        tasks = inside(self.root, self.root / form.TASKS)
        video_keys = [f.key for f in self.features if f.dtype == form.VIDEO]
        names = _Names(video_keys, ours=self.ours is not None)
        found: list[EpisodeRow] = []
        data: dict[Path, int] = {}
        first = 0
        for path in paths:
            with Source(path) as source:
                for record in (r for rows in source.records(names.all) for r in rows):
                    row = self._episode(info, record, names, len(found), first)
                    data[row.data] = data.get(row.data, 0) + row.length
                    first += row.length
                    found.append(row)
        for what, got, said in (
            ("episodes", len(found), _count(info, "total_episodes", 1, 1 << 40)),
            ("frames", first, self.frames),
        ):
            if got != said:
                raise SpecError(f"{self.root}: {what} listed", got=got, allowed=f"{said} as stated")
        for path, wanted in data.items():
            with Source(path) as source:
                if source.rows != wanted:
                    raise SpecError(f"rows of {path}", got=source.rows, allowed=f"{wanted} listed")
        videos = {video.path for row in found for video in row.videos.values()}
        self.files = [*paths, tasks, *data, *sorted(videos)]
        return found

    def _episode(
        self,
        info: Mapping[str, Any],
        record: Mapping[str, Any],
        names: "_Names",
        index: int,
        first: int,
    ) -> EpisodeRow:
        at = f"{self.root}: episode {index}"
        length = record["length"]
        got = record["episode_index"], record["dataset_from_index"], record["dataset_to_index"]
        if type(length) is not int or length < 1 or got != (index, first, first + length):
            allowed = index, first, f"{first} + length"
            raise SpecError(
                f"{at} does not follow the one before it", got=(*got, length), allowed=allowed
            )
        tasks = record["tasks"]
        if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
            raise SpecError(f"{at}: tasks", got=str(tasks)[:80], allowed="a list of texts")
        about = {n: record[f"{form.OURS}/{n}"] for n in names.about} if self.ours else None
        return EpisodeRow(
            index,
            length,
            tasks[0] if tasks else "",
            self._place(info, "data_path", record, "data"),
            first,
            {
                key: Video(
                    self._place(info, "video_path", record, f"videos/{key}", key),
                    _seconds(record[f"videos/{key}/from_timestamp"], at),
                )
                for key in names.videos
            },
            about,
        )

    def _place(
        self,
        info: Mapping[str, Any],
        template: str,
        record: Mapping[str, Any],
        prefix: str,
        key: str = "",
    ) -> Path:
        text = info.get(template)
        chunk, file = (record[f"{prefix}/{name}"] for name in _PLACE)
        if not isinstance(text, str) or not _TEMPLATE.fullmatch(text):
            raise SpecError(f"{form.INFO}: {template}", got=text, allowed=form.VIDEO_PATH)
        if type(chunk) is not int or type(file) is not int or min(chunk, file) < 0:
            raise SpecError(f"{prefix} of an episode", got=(chunk, file), allowed="counts")
        name = text.format(video_key=key, chunk_index=chunk, file_index=file)
        return inside(self.root, self.root / name)


class _Names:
    """The columns of ``meta/episodes`` that are read."""

    def __init__(self, videos: Sequence[str], *, ours: bool):
        self.videos = videos
        self.about = [name.partition("/")[2] for name in ABOUT] if ours else []
        self.all = [
            *("episode_index", "length", "tasks", "dataset_from_index", "dataset_to_index"),
            *(f"data/{name}" for name in _PLACE),
            *(f"videos/{key}/{name}" for key in videos for name in (*_PLACE, "from_timestamp")),
            *(f"{form.OURS}/{name}" for name in self.about),
        ]


def inside(root: Path, path: Path) -> Path:
    """Return ``path`` without links, if it is inside ``root``.

    Raises:
        SpecError: it is not, or there is no such file.
    """
    found = path.resolve()
    if not found.is_relative_to(root.resolve()):
        raise SpecError(
            f"{path} leads out of the dataset",
            got=found,
            allowed=f"files under {root}",
            todo="If it holds links to a cache, copy it with `cp -rL` first.",
        )
    if not found.is_file():
        raise SpecError(f"{path} is missing from the dataset")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object from outside.

    Raises:
        SpecError: it is none, or larger than any of these is.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise SpecError(f"{path} is too large", got=path.stat().st_size, allowed=MAX_JSON)
        value = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        what = f"{path} is not readable: is this a LeRobotDataset v3?"
        raise SpecError(what, got=error) from error
    if not isinstance(value, dict):
        raise SpecError(f"{path} is no JSON object", got=type(value).__name__)
    return value


def _count(info: Mapping[str, Any], name: str, low: int, high: int) -> int:
    value = info.get(name)
    if type(value) is not int or not low <= value <= high:
        raise SpecError(f"{form.INFO}: {name}", got=value, allowed=f"{low}..{high}")
    return value


def _seconds(value: object, at: str) -> float:
    if not isinstance(value, int | float) or not 0 <= value < 1e9:
        raise SpecError(f"{at}: from_timestamp", got=value, allowed="seconds")
    return float(value)


def _check_ours(root: Path, ours: object) -> None:
    form_of = ours.get("format") if isinstance(ours, dict) else ours
    if not isinstance(ours, dict) or form_of != form.OURS_FORMAT:
        what = f"{root} was exported in another format"
        raise SpecError(what, got=str(form_of)[:80], allowed=form.OURS_FORMAT)
    if not isinstance(ours.get("files"), dict):
        raise SpecError(f"{form.INFO}: {form.OURS}.files", got=type(ours.get("files")).__name__)
