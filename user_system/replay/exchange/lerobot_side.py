"""What stands beside a dataset's frames, in ``user_system/``: what frames cannot hold.

- ``last``: one row per episode whose last step has a known successor: that observation.
- ``fragments``: one row per fragment: what its header says.
- ``streams/000`` …: one row per fragment with samples of a stream: stamps, and values flattened.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from user_system.core.types import Array
from user_system.replay.exchange import lerobot_form as form
from user_system.replay.exchange import parquet, picture
from user_system.replay.exchange.lerobot_form import Feature
from user_system.replay.exchange.parquet import IMAGE, ColumnType, FileSeries
from user_system.replay.exchange.stretches import Stretch

_PER_GROUP = 1024

FRAGMENT: Mapping[str, str] = {
    "episode_index": "int64",
    "start": "int64",
    "steps": "int64",
    "epoch": "uint64",
    "sequence": "int64",
    "wall_ns": "int64",
    "wall_bound_ns": "int64",
    "success": "bool_",
    "void_from": "int64",
    "extras": "*int64",
}
"""Columns of ``fragments``; ``extras`` are positions in our list of features."""


def last_columns(features: Sequence[Feature]) -> dict[str, ColumnType]:
    """Return the columns of ``last``; a camera that is a video has a PNG here."""
    columns = {"episode_index": ColumnType("int64"), "robot_ns": ColumnType("int64")}
    for feature in seen(features):
        dtype = IMAGE if feature.dtype == form.VIDEO else feature.dtype
        columns[feature.key] = ColumnType(dtype, feature.shape)
    return columns


def seen(features: Sequence[Feature]) -> list[Feature]:
    """Return the features that are columns of an observation."""
    return [f for f in features if f.kind in ("field", "camera") and f.stored]


class Last:
    """Writes ``last``."""

    def __init__(self, series: FileSeries, features: Sequence[Feature]):
        self._series = series
        self._columns = last_columns(features)
        self._features = seen(features)

    def write(self, stretch: Stretch, number: int) -> None:
        """Write the observation after the last step of a stretch."""
        row, episode = stretch.high, stretch.episode
        values: dict[str, Any] = {
            "episode_index": np.array([number]),
            "robot_ns": episode.robot_ns[row : row + 1],
        }
        for feature in self._features:
            kind = self._columns[feature.key]
            if feature.kind == "field":
                field = episode.observation[feature.name][row : row + 1]
                shape = () if kind.shape == (1,) else kind.shape
                values[feature.key] = field.reshape(1, *shape)
            elif kind.dtype == IMAGE:
                values[feature.key] = [picture.encode(stretch.last_frame(feature.name))]
            else:
                values[feature.key] = stretch.last_frame(feature.name)[None]
        self._series.write(parquet.table(self._columns, values))

    def close(self) -> None:
        """Close its file; safe to repeat."""
        self._series.close()


class Fragments:
    """Writes ``fragments``."""

    def __init__(self, series: FileSeries, features: Sequence[Feature]):
        self._series = series
        self._extras = {
            (f.name, f.dtype, f.tail): i for i, f in enumerate(features) if f.kind == "extra"
        }
        self._rows: list[dict[str, Any]] = []

    def write(self, stretch: Stretch, number: int) -> None:
        """Write what the fragments of a stretch say of themselves."""
        stamps, extras = stretch.episode.robot_ns, stretch.episode.extras
        for piece, low, high in stretch.pieces():
            header = piece.header
            later = int(stamps[low] - stamps[piece.first])
            forms = [(n, extras[n].dtype.name, extras[n].shape[1:]) for n in sorted(piece.extras)]
            row = {
                "episode_index": number,
                "start": header.start + low - piece.first,
                "steps": high - low,
                "epoch": header.epoch,
                "sequence": header.sequence,
                "wall_ns": header.wall_ns + later,
                "wall_bound_ns": header.wall_bound_ns,
                "success": header.success,
                # A part of an episode has lost what a rewind undid: there is nothing to undo.
                "void_from": header.void_from if stretch.whole else None,
                "extras": [self._extras[form] for form in forms],
            }
            self._rows.append(row)
        if len(self._rows) >= _PER_GROUP:
            self._flush()

    def close(self) -> None:
        """Write what waits and close its file; safe to repeat."""
        self._flush()
        self._series.close()

    def _flush(self) -> None:
        if self._rows:
            columns = {name: [row[name] for row in self._rows] for name in FRAGMENT}
            self._rows = []
            self._series.write(parquet.plain(columns, FRAGMENT))


class StreamFiles:
    """Writes ``streams``: a folder for each name and form."""

    def __init__(
        self,
        root: Path,
        streams: Sequence[tuple[str, str, tuple[int, ...]]],
        sizes: Mapping[str, int],
    ):
        self._series = {
            stream: FileSeries(root / form.STREAMS / f"{i:03d}", **sizes)
            for i, stream in enumerate(streams)
        }

    def describe(self) -> list[dict[str, Any]]:
        """Return what ``info.json`` says of them."""
        return [
            {"name": name, "dtype": dtype, "tail": list(tail), "path": f"{form.STREAMS}/{i:03d}"}
            for i, (name, dtype, tail) in enumerate(self._series)
        ]

    def write(self, stretch: Stretch, number: int) -> None:
        """Write the samples of a whole episode; of a part of one nobody says which are its own."""
        for (name, dtype, tail), series in self._series.items():
            stream = stretch.episode.streams.get(name)
            if stream is None or stream.values.dtype != dtype or stream.values.shape[1:] != tail:
                continue
            starts: list[int] = []
            stamps: list[Array] = []
            values: list[Array] = []
            done = 0
            for piece, _, _ in stretch.pieces():
                if name in piece.streams:
                    end = done + piece.streams[name]
                    starts.append(piece.header.start)
                    stamps.append(stream.stamps[done:end])
                    values.append(stream.values[done:end])
                    done = end
            series.write(parquet.samples(number, starts, stamps, values))

    def close(self) -> None:
        """Close its files; safe to repeat."""
        for series in self._series.values():
            series.close()
