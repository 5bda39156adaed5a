"""From chosen steps to a batch: the walks from them, and everything that was recorded there."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from user_system.core.draws import Draw
from user_system.core.errors import SpecError
from user_system.core.interfaces import NotReady
from user_system.core.types import Array, Batch, End
from user_system.replay import walks
from user_system.replay.choosing import Chooser, Picked, rows_of
from user_system.replay.env import Txn
from user_system.replay.hindsight import Relabelled, Relabeller
from user_system.replay.pixels import Pixels
from user_system.replay.rows import Rows
from user_system.replay.walks import Rule, Walk


@dataclass(slots=True)
class _Plan:
    """The rows of a batch, and the observation rows that it shows; -1: none."""

    walk: Walk
    seen: Array
    """``[B]``, ``[B, L]`` or ``[B, H]``."""
    after: Array
    """``[B]`` or ``[B, H]``."""
    relabelled: list[Relabelled] = field(default_factory=list)


class Gatherer:
    """Makes batches of the rows of one schema. For one thread."""

    def __init__(self, rows: Rows, chooser: Chooser, pixels: Pixels):
        self.pixels = pixels
        self._rows = rows
        self._chooser = chooser
        self._relabeller = Relabeller(rows)

    def gather(
        self, txn: Txn, rng: np.random.Generator, request: Draw, parts: Sequence[Picked]
    ) -> Batch | None:
        """Return the batch of what was chosen, or None where an image turned out to be damaged."""
        plan = self._plan(rng, request, parts)
        observed = self._observations(txn, request, plan)
        if observed is None:
            return None
        rows, walk = self._rows, plan.walk
        stacked = request.unit in ("window", "episode")
        at = walk.path if stacked else walk.first
        valid = at >= 0
        reward, discount, end = self._outcome(request, plan)
        if not stacked:
            reward = _discounted(reward, request.gamma)
        return Batch(
            observation=observed[0],
            action=_masked(rows["executed"].take(at, axis=0, mode="clip"), valid, whole=walk.whole),
            reward=reward,
            discount=discount,
            next_observation=observed[1],
            end=end,
            valid=valid,
            ids=rows.of("id", walk.first),
            extras=self._extras(request, plan, parts, at),
        )

    # --- where -----------------------------------------------------------------------------------

    def _plan(self, rng: np.random.Generator, request: Draw, parts: Sequence[Picked]) -> _Plan:
        rows = self._rows
        if request.unit == "step" and not request.history and request.hindsight is None:
            first = rows_of(parts)
            return _Plan(Walk(first[:, None]), rows["obs"][first], rows["next_obs"][first])
        done = [self._part(rng, request, part, start) for part, start in _starts(parts)]
        walk = Walk(walks.join([plan.walk.path for plan in done]))
        after = np.concatenate([plan.after for plan in done])
        relabelled = [what for plan in done for what in plan.relabelled]
        if request.unit in ("window", "episode") and not request.history:
            seen = np.where(walk.path >= 0, rows["obs"][walk.path], -1)
        else:
            seen = np.concatenate([plan.seen for plan in done])
        return _Plan(walk, seen, after, relabelled)

    def _part(self, rng: np.random.Generator, request: Draw, part: Picked, start: int) -> _Plan:
        """Return the rows of one view's part of a batch."""
        rows = self._rows
        if request.unit == "episode":
            walk = walks.whole(rows, self._chooser.shown(part.view, request), part.rows)
            return _Plan(walk, walk.first, rows["next_obs"][walk.last])
        around = self._chooser.view(part.view).around
        rule = Rule(around, request.cross_segments, request.reward)
        shown = None if request.cross_views else self._chooser.shown(part.view, request)
        length = 1 if request.unit == "step" else request.length
        walk = walks.follow(rows, part.rows, length, rule, shown)
        relabelled: list[Relabelled] = []
        if request.hindsight is not None:
            walk, what = self._relabeller.relabel(rng, request.hindsight, walk, rule, start)
            relabelled += [what] if what is not None else []
        if not request.history:
            return _Plan(walk, rows["obs"][walk.first], rows["next_obs"][walk.last], relabelled)
        before = walks.back(rows, walk.first, request.history, rule)
        seen = np.where(before >= 0, rows["obs"][before], -1)
        # One more, so that there is one to leave out where only one is wanted.
        until = walks.back(rows, walk.last, request.history, rule)[:, 1:]
        earlier = np.where(until >= 0, rows["obs"][until], -1)
        after = np.concatenate([earlier, rows["next_obs"][walk.last][:, None]], 1)
        return _Plan(walk, seen, after, relabelled)

    # --- what ------------------------------------------------------------------------------------

    def _outcome(self, request: Draw, plan: _Plan) -> tuple[Array, Array, Array]:
        """Return rewards ``[B, L]``, discounts ``[B]`` and ends ``[B]``."""
        rows, walk = self._rows, plan.walk
        reward = walk.rewards(rows.rewards(request.reward))
        discount = walk.discount(rows, request.gamma)
        end = rows["end"][walk.last]
        for what in plan.relabelled:
            reward[what.rows, : what.reward.shape[1]] = what.reward
            ended = what.rows[what.ended]
            discount[ended] = 0
            end[ended] = End.TERMINATED
        return reward, discount, end

    def _observations(
        self, txn: Txn, request: Draw, plan: _Plan
    ) -> tuple[dict[str, Array], dict[str, Array]] | None:
        """Return what was observed at the steps of a plan, and after it; None: damaged."""
        rows = self._rows
        wanted = _fields(request, rows)
        now: dict[str, Array] = {}
        then: dict[str, Array] = {}
        places = ((now, plan.seen), (then, plan.after))
        missing = [at < 0 if at.min() < 0 else None for _, at in places]
        cameras = [name for name in wanted if name not in rows.fields]
        both = np.concatenate([plan.seen.ravel(), plan.after.ravel()])
        pixels = self.pixels.take(txn, cameras, both) if cameras else {}
        if pixels is None:
            return None
        for name in wanted:
            if name in pixels:
                shape, size = pixels[name].shape[1:], plan.seen.size
                now[name] = pixels[name][:size].reshape(*plan.seen.shape, *shape)
                then[name] = pixels[name][size:].reshape(*plan.after.shape, *shape)
                continue
            for (found, at), gone in zip(places, missing, strict=True):
                found[name] = rows.fields[name].data.take(at, axis=0, mode="clip")
                if gone is not None:
                    found[name][gone] = 0
        for found, at in places:
            found.update(self._sensed(request, at))
        if plan.relabelled and request.hindsight is not None:
            _set_goals(request.hindsight.goal, plan, places)
        return now, then

    def _sensed(self, request: Draw, at: Array) -> dict[str, Array]:
        """Return the streams as of observation rows ``at`` ``[...]``."""
        rows, found = self._rows, {}
        for name, wanted in request.streams.items():
            if name not in (known := rows.streams.names()):
                raise NotReady(f"no sample of {name!r} is here yet; there are: {', '.join(known)}")
            values, stamps, valid = rows.streams.at(name, at.ravel(), wanted.samples)
            age = (rows.robot_ns.data[at.ravel()][:, None] - stamps) * 1e-9
            # Not of this instant's future, and not of another age than asked for.
            valid &= (age <= wanted.max_age_s) & (age >= 0) & (at.ravel() >= 0)[:, None]
            values[~valid] = 0
            shape = *at.shape, wanted.samples
            found[name] = values.reshape(*shape, *values.shape[2:])
            found[f"{name}.age"] = np.where(valid, age, 0).astype(np.float32).reshape(shape)
            found[f"{name}.valid"] = valid.reshape(shape)
        return found

    def _extras(
        self, request: Draw, plan: _Plan, parts: Sequence[Picked], at: Array
    ) -> dict[str, Array]:
        rows, whole = self._rows, plan.walk.whole
        extras: dict[str, Array] = {}
        for name in request.columns:
            here = at if whole else np.where(at >= 0, at, at.flat[0])
            extras[name] = _masked(rows.of(name, here), at >= 0, whole=whole)
        importance = [part.importance for part in parts if part.importance is not None]
        if importance:
            extras["importance"] = np.concatenate(importance)
        if request.history:
            extras["history_valid"] = plan.seen >= 0
            extras["next_history_valid"] = plan.after >= 0
        if request.hindsight is not None:
            flags = np.zeros(len(at), bool)
            for what in plan.relabelled:
                flags[what.rows] = True
            extras["relabelled"] = flags
        return extras


def _starts(parts: Sequence[Picked]) -> list[tuple[Picked, int]]:
    """Return the parts, and where each begins in the batch."""
    ends = np.cumsum([len(part.rows) for part in parts]).tolist()
    return [(part, end - len(part.rows)) for part, end in zip(parts, ends, strict=True)]


def _set_goals(goal: str, plan: _Plan, places: Sequence[tuple[dict[str, Array], Array]]) -> None:
    """Write the goals of relabelled rows over those that were recorded."""
    for found, at in places:
        for what in plan.relabelled if goal in found else ():
            rows = what.rows
            goals = what.goals if at.ndim == 1 else what.goals[:, None]
            values = np.broadcast_to(goals, found[goal][rows].shape).copy()
            values[at[rows] < 0] = 0
            found[goal][rows] = values


def _fields(request: Draw, rows: Rows) -> Sequence[str]:
    names = rows.schema.names()
    for name in request.streams:
        if name in names:
            raise SpecError("a stream has the name of an observation", got=name)
    if request.observations is None:
        return names
    unknown = set(request.observations) - set(names)
    if unknown:
        raise SpecError("unknown observation", got=sorted(unknown), allowed=sorted(names))
    return request.observations


def _discounted(reward: Array, gamma: float) -> Array:
    """Return the discounted sums ``[B]`` float32 of rewards ``[B, L]``."""
    if reward.shape[1] == 1:
        return reward[:, 0]
    weights = gamma ** np.arange(reward.shape[1])
    total: Array = (reward * weights).sum(1, dtype=np.float32)
    return total


def _masked(values: Array, valid: Array, *, whole: bool) -> Array:
    """Return ``values`` with zeros where not ``valid``: never a neighbour's data."""
    if not whole:
        values[~valid] = 0
    return values
