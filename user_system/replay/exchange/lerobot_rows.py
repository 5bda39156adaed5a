"""The frames of a dataset, an episode at a time; each proves to be the one it is said to be."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.types import Array
from user_system.replay.exchange import lerobot_form as form
from user_system.replay.exchange.lerobot_meta import Dataset, EpisodeRow
from user_system.replay.exchange.parquet import Columns, Source
from user_system.replay.exchange.video import VideoFile

_ROWS = 256
"""Rows read at a time."""


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of one episode."""

    row: EpisodeRow
    values: Mapping[str, Any]
    """Feature key -> ``[N, *shape]``, or a list of texts or images' bytes; without videos."""


def read(dataset: Dataset) -> Iterator[Frames]:
    """Yield the frames of each episode, in order; one episode is in memory at a time.

    Raises:
        SpecError: rows are missing, in another order or of another form.
    """
    features = [f for f in dataset.features if f.stored and f.dtype != form.VIDEO]
    with _Rows({feature.key: feature.column for feature in features}) as rows:
        for episode in dataset.episodes:
            values = rows.take(episode.data, episode.length)
            _check_index(episode, values, dataset.fps)
            yield Frames(episode, values)
        rows.finish()


def _check_index(episode: EpisodeRow, values: Mapping[str, Any], fps: int) -> None:
    """Make sure that rows are those of the episode, in order."""
    frames = np.arange(episode.length)
    wanted = {
        "episode_index": np.full(episode.length, episode.index),
        "frame_index": frames,
        "index": episode.first + frames,
    }
    for name, numbers in wanted.items():
        if (wrong := np.flatnonzero(values[name] != numbers)).size:
            at = int(wrong[0])
            raise SpecError(
                f"{episode.data}: {name} of frame {at} of episode {episode.index}",
                got=int(values[name][at]),
                allowed=int(numbers[at]),
            )
    off = np.abs(values["timestamp"].astype(np.float64) - frames / fps)
    if not (off <= 0.5 / fps).all():
        raise SpecError(
            f"{episode.data}: timestamps of episode {episode.index}",
            got=f"{float(off.max()):.4f} s from where they belong",
            allowed=f"frame_index / {fps}",
        )


class Videos:
    """The videos of a dataset, each read forwards."""

    def __init__(self, dataset: Dataset):
        self._fps = dataset.fps
        self._shapes = {f.key: f.tail for f in dataset.features if f.dtype == form.VIDEO}
        self._open: dict[str, VideoFile] = {}

    def frames(self, row: EpisodeRow, key: str) -> Iterator[Array]:
        """Yield the images ``(H, W, 3)`` of one camera in one episode."""
        place, file = row.videos[key], self._open.get(key)
        if file is None or file.path != place.path:
            if file is not None:
                file.close()
            file = self._open[key] = VideoFile(place.path, self._shapes[key], self._fps)
        yield from file.frames(place.begin_s, row.length)

    def __enter__(self) -> "Videos":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()


class _Rows:
    """The rows of several files, taken in the lengths of episodes."""

    def __init__(self, columns: Columns):
        self._columns = columns
        self._source: Source | None = None
        self._batches: Iterator[dict[str, Any]] = iter(())
        self._left: dict[str, Any] = {}

    def take(self, path: Path, count: int) -> dict[str, Any]:
        """Return the next ``count`` rows, which are in ``path``."""
        if self._source is None or self._source.path != path:
            self.finish()
            self._source = Source(path)
            self._batches = self._source.arrays(self._columns, _ROWS)
        parts, have = [self._left] if self._left else [], _height(self._left)
        while have < count:
            batch = next(self._batches, None)
            if batch is None:
                raise SpecError(f"{path} ends early", got=have, allowed=f"{count} rows")
            parts.append(batch)
            have += _height(batch)
        rows = parts[0] if len(parts) == 1 else _join(parts)
        self._left = {n: v[count:] for n, v in rows.items()} if have > count else {}
        return {name: values[:count] for name, values in rows.items()}

    def finish(self) -> None:
        """Close the file, which must have been used up: episodes do not share rows."""
        source, self._source = self._source, None
        if source is None:
            return
        with source:
            if self._left or next(self._batches, None) is not None:
                raise SpecError(f"{source.path} holds rows of episodes that lie elsewhere too")

    def __enter__(self) -> "_Rows":
        return self

    def __exit__(self, *_: object) -> None:
        if self._source is not None:
            self._source.close()


def _height(rows: Mapping[str, Any]) -> int:
    return len(next(iter(rows.values()))) if rows else 0


def _join(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def joined(cells: list[Any]) -> Any:
        if isinstance(cells[0], list):
            return [cell for part in cells for cell in part]
        return np.concatenate(cells)

    return {name: joined([part[name] for part in parts]) for name in parts[0]}
