"""What it takes to join the fragments of an episode: whether one continues the other, and how."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from user_system.codec import fragments
from user_system.core.types import Array, Fragment, FragmentHeader, Stream

SAME = ("run", "task", "robot", "purpose", "schema", "embodiment", "boot")
"""What the headers of joined fragments share."""


PADDED_BYTES = 64 << 20
"""Of one extra in one episode, up to which it has a value for every step, recorded or not."""


class Piece(NamedTuple):
    """One recorded fragment of an episode."""

    header: FragmentHeader
    offset: int
    """Its number in the log."""
    first: int
    """Row of its first step within the episode's arrays."""
    steps: int
    rows: int
    """Observations: as many as steps, one more where the episode ends."""
    extras: frozenset[str]
    streams: Mapping[str, int]
    """Stream -> how many of its samples are of this fragment."""


class Joint:
    """The open end of the fragments joined so far."""

    def __init__(self) -> None:
        self._last: Fragment | None = None
        self._forms: dict[str, tuple[Any, ...]] = {}
        self._stamps: dict[str, int] = {}

    def refuses(self, fragment: Fragment) -> str:
        """Return why a fragment is not the next one: ``gaps`` or ``breaks``; empty if it is."""
        last = self._last
        if last is None:
            return ""
        header, before = fragment.header, last.header
        if header.start > before.start + len(last) and not last.final:
            return "gaps"
        fits = (
            header.start == before.start + len(last)
            and not last.final
            and all(getattr(header, name) == getattr(before, name) for name in SAME)
            and fragment.robot_ns[0] > last.robot_ns[-1]
            and all(self._forms.get(n, form) == form for n, form in _forms(fragment).items())
            and all(self._stamps.get(n, first) <= first for n, first, _ in _spans(fragment))
        )
        return "" if fits else "breaks"

    def take(self, fragment: Fragment) -> None:
        """Join it."""
        self._last = fragment
        self._forms |= _forms(fragment)
        self._stamps |= {name: last for name, _, last in _spans(fragment)}


def _forms(fragment: Fragment) -> dict[str, tuple[Any, ...]]:
    """Return dtype and shape of a row of every extra and stream."""
    named = {f"x/{name}": values for name, values in fragment.extras.items()}
    named |= {f"v/{name}": stream.values for name, stream in fragment.streams.items()}
    return {name: (values.dtype, values.shape[1:]) for name, values in named.items()}


def _spans(fragment: Fragment) -> list[tuple[str, int, int]]:
    """Return (stream, first stamp, last stamp) of those that have samples."""
    streams = fragment.streams.items()
    return [(n, int(s.stamps[0]), int(s.stamps[-1])) for n, s in streams if len(s.stamps)]


def pieces(joined: Sequence[tuple[int, Fragment]], extras: Collection[str]) -> tuple[Piece, ...]:
    """Return what each of the fragments, given with their numbers in the log, is of the whole.

    Args:
        joined: number and fragment of each.
        extras: those that the whole has.
    """
    found: list[Piece] = []
    first = 0
    for offset, fragment in joined:
        counts = {name: len(stream.stamps) for name, stream in fragment.streams.items()}
        sizes = first, len(fragment), len(fragment.robot_ns)
        named = frozenset(fragment.extras) & frozenset(extras)
        found.append(Piece(fragment.header, offset, *sizes, named, counts))
        first += len(fragment)
    return tuple(found)


def columns(joined: Sequence[Fragment]) -> tuple[tuple[str, ...], dict[str, Array]]:
    """Return the common string table and the columns, without what labels say."""
    codes: dict[str, int] = {"": 0}
    found: dict[str, list[Array]] = {name: [] for name in fragments.COLUMNS}
    for fragment in joined:
        names = [codes.setdefault(name, len(codes)) for name in fragment.header.names]
        for name, parts in found.items():
            values = getattr(fragment, name)[: len(fragment)]
            coded = name in ("policy", "operator")
            parts.append(np.array(names, np.int32)[values] if coded else values)
    whole = {name: np.concatenate(parts) for name, parts in found.items()}
    return tuple(codes), {**whole, "recorded_reward": whole["reward"]}


def extras(joined: Sequence[Fragment]) -> dict[str, Array]:
    """Return the extras of all fragments; those who lack one have NaN, or 0, there.

    One that is large and that few steps have is left out: see ``sparse``.
    """
    left_out = sparse(joined)
    forms = {n: (v.dtype, v.shape[1:]) for f in joined for n, v in f.extras.items()}
    found: dict[str, Array] = {}
    for name, (dtype, tail) in forms.items():
        if name in left_out:
            continue
        found[name] = np.full((sum(map(len, joined)), *tail), _missing(dtype), dtype)
        first = 0
        for fragment in joined:
            if name in fragment.extras:
                found[name][first : first + len(fragment)] = fragment.extras[name]
            first += len(fragment)
    return found


def sparse(joined: Sequence[Fragment]) -> frozenset[str]:
    """Return the extras that would take far more memory for all steps than what was recorded."""
    recorded: Counter[str] = Counter()
    whole: dict[str, int] = {}
    steps = sum(map(len, joined))
    for fragment in joined:
        for name, values in fragment.extras.items():
            recorded[name] += values.nbytes
            whole[name] = values[:1].nbytes * steps
    return frozenset(n for n, size in whole.items() if size > max(2 * recorded[n], PADDED_BYTES))


def _missing(dtype: "np.dtype[Any]") -> float:
    return np.nan if dtype.kind == "f" else 0


def streams(joined: Sequence[Fragment]) -> dict[str, Stream]:
    """Return the samples of all fragments, by stream."""
    parts: dict[str, list[Stream]] = {}
    for fragment in joined:
        for name, stream in fragment.streams.items():
            parts.setdefault(name, []).append(stream)
    return {
        name: Stream(
            np.concatenate([s.stamps for s in found]), np.concatenate([s.values for s in found])
        )
        for name, found in parts.items()
    }
