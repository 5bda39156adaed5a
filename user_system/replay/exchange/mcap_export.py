"""Our episodes as one MCAP file, for viewers.

One channel per robot and kind of thing, messages in JSON::

    /<robot>/episode          where one begins and ends, and what it was
    /<robot>/observation      low-dimensional fields
    /<robot>/step             what was done, proposed, and what it was worth; extras; labels
    /<robot>/camera/<name>    foxglove.CompressedImage (PNG), or RawImage where PNG has no such form
    /<robot>/stream/<name>    a sensor at its own rate

``log_time`` is the capture time on the robot clock, exactly as recorded; ``publish_time`` is the
estimated UTC time of it. NaN and infinities, which JSON has not, are null.
"""

import base64
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.types import Array, End, Purpose, Segment
from user_system.replay.episodes import Episodes
from user_system.replay.exchange import picture
from user_system.replay.exchange.mcap_file import McapFile
from user_system.replay.exchange.staging import check_free, staged
from user_system.replay.exchange.stretches import Stretch, Survey, stretches

Progress = Callable[[int, int], None]

_TIME = {
    "type": "object",
    "title": "time",
    "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}},
}
_BYTES = {"type": "string", "contentEncoding": "base64"}
COMPRESSED = {
    "type": "object",
    "title": "foxglove.CompressedImage",
    "properties": {
        "timestamp": _TIME,
        "frame_id": {"type": "string"},
        "data": _BYTES,
        "format": {"type": "string"},
    },
}
RAW = {
    "type": "object",
    "title": "foxglove.RawImage",
    "properties": {
        "timestamp": _TIME,
        "frame_id": {"type": "string"},
        "width": {"type": "integer"},
        "height": {"type": "integer"},
        "encoding": {"type": "string"},
        "step": {"type": "integer"},
        "data": _BYTES,
    },
}


@dataclass(slots=True)
class Exported:
    """What an export did."""

    path: Path
    episodes: int = 0
    steps: int = 0
    messages: int = 0
    found: Mapping[str, float] = field(default_factory=dict)
    """What was read, and what was damaged or missing: ``Episodes.stats``."""


def export(
    episodes: Episodes,
    target: Path,
    segments: Collection[Segment] = (),
    progress: Progress = lambda *_: None,
) -> Exported:
    """Write an MCAP file to ``target``: whole, or nothing.

    Raises:
        ConfigError: ``target`` exists, or there is nothing to export.
        SpecError: a capture time is negative, which MCAP cannot say.
        StoreError: the disk failed.
    """
    check_free(target)
    done = Exported(target)
    steps = Survey.of(episodes, segments, one_schema=False).steps
    with staged(target) as work:
        work.parent.mkdir(parents=True, exist_ok=True)
        with McapFile(work) as file:
            for episode in episodes.walk(check_images=True):
                for stretch in stretches(episode, segments):
                    done.messages += _Part(file, stretch).write()
                    done.episodes += 1
                    done.steps += len(stretch)
                    progress(done.steps, steps)
            done.found = episodes.stats()
            file.note("user_system", {name: str(value) for name, value in done.found.items()})
            file.finish()
    return done


class _Part:
    """The messages of one stretch."""

    def __init__(self, file: McapFile, stretch: Stretch):
        self._file, self._stretch, self._episode = file, stretch, stretch.episode
        self._robot = stretch.episode.header.robot
        self._utc = _utc(stretch)
        self._written = 0

    def write(self) -> int:
        """Write all of them; return how many."""
        stretch, stamps = self._stretch, self._episode.robot_ns
        self._mark("begin", stretch.low)
        cameras = {name: self._frames(name) for name in self._episode.cameras}
        for row in range(stretch.low, stretch.high + stretch.last):
            fields = {name: _plain(v[row]) for name, v in self._episode.observation.items()}
            self._put("observation", int(stamps[row]), fields, row)
            for name, frames in cameras.items():
                self._picture(name, int(stamps[row]), next(frames), row)
            if row < stretch.high:
                self._put("step", int(stamps[row]), self._step(row), row)
        for name, stream in self._episode.streams.items() if stretch.whole else ():
            for i, stamp in enumerate(stream.stamps.tolist()):
                self._put(f"stream/{name}", stamp, {"value": _plain(stream.values[i])}, i)
        self._mark("end", stretch.high + stretch.last - 1)
        return self._written

    def _frames(self, camera: str) -> Any:
        high = self._stretch.high + self._stretch.last
        return self._episode.frames(camera, self._stretch.low, high)

    def _mark(self, event: str, row: int) -> None:
        header, episode = self._episode.header, self._episode
        message = {
            "event": event,
            "episode": header.episode,
            "step": header.start + row,
            "run": header.run,
            "task": header.task,
            "purpose": Purpose(header.purpose).name,
            "success": episode.success,
            "complete": episode.complete,
            "producer": header.producer,
            "epoch": header.epoch,
            "schema": header.schema,
        }
        self._put("episode", int(episode.robot_ns[row]), message, row)

    def _step(self, row: int) -> dict[str, Any]:
        episode, columns = self._episode, self._episode.columns
        return {
            "episode": episode.header.episode,
            "step": episode.header.start + row,
            "executed": _plain(columns["executed"][row]),
            "proposed": _plain(columns["proposed"][row]),
            "reward": _plain(columns["reward"][row]),
            "recorded_reward": _plain(columns["recorded_reward"][row]),
            "segment": Segment(columns["segment"][row]).name,
            "end": End(columns["end"][row]).name,
            "void": bool(episode.void[row]),
            "policy": episode.names[columns["policy"][row]],
            "version": int(columns["version"][row]),
            "operator": episode.names[columns["operator"][row]],
            "chunk": int(columns["chunk"][row]),
            "position": int(columns["position"][row]),
            "extras": {name: _plain(values[row]) for name, values in episode.extras.items()},
            "labels": {n: _plain(label.values[row]) for n, label in episode.labels.items()},
        }

    def _picture(self, camera: str, stamp: int, image: Array, row: int) -> None:
        height, width, channels = image.shape
        head = {
            "timestamp": dict(zip(("sec", "nsec"), divmod(stamp, 1_000_000_000), strict=True)),
            "frame_id": camera,
        }
        if channels in picture.MODES:
            data, schema = picture.encode(image), COMPRESSED
            form: dict[str, Any] = {"format": "png"}
        else:
            data, schema = image.tobytes(), RAW
            form = {"width": width, "height": height, "encoding": f"8UC{channels}"}
            form["step"] = width * channels
        message = {**head, **form, "data": base64.b64encode(data).decode()}
        self._put(f"camera/{camera}", stamp, message, row, schema)

    def _put(
        self,
        kind: str,
        stamp: int,
        message: Mapping[str, Any],
        number: int,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        if stamp < 0:
            what = f"capture time of {kind} in episode {self._episode.header.episode!r}"
            raise SpecError(what, got=f"{stamp} ns", allowed="0 and later: MCAP has no others")
        notes = {"robot": self._robot, "clock": "robot"}
        group = kind.partition("/")[0]
        plain = {"type": "object", "title": f"user_system.{group.capitalize()}"}
        topic = self._file.channel(f"/{self._robot}/{kind}", schema or plain, notes)
        self._file.write(topic, stamp, max(0, stamp + self._utc), number, message)
        self._written += 1


def _utc(stretch: Stretch) -> int:
    """Return what makes a capture time an estimate of UTC; 0 where that is not known."""
    piece, *_ = next(stretch.pieces())
    stamp = int(stretch.episode.robot_ns[piece.first])
    known = piece.header.wall_ns > 0
    return piece.header.wall_ns - stamp if known else 0


def _plain(value: Array) -> Any:
    """Return numbers as JSON has them."""
    array = np.asarray(value)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        plain = array.astype(object)
        plain[~np.isfinite(array)] = None
        return plain.tolist()
    return array.tolist()
