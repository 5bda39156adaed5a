"""Samples of a robot's streams that wait: in the driver for a period, in the adder for a fragment.

They come oldest first and leave so, each once. Where too many wait the oldest are dropped, counted.
"""

import math
from collections.abc import Mapping

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.specs import StreamSpec
from user_system.core.types import Stream

KEEP_S = 1.0
"""Robot seconds of samples that a driver keeps for an agent that reads nothing."""


def most(spec: StreamSpec) -> int:
    """Return how many samples of a stream a driver keeps."""
    return math.ceil(KEEP_S * spec.hz)


def most_bytes(streams: Mapping[str, StreamSpec], more_s: float = 0.0) -> int:
    """Return a bound of what ``KEEP_S`` and ``more_s`` robot seconds of all streams take, bytes."""
    size = 0
    for spec in streams.values():
        one = 8 + math.prod(spec.field.shape) * np.dtype(spec.field.dtype).itemsize
        size += 256 + one * (most(spec) + math.ceil(more_s * spec.hz))
    return size


class Samples:
    """A queue per stream. One thread's business.

    Args:
        specs: what may come, checked; None: whatever comes was checked before, and all is kept.
    """

    def __init__(self, specs: Mapping[str, StreamSpec] | None = None):
        self._specs = specs
        self._waiting: dict[str, Stream] = {}
        self._last: dict[str, int] = {}
        self.dropped = 0
        """Samples that nobody took in time."""

    def add(self, samples: Mapping[str, Stream]) -> None:
        """Append samples, later than all before of their stream.

        Raises:
            SpecError: they are not what was declared; none of them is taken.
        """
        new = {name: self._checked(name, stream) for name, stream in samples.items()}
        for name, stream in new.items():
            if not len(stream.stamps):
                continue
            self._last[name] = int(stream.stamps[-1])
            self._waiting[name] = self._bounded(name, _joined(self._waiting.get(name), stream))

    def waiting(self) -> dict[str, Stream]:
        """Return what waits and leave it there; streams without samples are absent."""
        return dict(self._waiting)

    def take(self, until_ns: int) -> dict[str, Stream]:
        """Take the samples before ``until_ns``, robot time; streams without any are absent."""
        taken: dict[str, Stream] = {}
        for name, stream in list(self._waiting.items()):
            count = int(np.searchsorted(stream.stamps, until_ns))
            if count:
                taken[name] = Stream(stream.stamps[:count], stream.values[:count])
                self._waiting[name] = Stream(stream.stamps[count:], stream.values[count:])
            if count == len(stream.stamps):
                del self._waiting[name]
        return taken

    def clear(self) -> None:
        """Forget what waits."""
        self._waiting.clear()

    def _checked(self, name: str, stream: Stream) -> Stream:
        if self._specs is None:
            return stream
        if name not in self._specs:
            raise SpecError("unknown stream", got=name, allowed=sorted(self._specs))
        stream = self._specs[name].validate(stream, name)
        if len(stream.stamps) and stream.stamps[0] <= self._last.get(name, -1):
            raise SpecError(
                f"stamps of stream {name!r} do not increase",
                got=int(stream.stamps[0]),
                allowed=f"above {self._last[name]}",
            )
        return stream

    def _bounded(self, name: str, stream: Stream) -> Stream:
        over = 0 if self._specs is None else len(stream.stamps) - most(self._specs[name])
        if over <= 0:
            return stream
        self.dropped += over
        return Stream(stream.stamps[over:], stream.values[over:])


def _joined(first: Stream | None, then: Stream) -> Stream:
    if first is None:
        return then
    return Stream(
        np.concatenate([first.stamps, then.stamps]), np.concatenate([first.values, then.values])
    )
