"""All steps of one schema, as columns in memory; images stay on disk.

A step does not assume that what followed it lies beside it: it holds the number of the observation
recorded after it, which is the next row of its fragment, the first row of the *same episode's* next
fragment, or the extra last row of the episode. Until that is there, the number is -1 and the step
is not drawn. So interleaved robots, interventions, truncations and lost fragments cannot make a
neighbour in storage a successor.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.types import Array, Fragment
from user_system.replay.columns import Column, Names
from user_system.replay.schema import Schema

STEP_DTYPES: Mapping[str, str] = {
    "id": "uint64",
    "k": "int32",
    "episode": "int32",
    "obs": "int64",
    "next_obs": "int64",
    "next_step": "int64",
    "void": "bool",
    "damaged": "bool",
    "purpose": "uint8",
    "robot": "int32",
    "task": "int32",
    "run": "int32",
    "operator": "int32",
    "policy": "int32",
    "reward": "float32",
    "recorded_reward": "float32",
    "segment": "uint8",
    "end": "uint8",
    "robot_ns": "int64",
    "version": "int64",
    "chunk": "int32",
    "position": "int32",
}
"""Per-step columns of one number; robot, task, run, operator and policy are codes of ``names``."""

EpisodeKey = tuple[str, int, str]
"""(producer, epoch, episode): nothing is ever joined across lives of a producer."""

Label = Array | bool | None
"""Values ``[T]`` of a per-step label, or a verdict."""


class Watcher(Protocol):
    """Somebody who derives something from rows."""

    low: int
    """First row that changed since it looked."""


@dataclass(slots=True)
class Episode:
    """What joins the fragments of one episode."""

    number: int
    id: str
    pieces: list[tuple[int, int, int]] = field(default_factory=list)
    """(k of the first step, its row, steps) of each fragment, in order."""
    complete: bool = False

    def runs(self, low: int, high: int) -> Iterable[tuple[int, slice]]:
        """Yield (k, rows) of the steps whose k lies in ``[low, high)``."""
        for k, row, n in self.pieces:
            start, end = max(low, k), min(high, k + n)
            if start < end:
                yield start, slice(row + start - k, row + end - k)


class Extra:
    """A column that only some steps have: what a policy recorded, or a late label."""

    def __init__(self, dtype: Any, tail: tuple[int, ...]):
        self.values, self.known = Column(dtype, tail), Column(bool)

    def pad(self, size: int) -> None:
        """Make it ``size`` rows long; NaN, where the dtype has it, for those not known."""
        missing = size - len(self.values)
        if missing > 0:
            self.values.repeat(np.nan if self.values.dtype.kind == "f" else 0, missing)
            self.known.repeat(value=False, n=missing)


class Rows:
    """Steps and observations of one schema, and what links them."""

    def __init__(self, schema: Schema, names: Names):
        self.schema = schema
        self.names = names
        self.steps = {name: Column(dtype) for name, dtype in STEP_DTYPES.items()}
        self.steps["executed"] = Column("float32", (schema.action,))
        self.steps["proposed"] = Column("float32", (schema.action,))
        self.fields = {name: Column(dtype, tail) for name, (dtype, tail) in schema.fields.items()}
        self.place = {"offset": Column("uint64"), "row": Column("uint16")}
        self.checked = {camera: Column(bool) for camera in schema.images}
        self.extras: dict[str, list[Extra]] = {}
        """What policies recorded; a list, since two policies may mean two things by a name."""
        self.labels: dict[str, Extra] = {}
        """Late per-step labels other than the reward."""
        self.episodes: dict[EpisodeKey, Episode] = {}
        self.by_id: dict[str, list[Episode]] = {}
        self.success = Column("int8")
        """By episode number: 1 yes, 0 no, -1 not known."""
        self.complete = Column(bool)
        """By episode number: its end is here."""
        self.excluded: set[int] = set()
        """Observation rows that turned out to be damaged."""
        self.watchers: list[Watcher] = []

    def __len__(self) -> int:
        return len(self.steps["id"])

    def __getitem__(self, column: str) -> Array:
        return self.steps[column].data

    def append(self, offset: int, fragment: Fragment, labels: Mapping[str, Label]) -> None:
        """Take over one fragment of the log.

        Args:
            offset: its place in the log.
            fragment: without images.
            labels: newest late labels of its episode, by name.
        """
        header = fragment.header
        episode = self._episode((header.producer, header.epoch, header.episode))
        first, steps = len(self), len(fragment)
        self._touch(first)
        self._extend(offset, fragment, episode.number)
        self._link(episode, fragment, first)
        if header.void_from is not None:
            self.void(episode, header.void_from, header.start)
        episode.pieces.append((header.start, first, steps))
        if fragment.final:
            episode.complete = True
            self.complete.data[episode.number] = True
        if header.success is not None:
            self._judge(episode, header.success)
        for name, label in labels.items():
            self.apply(episode, name, label)

    def apply(self, episode: Episode, name: str, label: Label) -> None:
        """Write a late label over the steps of an episode that are here."""
        if not isinstance(label, np.ndarray):
            self._judge(episode, label)
            return
        for k, rows in episode.runs(0, len(label)):
            self._touch(rows.start)
            part = label[k : k + rows.stop - rows.start]
            if name == "reward":
                recorded = self["recorded_reward"][rows]
                self["reward"][rows] = np.where(np.isnan(part), recorded, part)
            else:
                column = self.labels.setdefault(name, Extra("float32", ()))
                column.pad(len(self))
                column.values.data[rows] = part
                column.known.data[rows] = True

    def retract(self, episode: Episode, name: str) -> None:
        """Undo a per-step label, before a newer version that may say less."""
        for _, rows in episode.runs(0, 1 << 62):
            self._touch(rows.start)
            if name == "reward":
                self["reward"][rows] = self["recorded_reward"][rows]
            elif name in self.labels:
                self.labels[name].pad(len(self))
                self.labels[name].values.data[rows] = np.nan
                self.labels[name].known.data[rows] = False

    def void(self, episode: Episode, low: int, high: int) -> None:
        """Mark the steps ``[low, high)`` of an episode as undone."""
        for _, rows in episode.runs(low, high):
            self._touch(rows.start)
            self["void"][rows] = True

    def exclude(self, observations: Array) -> int:
        """Never draw again the steps that see these observation rows; return how many."""
        self.excluded |= {int(row) for row in observations}
        bad = np.isin(self["obs"], observations) | np.isin(self["next_obs"], observations)
        bad &= ~self["damaged"]
        found = np.flatnonzero(bad)
        if len(found):
            self["damaged"][found] = True
            self._touch(int(found[0]))
        return len(found)

    def drawable(self, low: int = 0) -> Array:
        """Return for rows ``[low:]`` whether all that a draw needs is known and sound."""
        ready = (self["next_obs"][low:] >= 0) & ~np.isnan(self["reward"][low:])
        return ready & ~self["damaged"][low:]

    def extra(self, name: str, rows: Array) -> Array:
        """Return a label or extra of ``rows`` ``[N]``; NaN where a float one is not known.

        Raises:
            SpecError: nobody recorded it, not for all rows, or in more than one form.
        """
        variants = [self.labels[name]] if name in self.labels else self.extras.get(name, [])
        for variant in variants:
            variant.pad(len(self))
        whole = [v for v in variants if v.known.data[rows].all()]
        if not whole and len(variants) == 1 and variants[0].values.dtype.kind == "f":
            whole = variants
        if not whole:
            raise SpecError(
                f"column {name!r} is not recorded for every step drawn",
                got=f"{len(variants)} forms of it",
                allowed=sorted({*self.steps, *self.labels, *self.extras}),
                todo="Draw from a view whose steps have it.",
            )
        return whole[0].values.data[rows]

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken by columns."""
        groups: list[Mapping[str, Column]] = [self.steps, self.fields, self.place, self.checked]
        return sum(column.nbytes for group in groups for column in group.values())

    # --- taking over a fragment ------------------------------------------------------------------

    def _episode(self, key: EpisodeKey) -> Episode:
        episode = self.episodes.get(key)
        if episode is None:
            episode = Episode(len(self.episodes), key[2])
            self.episodes[key] = episode
            self.by_id.setdefault(key[2], []).append(episode)
            self.success.repeat(-1, 1)
            self.complete.repeat(value=False, n=1)
        return episode

    def _extend(self, offset: int, fragment: Fragment, episode: int) -> None:
        header, n, row = fragment.header, len(fragment), len(self.place["row"])
        code = self.names.code
        names = np.array([code(name) for name in header.names], np.int32)
        arange = np.arange(n)
        columns: dict[str, Array] = {
            "id": np.uint64(offset << 16) + arange.astype(np.uint64),
            "k": header.start + arange,
            "obs": row + arange,
            "next_obs": row + 1 + arange,
            "next_step": len(self) + 1 + arange,
            "operator": names[fragment.operator],
            "policy": names[fragment.policy],
            "recorded_reward": fragment.reward,
            "robot_ns": fragment.robot_ns[:n],
        }
        for name in ("executed", "proposed", "reward", "segment", "end", "version"):
            columns[name] = getattr(fragment, name)
        columns |= {"chunk": fragment.chunk, "position": fragment.position}
        columns["next_step"][-1] = -1
        if not fragment.final:
            columns["next_obs"][-1] = -1
        for name, values in columns.items():
            self.steps[name].extend(values)
        same = {"purpose": int(header.purpose), "robot": code(header.robot), "episode": episode}
        same |= {"task": code(header.task), "run": code(header.run), "void": 0, "damaged": 0}
        for name, value in same.items():
            self.steps[name].repeat(value, n)
        self._extend_observations(offset, fragment)
        for name, values in fragment.extras.items():
            extra = self._extra(name, values.dtype, values.shape[1:])
            extra.pad(len(self) - n)
            extra.values.extend(values)
            extra.known.repeat(value=True, n=n)

    def _extend_observations(self, offset: int, fragment: Fragment) -> None:
        n = len(fragment.robot_ns)
        for name, column in self.fields.items():
            column.extend(fragment.observation[name])
        self.place["offset"].repeat(offset, n)
        self.place["row"].extend(np.arange(n))
        for checked in self.checked.values():
            checked.repeat(value=False, n=n)

    def _link(self, episode: Episode, fragment: Fragment, first: int) -> None:
        """Join the last step of the episode's previous fragment to this one, if it is the next."""
        if not episode.pieces:
            return
        k, row, n = episode.pieces[-1]
        if k + n == fragment.header.start and not episode.complete:
            last = row + n - 1
            self["next_obs"][last] = self["obs"][first]
            self["next_step"][last] = first
            self._touch(last)

    def _judge(self, episode: Episode, success: bool | None) -> None:
        self.success.data[episode.number] = -1 if success is None else int(success)
        if episode.pieces:
            self._touch(episode.pieces[0][1])

    def _extra(self, name: str, dtype: "np.dtype[Any]", tail: tuple[int, ...]) -> Extra:
        variants = self.extras.setdefault(name, [])
        for variant in variants:
            if variant.values.dtype == dtype and variant.values.data.shape[1:] == tail:
                return variant
        variants.append(Extra(dtype, tail))
        return variants[-1]

    def _touch(self, row: int) -> None:
        for watcher in self.watchers:
            watcher.low = min(watcher.low, row)
