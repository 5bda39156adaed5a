"""Large pages in the page cache for what LMDB is about to append.

The kernel caches a file in pieces as large as what was written or read at once, and maps a piece of
2 MiB as one page. Commits of a megabyte make small pieces, and copying images out of these takes 6
to 9 % longer: every 4 KiB are an entry of the page table, nested in a virtual machine. So the part
of the file that comes next is read before anything is in it, through a map that asks for large
pages. It is a hole: nothing is read from the disk, and the disk is not any fuller for it, unless it
is memory itself (tmpfs).

Touching a page that cannot be had, because the disk fails or a tmpfs is full, ends a process. So
the kernel is asked to read it, which then is an error. Linux can do that from 5.14 on.

What was dropped from the page cache comes back in whatever pieces it is read in.
"""

import logging
import mmap
import os
from pathlib import Path

log = logging.getLogger(__name__)

PIECE = 2 << 20
"""Bytes of a large page."""

LEAD = 4 << 20
"""Bytes that are ready at least: one commit of the ingest."""

FROM = 16 << 20
"""Size of a file from which on it is worth it."""

_POPULATE_READ = 22
"""``MADV_POPULATE_READ``, which Python does not name."""


class Ahead:
    """Keeps the part of a file behind its end ready. Only while LMDB writes nothing.

    Args:
        file: LMDB's data file. LMDB does not mind that it is longer than it wrote it.
    """

    def __init__(self, file: Path):
        self._file = file
        self._handle = -1
        self._ready = 0
        self.pieces = 0
        """Made ready."""

    def open(self) -> None:
        """Take the file that is there now: later another one may have its name."""
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return
        try:
            self._handle = os.open(self._file, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Let go of it; safe to repeat."""
        if self._handle >= 0:
            os.close(self._handle)
        self._handle, self._ready = -1, 0

    def keep(self, end: int) -> None:
        """Have what follows ``end`` ready; no more than a favour to readers, so it never fails.

        Args:
            end: bytes of the file that LMDB counts on.
        """
        if self._handle < 0 or end < FROM or end + LEAD <= self._ready:
            return
        try:
            self._prepare(end)
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.close()
        log.warning("%s gets no large pages: draws will be slower: %s", self._file, error)

    def _prepare(self, end: int) -> None:
        first, last = -(-max(end, self._ready) // PIECE), -(-(end + LEAD) // PIECE)
        # Nobody else makes it longer between these two: it would be cut.
        if os.fstat(self._handle).st_size < last * PIECE:
            os.ftruncate(self._handle, last * PIECE)
        for piece in range(first, last):
            place = {"offset": piece * PIECE, "prot": mmap.PROT_READ}
            with mmap.mmap(self._handle, PIECE, mmap.MAP_SHARED, **place) as mapped:
                mapped.madvise(mmap.MADV_HUGEPAGE)
                mapped.madvise(_POPULATE_READ, 0, mmap.PAGESIZE)
            self.pieces += 1
        self._ready = last * PIECE
