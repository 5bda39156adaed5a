r"""Which kinds of extras and streams each schema has had: readers keep so many and no more.

A reader has a column for each kind of extra, and looks for the newest sample of each stream; so it
takes the first ones of the log and leaves the rest out. The door refuses the fragment that would
bring one too many, so that whoever recorded it hears of it. What it counts is in the table
``meta``, written with the fragment that it counts::

    kinds \0 schema   -> JSON: [[name, dtype, shape] of each extra], [name of each stream]

What was removed is still counted; ``replay compact`` writes a store with what is left.
"""

import json
import logging
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from user_system.core.errors import DamageError, SpecError
from user_system.core.types import Fragment
from user_system.replay import columns, streams, tables
from user_system.replay.blocks import Block
from user_system.replay.env import Env, Txn
from user_system.replay.filling import Filling
from user_system.replay.index import read_fragments

log = logging.getLogger(__name__)

_KEY = b"kinds\0"

Kind: TypeAlias = tuple[Any, ...]
"""(name, dtype, shape) of an extra, (name,) of a stream."""

Seen: TypeAlias = MutableMapping[str, frozenset[Kind]]
"""Schema -> its kinds."""


class Kinds:
    """Counts the kinds of one store.

    Args:
        env: the writer's environment.
    """

    def __init__(self, env: Env):
        self._env = env
        self._seen: dict[str, frozenset[Kind]] = {}
        self._told: set[str] = set()
        """Schemas of which it was said that there are too many."""

    def open(self) -> None:
        """Count what a store of before holds; of today's it is written down."""
        self._seen = {}
        with self._env.read() as txn:
            named = [schema.id for schema in tables.schemas(txn, self._env)]
            if all(self._stored(txn, schema) is not None for schema in named):
                return
        fresh: Seen = dict.fromkeys(named, frozenset())
        for schema, kinds in _recorded(self._env):
            self._add(schema, kinds, fresh)
        self._env.write(lambda txn: self.write(txn, fresh))
        self.took(fresh)

    def refusal(self, txn: Txn, fragment: Fragment, fresh: Seen) -> str:
        """Return why a fragment brings too many kinds for its schema; empty: it does not."""
        schema = fragment.header.schema
        if not fragment.extras and not fragment.streams:
            return ""
        known = self._of(txn, schema, fresh)
        new = [kind for kind in _kinds(fragment) if kind not in known]
        for what, length, most in _limits() if new else ():
            brings = [kind for kind in new if len(kind) == length]
            count = sum(len(kind) == length for kind in known) + len(brings)
            if brings and count > most:
                header = fragment.header
                at = f"fragment {header.sequence} of {header.producer!r}"
                error = SpecError(
                    f"{at}: too many kinds of {what} for schema {schema!r}",
                    got=f"{count} with {_said(brings[-1])}",
                    allowed=f"{most} that differ in name" + ", dtype or shape" * (length > 1),
                    todo="Keep to the same ones; `user-system replay compact` forgets those of "
                    "which nothing is left.",
                )
                return str(error)
        return ""

    def note(self, txn: Txn, fragment: Fragment, fresh: Seen) -> None:
        """Count a fragment that was stored, among what its transaction did.

        Of one that another store held there may be too many: those that readers leave out.
        """
        schema = fragment.header.schema
        if fragment.extras or fragment.streams or schema not in self._seen:
            known = self._of(txn, schema, fresh)
            kinds = [kind for kind in _kinds(fragment) if kind not in known]
            if kinds or schema not in self._seen:
                fresh.setdefault(schema, known)
                self._add(schema, kinds, fresh)

    def write(self, txn: Txn, fresh: Seen) -> None:
        """Write down what a transaction counted."""
        for schema, kinds in fresh.items():
            if kinds != self._seen.get(schema):
                tables.put(txn, self._env, "meta", _KEY + schema.encode(), _text(kinds))

    def took(self, fresh: Seen) -> None:
        """Take over what a transaction counted that is on disk now."""
        self._seen.update(fresh)

    def _of(self, txn: Txn, schema: str, fresh: Seen) -> frozenset[Kind]:
        known = fresh.get(schema, self._seen.get(schema))
        return (self._stored(txn, schema) or frozenset()) if known is None else known

    def _stored(self, txn: Txn, schema: str) -> frozenset[Kind] | None:
        text = tables.get(txn, self._env, "meta", _KEY + schema.encode())
        return None if text is None else _parse(text)

    def _add(self, schema: str, kinds: Iterable[Kind], fresh: Seen) -> None:
        """Count kinds as readers do: the first ones."""
        known = set(fresh[schema])
        for kind in kinds:
            most = next(most for _, length, most in _limits() if length == len(kind))
            if kind in known:
                continue
            if sum(len(other) == len(kind) for other in known) < most:
                known.add(kind)
            elif schema not in self._told:
                self._told.add(schema)
                said = "%s holds too many kinds of schema %r, readers leave some out; the first: %s"
                log.warning(said, self._env.path, schema, _said(kind))
        fresh[schema] = frozenset(known)


def _limits() -> Sequence[tuple[str, int, int]]:
    """Return of each: what it is called, the length of a kind, how many readers keep."""
    return ("extras", 3, columns.MAX_EXTRAS), ("streams", 1, streams.MAX_STREAMS)


def _kinds(fragment: Fragment) -> Iterator[Kind]:
    for name, values in fragment.extras.items():
        yield name, values.dtype, values.shape[1:]
    for name in fragment.streams:
        yield (name,)


def _recorded(env: Env) -> Iterator[tuple[str, Iterable[Kind]]]:
    """Yield schema and kinds of all that a store holds, in the order of the log."""
    start, stop = 0, 1
    while start < stop:
        with env.read() as txn:
            stop = tables.peek(txn, env, "offset")
            end, blocks = _blocks(env, txn, start)
            following = min(tables.next_block(txn, env, start + 1), stop)
        for block in blocks:
            extras = [(e.name, e.values.dtype, e.values.shape[1:]) for e in block.extras]
            yield block.schema, [*extras, *((stream.name,) for stream in block.streams)]
        if not blocks:
            filling = Filling()
            end = start
            for offset, fragment in read_fragments(env, start, following, filling):
                yield fragment.header.schema, list(_kinds(fragment))
                end = offset + 1
            end = end if filling.enough else following
        start = end


def _blocks(env: Env, txn: Txn, start: int) -> tuple[int, list[Block]]:
    """Return the blocks that begin at ``start`` and where they end; none if they are damaged."""
    try:
        places = list(tables.blocks(txn, env, start))
        blocks = [Block.decode(env.file.read(p.position, p.length)) for p in places]
    except DamageError as error:
        log.error("block %d of %s is damaged, reading its log: %s", start, env.path, error)
        return start, []
    return (places[0].end if places else start), blocks


def _said(kind: Kind) -> str:
    name, *form = kind
    return f"{name!r} {form[0].name}{list(form[1])}" if form else repr(name)


def _text(kinds: Iterable[Kind]) -> bytes:
    extras = sorted((k[0], k[1].name, k[2]) for k in kinds if len(k) > 1)
    return json.dumps([extras, sorted(k[0] for k in kinds if len(k) == 1)]).encode()


def _parse(text: bytes) -> frozenset[Kind]:
    extras, named = json.loads(text)
    found: set[Kind] = {(name, np.dtype(dtype), tuple(shape)) for name, dtype, shape in extras}
    return frozenset(found | {(name,) for name in named})
