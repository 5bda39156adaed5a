"""One learner's window on several stores: each draw is split among them as if they were one.

Robots' experience may stay where the robots are, so that only batches that are drawn cross a long
link. What is drawn is the same in kind as from one store that holds it all: counts of views are
exact, and within a view every step has the probability that it would have there. Which store a row
comes from follows from what the stores say of themselves, their *masses*: steps of a view, by class
where a draw weighs classes, and the sum of their weights where it weighs numbers (``Data.masses``).

Three things are told apart by store and not over all of them. ``consume`` takes all rows of one
batch from one store, the oldest there, store after store. The rows that hindsight relabels are an
exact share of each store's part. Weights by ``return`` are refused: an episode's place between the
lowest and the highest of a view is not known in one store.

A store that does not answer is left out until it does, and counted: one site that is away must not
stop a learner that learns from others. Steps keep apart by the store's number in the highest byte
of their ids.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from user_system.core.draws import Draw, Weigh
from user_system.core.errors import ConfigError, LinkError, SpecError
from user_system.core.interfaces import Data, NotReady, Priorities
from user_system.core.priorities import checked as checked_priorities
from user_system.core.types import Array, Batch
from user_system.replay import mix, requests
from user_system.replay.parts import Part, joined
from user_system.replay.values import RETURN
from user_system.replay.weigh import CLASSES, Masses, class_masses

log = logging.getLogger(__name__)

T = TypeVar("T")

_FORMAT = 1
_SHARD = np.uint64(56)
_ID = np.uint64((1 << 56) - 1)

MOST = 255
"""Stores of one window."""

RETRY_S = 5.0
"""How soon a store that was left out is asked again."""

NAMED = frozenset({"robot", "task", "run", "operator", "policy"})
"""Columns of codes of names."""

_KINDS = 16
"""Kinds of draws whose masses are asked for before they are wanted."""

_TRIES = 100
"""Splits of one draw; a store that changes that often between two words is no store."""


class Shard(Data, Priorities, Protocol):
    """A window on one store: ``ReplayData``, or one over the network."""

    def masses(self, request: Draw) -> Mapping[str, Masses]:
        """Return what there is to draw from: view -> class -> (steps, weight)."""

    def refresh(self) -> bool:
        """Take in what is new."""

    def names(self) -> Sequence[str]:
        """Return the names behind the codes of columns."""


class _Ask(NamedTuple):
    """What one store is asked for, of one draw."""

    shard: str
    request: Draw
    rows: Mapping[str, int]
    """View -> how many."""
    scale: Mapping[str, float]
    """View -> what the store's ``importance`` is to be multiplied by."""


class ShardedData:
    """Draws from several stores; implements ``core.interfaces.Data``. For one thread.

    Args:
        shards: name -> window on it; the order numbers them. Each has a thread of its own here.
        seed: of which store rows come from; the windows have seeds of their own.

    Raises:
        ConfigError: no store, or more than can be told apart.
    """

    def __init__(self, shards: Mapping[str, Shard], *, seed: int = 0):
        if not 1 <= len(shards) <= MOST:
            raise ConfigError("stores of a learner", got=len(shards), allowed=f"1..{MOST}")
        self._shards = dict(shards)
        self._number = {name: np.uint64(i) for i, name in enumerate(shards)}
        self._threads = {name: ThreadPoolExecutor(1, f"shard {name}") for name in shards}
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._masses: dict[tuple[str, str], Future[Mapping[str, Masses]]] = {}
        """(store, kind of draw) -> what it says of itself, asked for after the last such draw."""
        self._away: dict[str, float] = {}
        """Store -> when to ask it again, monotonic s."""
        self._names: dict[str, list[str]] = {}
        self._all_names: dict[str, int] = {}
        self._turn = 0
        self._figures = dict.fromkeys(("draws", "left_out"), 0.0)

    def close(self) -> None:
        """End the threads; the windows are closed by whoever opened them."""
        for thread in self._threads.values():
            thread.shutdown(wait=False, cancel_futures=True)

    def draw(self, request: Draw) -> Batch:
        """Return ``request.n`` rows with replacement; views in the order of the mix.

        Raises:
            NotReady: a view of the mix is empty in every store that answers.
            LinkError: no store answers.
            SpecError: it weighs by ``return``.
        """
        wanted = requests.checked(request)
        if wanted.weigh is not None and wanted.weigh.by == RETURN:
            raise SpecError("weights over several stores", got=RETURN, allowed="other numbers")
        for _ in range(_TRIES):
            asks = self._split(wanted)
            parts = self._gather([(ask, self._start(ask)) for ask in asks])
            if parts is not None:
                self._ask_ahead(wanted)
                self._figures["draws"] += 1
                self._figures["left_out"] += bool(self._away)
                return joined(parts, list(wanted.mix))
        raise NotReady("stores of this learner have less to draw from than they say")

    def consume(self, request: Draw) -> Batch:
        """Return the oldest rows of one store not consumed before, each exactly once.

        Stores take turns. Raises ``NotReady`` where none has as many rows.
        """
        wanted = requests.checked(request)
        said: list[str] = []
        names = list(self._shards)
        for step in range(len(names)):
            name = names[(self._turn + step) % len(names)]
            if not self._answers(name):
                continue
            try:
                batch = self._ask(name, lambda shard: shard.consume(wanted)).result()
            except NotReady as error:
                said.append(f"{name}: {error}")
            except LinkError as error:
                self._leave_out(name, error)
            else:
                self._turn = (self._turn + step + 1) % len(names)
                return self._renamed(name, batch)
        raise NotReady("; ".join(said) or "no store answers")

    def count(self, view: str = "all") -> int:
        """Return how many steps a view holds in all stores.

        Raises:
            NotReady: one of them does not say.
        """
        asked = {name: self._ask(name, lambda s: s.count(view)) for name in self._shards}
        return sum(future.result() for future in asked.values())

    def prioritise(self, ids: Array, values: Array) -> None:
        """Say what steps ``ids`` ``[N]`` are worth; see ``core.interfaces.Priorities``."""
        ids, values = checked_priorities(ids, values)
        of = ids >> _SHARD
        if len(of) and int(of.max()) >= len(self._shards):
            raise SpecError("ids", got=int(of.max()), allowed=f"of {len(self._shards)} stores")
        for name, number in self._number.items():
            mine = of == number
            if mine.any() and self._answers(name):
                told = ids[mine] & _ID, values[mine]
                self._kept(name, self._ask(name, lambda s, t=told: s.prioritise(*t)))  # type: ignore[misc]
                self._forget_masses(name)

    def refresh(self) -> bool:
        """Take in what is new in every store; return whether there was anything."""
        asked = {n: self._ask(n, lambda s: s.refresh()) for n in self._shards if self._answers(n)}
        self._masses.clear()
        said = [self._kept(name, future) for name, future in asked.items()]
        return any(said)

    def names(self) -> Sequence[str]:
        """Return the names behind the codes of columns, of all stores together."""
        for name in self._shards:
            if self._answers(name):
                self._learn_names(name)
        return list(self._all_names)

    def state_dict(self) -> Mapping[str, Any]:
        """Return the states of all windows, and how rows are split among them."""
        asked = {name: self._ask(name, lambda s: s.state_dict()) for name in self._shards}
        return {
            "format": _FORMAT,
            "shards": {name: future.result() for name, future in asked.items()},
            "rng": self._rng.bit_generator.state,
            "turn": self._turn,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``.

        Raises:
            SpecError: it is of other stores.
        """
        if state.get("format") != _FORMAT or list(state["shards"]) != list(self._shards):
            raise SpecError(
                "state of a window on several stores",
                got=", ".join(state.get("shards", ["another kind"])),
                allowed=", ".join(self._shards),
                todo="Resume with the stores, in the order, that the checkpoint was made with.",
            )
        for name, place in state["shards"].items():
            self._ask(name, lambda s, p=place: s.load_state_dict(p)).result()  # type: ignore[misc]
        self._rng.bit_generator.state = state["rng"]
        self._turn = int(state["turn"])
        self._masses.clear()
        self._away.clear()

    def stats(self) -> dict[str, float]:
        """Return draws, in how many a store was left out, and how many are away now."""
        return {**self._figures, "shards": float(len(self._shards)), "away": float(len(self._away))}

    # --- who gives what --------------------------------------------------------------------------

    def _split(self, request: Draw) -> list[_Ask]:
        """Return what each store is asked for."""
        masses = self._look(request)
        counts = {v: n for v, n in mix.counts(request.n, request.mix).items() if n}
        shares = {view: _shares(view, masses, request.weigh) for view in counts}
        rows = {
            view: dict(zip(masses, self._spread(n, shares[view]), strict=True))
            for view, n in counts.items()
        }
        asks = []
        for name in masses:
            mine = {view: rows[view][name] for view in counts if rows[view][name]}
            # Masses of classes in a store differ by view, and a draw has only one word for them.
            apart = [{view: n} for view, n in mine.items()] if _by_class(request.weigh) else [mine]
            asks += [self._part(name, request, some, masses, shares) for some in apart if some]
        return asks

    def _spread(self, n: int, shares: Mapping[str, float]) -> list[int]:
        """Return how many of ``n`` independent rows come from each store."""
        return [int(count) for count in self._rng.multinomial(n, list(shares.values()))]

    def _part(
        self,
        name: str,
        request: Draw,
        rows: Mapping[str, int],
        masses: Mapping[str, Mapping[str, Masses]],
        shares: Mapping[str, Mapping[str, float]],
    ) -> _Ask:
        n = sum(rows.values())
        weigh, scale = request.weigh, dict[str, float]()
        if weigh is not None:
            for view in rows:
                here = _steps(masses[name][view])
                everywhere = sum(_steps(there[view]) for there in masses.values())
                # There it is (N p)^-beta of its own N and p; see core.draws.Weigh.beta.
                scale[view] = (everywhere * shares[view][name] / here) ** -weigh.beta
            if _by_class(weigh):
                weigh = _within(name, next(iter(rows)), masses, weigh)
        mine = {view: float(count) for view, count in rows.items()}
        return _Ask(name, replace(request, n=n, mix=mine, weigh=weigh), rows, scale)

    def _look(self, request: Draw) -> dict[str, Mapping[str, Masses]]:
        """Return what each store that answers has to draw from."""
        asked = {n: self._masses_of(n, request) for n in self._shards if self._answers(n)}
        found = {name: self._kept(name, future) for name, future in asked.items()}
        masses = {name: said for name, said in found.items() if said is not None}
        if not masses:
            raise LinkError(
                "no store of this learner answers",
                got=", ".join(self._shards),
                todo="See to the replay readers, and to the network on the way there.",
            )
        return masses

    def _masses_of(self, name: str, request: Draw) -> "Future[Mapping[str, Masses]]":
        """Return what a store says of itself: asked after the last draw, or now."""
        known = self._masses.pop((name, _kind(request)), None)
        return known or self._ask(name, lambda shard: shard.masses(request))

    def _ask_ahead(self, request: Draw) -> None:
        """Ask now what the next draw of this kind will want to know, while the learner works."""
        if len(self._masses) > _KINDS * len(self._shards):
            self._masses.clear()
        for name in self._shards:
            if self._answers(name):
                self._masses[name, _kind(request)] = self._masses_of(name, request)

    def _forget_masses(self, name: str) -> None:
        self._masses = {key: said for key, said in self._masses.items() if key[0] != name}

    # --- asking ----------------------------------------------------------------------------------

    def _ask(self, name: str, what: Callable[[Shard], T]) -> "Future[T]":
        shard = self._shards[name]
        return self._threads[name].submit(lambda: what(shard))

    def _start(self, part: _Ask) -> "Future[Batch]":
        return self._ask(part.shard, lambda shard: shard.draw(part.request))

    def _gather(self, asked: Sequence[tuple[_Ask, "Future[Batch]"]]) -> list[Part] | None:
        """Return the parts of a batch; None: a store went away, or has less than it said."""
        parts: list[Part] = []
        for ask, future in asked:
            try:
                batch = _scaled(self._renamed(ask.shard, future.result()), ask)
            except LinkError as error:
                self._leave_out(ask.shard, error)
            except NotReady as error:
                log.debug("store %r: %s", ask.shard, error)
                self._forget_masses(ask.shard)
            else:
                parts.append(Part(batch, ask.rows))
        return parts if len(parts) == len(asked) else None

    def _answers(self, name: str) -> bool:
        """Whether a store is asked: it answered last time, or that is long ago."""
        return time.monotonic() >= self._away.get(name, 0.0)

    def _kept(self, name: str, future: "Future[T]") -> T | None:
        """Return what a store said; None: it does not answer, and is left out from now on."""
        try:
            said = future.result()
        except LinkError as error:
            self._leave_out(name, error)
            return None
        if self._away.pop(name, None) is not None:
            log.warning("store %r answers again", name)
        return said

    def _leave_out(self, name: str, error: LinkError) -> None:
        if name not in self._away:
            log.warning("store %r is left out: %s", name, error)
        self._away[name] = time.monotonic() + RETRY_S
        self._forget_masses(name)

    # --- names -----------------------------------------------------------------------------------

    def _renamed(self, name: str, batch: Batch) -> Batch:
        """Return a batch whose ids and codes are of all stores together."""
        extras = dict(batch.extras)
        for column in NAMED & extras.keys():
            extras[column] = self._recoded(name, extras[column])
        ids = batch.ids | (self._number[name] << _SHARD)
        return replace(batch, ids=ids, extras=extras)

    def _recoded(self, name: str, codes: Array) -> Array:
        if codes.size and int(codes.max()) >= len(self._names.get(name, ())):
            self._learn_names(name)
        here = np.array([self._all_names[word] for word in self._names.get(name, ())], codes.dtype)
        if not codes.size or not len(here):
            return codes
        found: Array = np.where(codes >= 0, here[np.maximum(codes, 0)], codes)
        return found

    def _learn_names(self, name: str) -> None:
        said = self._kept(name, self._ask(name, lambda shard: shard.names()))
        if said is not None:
            self._names[name] = list(said)
            for word in said:
                self._all_names.setdefault(word, len(self._all_names))


def _kind(request: Draw) -> str:
    """Return what of a draw its masses depend on."""
    return repr((request.unit, request.mix, request.include_void, request.reward, request.weigh))


def _by_class(weigh: Weigh | None) -> bool:
    return weigh is not None and weigh.by in CLASSES


def _shares(
    view: str, masses: Mapping[str, Mapping[str, Masses]], weigh: Weigh | None
) -> dict[str, float]:
    """Return the probability that a row of a view comes from each store.

    Raises:
        NotReady: no store has any step with weight.
    """
    if weigh is not None and _by_class(weigh):
        whole = class_masses(_together(view, masses), weigh)
        each = {c: whole[c] / n for c, n in _together(view, masses).items() if n}
        amounts = {
            name: sum(each[c] * n for c, (n, _) in there[view].items() if n)
            for name, there in masses.items()
        }
    else:
        amounts = {
            name: sum(weight for _, weight in there[view].values())
            for name, there in masses.items()
        }
    total = sum(amounts.values())
    if not total > 0:
        weighed = "" if weigh is None else f", or no step of it has any weight by {weigh.by!r}"
        raise NotReady(f"view {view!r} is empty in all stores{weighed}")
    return {name: amount / total for name, amount in amounts.items()}


def _within(
    name: str, view: str, masses: Mapping[str, Mapping[str, Masses]], weigh: Weigh
) -> Weigh:
    """Return the weights of classes in one store that make those over all stores come true."""
    everywhere = _together(view, masses)
    whole = class_masses(everywhere, weigh)
    mine = {c: whole[c] * n / everywhere[c] for c, (n, _) in masses[name][view].items() if n}
    total = sum(mine.values())
    shares = {c: amount / total for c, amount in mine.items() if amount > 0}
    return replace(weigh, shares=shares, rest="", power=1.0)


def _together(view: str, masses: Mapping[str, Mapping[str, Masses]]) -> dict[str, int]:
    """Return the steps of each class in all stores."""
    found: dict[str, int] = {}
    for there in masses.values():
        for name, (steps, _) in there[view].items():
            found[name] = found.get(name, 0) + steps
    return found


def _steps(masses: Masses) -> int:
    return sum(steps for steps, _ in masses.values())


def _scaled(batch: Batch, ask: _Ask) -> Batch:
    """Return a batch whose importance is that over all stores."""
    if "importance" not in batch.extras:
        return batch
    factors = np.repeat(
        np.array([ask.scale[view] for view in ask.rows], np.float32), list(ask.rows.values())
    )
    extras = {**batch.extras, "importance": batch.extras["importance"] * factors}
    return replace(batch, extras=extras)
