"""Sensors at their own rates: which sample was the newest when an observation was made.

Samples of one stream lie in the order of the log, robots interleaved; each knows the one before it
of its own episode, and each observation row knows the newest sample not later than itself.
"""

import logging
from typing import TYPE_CHECKING

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.types import Array
from user_system.replay.blocks import Block, Ragged
from user_system.replay.columns import Column

if TYPE_CHECKING:
    from user_system.replay.rows import Rows


log = logging.getLogger(__name__)

MAX_STREAMS = 128
"""Of one schema, by name: each costs a look per fragment, whether it is in it or not."""


class Stream:
    """The samples of one stream of one schema."""

    def __init__(self, sample: Ragged):
        self.values = Column(sample.values.dtype, sample.values.shape[1:], 0)
        self.stamps = Column("int64")
        self.prev = Column("int64")
        """By sample: the one of its episode with the stamp before its own; -1: none."""
        self.newest = Column("int64")
        """By observation row: the newest sample not later than it; -1: none."""
        self.last: dict[int, int] = {}
        """By episode number: its latest sample."""

    def insert(self, last: int, stamps: Array, values: Array) -> Array:
        """Append samples of an episode whose latest one is ``last``.

        Returns:
            The new ones and those of before that are later than the first of them, by their stamps.
        """
        chain = np.arange(len(self.stamps), len(self.stamps) + len(stamps))
        later: list[int] = []
        while last >= 0 and self.stamps.data[last] > stamps[0]:
            later.append(last)
            last = int(self.prev.data[last])
        self.stamps.extend(stamps)
        self.values.extend(values)
        if later:
            chain = np.concatenate([later[::-1], chain])
            chain = chain[np.argsort(self.stamps.data[chain], kind="stable")]
        self.prev.repeat(-1, len(stamps))
        self.prev.data[chain] = np.concatenate([[last], chain[:-1]])
        return chain

    def until(self, samples: Array, times: Array) -> Array:
        """Return ``samples`` ``[N]`` (-1: none), or those before them, not later than ``times``."""
        late = samples >= 0
        while True:
            late[late] = self.stamps.data[samples[late]] > times[late]
            if not late.any():
                return samples
            samples[late] = self.prev.data[samples[late]]
            late &= samples >= 0


class Streams:
    """All streams of one schema."""

    def __init__(self) -> None:
        self._streams: dict[str, Stream] = {}
        self.ignored = 0
        """Times that a fragment brought one beyond ``MAX_STREAMS``."""

    def __bool__(self) -> bool:
        return bool(self._streams)

    @property
    def nbytes(self) -> int:
        """Bytes taken."""
        return sum(
            column.nbytes
            for stream in self._streams.values()
            for column in (stream.values, stream.stamps, stream.prev, stream.newest)
        )

    def names(self) -> list[str]:
        """Return the streams there are."""
        return sorted(self._streams)

    def extend(self, rows: "Rows", block: Block, first_piece: int) -> None:
        """Take over the samples of a block whose pieces and observations ``rows`` has."""
        total = len(rows.robot_ns)
        for sample in block.streams:
            stream = self._streams.get(sample.name)
            if stream is None:
                if len(self._streams) >= MAX_STREAMS:
                    self._ignore(sample)
                    continue
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
            there = newest >= 0
            newest[there] = stream.prev.data[newest[there]]
        valid = at >= 0
        values = np.zeros((*at.shape, *stream.values.data.shape[1:]), stream.values.dtype)
        stamps = np.zeros(at.shape, np.int64)
        values[valid], stamps[valid] = stream.values.data[at[valid]], stream.stamps.data[at[valid]]
        return values, stamps, valid

    def _ignore(self, sample: Ragged) -> None:
        if not self.ignored:
            log.error("too many streams, left out; got %r; allowed: %d", sample.name, MAX_STREAMS)
        self.ignored += int((sample.counts > 0).sum())

    def _take(self, stream: Stream, sample: Ragged | None, rows: "Rows", first_piece: int) -> None:
        pieces = {name: column.data for name, column in rows.pieces.items()}
        done = 0
        for piece in range(first_piece, len(pieces["offset"])):
            count = 0 if sample is None else int(sample.counts[piece - first_piece])
            episode, start = int(pieces["episode"][piece]), int(pieces["obs"][piece])
            size = int(pieces["steps"][piece]) + int(pieces["final"][piece])
            before = stream.last.get(episode, -1)
            times = rows.robot_ns.data[start : start + size]
            newest = np.full(size, before)
            stream.newest.pad(start, -1)
            if sample is not None and sample.stamps is not None and count:
                part = slice(done, done + count)
                stamps = sample.stamps[part]
                chain = stream.insert(before, stamps, sample.values[part])
                stream.last[episode] = int(chain[-1])
                found = np.searchsorted(stream.stamps.data[chain], times, side="right") - 1
                newest = np.where(found >= 0, chain[found], stream.prev.data[chain[0]])
                self._look_back(stream, rows, int(pieces["prev"][piece]), int(stamps[0]))
                done += count
            # What came with an earlier fragment may be later than what was observed in this one.
            stream.newest.extend(stream.until(newest, times))

    def _look_back(self, stream: Stream, rows: "Rows", piece: int, since: int) -> None:
        """Find the newest samples again in ``piece`` and before, from stamp ``since`` on."""
        pieces = {name: column.data for name, column in rows.pieces.items()}
        while piece >= 0:
            start = int(pieces["obs"][piece])
            end = start + int(pieces["steps"][piece]) + int(pieces["final"][piece])
            times = rows.robot_ns.data[start:end]
            if times[-1] < since:
                return
            latest = np.full(end - start, stream.last[int(pieces["episode"][piece])])
            stream.newest.data[start:end] = stream.until(latest, times)
            piece = int(pieces["prev"][piece])
