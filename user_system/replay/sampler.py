"""A learner's window on the store: exact, repeatable draws; implements ``core.interfaces.Data``.

**Repeatable.** What is drawn is a function of the seed, the requests, and how far the index has
read. ``state_dict`` holds all three, so draws after ``load_state_dict`` equal those that the
uninterrupted run would have made, as long as both look at the same data: the index goes back to the
state's high-water mark, and the first draw of a following reader (``follow``, the default) then
takes in what arrived since. With ``follow=False`` the index moves only in ``refresh``. Steps are
told from each other by their ids, which outlast an index; its row numbers do not.

**Never damaged.** An image whose checksum is wrong is noticed before it is served; its steps leave
the index, are counted, and others are drawn.

Which steps are drawn is decided in ``choosing``, what a batch has of them in ``gather``.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from user_system.core.errors import DamageError, SpecError
from user_system.core.interfaces import Draw, Encoder, NotReady
from user_system.core.types import Array, Batch
from user_system.replay import anchor, ids, layout, mix, requests
from user_system.replay.choosing import Chooser, Picked, lookup, rows_of
from user_system.replay.consumed import Consumed
from user_system.replay.env import Env
from user_system.replay.gather import Gatherer
from user_system.replay.index import Index, Mark
from user_system.replay.pixels import Pixels
from user_system.replay.rows import Rows
from user_system.replay.views import BUILT_IN, View
from user_system.replay.weigh import Masses

Choose = Callable[[Chooser, str, int], Picked]
"""Returns ``n`` of what a view offers."""

FOLLOW_S = 0.05
"""``follow_s`` of learners: taking in ten steps at once costs three times what one costs."""

_FORMAT = 2
_MAX_DAMAGED_DRAWS = 1000


class _Window(NamedTuple):
    """What is derived from the rows of the schema that is drawn from."""

    rows: Rows
    chooser: Chooser
    gatherer: Gatherer


class ReplayData:
    """Draws batches from a store. For one thread.

    Args:
        env: an open environment on the store: ``store.reader(path).open()`` in a process of its
            own, or the ``env`` of a ``Store`` in the writer's process.
        seed: of the draws.
        schema: id of the rows wanted; needed only where the store holds several.
        views: further views by name, see ``views.with_views``.
        follow: whether each draw first takes in what is new.
        encoders: camera -> what its images become in batches.
        cache_bytes: memory for decoded images and features, shared equally by the cameras; images
            that are stored raw need none.

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
        encoders: Mapping[str, Encoder] | None = None,
        cache_bytes: int = 256 << 20,
    ):
        self.follow = follow
        self.follow_s = 0.0
        """How soon after it took in something new it does so again; 0: at the next draw."""
        self._env = env
        self._schema = schema
        self._views = views
        self._encoders = dict(encoders or {})
        self._cache_bytes = cache_bytes
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._draws = 0
        self._start_over()

    def draw(self, request: Draw) -> Batch:
        """Return ``request.n`` rows with replacement; views in the order of the mix."""
        wanted = requests.checked(request)

        def choose(chooser: Chooser, view: str, n: int) -> Picked:
            return chooser.pick(self._rng, view, n, wanted)

        return self._serve(wanted, choose)[1]

    def consume(self, request: Draw) -> Batch:
        """Return the oldest rows not consumed before, each exactly once.

        A row counts as consumed whichever view it was consumed through. A row that becomes ready
        late, because its reward or its successor was missing, is consumed then.
        """
        wanted = requests.checked(request)
        if wanted.weigh is not None:
            raise SpecError("rows are consumed in their order", got="weigh", allowed="no weights")
        done = self._consumed_episodes if wanted.unit == "episode" else self._consumed
        earlier: list[Array] = []

        def choose(chooser: Chooser, view: str, n: int) -> Picked:
            # Views overlap: what one of them takes in this call is gone for the next one.
            fresh = done.without(chooser.candidates(view, wanted))
            if earlier:
                fresh = fresh[~np.isin(fresh, np.concatenate(earlier))]
            if len(fresh) < n:
                raise NotReady(f"view {view!r} has {len(fresh)} of {n} rows to consume")
            earlier.append(fresh[:n])
            return Picked(view, fresh[:n])

        taken, batch = self._serve(wanted, choose, retry=earlier.clear)
        done.add(taken)
        return batch

    def count(self, view: str = "all") -> int:
        """Return how many steps a view holds."""
        self._follow()
        window = self._look()
        if window is None:
            lookup(self._views, view)
            return 0
        return len(window.chooser.members(view).rows())

    def masses(self, request: Draw) -> Mapping[str, Masses]:
        """Return what ``request`` would draw from: view -> class -> (steps, weight).

        For whoever draws from several stores as if they were one; see ``shards``.
        """
        wanted = requests.checked(request)
        self._follow()
        window = self._look()
        if window is None:
            for view in wanted.mix:
                lookup(self._views, view)
            return {view: {} for view in wanted.mix}
        return {view: window.chooser.masses(view, wanted) for view in wanted.mix}

    def prioritise(self, ids: Array, values: Array) -> None:
        """Say what steps ``ids`` ``[N]`` are worth; see ``core.interfaces.Priorities``."""
        window = self._look()
        if window is None:
            raise NotReady("nothing is stored yet, so nothing can have been drawn")
        window.chooser.priorities.set(np.asarray(ids), np.asarray(values))

    def refresh(self) -> bool:
        """Take in what is new; return whether there was anything."""
        return self._index.refresh()

    def names(self) -> Sequence[str]:
        """Return the names behind the codes of robot, task, run, operator and policy columns.

        Codes are of this window: compare names with those of another one, or of a later run.
        """
        window = self._look()
        return list(window.rows.names) if window is not None else []

    def state_dict(self) -> Mapping[str, Any]:
        """Return random state, high-water mark, damage, what was consumed, and priorities.

        Fit for JSON but for priorities, which are arrays, and there only where any were given.
        """
        state = self._place()
        if (window := self._window) is not None and len(window.chooser.priorities):
            state["priorities"] = window.chooser.priorities.state()
        return state

    def _place(self) -> dict[str, Any]:
        """Return the state without priorities, of which there may be one for each step."""
        damaged = {
            name: ids.ids_of(rows, np.array(sorted(rows.excluded), np.int64)).tolist()
            for name, rows in self._index.rows.items()
            if rows.excluded
        }
        return {
            "format": _FORMAT,
            "schema": self._schema,
            "mark": list(self._index.mark),
            "anchor": anchor.anchor(self._env, self._index.mark.log),
            "rng": self._rng.bit_generator.state,
            "damaged": damaged,
            "consumed": self._consumed.state(),
            "consumed_episodes": self._consumed_episodes.state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``: the index is as it was then, less what was removed."""
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
        anchor.require(self._env, state["anchor"])
        for name, damaged in state["damaged"].items():
            if (rows := self._index.rows.get(name)) is not None:
                rows.exclude(ids.observations_of(rows, np.asarray(damaged, np.uint64)))
        self._rng.bit_generator.state = state["rng"]
        self._consumed.load(state["consumed"], mark.log << 16)
        self._consumed_episodes.load(state["consumed_episodes"], mark.log << 16)
        if (given := state.get("priorities")) is not None and self._schema in self._index.rows:
            self.prioritise(given["ids"], given["values"])

    def stats(self) -> dict[str, float]:
        """Return sizes, draws, damage and how often caches had what was wanted."""
        images = {} if self._window is None else self._window.gatherer.pixels.stats()
        return {
            **self._index.stats(),
            **dict.fromkeys(("images_read", "images_checked", "arena_bytes"), 0.0),
            **images,
            "draws": float(self._draws),
            "consumed": float(len(self._consumed)),
        }

    # --- inside ----------------------------------------------------------------------------------

    def _start_over(self) -> None:
        self._again_at = 0.0
        """Monotonic seconds from which on a draw takes in what is new."""
        self._index = Index(self._env)
        self._window: _Window | None = None
        self._consumed = Consumed(self._rows)
        self._consumed_episodes = Consumed(self._rows)

    def _follow(self) -> None:
        if self.follow and time.monotonic() >= self._again_at and self._index.refresh():
            self._again_at = time.monotonic() + self.follow_s

    def _look(self) -> _Window | None:
        """Return what is drawn from; None while there is nothing."""
        if self._window is None and (rows := self._rows()) is not None:
            chooser = Chooser(rows, self._views)
            pixels = Pixels(self._env, rows, self._encoders, self._cache_bytes)
            self._window = _Window(rows, chooser, Gatherer(rows, chooser, pixels))
        return self._window

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

    def _serve(
        self, request: Draw, choose: Choose, retry: Callable[[], None] = lambda: None
    ) -> tuple[Array, Batch]:
        """Return what was chosen and the batch of it; choose again where images are damaged."""
        shares = [(v, n) for v, n in mix.counts(request.n, request.mix).items() if n]
        for column in (request.reward, *request.columns):
            if "@" in column:
                self._index.want(column)
        self._follow()
        for _ in range(_MAX_DAMAGED_DRAWS):
            with self._env.read() as txn:
                # What was removed since the index was made must not be looked for in this snapshot.
                if not self._index.outdated(txn):
                    window = self._require(shares)
                    parts = [choose(window.chooser, view, n) for view, n in shares]
                    batch = window.gatherer.gather(txn, self._rng, request, parts)
                    if batch is not None:
                        self._draws += 1
                        return rows_of(parts), batch
                    retry()
                    continue
            self._index.refresh(None if self.follow else self._index.mark)
        raise DamageError(
            f"{self._env.path} has too many damaged images to draw from",
            got=self._index.stats()["damaged_steps"],
            todo=layout.verify_hint(self._env.path),
        )

    def _require(self, shares: Sequence[tuple[str, int]]) -> _Window:
        window = self._look()
        if window is None:
            for view, _ in shares:
                lookup(self._views, view)
            raise NotReady(f"view {shares[0][0]!r} is empty: nothing is stored yet")
        return window
