"""Spoiling a store's file, and knowing which of its fragments that touched."""

import random
import struct
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

PAGE = 4096
_FLAGS = struct.Struct("<8xHHI")  # page number, (pad), flags, pages of an overflow run
_BRANCH, _LEAF, _OVERFLOW, _META = 1, 2, 4, 8
KINDS = ("bit flip", "zeroed page", "random page", "truncation")
PLACES = ("anywhere", "anywhere", "tree", "books")
"""Anywhere in the file; in a page of LMDB's trees; in an entry of a small table. One of twenty
damages hits the first two pages (meta)."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Damage:
    """What was done to a file: its bytes ``[start, end)`` are not what they were."""

    kind: str
    place: str
    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.kind} ({self.place}) at {self.start}..{self.end}"


def plan(count: int) -> list[tuple[str, str]]:
    """Return (kind, place) of so many damages: half anywhere, the rest where it hurts most."""
    allowed = {"anywhere": KINDS, "tree": KINDS[:3], "meta": KINDS[:3], "books": KINDS[:1]}
    chosen = []
    for number in range(count):
        place = "meta" if number % 20 == 19 else PLACES[number % 4]
        kinds = allowed[place]
        chosen.append((kinds[number // len(PLACES) % len(kinds)], place))
    return chosen


def inject(
    file: Path, kind: str, place: str, rng: random.Random, books: list[list[Span]]
) -> Damage:
    """Spoil a file in place; ``books`` are where the entries of each small table lie."""
    data = bytearray(file.read_bytes())
    if kind == "truncation":
        size = rng.randrange(len(data))
        with file.open("r+b") as handle:
            handle.truncate(size)
        return Damage(kind, place, size, len(data))
    if place == "books":
        start, end = rng.choice(rng.choice(books))
    else:
        start = PAGE * rng.choice(pages(data, place))
        end = start + PAGE
    if kind == "bit flip":
        start = rng.randrange(start, end)
        end = start + 1
        data[start] ^= 1 << rng.randrange(8)
    elif kind == "zeroed page":
        data[start:end] = bytes(PAGE)
    else:
        data[start:end] = rng.randbytes(PAGE)
    file.write_bytes(data)
    return Damage(kind, place, start, end)


def pages(data: bytes, place: str) -> list[int]:
    """Return the numbers of the pages of a place."""
    if place == "meta":
        return [0, 1]
    count = len(data) // PAGE
    if place == "anywhere":
        return list(range(count))
    found, number = [], 2
    while number < count:
        _, flags, run = _FLAGS.unpack_from(data, number * PAGE)
        if flags & (_BRANCH | _LEAF) and not flags & _OVERFLOW:
            found.append(number)
        number += max(1, run) if flags & _OVERFLOW and run < count else 1
    return found


class Whereabouts:
    """Which bytes of a file hold which record of the log.

    Args:
        spans: record -> where its bytes and those of its images lie.
    """

    def __init__(self, spans: dict[int, list[Span]]):
        self._spans = spans

    def untouched(self, damage: Damage) -> set[int]:
        """Return the records of which no byte is spoiled."""
        return {
            record
            for record, spans in self._spans.items()
            if not any(start < damage.end and damage.start < end for start, end in spans)
        }


def whereabouts(data: bytes, values: list[tuple[int, bytes]]) -> Whereabouts:
    """Find the values of (record, bytes) in a file."""
    spans: dict[int, list[Span]] = defaultdict(list)
    for record, value in values:
        spans[record] += places(data, value)
    return Whereabouts(dict(spans))


def places(data: bytes, value: bytes) -> list[Span]:
    """Return where in a file some bytes are, at least once.

    Pages that were written again leave copies behind, so all places of a value count as its own.
    """
    found, at = [], data.find(value)
    if at < 0:
        raise AssertionError(f"{value[:40]!r} is not in the file")
    while at >= 0:
        found.append((at, at + len(value)))
        at = data.find(value, at + 1)
    return found
