"""What a LeRobotDataset v3 consists of, and which of its columns is what of ours.

Each of our columns is a *feature*. ``meta/info.json`` lists all of them as the dataset's readers
want them, and under ``user_system`` once more with what they are to us: names that had to be
changed, and shapes that the datasets cannot tell apart (they write ``()`` as ``(1,)``).
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from user_system.codec import arrays
from user_system.core.errors import SpecError
from user_system.replay.exchange import picture
from user_system.replay.exchange.parquet import IMAGE, TEXT, ColumnType

VERSION = "v3.0"
OURS = "user_system"
"""Our block in ``info.json``, our folder in the dataset, and the prefix of our columns."""
OURS_FORMAT = 1

INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
EPISODES = "meta/episodes"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = EPISODES + "/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FRAGMENTS, LAST, STREAMS = f"{OURS}/fragments", f"{OURS}/last", f"{OURS}/streams"
CHUNK_FILES, DATA_MB, VIDEO_MB = 1000, 100, 200

VIDEO = "video"
MAX_DIMS = 5
"""Dimensions that the datasets have a type for; more are flattened."""

Kind = Literal[
    "index", "field", "state", "camera", "action", "reward", "ends", "step", "extra", "label"
]
KINDS: tuple[Kind, ...] = (
    "index", "field", "state", "camera", "action", "reward", "ends", "step", "extra", "label"
)  # fmt: skip

INDEX = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""Columns that every dataset has."""

STEP = {
    "proposed": "float32",
    "recorded_reward": "float32",
    "segment": "uint8",
    "end": "uint8",
    "robot_ns": "int64",
    "void": "bool",
    "policy": TEXT,
    "version": "int64",
    "operator": TEXT,
    "chunk": "int32",
    "position": "int32",
}
"""Our columns of a step that the datasets have no name for."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of a dataset."""

    key: str
    """What the dataset calls it."""
    kind: Kind
    name: str
    """What we call it."""
    dtype: str
    """NumPy's name, ``string``, ``image`` or ``video``."""
    tail: tuple[int, ...] = ()
    """Shape of one value."""
    axes: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the dataset states."""
        if not self.tail:
            return (1,)
        return self.tail if len(self.tail) <= MAX_DIMS else (math.prod(self.tail),)

    @property
    def stored(self) -> bool:
        """Whether there is such a column at all: one of empty arrays says nothing."""
        return math.prod(self.tail) > 0

    @property
    def column(self) -> ColumnType:
        """How it is stored in Parquet; not for videos."""
        return ColumnType(self.dtype, self.shape)

    def describe(self) -> dict[str, Any]:
        """Return its entry of ``features`` in ``info.json``."""
        axes = list(self.axes) or None
        return {"dtype": self.dtype, "shape": list(self.shape), "names": axes}


@dataclass(frozen=True, slots=True)
class Form:
    """What the rows of an export hold."""

    action: int
    fields: Mapping[str, tuple[str, tuple[int, ...]]]
    """Low-dimensional field -> (dtype, shape)."""
    cameras: Mapping[str, tuple[int, int, int]]
    extras: Sequence[tuple[str, str, tuple[int, ...]]]
    """(name, dtype, shape): two policies may mean two things by a name."""
    labels: Sequence[str]

    def features(self, *, video: bool) -> list[Feature]:
        """Return the columns of the dataset."""
        keys = _Keys()
        found = [Feature(keys.take(n), "index", n, dtype) for n, dtype in INDEX.items()]
        found += [
            Feature(keys.take(f"observation.{n}"), "field", n, dtype, tail)
            for n, (dtype, tail) in self.fields.items()
        ]
        if parts := self.state_names():
            key = keys.take("observation.state")
            found.append(Feature(key, "state", "", "float32", (len(parts),), parts))
        found += [self._camera(keys, n, shape, video=video) for n, shape in self.cameras.items()]
        found.append(Feature(keys.take("action"), "action", "", "float32", (self.action,)))
        found.append(Feature(keys.take("next.reward"), "reward", "", "float32"))
        for name in ("done", "truncated"):
            found.append(Feature(keys.take(f"next.{name}"), "ends", name, "bool"))
        found += [
            Feature(keys.take(f"complementary_info.{n}"), "extra", n, dtype, tail)
            for n, dtype, tail in self.extras
        ]
        for name, dtype in STEP.items():
            tail = (self.action,) if name == "proposed" else ()
            found.append(Feature(keys.take(f"{OURS}.{name}"), "step", name, dtype, tail))
        found += [
            Feature(keys.take(f"{OURS}.label.{n}"), "label", n, "float32") for n in self.labels
        ]
        return found

    def state_parts(self) -> list[str]:
        """Return the fields that ``observation.state`` joins: all vectors of numbers."""
        if "state" in self.fields:
            return []  # the recording's own stands there
        vectors = [n for n, (dtype, tail) in self.fields.items() if len(tail) <= 1]
        return [n for n in vectors if np.dtype(self.fields[n][0]).kind in "fiu"]

    def state_names(self) -> tuple[str, ...]:
        """Return what each number of ``observation.state`` is."""
        names: list[str] = []
        for field in self.state_parts():
            tail = self.fields[field][1]
            names += [f"{field}.{i}" for i in range(tail[0])] if tail else [field]
        return tuple(names)

    def _camera(
        self, keys: "_Keys", name: str, shape: tuple[int, int, int], *, video: bool
    ) -> Feature:
        """A picture as video if that is wanted and it has colours, else PNG, else plain numbers."""
        key = keys.take(f"observation.images.{name}")
        dtype = IMAGE if shape[2] in picture.MODES else "uint8"
        if video and shape[2] == 3:
            dtype = VIDEO
        return Feature(key, "camera", name, dtype, shape, ("height", "width", "channels"))


class _Keys:
    """Keys without characters that paths or readers trip over, each once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, wanted: str) -> str:
        safe = _UNSAFE.sub("_", wanted)
        key, number = safe, 2
        while key.casefold() in self._taken:
            key, number = f"{safe}.{number}", number + 1
        self._taken.add(key.casefold())
        return key


def block(features: Iterable[Feature]) -> list[dict[str, Any]]:
    """Return features as our part of ``info.json`` has them."""
    return [{**asdict(feature), "tail": list(feature.tail), "axes": None} for feature in features]


def parse_block(value: object) -> list[Feature]:
    """Return what ``block`` wrote.

    Raises:
        SpecError: it is not that.
    """
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise SpecError(f"{INFO}: {OURS}.features is no list", got=str(value)[:80])
    return [_parse_feature(entry) for entry in value]


def _parse_feature(entry: Mapping[str, Any]) -> Feature:
    texts = all(isinstance(entry.get(k), str) for k in ("key", "kind", "name", "dtype"))
    tail = parse_shape(entry.get("tail")) if texts else None
    known = {*arrays.DTYPES, TEXT, IMAGE, VIDEO}
    if tail is None or entry["kind"] not in KINDS or entry["dtype"] not in known:
        raise SpecError(f"{INFO}: no feature of ours", got=str(entry)[:200], allowed=KINDS)
    pictures = entry["dtype"] in (IMAGE, VIDEO)
    camera = len(tail) == 3 and (pictures or entry["dtype"] == "uint8")
    if not camera if entry["kind"] == "camera" else pictures:
        raise SpecError(f"{INFO}: no camera of ours", got=str(entry)[:200])
    return Feature(entry["key"], entry["kind"], entry["name"], entry["dtype"], tail)


def parse_shape(value: object) -> tuple[int, ...] | None:
    """Return a shape from outside; None if it is none that an array could have."""
    if not isinstance(value, list | tuple) or len(value) > arrays.MAX_DIMS:
        return None
    if not all(type(size) is int and 0 <= size <= 1 << 31 for size in value):
        return None
    shape = tuple(value)
    return shape if math.prod(size or 1 for size in shape) <= arrays.MAX_BYTES else None


def jsonable(value: Any) -> Any:
    """Return statistics as lists that JSON can hold."""
    return value.tolist() if isinstance(value, np.ndarray) else value
