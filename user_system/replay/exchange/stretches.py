"""What is exported: whole episodes, or the unbroken stretches of them that are asked for.

A stretch never joins steps that did not follow each other: where steps between are not wanted, the
next wanted one begins another stretch.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from user_system.core.errors import ConfigError, SpecError
from user_system.core.types import Array, Segment
from user_system.replay.episodes import Episode, Episodes
from user_system.replay.joining import Piece


@dataclass(frozen=True, slots=True)
class Stretch:
    """Steps ``[low, high)`` of an episode."""

    episode: Episode
    low: int
    high: int

    def __len__(self) -> int:
        return self.high - self.low

    @property
    def whole(self) -> bool:
        """Whether it is all that there is of the episode."""
        return len(self) == len(self.episode)

    @property
    def last(self) -> bool:
        """Whether the observation after its last step is known."""
        return self.high < len(self.episode.robot_ns)

    def frames(self, camera: str) -> Iterator[Array]:
        """Yield the images ``(H, W, C)`` of its steps."""
        return self.episode.frames(camera, self.low, self.high)

    def last_frame(self, camera: str) -> Array:
        """Return the image after its last step."""
        return next(self.episode.frames(camera, self.high, self.high + 1))

    def pieces(self) -> Iterator[tuple[Piece, int, int]]:
        """Yield the fragments that it was recorded in, and which rows of the episode are of it."""
        for piece in self.episode.pieces:
            low, high = max(self.low, piece.first), min(self.high, piece.first + piece.steps)
            if low < high:
                yield piece, low, high


def stretches(episode: Episode, segments: Collection[Segment]) -> Iterator[Stretch]:
    """Yield an episode whole; or where ``segments`` are named, the parts that are of those.

    Steps that a rewind undid are then not of them.
    """
    if not segments:
        yield Stretch(episode, 0, len(episode))
        return
    wanted = np.isin(episode.columns["segment"], [int(s) for s in segments]) & ~episode.void
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
    for low, high in edges.reshape(-1, 2).tolist():
        yield Stretch(episode, low, high)


@dataclass(frozen=True, slots=True)
class Survey:
    """What is common to all that is exported, and what there is at all."""

    schema: str
    action: int
    fields: dict[str, tuple[str, tuple[int, ...]]]
    cameras: dict[str, tuple[int, int, int]]
    extras: tuple[tuple[str, str, tuple[int, ...]], ...]
    labels: tuple[str, ...]
    streams: tuple[tuple[str, str, tuple[int, ...]], ...]
    tasks: tuple[str, ...]
    robots: tuple[str, ...]
    rate: float
    """Steps per second of the robot clock: the median."""
    stretches: int
    steps: int

    @classmethod
    def of(
        cls, episodes: Episodes, segments: Collection[Segment], *, one_schema: bool = True
    ) -> "Survey":
        """Look through all episodes, without their images.

        Args:
            episodes: which.
            segments: see ``stretches``.
            one_schema: refuse rows that fit no common table.

        Raises:
            ConfigError: there is nothing of what is asked for.
            SpecError: rows of more than one schema; they fit no common table.
        """
        seen: dict[str, Counter[Any]] = {name: Counter() for name in _SEEN}
        first: Episode | None = None
        for episode in episodes.walk(check_images=False):
            found = list(stretches(episode, segments))
            if found:
                first = first or episode
                _look(episode, seen)
                seen["counts"].update(steps=sum(map(len, found)), stretches=len(found))
        if first is None:
            raise ConfigError(
                f"there is no such step in {episodes.env.path}",
                got=f"{len(episodes)} episodes by these names",
                todo="Look with `user-system replay stats`, or ask for less.",
            )
        if one_schema and len(seen["schemas"]) > 1:
            raise SpecError(
                "episodes of several schemas fit no common table",
                got=sorted(seen["schemas"]),
                allowed="one",
                todo="Choose some with --robot, --task or --run.",
            )
        return cls(
            schema=first.header.schema,
            action=first.columns["executed"].shape[1],
            fields={n: (v.dtype.name, v.shape[1:]) for n, v in first.observation.items()},
            cameras=dict(first.cameras),
            rate=_rate(list(seen["gaps"].elements())),
            stretches=seen["counts"]["stretches"],
            steps=seen["counts"]["steps"],
            **{name: tuple(sorted(seen[name])) for name in _SEEN[:5]},
        )


_SEEN = ("extras", "labels", "streams", "tasks", "robots", "schemas", "gaps", "counts")


def _look(episode: Episode, seen: dict[str, Counter[Any]]) -> None:
    seen["extras"].update((n, v.dtype.name, v.shape[1:]) for n, v in episode.extras.items())
    streams = episode.streams.items()
    seen["streams"].update((n, s.values.dtype.name, s.values.shape[1:]) for n, s in streams)
    seen["labels"].update(list(episode.labels))
    seen["tasks"].update([episode.header.task])
    seen["robots"].update([episode.header.robot])
    seen["schemas"].update([episode.header.schema])
    if len(episode.robot_ns) > 1:
        seen["gaps"].update([float(np.median(np.diff(episode.robot_ns)))])


def _rate(gaps: list[float]) -> float:
    """Return the median rate; 1 where no episode has two observations."""
    return 1e9 / float(np.median(gaps)) if gaps else 1.0
