"""A replay buffer in memory, for one process: reference loops, contract tests, notebooks.

It answers the same ``Data`` Protocol as the real one and follows the same rules, in plain
NumPy; nothing of it survives the process.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from user_system.core.errors import ConfigError
from user_system.core.interfaces import Draw, NotReady
from user_system.core.types import HUMAN_SEGMENTS, Array, Batch, End, Observation, Purpose, Segment

_LEARNABLE = frozenset({Segment.DEMO, Segment.AUTO, Segment.RECOVERY, Segment.CORRECTION})
_HELP = frozenset({Segment.RECOVERY, Segment.CORRECTION})

VIEWS: dict[str, Callable[[Segment], bool]] = {
    "all": lambda s: s in _LEARNABLE,
    "online": lambda s: s in _LEARNABLE and s is not Segment.DEMO,
    "demos": lambda s: s is Segment.DEMO,
    "human": lambda s: s in HUMAN_SEGMENTS,
    "prior": lambda s: s in HUMAN_SEGMENTS,
    "interventions": lambda s: s in _HELP,
    "auto": lambda s: s is Segment.AUTO,
}
"""View -> whether steps of a segment belong to it; evaluation episodes belong to none."""

_ANSWERED = ("n", "unit", "length", "gamma", "mix", "columns", "include_void", "cross_segments")
"""Fields of a request that this window understands; nothing here is ever void."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step as it is put in."""

    observation: Observation
    action: Array
    """``(Da,)`` float32 as executed."""
    reward: float
    next_observation: Observation
    segment: Segment
    end: End = End.NONE


class MemoryData:
    """Experience of one process; ``add`` it step by step, ``draw`` from it at once.

    Args:
        seed: of the draws.
    """

    def __init__(self, seed: int = 0):
        self._rng = np.random.default_rng(seed)
        self._steps: list[Step] = []
        self._views: dict[str, list[int]] = {name: [] for name in VIEWS}
        self._consumed = 0
        self._columns = _Columns()

    def add(self, step: Step, purpose: Purpose = Purpose.TRAIN) -> None:
        """Append the next step; one with an ``end`` finishes its episode."""
        index = len(self._steps)
        self._steps.append(step)
        self._columns.append(step)
        if purpose is Purpose.EVAL or np.isnan(step.reward):
            return
        for name, belongs in VIEWS.items():
            if belongs(step.segment):
                self._views[name].append(index)

    def count(self, view: str = "all") -> int:
        """Return how many steps a view holds."""
        return len(self._view(view))

    def draw(self, request: Draw) -> Batch:
        """Return a batch drawn with replacement: exact shares of its views, in their order."""
        _require_answered(request)
        rows = []
        for view, n in shares(request.mix, request.n).items():
            members = self._view(view)
            if n and not members:
                raise NotReady(f"view {view!r} is empty")
            picks = self._rng.integers(0, max(len(members), 1), n)
            rows.append(np.asarray(members, np.int64)[picks] if n else picks)
        return self._batch(np.concatenate(rows), request)

    def consume(self, request: Draw) -> Batch:
        """Return the oldest rows not consumed before, each exactly once."""
        _require_answered(request)
        (view,) = request.mix
        rows = np.asarray(self._view(view)[self._consumed : self._consumed + request.n], np.int64)
        if len(rows) < request.n:
            raise NotReady(f"{len(rows)} of {request.n} steps are there")
        self._consumed += request.n
        return self._batch(rows, request)

    def state_dict(self) -> Mapping[str, Any]:
        """Return random state and cursor."""
        return {"rng": self._rng.bit_generator.state, "consumed": self._consumed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Draw on from ``state_dict``."""
        self._rng.bit_generator.state = dict(state["rng"])
        self._consumed = int(state["consumed"])

    def _view(self, name: str) -> list[int]:
        if name not in self._views:
            raise ConfigError("unknown view", got=name, allowed=", ".join(VIEWS))
        return self._views[name]

    def _batch(self, rows: Array, request: Draw) -> Batch:
        c = self._columns
        if request.unit == "window":
            return self._windows(rows, request)
        last, reward, discount = rows, c.reward[rows], np.full(len(rows), request.gamma, np.float32)
        if request.unit == "nstep":
            last, reward, discount = self._nstep(rows, request)
        elif request.unit != "step":
            raise ConfigError(
                "draws from memory know no such unit",
                got=request.unit,
                allowed="step, nstep, window",
            )
        return Batch(
            observation={k: v[rows] for k, v in c.observation.items()},
            action=c.action[rows],
            reward=reward,
            discount=discount * (c.end[last] != End.TERMINATED),
            next_observation={k: v[last] for k, v in c.following.items()},
            end=c.end[last],
            valid=np.ones(len(rows), np.bool_),
            ids=rows.astype(np.uint64),
            extras={k: c.extra(k)[rows] for k in request.columns},
        )

    def _reach(self, rows: Array, request: Draw) -> Array:
        """Return ``[B]``: how many steps from each row stay within its episode (and segment)."""
        c, total = self._columns, len(self._steps)
        reach = np.ones(len(rows), np.int64)
        going = np.ones(len(rows), np.bool_)
        for k in range(1, request.length):
            before, after = np.minimum(rows + k - 1, total - 1), np.minimum(rows + k, total - 1)
            going &= (c.end[before] == End.NONE) & (rows + k < total) & ~np.isnan(c.reward[after])
            if not request.cross_segments:
                going &= c.segment[before] == c.segment[after]
            reach += going
        return reach

    def _nstep(self, rows: Array, request: Draw) -> tuple[Array, Array, Array]:
        reach = self._reach(rows, request)
        reward = np.zeros(len(rows), np.float32)
        for k in range(request.length):
            within = k < reach
            steps = np.where(within, rows + k, rows)
            reward += np.where(within, self._columns.reward[steps] * request.gamma**k, 0.0)
        return rows + reach - 1, reward, (request.gamma**reach).astype(np.float32)

    def _windows(self, rows: Array, request: Draw) -> Batch:
        c, reach = self._columns, self._reach(rows, request)
        steps = rows[:, None] + np.minimum(np.arange(request.length)[None], reach[:, None] - 1)
        last = rows + reach - 1
        return Batch(
            observation={k: v[steps] for k, v in c.observation.items()},
            action=c.action[steps],
            reward=c.reward[steps],
            discount=np.where(c.end[last] == End.TERMINATED, 0.0, request.gamma).astype(np.float32),
            next_observation={k: v[last] for k, v in c.following.items()},
            end=c.end[last],
            valid=np.arange(request.length)[None] < reach[:, None],
            ids=rows.astype(np.uint64),
            extras={k: c.extra(k)[steps] for k in request.columns},
        )


class _Columns:
    """Steps as growing arrays: appending doubles the room, so that drawing is one fancy index."""

    def __init__(self) -> None:
        self._room = self._used = 0
        self.observation: dict[str, Array] = {}
        self.following: dict[str, Array] = {}
        self.action = self.reward = self.end = self.segment = np.zeros(0)

    def append(self, step: Step) -> None:
        if self._used == self._room:
            self._grow(step)
        i = self._used
        for name, value in step.observation.items():
            self.observation[name][i] = value
            self.following[name][i] = step.next_observation[name]
        self.action[i], self.reward[i] = step.action, step.reward
        self.end[i], self.segment[i] = step.end, step.segment
        self._used += 1

    def extra(self, name: str) -> Array:
        if name != "segment":
            raise ConfigError("memory keeps no such column", got=name, allowed="segment")
        return self.segment

    def _grow(self, step: Step) -> None:
        self._room = max(1024, self._room * 2)
        for name, value in step.observation.items():
            sample = np.asarray(value)
            empty = np.zeros((0, *sample.shape), sample.dtype)
            self.observation[name] = self._wider(self.observation.get(name, empty))
            self.following[name] = self._wider(self.following.get(name, empty))
        if not self._used:
            self.action = np.zeros((0, *np.shape(step.action)), np.float32)
            self.reward = np.zeros(0, np.float32)
            self.end = self.segment = np.zeros(0, np.uint8)
        self.action, self.reward = self._wider(self.action), self._wider(self.reward)
        self.end, self.segment = self._wider(self.end), self._wider(self.segment)

    def _wider(self, old: Array) -> Array:
        wider = np.zeros((self._room, *old.shape[1:]), old.dtype)
        wider[: self._used] = old[: self._used]
        return wider


def _require_answered(request: Draw) -> None:
    """Refuse what would otherwise be left out of a batch in silence."""
    asked = Draw(request.n)
    for field in fields(Draw):
        value = getattr(request, field.name)
        if field.name not in _ANSWERED and value != getattr(asked, field.name):
            raise ConfigError(
                f"draws from memory know no {field.name}",
                got=value,
                allowed=", ".join(_ANSWERED),
                todo="Draw from a replay buffer.",
            )


def shares(mix: Mapping[str, float], n: int) -> dict[str, int]:
    """Return view -> exact count of ``n`` rows, largest remainder first."""
    total = sum(mix.values())
    exact = {view: n * share / total for view, share in mix.items()}
    counts = {view: int(value) for view, value in exact.items()}
    by_remainder: Sequence[str] = sorted(mix, key=lambda v: counts[v] - exact[v])
    for view in by_remainder[: n - sum(counts.values())]:
        counts[view] += 1
    return counts
