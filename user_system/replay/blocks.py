"""Fragments of one schema joined into columns: what an index is brought up to date from.

Reading a log entry by entry costs tens of microseconds each, most of it spent on many small arrays
and a header in JSON. So the writer also stores what it appended in blocks of a few thousand steps,
each a few large arrays, and a reader that starts takes over a million steps in a second. A block
repeats what the log holds and is nothing without it: where the two ranges meet, the reader goes on
with the log itself, whose entries become blocks too, so that there is one way into the index.

As a message of ``codec.arrays``: ``meta`` holds the strings and the list of extras and streams, the
arrays are named by what they are, one row per fragment (``f/``), per step (``c/``), per observation
(``o/`` and ``r/robot_ns``), per row that has it (``x/``), per sample (``t/``, ``v/``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from user_system.codec import arrays
from user_system.codec.fragments import is_image
from user_system.core.errors import DamageError
from user_system.core.types import Array, Fragment
from user_system.replay.entries import identity

STEP = (
    "executed",
    "proposed",
    "reward",
    "segment",
    "end",
    "policy",
    "version",
    "operator",
    "chunk",
    "position",
)
"""Per-step columns; ``policy`` and ``operator`` are indexes into ``names`` of the block."""

FRAGMENT: Mapping[str, str] = {
    "offset": "uint64",
    "identity": "uint64",
    "steps": "int32",
    "start": "int64",
    "final": "bool",
    "void_from": "int64",
    "success": "int8",
    "purpose": "uint8",
    "episode": "int32",
    "robot": "int32",
    "task": "int32",
    "run": "int32",
    "wall_ns": "int64",
    "names": "int32",
}
"""Per-fragment columns: -1 for no ``void_from`` and for a ``success`` that is not known; ``names``
counts the strings of the block that were seen by then, so that a part of it knows no more."""

EpisodeKey = tuple[str, int, str]
"""(producer, epoch, episode): nothing is ever joined across lives of a producer."""

_FORMAT = 1
_AT_ONCE = 64
"""Fragments between two pauses."""
_MAX_BYTES = 1 << 32


@dataclass(frozen=True, slots=True)
class Ragged:
    """A column that only some fragments have: an extra, or a stream."""

    name: str
    counts: Array
    """``[F]`` int32: rows of each fragment, 0 where it has none."""
    values: Array
    """``[sum of counts, ...]``."""
    stamps: Array | None = None
    """``[sum of counts]`` int64 robot ns; None for extras, whose rows are the steps."""

    def until(self, fragments: int) -> "Ragged":
        """Return the part of the first ``fragments``."""
        rows = int(self.counts[:fragments].sum())
        stamps = None if self.stamps is None else self.stamps[:rows]
        return Ragged(self.name, self.counts[:fragments], self.values[:rows], stamps)


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive fragments of one schema; all arrays are in the order of the log."""

    schema: str
    names: tuple[str, ...]
    """Robots, tasks, runs, operators and policies, in the order in which they were first seen."""
    episodes: tuple[EpisodeKey, ...]
    fragments: Mapping[str, Array]
    """``FRAGMENT`` column -> ``[F]``."""
    steps: Mapping[str, Array]
    """``STEP`` column -> ``[T, ...]``."""
    observation: Mapping[str, Array]
    """Low-dimensional field -> ``[R, ...]``, where R counts one more than T per final fragment."""
    robot_ns: Array
    """``[R]`` int64."""
    extras: Sequence[Ragged]
    streams: Sequence[Ragged]

    def __len__(self) -> int:
        return len(self.fragments["offset"])

    @property
    def rows(self) -> Array:
        """Observations of each fragment ``[F]``: the border one belongs to the next fragment."""
        rows: Array = self.fragments["steps"] + self.fragments["final"]
        return rows

    @classmethod
    def of(
        cls, entries: Sequence[tuple[int, Fragment]], pause: Callable[[], object] = lambda: None
    ) -> "Block":
        """Join fragments of one schema, given with their offsets; images are left out.

        Args:
            entries: offset and fragment of each.
            pause: called every millisecond or so, for whoever is not to keep others waiting.
        """
        return _Joiner(entries, pause).block()

    def until(self, offset: int) -> "Block":
        """Return the fragments below ``offset``."""
        n = int(np.searchsorted(self.fragments["offset"], offset))
        if n == len(self):
            return self
        steps, rows = int(self.fragments["steps"][:n].sum()), int(self.rows[:n].sum())
        seen = int(self.fragments["names"][n - 1]) if n else 0
        episodes = int(self.fragments["episode"][:n].max(initial=-1)) + 1
        return Block(
            self.schema,
            self.names[:seen],
            self.episodes[:episodes],
            {name: values[:n] for name, values in self.fragments.items()},
            {name: values[:steps] for name, values in self.steps.items()},
            {name: values[:rows] for name, values in self.observation.items()},
            self.robot_ns[:rows],
            [extra.until(n) for extra in self.extras],
            [stream.until(n) for stream in self.streams],
        )

    def encode(self) -> bytes:
        """Return what ``decode`` reads."""
        blocks = {f"f/{name}": values for name, values in self.fragments.items()}
        blocks |= {f"c/{name}": values for name, values in self.steps.items()}
        blocks |= {f"o/{name}": values for name, values in self.observation.items()}
        blocks["r/robot_ns"] = self.robot_ns
        for i, extra in enumerate(self.extras):
            blocks |= {f"n/{i}": extra.counts, f"x/{i}": extra.values}
        for i, stream in enumerate(self.streams):
            if stream.stamps is None:
                raise ValueError(f"stream {stream.name!r} has no stamps")
            blocks |= {f"m/{i}": stream.counts, f"t/{i}": stream.stamps, f"v/{i}": stream.values}
        meta: dict[str, arrays.Json] = {
            "block": _FORMAT,
            "schema": self.schema,
            "names": self.names,
            "episodes": self.episodes,
            "extras": [extra.name for extra in self.extras],
            "streams": [stream.name for stream in self.streams],
        }
        return arrays.pack(meta, blocks)

    @classmethod
    def decode(cls, buffer: arrays.Buffer) -> "Block":
        """Return the block in ``buffer``; its arrays are read-only views into it.

        Raises:
            DamageError: these are not the bytes that ``encode`` wrote.
        """
        meta, blocks = arrays.unpack(buffer, max_bytes=_MAX_BYTES)
        if meta.get("block") != _FORMAT:
            raise DamageError("not a block", got=meta.get("block"), allowed=_FORMAT)
        try:
            return cls(
                meta["schema"],
                tuple(meta["names"]),
                tuple((p, int(e), n) for p, e, n in meta["episodes"]),
                {name: blocks[f"f/{name}"] for name in FRAGMENT},
                {name: blocks[f"c/{name}"] for name in STEP},
                {name[2:]: values for name, values in blocks.items() if name.startswith("o/")},
                blocks["r/robot_ns"],
                [
                    Ragged(name, blocks[f"n/{i}"], blocks[f"x/{i}"])
                    for i, name in enumerate(meta["extras"])
                ],
                [
                    Ragged(name, blocks[f"m/{i}"], blocks[f"v/{i}"], blocks[f"t/{i}"])
                    for i, name in enumerate(meta["streams"])
                ],
            )
        except (KeyError, ValueError, TypeError) as error:
            raise DamageError("block is not whole", got=error) from error


class _Joiner:
    """Turns a list of fragments into one block."""

    def __init__(self, entries: Sequence[tuple[int, Fragment]], pause: Callable[[], object]):
        self._pause = pause
        self._offsets = [offset for offset, _ in entries]
        self._fragments = [fragment for _, fragment in entries]
        self._names: dict[str, int] = {}
        self._episodes: dict[EpisodeKey, int] = {}

    def block(self) -> Block:
        # One pass, so that names are numbered in the order of the log whatever a block's limits.
        rows = [self._row(o, f) for o, f in zip(self._offsets, self._fragments, strict=True)]
        columns = list(zip(*(row for row, _ in rows), strict=True))
        fragments = {
            name: np.array(columns[i], dtype) for i, (name, dtype) in enumerate(FRAGMENT.items())
        }
        codes = [codes for _, codes in rows]
        steps = {name: self._join(_column(name)) for name in STEP if name not in _CODED}
        for name in _CODED:
            parts = zip(codes, self._fragments, strict=True)
            steps[name] = np.concatenate([table[getattr(f, name)] for table, f in parts])
        fields = self._fragments[0].observation
        low = [name for name, values in fields.items() if not is_image(values)]
        return Block(
            self._fragments[0].header.schema,
            tuple(self._names),
            tuple(self._episodes),
            fragments,
            steps,
            {name: self._join(_field(name)) for name in low},
            self._join(lambda f: f.robot_ns),
            self._extras(),
            self._streams(),
        )

    def _row(self, offset: int, fragment: Fragment) -> tuple[tuple[Any, ...], Array]:
        if offset % _AT_ONCE == 0:
            self._pause()
        header, code = fragment.header, self._code
        codes = np.array([code(name) for name in header.names], np.int32)
        key = header.producer, header.epoch, header.episode
        row = (
            offset,
            identity(header),
            len(fragment),
            header.start,
            fragment.final,
            -1 if header.void_from is None else header.void_from,
            -1 if header.success is None else int(header.success),
            int(header.purpose),
            self._episodes.setdefault(key, len(self._episodes)),
            code(header.robot),
            code(header.task),
            code(header.run),
            header.wall_ns,
            len(self._names),
        )
        return row, codes

    def _code(self, name: str) -> int:
        return self._names.setdefault(name, len(self._names))

    def _join(self, column: Callable[[Fragment], Array]) -> Array:
        self._pause()
        if len(self._fragments) == 1:
            return column(self._fragments[0])
        return np.concatenate([column(fragment) for fragment in self._fragments])

    def _extras(self) -> list[Ragged]:
        """Group extras by name, dtype and shape: two policies may mean two things by a name."""
        kinds: dict[tuple[str, str, tuple[int, ...]], list[Array]] = {}
        counts: dict[tuple[str, str, tuple[int, ...]], Array] = {}
        for i, fragment in enumerate(self._fragments):
            for name, values in fragment.extras.items():
                kind = name, values.dtype.name, values.shape[1:]
                kinds.setdefault(kind, []).append(values)
                counts.setdefault(kind, np.zeros(len(self._fragments), np.int32))[i] = len(values)
        return [Ragged(k[0], counts[k], np.concatenate(parts)) for k, parts in kinds.items()]

    def _streams(self) -> list[Ragged]:
        kinds: dict[tuple[str, str, tuple[int, ...]], list[tuple[Array, Array]]] = {}
        counts: dict[tuple[str, str, tuple[int, ...]], Array] = {}
        for i, fragment in enumerate(self._fragments):
            for name, stream in fragment.streams.items():
                kind = name, stream.values.dtype.name, stream.values.shape[1:]
                kinds.setdefault(kind, []).append((stream.stamps, stream.values))
                counts.setdefault(kind, np.zeros(len(self._fragments), np.int32))[i] = len(
                    stream.stamps
                )
        return [
            Ragged(
                k[0],
                counts[k],
                np.concatenate([values for _, values in parts]),
                np.concatenate([stamps for stamps, _ in parts]),
            )
            for k, parts in kinds.items()
        ]


_CODED = ("policy", "operator")


def _column(name: str) -> Callable[[Fragment], Array]:
    def column(fragment: Fragment) -> Array:
        values: Array = getattr(fragment, name)
        return values

    return column


def _field(name: str) -> Callable[[Fragment], Array]:
    return lambda fragment: fragment.observation[name]
