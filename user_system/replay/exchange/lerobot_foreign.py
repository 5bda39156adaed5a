"""Fragments from a dataset of somebody else, which knows less than ours do.

What is chosen where it says nothing, and stated in ``docs/exchange.md``:

- every step is of segment DEMO, and of purpose COLLECT; nobody proposed anything;
- stamps are those of the frame rate, as if episodes had been recorded one behind the other;
- an episode ends TERMINATED where ``next.done`` says so and ``next.truncated`` does not. Nothing
  was seen after it, so its last observation stands there once more: nothing is learned from it,
  since TERMINATED multiplies its value by 0. Any other episode just stops: the successor of its
  last step is not known, and that step is stored but not drawn;
- a missing reward is not known (NaN), unless ``--reward`` says what it was.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.types import Array, End, Fragment, FragmentHeader, Purpose, Segment
from user_system.replay.exchange.lerobot_meta import Dataset
from user_system.replay.exchange.lerobot_table import Table, steps_per_fragment

Reward = Literal["unknown", "zero", "sparse"]
NEVER_NS = 1 << 62
"""Half-width of a wall-clock time that nobody knows."""


@dataclass(frozen=True, slots=True)
class Names:
    """What the fragments of an import are called."""

    producer: str
    epoch: int
    robot: str
    task: str
    """Empty: the dataset's own."""
    run: str
    reward: Reward = "unknown"


class Foreign:
    """Makes fragments from the frames of somebody else's dataset."""

    def __init__(self, dataset: Dataset, names: Names, fingerprint: str):
        self._dataset, self._names = dataset, names
        self._prefix = f"lerobot-{fingerprint[:16]}"
        self._schema = f"lerobot-{_digest(dataset)}"
        self._steps = steps_per_fragment(dataset.features)

    def episode(self, index: int) -> str:
        """Return the id of an episode."""
        return f"{self._prefix}-{index}"

    def fragments(self, table: Table) -> Iterator[Fragment]:
        """Yield the fragments of one episode; sequences are to be given later."""
        end, success = self._end(table)
        reward = self._reward(table)
        actions = table.column("action").astype(np.float32)
        extras = {name: table.column("extra", name) for name in table.names("extra")}
        for low in range(0, len(table), self._steps):
            high = min(low + self._steps, len(table))
            last = high == len(table) and end is not End.NONE
            seen = table.observation(low, high)
            if last:
                seen = {name: np.concatenate([v, v[-1:]]) for name, v in seen.items()}
            steps, ends = high - low, np.zeros(high - low, np.uint8)
            ends[-1] = end if high == len(table) else End.NONE
            yield Fragment(
                header=self._header(table, low, success if high == len(table) else None),
                observation=seen,
                executed=actions[low:high],
                proposed=np.full((steps, actions.shape[1]), np.nan, np.float32),
                reward=reward[low:high],
                segment=np.full(steps, Segment.DEMO, np.uint8),
                end=ends,
                robot_ns=self._stamps(table, low, high + last),
                policy=np.zeros(steps, np.uint16),
                version=np.zeros(steps, np.int64),
                operator=np.zeros(steps, np.uint16),
                chunk=np.zeros(steps, np.int32),
                position=np.zeros(steps, np.int32),
                extras={name: values[low:high] for name, values in extras.items()},
            )

    def _header(self, table: Table, start: int, success: bool | None) -> FragmentHeader:
        names, dataset = self._names, self._dataset
        return FragmentHeader(
            producer=names.producer,
            epoch=names.epoch,
            sequence=0,
            run=names.run,
            task=names.task or table.row.task,
            episode=self.episode(table.row.index),
            start=start,
            purpose=Purpose.COLLECT,
            schema=self._schema,
            robot=names.robot,
            embodiment=dataset.robot_type,
            boot="import",
            wall_ns=0,
            wall_bound_ns=NEVER_NS,
            success=success,
        )

    def _stamps(self, table: Table, low: int, high: int) -> Array:
        frames = np.arange(table.row.first + low, table.row.first + high, dtype=np.int64)
        return frames * 1_000_000_000 // self._dataset.fps

    def _end(self, table: Table) -> tuple[End, bool | None]:
        """Return why an episode ended, and whether it succeeded."""
        marks = {}
        for name in ("done", "truncated", "success"):
            if table.has("ends", name):
                marks[name] = np.asarray(table.column("ends", name)).reshape(len(table)) != 0
        done = marks.get("done")
        if done is not None and done[:-1].any():
            raise SpecError(
                f"{table.row.data}: next.done of episode {table.row.index}",
                got=f"true at frame {int(done.argmax())} of {len(table)}",
                allowed="true at the last frame only",
            )
        sparse = self._names.reward == "sparse" and not table.has("reward")
        over = bool(done[-1]) if done is not None else sparse
        if "truncated" in marks and marks["truncated"][-1]:
            over = False
        success = bool(marks["success"].any()) if "success" in marks else None
        return End.TERMINATED if over else End.NONE, True if sparse else success

    def _reward(self, table: Table) -> Array:
        if table.has("reward"):
            reward: Array = table.column("reward").reshape(len(table)).astype(np.float32)
            return reward
        unknown = self._names.reward == "unknown"
        rewards = np.full(len(table), np.nan if unknown else 0.0, np.float32)
        if self._names.reward == "sparse":
            rewards[-1] = 1.0
        return rewards


def numbered(fragment: Fragment, sequence: int) -> Fragment:
    """Return a fragment with its place within its source."""
    return replace(fragment, header=replace(fragment.header, sequence=sequence))


def _digest(dataset: Dataset) -> str:
    """Return what rows that stack into one array share."""
    rows = [
        [f.kind, f.name, "uint8" if f.kind == "camera" else f.dtype, list(f.tail)]
        for f in sorted(dataset.features, key=lambda f: (f.kind, f.name))
        if f.kind in ("field", "camera", "action")
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
