"""Whether the tree in a data file can be walked, found out without LMDB.

LMDB trusts its pages: one that is not what its parent says ends the process, by an assertion or by
an address that is none. So every branch and leaf page of the newest tree is looked at with plain
reads before LMDB maps the file: its number, its kind, the order of its parts, and that each node
lies within it and points to pages that exist. What the values hold is for their checksums to say,
and whether a large one begins where it should for whoever reads or deletes it (``mapped``).

Pages are looked at a few megabytes at a time (``nearby``), as arrays: half a million take half a
second once the file has been read.

LMDB 0.9: a meta page holds two records of trees, of the free pages and of the tables; a table is a
value of the latter that holds such a record. A record is padding (4 bytes), flags (2), depth (2),
then branch, leaf and overflow pages, entries and root page (8 each).
"""

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np

from user_system.core.errors import DamageError, StoreError
from user_system.core.types import Array
from user_system.replay.datafile import DataFile
from user_system.replay.mapped import PAGE
from user_system.replay.nearby import Nearby, Part

_HEADER = 16
_BRANCH, _LEAF = 0x01, 0x02
"""All flags of such a page: others are of pages in memory, or of tables that we have none of."""
_CHILDREN = 2
"""Of a branch at least: LMDB leaves none with fewer, and ends the process where it meets one."""
_BIG, _TABLE = 0x01, 0x02
_NODE = 8
_RECORD = struct.Struct("<IHHQQQQQ")
_FREE, _MAIN = 40, 88
"""Where in a meta page the two records are."""
_LAST = 136
_FIRST = 2
"""Page after the meta pages."""
_NONE = (1 << 64) - 1
_FEW = 512
"""Branch pages of a level up to which they may stay in the page cache."""
_MOST = 8
"""Depth that no tree of ours reaches: a thousand million million pages."""

_Record = tuple[int, ...]


class _Nodes(NamedTuple):
    """All nodes of some pages; int64 ``[N]`` each."""

    start: Array
    """Byte among those of the pages."""
    room: Array
    """Bytes from there to the end of its page."""
    low: Array
    high: Array
    flags: Array
    key: Array
    """Bytes of the key."""


def check(file: Path) -> list[str]:
    """Return what is wrong with the newest tree of a data file; empty: it can be walked.

    Args:
        file: at least as long as its meta pages say.

    Raises:
        StoreError: this machine cannot look at it now, which says nothing about the file.
    """
    try:
        data = DataFile(file)
        try:
            _walk(data, file.stat().st_size // PAGE)
        finally:
            data.close()
    except DamageError as error:
        return [error.what]
    except OSError as error:
        raise StoreError(f"cannot read {file}", got=error) from error
    return []


def _walk(data: DataFile, pages: int) -> None:
    """Look at all pages of the newest tree.

    Raises:
        DamageError: at the first one that is not what it should be.
    """
    metas = [bytes(data.read(i * PAGE, PAGE)) for i in (0, 1)]
    newest = max(metas, key=lambda meta: struct.unpack_from("<Q", meta, _LAST + 8)[0])
    end = min(struct.unpack_from("<Q", newest, _LAST)[0] + 1, pages)
    trees: list[_Record] = [_RECORD.unpack_from(newest, at) for at in (_FREE, _MAIN)]
    with Nearby(data, pages) as nearby:
        while trees:
            # The leaves of all together: tables grow side by side, so their pages lie mixed.
            leaves = _ascending([_leaves(tree, nearby, end) for tree in trees])
            trees = []
            for part in nearby.read(leaves, keep=True):
                nodes = _nodes(part, _LEAF)
                _require_values(nodes, part.space, end)
                trees += _tables(nodes, part.space)


def _leaves(tree: _Record, nearby: Nearby, end: int) -> Array:
    """Return the numbers of the leaf pages of a tree ``[N]`` int64.

    Args:
        tree: its record.
        nearby: reads pages.
        end: first page that is not in use.

    Raises:
        DamageError: a page above them is not what it should be, or points to what is not there.
    """
    depth, root = tree[2], tree[7]
    if root == _NONE:
        return np.empty(0, np.int64)
    if not 1 <= depth <= _MOST or not _FIRST <= root < end:
        raise DamageError(f"a tree begins at page {root} with depth {depth}")
    level = np.array([root], np.int64)
    for _ in range(depth - 1):
        children = []
        # A large level is of records; small ones are what LMDB walks next, to find images.
        for part in nearby.read(level, keep=len(level) < _FEW):
            nodes = _nodes(part, _BRANCH)
            children.append(nodes.low | nodes.high << 16 | nodes.flags << 32)
        level = _ascending(children)
        if (level < _FIRST).any() or (level >= end).any():
            raise DamageError(f"page {int(level[-1])} is pointed to and is not there")
    return level


def _ascending(numbers: list[Array]) -> Array:
    """Return the numbers of pages, joined ``[N]``.

    Raises:
        DamageError: one is there twice.
    """
    joined = np.sort(np.concatenate(numbers))
    twice = np.flatnonzero(joined[1:] == joined[:-1])
    if len(twice):
        raise DamageError(f"page {int(joined[twice[0]])} is pointed to twice")
    return joined


def _nodes(part: Part, kind: int) -> _Nodes:
    """Return the nodes of pages that should all be of one kind.

    Raises:
        DamageError: one of them is not such a page, or a node is not where it can be.
    """
    heads = part.space.view("<u8")[part.places, : _HEADER // 8]
    flags, lower, upper = heads.view("<u2")[:, 5:].astype(np.int64).T
    sound = (heads[:, 0] == part.numbers.astype(np.uint64)) & (flags == kind)
    sound &= (lower >= _HEADER) & (lower % 2 == 0) & (lower <= upper) & (upper <= PAGE)
    sound &= (lower >= _HEADER + 2 * _CHILDREN) | (kind == _LEAF)
    if not sound.all():
        bad = part.numbers[~sound]
        raise DamageError(f"page {int(bad[0])} of its tree is not one ({len(bad)} pages)")
    counts = (lower - _HEADER) // 2
    page = np.repeat(part.places * PAGE, counts)
    within = np.arange(len(page)) - np.repeat(np.cumsum(counts) - counts, counts)
    words = part.space.view("<u2").reshape(-1)
    offset = words[page // 2 + _HEADER // 2 + within].astype(np.int64)
    # LMDB places every node at an even byte.
    if ((offset < np.repeat(upper, counts)) | (offset > PAGE - _NODE) | (offset % 2 != 0)).any():
        raise DamageError("a node lies outside its page")
    start, room = page + offset, PAGE - offset
    parts = words[start[:, None] // 2 + np.arange(_NODE // 2)].astype(np.int64)
    low, high, marks, key = parts.T
    if (_NODE + key > room).any():
        raise DamageError("a key ends outside its page")
    return _Nodes(start, room, low, high, marks, key)


def _require_values(nodes: _Nodes, space: Array, end: int) -> None:
    """Look where the values of leaf nodes lie.

    Raises:
        DamageError: one lies where none can.
    """
    size = nodes.low | nodes.high << 16
    big = nodes.flags & _BIG != 0
    data = _NODE + nodes.key
    outside = data + np.where(big, 8, size) > nodes.room
    if outside.any() or (nodes.flags & ~(_BIG | _TABLE)).any():
        raise DamageError("a value ends outside its page")
    at = (nodes.start + data)[big]
    first = space.reshape(-1)[at[:, None] + np.arange(8)].view("<u8")[:, 0]
    length = -(-(size[big] + _HEADER) // PAGE).astype(np.uint64)
    if ((first < _FIRST) | (first >= end) | (first + length > end)).any():
        raise DamageError("a large value lies outside the file")


def _tables(nodes: _Nodes, space: Array) -> list[_Record]:
    """Return the records of the tables that leaf nodes hold."""
    data = _NODE + nodes.key
    held = (nodes.flags & _TABLE != 0) & (data + _RECORD.size <= nodes.room)
    bytes_of = space.reshape(-1).data
    return [_RECORD.unpack_from(bytes_of, at) for at in (nodes.start + data)[held].tolist()]
