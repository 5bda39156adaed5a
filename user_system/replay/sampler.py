"""A learner's window on the store: exact, repeatable draws; implements ``core.interfaces.Data``.

**Repeatable.** What is drawn is a function of the seed, the requests, and how far the index has
read. ``state_dict`` holds all three, so draws after ``load_state_dict`` equal those that the
uninterrupted run would have made, as long as both look at the same data: the index goes back to the
state's high-water mark, and the first draw of a following reader (``follow``, the default) then
takes in what arrived since. With ``follow=False`` the index moves only in ``refresh``.

**Never damaged.** An image whose checksum is wrong is noticed before it is served; its steps leave
the index, are counted, and others are drawn.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from user_system.core.errors import ConfigError, DamageError, SpecError
from user_system.core.interfaces import Draw, NotReady
from user_system.core.types import Array, Batch
from user_system.replay import layout, mix, walks
from user_system.replay.arena import Arena
from user_system.replay.consumed import Consumed
from user_system.replay.env import Env, Txn
from user_system.replay.frames import Frames
from user_system.replay.index import Index, Mark
from user_system.replay.rows import Rows
from user_system.replay.views import ACTING, BUILT_IN, Members, View

log = logging.getLogger(__name__)

Choose = Callable[[str, int], Array]
"""Return ``n`` of what a view offers: first rows, or numbers of whole episodes."""

_FORMAT = 1
_MAX_DAMAGED_DRAWS = 1000


class ReplayData:
    """Draws batches from a store. For one thread.

    Args:
        env: an open environment on the store: ``store.reader(path).open()`` in a process of its
            own, or the ``env`` of a ``Store`` in the writer's process.
        seed: of the draws.
        schema: id of the rows wanted; needed only where the store holds several.
        views: further views by name, see ``views.with_views``.
        follow: whether each draw first takes in what is new.

    Example::

        data = ReplayData(reader("runs/demo/replay").open(), seed=7)
        batch = data.draw(Draw(n=256, mix={"online": 0.5, "prior": 0.5}))
    """

    def __init__(
        self,
        env: Env,
        *,
        seed: int = 0,
        schema: str | None = None,
        views: Mapping[str, View] = BUILT_IN,
        follow: bool = True,
    ):
        self.follow = follow
        self._env = env
        self._schema = schema
        self._views = views
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._draws = 0
        self._arena = Arena()
        self._start_over()

    def draw(self, request: Draw) -> Batch:
        """Return ``request.n`` rows with replacement; views in the order of the mix."""

        def choose(view: str, n: int) -> Array:
            candidates = self._candidates(view, request)
            if not len(candidates):
                raise NotReady(f"view {view!r} is empty")
            return candidates[self._rng.integers(0, len(candidates), n)]

        return self._serve(request, choose)[1]

    def consume(self, request: Draw) -> Batch:
        """Return the oldest rows not consumed before, each exactly once.

        A row counts as consumed whichever view it was consumed through. A row that becomes ready
        late, because its reward or its successor was missing, is consumed then.
        """
        done = self._consumed_episodes if request.unit == "episode" else self._consumed
        earlier: list[Array] = []

        def choose(view: str, n: int) -> Array:
            # Views overlap: what one of them takes in this call is gone for the next one.
            fresh = done.without(self._candidates(view, request))
            if earlier:
                fresh = fresh[~np.isin(fresh, np.concatenate(earlier))]
            if len(fresh) < n:
                raise NotReady(f"view {view!r} has {len(fresh)} of {n} rows to consume")
            earlier.append(fresh[:n])
            return fresh[:n]

        taken, batch = self._serve(request, choose, retry=earlier.clear)
        done.add(taken)
        return batch

    def count(self, view: str = "all") -> int:
        """Return how many steps a view holds."""
        self._follow()
        if self._rows() is None:
            self._view(view)
            return 0
        return len(self._members(view, include_void=False).rows())

    def refresh(self) -> bool:
        """Take in what is new; return whether there was anything."""
        return self._index.refresh()

    def names(self) -> Sequence[str]:
        """Return the names behind the codes of robot, task, run, operator and policy columns."""
        rows = self._rows()
        return list(rows.names) if rows is not None else []

    def state_dict(self) -> Mapping[str, Any]:
        """Return random state, high-water mark, damage and what was consumed, fit for JSON."""
        return {
            "format": _FORMAT,
            "schema": self._schema,
            "mark": list(self._index.mark),
            "rng": self._rng.bit_generator.state,
            "damaged": {name: sorted(rows.excluded) for name, rows in self._index.rows.items()},
            "consumed": self._consumed.state(),
            "consumed_episodes": self._consumed_episodes.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``: the index is as it was then."""
        if state.get("format") != _FORMAT:
            raise SpecError("replay state", got=state.get("format"), allowed=_FORMAT)
        mark = Mark(*state["mark"])
        self._schema = state["schema"]
        self._start_over()
        self._index.refresh(mark)
        if self._index.mark != mark:
            raise SpecError(
                f"{self._env.path} holds less than the learner had seen",
                got=tuple(self._index.mark),
                allowed=f"at least {tuple(mark)}",
                todo="Resume with the store that the checkpoint was made with.",
            )
        for name, observations in state["damaged"].items():
            self._index.rows[name].exclude(np.asarray(observations, np.int64))
        self._rng.bit_generator.state = state["rng"]
        self._consumed.load(state["consumed"])
        self._consumed_episodes.load(state["consumed_episodes"])

    def stats(self) -> dict[str, float]:
        """Return sizes, draws and damage."""
        return {
            **self._index.stats(),
            "draws": float(self._draws),
            "images_read": float(sum(frames.read for frames in self._frames.values())),
            "images_checked": float(sum(frames.checked for frames in self._frames.values())),
            "arena_bytes": float(self._arena.nbytes),
            "consumed": float(len(self._consumed)),
        }

    # --- choosing --------------------------------------------------------------------------------

    def _start_over(self) -> None:
        self._index = Index(self._env)
        self._frames: dict[str, Frames] = {}
        self._member_cache: dict[tuple[str, bool], Members] = {}
        self._complete: dict[tuple[str, bool], tuple[int, Array]] = {}
        self._consumed, self._consumed_episodes = Consumed(), Consumed()

    def _follow(self) -> None:
        if self.follow:
            self._index.refresh()

    def _rows(self) -> Rows | None:
        """Return the rows to draw from; None while there are none."""
        rows = self._index.rows
        if self._schema is None and len(rows) > 1:
            raise SpecError(
                f"{self._env.path} holds rows of several schemas, which do not stack",
                got=sorted(rows),
                allowed="one of them",
                todo="Name the schema of the robots that this learner is for.",
            )
        if self._schema is None and rows:
            self._schema = next(iter(rows))
        return rows.get(self._schema) if self._schema is not None else None

    def _view(self, name: str) -> View:
        if name not in self._views:
            raise ConfigError("unknown view", got=name, allowed=", ".join(self._views))
        return self._views[name]

    def _members(self, view: str, *, include_void: bool) -> Members:
        key = view, include_void
        if key not in self._member_cache:
            rows = self._rows()
            if rows is None:
                self._view(view)
                raise NotReady(f"view {view!r} is empty: nothing is stored yet")
            members = Members(self._view(view), rows, include_void=include_void)
            self._member_cache[key] = members
        return self._member_cache[key]

    def _candidates(self, view: str, request: Draw) -> Array:
        """Return the first rows, or for whole episodes their numbers, that a view offers."""
        members = self._members(view, include_void=request.include_void)
        found = members.rows()
        if request.unit != "episode":
            return found
        key = view, request.include_void
        cached = self._complete.get(key)
        if cached is None or cached[0] != members.generation:
            rows = self._require_rows()
            numbers = np.unique(rows.of("episode", found))
            cached = members.generation, numbers[rows.complete.data[numbers]]
            self._complete[key] = cached
        return cached[1]

    def _require_rows(self) -> Rows:
        rows = self._rows()
        if rows is None:
            raise NotReady("nothing is stored yet")
        return rows

    # --- serving ---------------------------------------------------------------------------------

    def _serve(
        self, request: Draw, choose: Choose, retry: Callable[[], None] = lambda: None
    ) -> tuple[Array, Batch]:
        """Return what was chosen and the batch of it; choose again where images are damaged."""
        _check(request)
        self._follow()
        parts = {view: n for view, n in mix.counts(request.n, request.mix).items() if n}
        for _ in range(_MAX_DAMAGED_DRAWS):
            with self._env.read() as txn:
                # What was removed since the index was made must not be looked for in this snapshot.
                if not self._index.outdated(txn):
                    chosen = [choose(view, n) for view, n in parts.items()]
                    chains = zip(parts, chosen, strict=True)
                    walk = _join([self._walk(view, request, c) for view, c in chains])
                    batch = self._gather(txn, request, walk)
                    if batch is not None:
                        self._draws += 1
                        return np.concatenate(chosen), batch
                    retry()
                    continue
            self._index.refresh(None if self.follow else self._index.mark)
        raise DamageError(
            f"{self._env.path} has too many damaged images to draw from",
            got=self._index.stats()["damaged_steps"],
            todo=layout.verify_hint(self._env.path),
        )

    def _walk(self, view: str, request: Draw, picked: Array) -> walks.Walk:
        rows = self._require_rows()
        if request.unit == "episode":
            members = self._members(view, include_void=request.include_void).rows()
            return walks.whole(rows, members, picked)
        length = 1 if request.unit == "step" else request.length
        segments = ACTING | self._view(view).segments
        return walks.follow(rows, picked, length, segments, cross=request.cross_segments)

    def _gather(self, txn: Txn, request: Draw, walk: walks.Walk) -> Batch | None:
        """Return the batch of a walk, or None where an image turned out to be damaged."""
        rows = self._require_rows()
        stacked = request.unit in ("window", "episode")
        first = walk.path if stacked else walk.path[:, 0]
        valid = walk.valid if stacked else np.ones(len(first), bool)
        last = walk.last
        seen = np.where(valid, rows["obs"][first], -1)
        after = rows["next_obs"][last]
        observed = self._observations(txn, request, rows, seen, after)
        if observed is None:
            return None
        reward = walk.rewards(rows)
        if not stacked:
            weights = request.gamma ** np.arange(walk.path.shape[1])
            reward = (reward * weights).sum(1, dtype=np.float32)
        columns = {name: _take(_column(rows, name, first), valid) for name in request.columns}
        return Batch(
            observation=observed[0],
            action=_take(rows["executed"][first], valid),
            reward=reward,
            discount=walk.discount(rows, request.gamma),
            next_observation=observed[1],
            end=rows["end"][last],
            valid=valid,
            ids=rows.of("id", walk.path[:, 0]),
            extras=columns,
        )

    def _observations(
        self, txn: Txn, request: Draw, rows: Rows, seen: Array, after: Array
    ) -> tuple[dict[str, Array], dict[str, Array]] | None:
        """Return the observations of rows ``seen`` ``[B]`` or ``[B, L]`` (-1: zeros), and after."""
        wanted = _fields(request, rows)
        low = [name for name in wanted if name in rows.fields]
        now = {name: _take(rows.fields[name].data[seen], seen >= 0) for name in low}
        then = {name: np.take(rows.fields[name].data, after, axis=0) for name in low}
        for name in rows.schema.images:
            if name not in wanted:
                continue
            both = np.concatenate([seen.ravel(), after])
            pixels = self._pixels(txn, rows, name, both)
            if pixels is None:
                return None
            shape = pixels.shape[1:]
            now[name] = pixels[: seen.size].reshape(*seen.shape, *shape)
            then[name] = pixels[seen.size :]
        return now, then

    def _pixels(self, txn: Txn, rows: Rows, name: str, observations: Array) -> Array | None:
        """Return images of observation rows ``[N]`` (-1: zeros); None: some are damaged."""
        frames = self._frames.get(rows.schema.id)
        if frames is None:
            frames = self._frames[rows.schema.id] = Frames(self._env, rows)
        out = self._arena.take((len(observations), *rows.schema.images[name]), np.uint8)
        damaged = frames.fill(txn, name, observations, out)
        if not len(damaged):
            return out
        gone = rows.exclude(damaged)
        log.error(
            "%d images of %r in %s are damaged: %d steps are left out",
            len(damaged),
            name,
            self._env.path,
            gone,
        )
        return None


def _check(request: Draw) -> None:
    if request.unit not in ("step", "nstep", "window", "episode"):
        raise SpecError("draw", got=request.unit, allowed="step, nstep, window, episode")
    if request.length < 1 or not 0.0 <= request.gamma <= 1.0:
        got = (request.length, request.gamma)
        raise SpecError("draw", got=got, allowed="length >= 1 and gamma in [0, 1]")


def _fields(request: Draw, rows: Rows) -> Sequence[str]:
    names = rows.schema.names()
    if request.observations is None:
        return names
    unknown = set(request.observations) - set(names)
    if unknown:
        raise SpecError("unknown observation", got=sorted(unknown), allowed=sorted(names))
    return request.observations


def _column(rows: Rows, name: str, at: Array) -> Array:
    """Return a column at rows ``at``; its value there is arbitrary where a row is -1."""
    return rows.of(name, np.where(at >= 0, at, at.flat[0]))


def _take(values: Array, valid: Array) -> Array:
    """Return ``values`` with zeros where not ``valid``: never a neighbour's data."""
    if not valid.all():
        values[~valid] = 0
    return values


def _join(parts: Sequence[walks.Walk]) -> walks.Walk:
    """Stack walks of different lengths; the shorter ones end in steps that are not valid."""
    if len(parts) == 1:
        return parts[0]
    length = max(part.path.shape[1] for part in parts)
    path = np.full((sum(len(part.path) for part in parts), length), -1, np.int64)
    at = 0
    for part in parts:
        path[at : at + len(part.path), : part.path.shape[1]] = part.path
        at += len(part.path)
    return walks.Walk(path, path >= 0)
