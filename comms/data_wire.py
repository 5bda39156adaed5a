"""Draws, batches and states <-> bytes, whatever fields they have.

What algorithms ask of the replay buffer grows, so nothing here names a field of ``Draw`` or
``Batch``; see ``comms.trees``.

Arrays of a batch that was received may be written to, as those of a local one: they are views of
a buffer that nobody else has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from comms.trees import plain, typed, untyped
from user_system.codec import arrays
from user_system.core import errors
from user_system.core.errors import SpecError, StoreError, UserSystemError
from user_system.core.interfaces import Draw, NotReady
from user_system.core.priorities import checked
from user_system.core.types import Array, Batch

SHARD = "shard"
"""Metadata of a call: the host whose own shard it wants; none: what the reader keeps itself."""

MAX_ASK = 64 << 10
"""Bytes of one request."""

MAX_OPEN = 8 << 20
"""Bytes of what begins a session: seed, views and state."""

MAX_VIEWS = 64
"""Views of its own that a learner may bring; each takes memory at the reader once it is drawn."""

_MAX_TEXT = 16 << 10

State = Mapping[str, Any]

Masses = Mapping[str, tuple[int, float]]
"""Class -> (steps, weight), of one view."""

_KINDS: Mapping[str, type[Exception]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, UserSystemError)
} | {NotReady.__name__: NotReady}


@dataclass(frozen=True, slots=True)
class Opening:
    """What a window on the replay buffer is made with; see ``replay.sampler.ReplayData``."""

    seed: int = 0
    schema: str | None = None
    follow: bool = True
    views: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further views: name -> clauses, as in a manifest."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the other side said; at most one of batch, count, names, error and skipped."""

    state: State | None = None
    """As of after this answer."""
    batch: Batch | None = None
    count: int | None = None
    names: Sequence[str] | None = None
    """Behind the codes of columns."""
    masses: Mapping[str, Masses] | None = None
    new: bool = False
    """Whether there was anything new to take in."""
    rebuilt: bool = False
    """Whether the session was made anew, so that it knows no priorities."""
    error: Exception | None = None
    skipped: bool = False
    size: int = 0
    """Bytes."""


# --- messages -------------------------------------------------------------------------------------


def encode_opening(opening: Opening, state: State | None) -> bytes:
    """Return what begins a session.

    Raises:
        SpecError: the state is too large to send.
    """
    blocks: dict[str, Array] = {}
    meta = {"opening": plain(opening, blocks), "state": plain(state, blocks)}
    return _limited(arrays.pack(meta, blocks), MAX_OPEN, "the beginning of a session")


def decode_opening(content: bytes) -> tuple[Opening, State | None]:
    """Return what ``encode_opening`` wrote."""
    meta, blocks = arrays.unpack(_limited(content, MAX_OPEN, "the beginning of a session"))
    state = untyped(meta.get("state"), blocks)
    if state is not None and not isinstance(state, Mapping):
        raise SpecError("state of a window", got=type(state).__name__, allowed="a mapping")
    opening: Opening = typed(Opening, meta.get("opening"), blocks, "opening")
    if len(opening.views) > MAX_VIEWS:
        raise SpecError("too many views", got=len(opening.views), allowed=MAX_VIEWS)
    return opening, state


def encode_draw(request: Draw) -> bytes:
    """Return a request; equal ones are equal bytes.

    Raises:
        SpecError: it holds what cannot travel, or too much.
    """
    blocks: dict[str, Array] = {}
    tree = plain(request, blocks)
    return _limited(arrays.pack({"draw": tree}, blocks), MAX_ASK, "a draw")


def decode_draw(content: bytes) -> Draw:
    """Return what ``encode_draw`` wrote.

    Raises:
        SpecError: a field is unknown or of the wrong type; it is named.
    """
    meta, blocks = arrays.unpack(_limited(content, MAX_ASK, "a draw"))
    request: Draw = typed(Draw, meta.get("draw"), blocks, "draw")
    return request


def encode_view(name: str) -> bytes:
    """Return the name of a view to count."""
    return _limited(arrays.pack({"view": name}, {}), MAX_ASK, "a view")


def decode_view(content: bytes) -> str:
    """Return what ``encode_view`` wrote."""
    meta, _ = arrays.unpack(_limited(content, MAX_ASK, "a view"))
    name: str = typed(str, meta.get("view"), {}, "view")
    return name


def encode_priorities(ids: Array, values: Array) -> bytes:
    """Return priorities ``[N]`` float32 of steps ``[N]`` uint64."""
    return _limited(arrays.pack({}, {"ids": ids, "values": values}), MAX_ASK, "priorities")


def decode_priorities(content: bytes) -> tuple[Array, Array]:
    """Return what ``encode_priorities`` wrote, checked.

    Raises:
        SpecError: these are none.
    """
    _, blocks = arrays.unpack(_limited(content, MAX_ASK, "priorities"))
    if blocks.keys() != {"ids", "values"}:
        raise SpecError("priorities", got=sorted(blocks), allowed="ids, values")
    return checked(blocks["ids"], blocks["values"])


def encode_batch(batch: Batch, state: State) -> bytes:
    """Return a batch as an answer.

    Raises:
        SpecError: an array of a dtype that may not travel.
    """
    blocks: dict[str, Array] = {}
    tree = {"state": plain(state, blocks), "batch": plain(batch, blocks)}
    return arrays.pack(tree, blocks)


def encode_error(error: Exception, state: State | None) -> bytes:
    """Return an error as an answer; its class and text arrive unchanged."""
    kind = next((k.__name__ for k in type(error).__mro__ if k.__name__ in _KINDS), "")
    blocks: dict[str, Array] = {}
    tree = {"kind": kind, "text": str(error)[:_MAX_TEXT]}
    return arrays.pack({"state": plain(state, blocks), "error": tree}, blocks)


def encode_count(count: int) -> bytes:
    """Return how many steps a view holds as an answer."""
    return arrays.pack({"count": count}, {})


def encode_names(names: Sequence[str]) -> bytes:
    """Return the names behind the codes of columns as an answer."""
    return arrays.pack({"names": list(names)}, {})


def encode_masses(masses: Mapping[str, Masses]) -> bytes:
    """Return what a draw would draw from as an answer."""
    views = {view: {c: list(m) for c, m in of.items()} for view, of in masses.items()}
    return arrays.pack({"masses": views}, {})


def encode_state(state: State, *, rebuilt: bool = False, new: bool = False) -> bytes:
    """Return the answer to what changed a window, or to the beginning of a session."""
    blocks: dict[str, Array] = {}
    tree = {"state": plain(state, blocks), "rebuilt": rebuilt, "new": new}
    return arrays.pack(tree, blocks)


SKIPPED = arrays.pack({"skipped": True}, {})
"""The answer to an ask ahead that was not met."""


def decode_answer(buffer: Array, max_bytes: int = arrays.MAX_BYTES) -> Answer:
    """Return an answer whose arrays are writable views of ``buffer`` ``[N]`` uint8.

    Raises:
        DamageError: these are not the bytes that were sent.
        SpecError: it holds what is not known here.
    """
    meta, found = arrays.unpack(buffer.data, max_bytes=max_bytes)
    blocks = {name: _writable(array, buffer) for name, array in found.items()}
    tree, failed = meta.get("batch"), meta.get("error")
    return Answer(
        state=untyped(meta.get("state"), blocks),
        batch=None if tree is None else typed(Batch, tree, blocks, "batch"),
        count=typed(int | None, meta.get("count"), {}, "count"),
        masses=_masses(meta.get("masses")),
        names=typed(Sequence[str] | None, meta.get("names"), {}, "names"),
        new=bool(meta.get("new")),
        rebuilt=bool(meta.get("rebuilt")),
        error=None if failed is None else _error(failed),
        skipped=bool(meta.get("skipped")),
        size=len(buffer),
    )


def _masses(tree: Any) -> Mapping[str, Masses] | None:
    """Return masses, where an answer has them."""
    if tree is None:
        return None
    views = typed(Mapping[str, Mapping[str, Sequence[float]]], tree, {}, "masses")
    wrong = [c for of in views.values() for c, m in of.items() if len(m) != 2 or min(m) < 0]
    if wrong:
        raise SpecError("masses", got=", ".join(wrong), allowed="steps and weight of each class")
    return {
        view: {name: (int(steps), float(weight)) for name, (steps, weight) in of.items()}
        for view, of in views.items()
    }


def _error(tree: Mapping[str, str]) -> Exception:
    text = tree["text"]
    error = _KINDS.get(tree["kind"], StoreError)(text)
    error.args = (text,)  # to the letter, as it was raised there
    return error


def _writable(array: Array, buffer: Array) -> Array:
    if not array.size:
        return np.empty(array.shape, array.dtype)
    place = array.__array_interface__["data"][0] - buffer.__array_interface__["data"][0]
    return np.ndarray(array.shape, array.dtype, buffer=buffer.data, offset=place)


def _limited(content: bytes, limit: int, what: str) -> bytes:
    if len(content) > limit:
        raise SpecError(f"{what} is too large to send", got=len(content), allowed=f"{limit} bytes")
    return content
