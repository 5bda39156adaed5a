"""Recordings of any form, and what it means that two of them are the same."""

import dataclasses
import math
from dataclasses import dataclass, field

import numpy as np

from user_system.core.types import End, Fragment, FragmentHeader, Purpose, Segment, Stream
from user_system.replay.episodes import Episodes
from user_system.replay.store import reader


def bits(rng, dtype, shape, *, finite=True):
    """Numbers of every bit pattern: minus zero, denormals, and NaN with payload unless finite."""
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    data = rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8)
    values = data.reshape(-1).view(dtype).reshape(shape).copy()
    if dtype.kind == "f":
        values[rng.random(shape) < 0.1] = -0.0
        if finite:
            values[~np.isfinite(values)] = 0.5
        else:
            values[np.isinf(values)] = np.nan
    return values


@dataclass
class Kind:
    """What a robot's recordings look like."""

    fields: dict = field(default_factory=lambda: {"joints": ("float32", (3,))})
    cameras: dict = field(default_factory=dict)
    extras: dict = field(default_factory=dict)
    streams: dict = field(default_factory=dict)
    action: int = 2
    schema: str = "s"


def fragment(rng, kind, *, steps, end=End.NONE, first_ns=0, extras=True, streams=(), **header):
    """One fragment with random content."""
    rows = steps + (end is not End.NONE)
    stamps = first_ns + np.cumsum(rng.integers(1, 200_000_000, rows))
    ends = np.zeros(steps, np.uint8)
    ends[-1] = end
    defaults = {
        "producer": "arm", "epoch": 3, "sequence": 0, "run": "run", "task": "pick", "episode": "e",
        "start": 0, "purpose": Purpose.TRAIN, "schema": kind.schema, "robot": "left",
        "embodiment": "body", "boot": "b", "wall_ns": 10**18 + int(rng.integers(10**9)),
        "wall_bound_ns": int(rng.integers(10**6)), "names": ("", "pi", "eve", "bob"),
    }  # fmt: skip
    return Fragment(
        header=FragmentHeader(**(defaults | header)),
        observation={
            **{n: bits(rng, d, (rows, *tail)) for n, (d, tail) in kind.fields.items()},
            **{
                n: rng.integers(0, 256, (rows, *shape), np.uint8)
                for n, shape in kind.cameras.items()
            },
        },
        executed=bits(rng, "float32", (steps, kind.action)),
        proposed=bits(rng, "float32", (steps, kind.action), finite=False),
        reward=bits(rng, "float32", (steps,), finite=False),
        segment=rng.choice([int(s) for s in Segment], steps).astype(np.uint8),
        end=ends,
        robot_ns=stamps.astype(np.int64),
        policy=rng.integers(0, 2, steps).astype(np.uint16),
        version=rng.integers(0, 1 << 62, steps),
        operator=rng.choice([0, 2, 3], steps).astype(np.uint16),
        chunk=rng.integers(0, 1 << 31, steps).astype(np.int32),
        position=rng.integers(0, 1 << 31, steps).astype(np.int32),
        extras={
            n: bits(rng, d, (steps, *tail), finite=False)
            for n, (d, tail) in (kind.extras.items() if extras else ())
        },
        streams={
            n: Stream(
                np.sort(rng.integers(stamps[0], stamps[-1] + 1, samples)),
                bits(rng, kind.streams[n][0], (samples, *kind.streams[n][1])),
            )
            for n, samples in dict(streams).items()
        },
    )


class Life:
    """A producer that numbers its fragments."""

    def __init__(self, rng, kind, **header):
        self.rng, self.kind, self.header = rng, kind, {"producer": "arm"} | header
        self.sequence = self.episodes = self.now = 0

    def episode(self, lengths, end=End.TERMINATED, *, voids=None, success=None, **options):
        """Fragments of the lengths given; ``voids`` is {number of a fragment: void_from}."""
        self.episodes += 1
        made, start = [], 0
        for i, steps in enumerate(lengths):
            last = i == len(lengths) - 1
            header = self.header | {
                "episode": f"{self.header['producer']}-{self.episodes}",
                "sequence": self.sequence,
                "start": start,
                "void_from": (voids or {}).get(i),
                "success": success if last else None,
            }
            part = fragment(
                self.rng,
                self.kind,
                steps=steps,
                end=end if last else End.NONE,
                first_ns=self.now,
                **(header | options),
            )
            made.append(part)
            self.now = int(part.robot_ns[-1])
            self.sequence, start = self.sequence + 1, start + steps
        return made


def lost(part):
    """The same fragment as one that the store refuses."""
    return dataclasses.replace(part, reward=np.zeros(len(part) + 1, np.float32))


def episodes_of(path):
    """All episodes of a closed store, with their images."""
    with reader(path).open() as env:
        for episode in Episodes(env, check_images=True):
            yield episode, {c: np.stack(list(episode.frames(c))) for c in episode.cameras}


def equal(a, b):
    """Bit for bit, NaN and minus zero included."""
    assert (a.dtype, a.shape) == (b.dtype, b.shape)
    assert a.tobytes() == b.tobytes()


HEADER = ("run", "task", "robot", "episode", "start", "purpose", "schema", "embodiment", "boot")


def same_episode(a, b, *, images=True):
    """Two (episode, images) are the same recording, whatever its fragments."""
    (a, images_a), (b, images_b) = a, b
    for name in HEADER:
        assert getattr(a.header, name) == getattr(b.header, name)
    assert (a.success, a.verdict, a.complete) == (b.success, b.verdict, b.complete)
    for name in ("policy", "operator"):
        texts = [[e.names[i] for i in e.columns[name]] for e in (a, b)]
        assert texts[0] == texts[1]
    for group in ("columns", "observation", "extras"):
        mine, theirs = getattr(a, group), getattr(b, group)
        assert mine.keys() == theirs.keys()
        for name in mine.keys() - {"policy", "operator"}:
            equal(mine[name], theirs[name])
    for name in a.extras:
        equal(a.known(name), b.known(name))
    equal(a.robot_ns, b.robot_ns)
    equal(a.void, b.void)
    assert {n: v.version for n, v in a.labels.items()} == {
        n: v.version for n, v in b.labels.items()
    }
    for name in a.labels:
        equal(a.labels[name].values, b.labels[name].values)
    assert a.streams.keys() == b.streams.keys()
    for name in a.streams:
        equal(a.streams[name].stamps, b.streams[name].stamps)
        equal(a.streams[name].values, b.streams[name].values)
    assert a.cameras == b.cameras
    if images:
        for camera in a.cameras:
            equal(images_a[camera], images_b[camera])


def same_store(a, b, **options):
    """Two stores hold the same episodes in the same order."""
    count = 0
    for mine, theirs in zip(episodes_of(a), episodes_of(b), strict=True):
        same_episode(mine, theirs, **options)
        count += 1
    return count


def smooth(shape, number):
    """An image that a video codec can do something with."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    parts = [np.sin(x / 9 + number / 5), np.cos(y / 7 + number / 9), np.sin((x + y) / 11)]
    return np.stack([127 + 100 * p for p in parts], -1).astype(np.uint8)


def decibels(images, decoded):
    """PSNR by its definition."""
    error = np.mean((np.asarray(images, np.float64) - np.asarray(decoded, np.float64)) ** 2)
    return 10 * math.log10(255**2 / error)
