"""Sensors at their own rates: which sample was the newest when an observation was made.

Samples of one stream lie in the order of the log, robots interleaved; each knows the one before it
of its own episode, and each observation row knows the newest sample not later than itself.
"""

from typing import TYPE_CHECKING

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.types import Array
from user_system.replay.blocks import Block, Ragged
from user_system.replay.columns import Column

if TYPE_CHECKING:
    from user_system.replay.rows import Rows


class Stream:
    """The samples of one stream of one schema."""

    def __init__(self, sample: Ragged):
        self.values = Column(sample.values.dtype, sample.values.shape[1:])
        self.stamps = Column("int64")
        self.prev = Column("int64")
        """By sample: the one before it in its episode; -1: none."""
        self.newest = Column("int64")
        """By observation row: the newest sample not later than it; -1: none."""
        self.last: dict[int, int] = {}
        """By episode number: its last sample."""


class Streams:
    """All streams of one schema."""

    def __init__(self) -> None:
        self._streams: dict[str, Stream] = {}

    def __bool__(self) -> bool:
        return bool(self._streams)

    def names(self) -> list[str]:
        """Return the streams there are."""
        return sorted(self._streams)

    def extend(self, rows: "Rows", block: Block, first_piece: int) -> None:
        """Take over the samples of a block whose pieces and observations ``rows`` has."""
        total = len(rows.robot_ns)
        for sample in block.streams:
            stream = self._streams.get(sample.name)
            if stream is None:
                stream = self._streams[sample.name] = Stream(sample)
            if (stream.values.dtype, stream.values.data.shape[1:]) != (
                sample.values.dtype,
                sample.values.shape[1:],
            ):
                continue  # another robot's sensor by the same name: not of this stream
            stream.newest.pad(total - int(block.rows.sum()), -1)
            self._take(stream, sample, rows, first_piece)
        for name in self._streams.keys() - {sample.name for sample in block.streams}:
            self._take(self._streams[name], None, rows, first_piece)

    def at(self, name: str, observations: Array, samples: int) -> tuple[Array, Array, Array]:
        """Return the newest ``samples`` of a stream as of observation rows ``[B]``, oldest first.

        Returns:
            values ``[B, samples, ...]``, stamps ``[B, samples]`` robot ns, valid ``[B, samples]``.

        Raises:
            SpecError: there is no such stream.
        """
        stream = self._streams.get(name)
        if stream is None:
            raise SpecError("unknown stream", got=name, allowed=", ".join(self.names()) or "none")
        stream.newest.pad(int(observations.max(initial=-1)) + 1, -1)
        at = np.empty((len(observations), samples), np.int64)
        newest = stream.newest.data[observations]
        for i in reversed(range(samples)):
            at[:, i] = newest
            newest = np.where(newest >= 0, stream.prev.data[newest], -1)
        valid = at >= 0
        values = stream.values.data[at]
        values[~valid] = 0
        return values, np.where(valid, stream.stamps.data[at], 0), valid

    def _take(self, stream: Stream, sample: Ragged | None, rows: "Rows", first_piece: int) -> None:
        pieces = {name: column.data for name, column in rows.pieces.items()}
        done = 0
        for piece in range(first_piece, len(pieces["offset"])):
            count = 0 if sample is None else int(sample.counts[piece - first_piece])
            episode, base = int(pieces["episode"][piece]), len(stream.stamps)
            before = stream.last.get(episode, -1)
            start = int(pieces["obs"][piece])
            end = start + int(pieces["steps"][piece]) + int(pieces["final"][piece])
            stream.newest.pad(start, -1)
            if sample is not None and sample.stamps is not None and count:
                stamps = sample.stamps[done : done + count]
                stream.stamps.extend(stamps)
                stream.values.extend(sample.values[done : done + count])
                stream.prev.repeat(before, 1)
                stream.prev.extend(np.arange(base, base + count - 1))
                stream.last[episode] = base + count - 1
                found = np.searchsorted(stamps, rows.robot_ns.data[start:end], side="right") - 1
                stream.newest.extend(np.where(found >= 0, base + found, before))
                done += count
            else:
                stream.newest.repeat(before, end - start)
