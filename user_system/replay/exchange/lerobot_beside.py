"""What stands beside the frames of our own export, read in step with them."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from user_system.codec import arrays
from user_system.core.errors import SpecError
from user_system.core.types import Stream
from user_system.replay.exchange import lerobot_form as form
from user_system.replay.exchange import parquet
from user_system.replay.exchange.lerobot_meta import Dataset
from user_system.replay.exchange.lerobot_side import FRAGMENT, last_columns
from user_system.replay.exchange.parquet import Columns, Source

_OPTIONAL = {"success": bool, "void_from": int, "extras": list}
"""Columns of ``fragments`` that are no plain counts; the first two may be empty."""


@dataclass(frozen=True, slots=True)
class _Stream:
    """One stream of the dataset."""

    name: str
    dtype: str
    tail: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """What stands beside one episode."""

    fragments: Sequence[Mapping[str, Any]]
    last: Sequence[Mapping[str, Any]]
    samples: Sequence[tuple[_Stream, Sequence[Mapping[str, Any]]]]

    def streams(self, start: int) -> dict[str, Stream]:
        """Return the samples of the fragment that begins at step ``start``.

        Raises:
            SpecError: their number and shape do not fit.
        """
        found = {}
        for stream, rows in self.samples:
            for row in (row for row in rows if row["start"] == start):
                found[stream.name] = _stream(stream, row)
        return found


class Beside:
    """Reads ``user_system/`` of a dataset, an episode at a time, in order."""

    def __init__(self, dataset: Dataset):
        self._stack = ExitStack()
        last = partial(_observations, last_columns(dataset.features))
        self._streams = _streams(dataset)
        self._fragments = self._cursor(dataset, form.FRAGMENTS, _records)
        self._last = self._cursor(dataset, form.LAST, last)
        self._samples = [
            self._cursor(dataset, f"{form.STREAMS}/{i:03d}", _samples)
            for i in range(len(self._streams))
        ]

    def take(self, episode: int) -> Rows:
        """Return what stands beside the next episode."""
        samples = [cursor.take(episode) for cursor in self._samples]
        return Rows(
            self._fragments.take(episode),
            self._last.take(episode),
            list(zip(self._streams, samples, strict=True)),
        )

    def finish(self) -> None:
        """Make sure that nothing is left over.

        Raises:
            SpecError: something is: rows are out of order, or of no episode.
        """
        for cursor in (self._fragments, self._last, *self._samples):
            cursor.finish()

    def __enter__(self) -> "Beside":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _cursor(
        self, dataset: Dataset, folder: str, read: Callable[[Source], Iterator[Any]]
    ) -> "_Cursor":
        cursor = _Cursor(dataset.beside(folder), read)
        self._stack.callback(cursor.close)
        return cursor


class _Cursor:
    """Rows of several files, in the order of episodes, taken an episode at a time."""

    def __init__(self, paths: Sequence[Path], read: Callable[[Source], Iterator[Any]]):
        self._rows = self._walk(paths, read)
        self._ahead: Any = None

    def take(self, episode: int) -> list[Any]:
        """Return the rows of an episode."""
        found = []
        while (row := self._peek()) is not None and row["episode_index"] == episode:
            found.append(row)
            self._ahead = None
        return found

    def finish(self) -> None:
        """Make sure that all rows were taken."""
        if (row := self._peek()) is not None:
            what = f"{form.OURS}: rows out of order, or of no episode"
            raise SpecError(what, got=row["episode_index"])

    def close(self) -> None:
        """Close the open file."""
        self._rows.close()

    def _peek(self) -> Any:
        if self._ahead is None:
            self._ahead = next(self._rows, None)
        return self._ahead

    def _walk(
        self, paths: Sequence[Path], read: Callable[[Source], Iterator[Any]]
    ) -> Generator[Any, None, None]:
        for path in paths:
            with Source(path) as source:
                yield from read(source)


def _records(source: Source) -> Iterator[dict[str, Any]]:
    """Yield the rows of ``fragments``, of the right types."""
    for rows in source.records(list(FRAGMENT)):
        for row in rows:
            for name, value in row.items():
                kind = _OPTIONAL.get(name, int)
                empty = value is None and name in ("success", "void_from")
                if not empty and type(value) is not kind:
                    raise SpecError(f"{source.path}: {name}", got=value, allowed=kind.__name__)
            yield row


def _observations(columns: Columns, source: Source) -> Iterator[dict[str, Any]]:
    for row in source.arrays(columns, 1):
        yield {**row, "episode_index": int(row["episode_index"][0])}


def _samples(source: Source) -> Iterator[dict[str, Any]]:
    for row in source.lists(parquet.SAMPLES):
        right = all(type(row[name]) is int for name in ("episode_index", "start"))
        if not right or not all(isinstance(row[n], np.ndarray) for n in ("stamps", "values")):
            raise SpecError(f"{source.path}: a row", got=str(row)[:200], allowed=parquet.SAMPLES)
        yield row


def _stream(stream: _Stream, row: Mapping[str, Any]) -> Stream:
    stamps, values = row["stamps"], row["values"]
    if stamps.dtype != np.int64 or values.dtype != np.dtype(stream.dtype):
        got = stamps.dtype, values.dtype
        raise SpecError(f"stream {stream.name!r}", got=got, allowed=("int64", stream.dtype))
    if values.size != len(stamps) * int(np.prod(stream.tail)):
        allowed = [len(stamps), *stream.tail]
        raise SpecError(f"values of stream {stream.name!r}", got=values.size, allowed=allowed)
    return Stream(stamps, values.reshape(len(stamps), *stream.tail))


def _streams(dataset: Dataset) -> list[_Stream]:
    listed = (dataset.ours or {}).get("streams")
    if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
        raise SpecError(f"{form.INFO}: {form.OURS}.streams", got=str(listed)[:80])
    found = []
    for entry in listed:
        tail = form.parse_shape(entry.get("tail"))
        name, dtype = entry.get("name"), entry.get("dtype")
        texts = isinstance(name, str) and isinstance(dtype, str)
        if tail is None or not texts or dtype not in arrays.DTYPES:
            raise SpecError(f"{form.INFO}: a stream", got=str(entry)[:200])
        found.append(_Stream(name, dtype, tail))
    return found
