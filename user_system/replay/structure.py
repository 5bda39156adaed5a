"""Whether the tree in a data file can be walked, found out without LMDB.

LMDB trusts its pages: one that is not what its parent says ends the process, by an assertion or by
an address that is none. So every branch and leaf page of the newest tree is looked at with plain
reads before LMDB maps the file: its number, its kind, the order of its parts, and that each node
lies within it and points to pages that exist. What the values hold is for their checksums to say,
and whether a large one begins where it should for whoever reads or deletes it (``mapped``).

Pages of one level are looked at together, as arrays: half a million take a second.

LMDB 0.9: a meta page holds two records of trees, of the free pages and of the tables; a table is a
value of the latter that holds such a record. A record is padding (4 bytes), flags (2), depth (2),
then branch, leaf and overflow pages, entries and root page (8 each).
"""

import contextlib
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from user_system.core.types import Array
from user_system.replay.mapped import PAGE

_HEADER = 16
_BRANCH, _LEAF = 0x01, 0x02
_BIG, _TABLE = 0x01, 0x02
_NODE = 8
_RECORD = struct.Struct("<IHHQQQQQ")
_FREE, _MAIN = 40, 88
"""Where in a meta page the two records are."""
_LAST = 136
_NONE = (1 << 64) - 1
_MANY = 0.2
"""Share of leaf pages from which on a pass over the file is quicker than picking."""
_POPULATE = 22
"""``MADV_POPULATE_READ``, which Python does not name."""
_MOST = 8
"""Depth that no tree of ours reaches: a thousand million million pages."""


class _Nodes(NamedTuple):
    """All nodes of some pages; a row each."""

    page: Array
    start: Array
    """Within the page."""
    low: Array
    high: Array
    flags: Array
    key: Array
    """Bytes of the key."""


def check(file: Path) -> list[str]:
    """Return what is wrong with the newest tree of a data file; empty: it can be walked.

    Args:
        file: at least as long as its meta pages say.
    """
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, prot=mmap.PROT_READ) as view:
        # A tree of large values is a few pages far apart: reading ahead would read the values.
        view.madvise(mmap.MADV_RANDOM)
        pages = np.frombuffer(view, np.uint8, len(view) // PAGE * PAGE).reshape(-1, PAGE)
        try:
            return list(_Tree(pages, view).wrong())
        finally:
            del pages


class _Tree:
    """The pages of one file, and how many of them its newest meta page counts on."""

    def __init__(self, pages: Array, view: mmap.mmap):
        self._pages = pages
        self._view = view
        metas = [bytes(pages[i]) for i in (0, 1)]
        newest = max(metas, key=lambda meta: struct.unpack_from("<Q", meta, _LAST + 8)[0])
        self._records = [_RECORD.unpack_from(newest, at) for at in (_FREE, _MAIN)]
        self._end = min(struct.unpack_from("<Q", newest, _LAST)[0] + 1, len(pages))

    def wrong(self) -> Iterator[str]:
        """Yield what is wrong."""
        todo = list(self._records)
        while todo:
            record = todo.pop()
            depth, root = record[2], record[7]
            if root == _NONE:
                continue
            if not 1 <= depth <= _MOST or root >= self._end:
                yield f"a tree begins at page {root} with depth {depth}"
                continue
            level = np.array([root], np.int64)
            for deep in range(depth):
                leaf = deep == depth - 1
                found = self._bad_pages(level, _LEAF if leaf else _BRANCH)
                if found:
                    yield found
                    break
                nodes = self._nodes(level)
                if isinstance(nodes, str):
                    yield nodes
                    break
                if not leaf:
                    level = nodes.low | nodes.high << 16 | nodes.flags << 32
                    if (level >= self._end).any() or (level < 2).any():
                        yield f"page {int(level.max())} is pointed to and is not there"
                        break
                    continue
                wrong = self._bad_values(nodes)
                if wrong:
                    yield wrong
                tables = self._tables(nodes)
                self._prepare(tables)
                todo += tables

    def _bad_pages(self, level: Array, kind: int) -> str:
        """Return what is wrong with the headers of the pages of one level."""
        heads = self._pages[level, :_HEADER]
        number = heads[:, :8].copy().view("<u8")[:, 0]
        flags = heads[:, 10:12].copy().view("<u2")[:, 0]
        lower, upper = (heads[:, at : at + 2].copy().view("<u2")[:, 0] for at in (12, 14))
        sound = (number == level.astype(np.uint64)) & (flags & 0x0F == kind)
        sound &= (lower >= _HEADER) & (lower % 2 == 0) & (lower <= upper) & (upper <= PAGE)
        bad = level[~sound]
        return f"page {int(bad[0])} of its tree is not one ({len(bad)} pages)" if len(bad) else ""

    def _nodes(self, level: Array) -> "_Nodes | str":
        """Return the nodes of some sound pages, or what is wrong with where they lie."""
        lower = self._pages[level, 12:14].copy().view("<u2")[:, 0].astype(np.int64)
        upper = self._pages[level, 14:16].copy().view("<u2")[:, 0].astype(np.int64)
        counts = (lower - _HEADER) // 2
        of = np.repeat(np.arange(len(level)), counts)
        at = _HEADER + 2 * (np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts))
        page = level[of]
        start = self._two(page, at)
        if ((start < upper[of]) | (start > PAGE - _NODE)).any():
            return "a node lies outside its page"
        low, high, flags, key = (self._two(page, start + i) for i in (0, 2, 4, 6))
        if (start + _NODE + key > PAGE).any():
            return "a key ends outside its page"
        return _Nodes(page, start, low, high, flags, key)

    def _bad_values(self, nodes: _Nodes) -> str:
        """Return what is wrong with where the values of leaf nodes lie."""
        size = nodes.low | nodes.high << 16
        data = nodes.start + _NODE + nodes.key
        big = nodes.flags & _BIG != 0
        inside = data + np.where(big, 8, size) <= PAGE
        if not inside.all() or (nodes.flags & ~(_BIG | _TABLE)).any():
            return "a value ends outside its page"
        first = self._eight(nodes.page[big], data[big])
        pages = -(-(size[big] + _HEADER) // PAGE)
        if (first < 2).any() or (first + pages > self._end).any():
            return "a large value lies outside the file"
        return ""

    def _prepare(self, tables: list[tuple[int, ...]]) -> None:
        """Have the whole file read where most of it will be wanted."""
        if sum(table[4] for table in tables) > _MANY * self._end:
            self._view.madvise(mmap.MADV_SEQUENTIAL)
            with contextlib.suppress(OSError):  # an older kernel reads as it goes
                self._view.madvise(_POPULATE)

    def _tables(self, nodes: _Nodes) -> list[tuple[int, ...]]:
        """Return the records of the tables that leaf nodes hold."""
        found = []
        for i in np.flatnonzero(nodes.flags & _TABLE).tolist():
            data = int(nodes.start[i] + _NODE + nodes.key[i])
            page = bytes(self._pages[int(nodes.page[i])])
            if data + _RECORD.size <= PAGE:
                found.append(_RECORD.unpack_from(page, data))
        return found

    def _two(self, page: Array, at: Array) -> Array:
        """Return the 16-bit numbers at ``at`` of pages."""
        value: Array = self._pages[page, at].astype(np.int64)
        high: Array = self._pages[page, at + 1].astype(np.int64) << 8
        value |= high
        return value

    def _eight(self, page: Array, at: Array) -> Array:
        """Return the 64-bit numbers at ``at`` of pages, those above 2^62 as -1."""
        value = np.zeros(len(page), np.int64)
        for i in range(8):
            value |= self._pages[page, at + i].astype(np.int64) << (8 * i)
        sane: Array = np.where((value < 0) | (value >= 1 << 62), -1, value)
        return sane
