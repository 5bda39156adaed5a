"""The columns of one episode of a dataset, as its frames and its row in the list of episodes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from user_system.core.types import Array, End, Purpose
from user_system.replay.episodes import Episode
from user_system.replay.exchange import lerobot_form as form
from user_system.replay.exchange.lerobot_form import Feature
from user_system.replay.exchange.parquet import TEXT
from user_system.replay.exchange.stretches import Stretch

ABOUT: Mapping[str, str] = {
    f"{form.OURS}/{name}": kind
    for name, kind in {
        "producer": "string",
        "epoch": "uint64",
        "episode": "string",
        "run": "string",
        "robot": "string",
        "embodiment": "string",
        "boot": "string",
        "schema": "string",
        "purpose": "string",
        "start": "int64",
        "complete": "bool_",
        "success": "bool_",
        "verdict": "bool_",
        "verdict_version": "string",
        "label_versions": "string",
    }.items()
}
"""Our columns of an episode, and their types."""


def about(stretch: Stretch) -> dict[str, Any]:
    """Return our columns of an episode."""
    episode, header = stretch.episode, stretch.episode.header
    names = ("producer", "epoch", "episode", "run", "robot", "embodiment", "boot", "schema")
    version, verdict = episode.verdict or (None, None)
    values = {name: getattr(header, name) for name in names} | {
        "purpose": Purpose(header.purpose).name,
        "start": header.start + stretch.low,
        "complete": episode.complete and stretch.high == len(episode),
        "success": episode.success,
        "verdict": verdict,
        "verdict_version": version,
        "label_versions": json.dumps({n: label.version for n, label in episode.labels.items()}),
    }
    return {f"{form.OURS}/{name}": value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Values:
    """The columns of one episode of the dataset, but images."""

    stretch: Stretch
    fps: int
    number: int
    first: int
    task: int
    state: Sequence[str]
    """Fields that the state joins."""

    def of(self, feature: Feature) -> Any:
        """Return a column: ``[N, *shape]``, or texts."""
        rows, episode = slice(self.stretch.low, self.stretch.high), self.stretch.episode
        if feature.kind == "step" and feature.dtype == TEXT:
            return [episode.names[i] for i in episode.columns[feature.name][rows]]
        with np.errstate(over="ignore"):  # a double beyond floats is infinite in the joined state
            values = np.asarray(self._array(feature, rows, episode), feature.dtype)
        return values.reshape(-1, *(() if feature.shape == (1,) else feature.shape))

    def _array(self, feature: Feature, rows: slice, episode: Episode) -> Array:
        kind, name = feature.kind, feature.name
        if kind == "index":
            return self._index(name)
        if kind == "state":
            parts = [episode.observation[name][rows] for name in self.state]
            return np.concatenate([part.reshape(len(part), -1) for part in parts], 1)
        if kind == "field":
            return episode.observation[name][rows]
        if kind == "ends":
            return self._ends(name)
        if kind == "extra":
            values = episode.extras.get(name)
            if values is not None and _form(values) == (feature.dtype, feature.tail):
                return values[rows]
            missing = np.nan if np.dtype(feature.dtype).kind == "f" else 0
            return np.full((len(self.stretch), *feature.tail), missing, feature.dtype)
        if kind == "label":
            label = episode.labels.get(name)
            return np.full(len(self.stretch), np.nan) if label is None else label.values[rows]
        named = {"action": "executed", "reward": "reward"}.get(kind, name)
        return episode.void[rows] if named == "void" else episode.columns[named][rows]

    def _index(self, name: str) -> Array:
        frames = np.arange(len(self.stretch))
        return {
            "timestamp": frames / self.fps,
            "frame_index": frames,
            "episode_index": np.full(len(frames), self.number),
            "index": self.first + frames,
            "task_index": np.full(len(frames), self.task),
        }[name]

    def _ends(self, name: str) -> Array:
        """Mark the last frame: nothing may be learned across it, whatever the reason."""
        ends = np.zeros(len(self.stretch), bool)
        end = int(self.stretch.episode.columns["end"][self.stretch.high - 1])
        ends[-1] = name == "done" or end != End.TERMINATED
        return ends


def _form(values: Array) -> tuple[str, tuple[int, ...]]:
    return values.dtype.name, values.shape[1:]
