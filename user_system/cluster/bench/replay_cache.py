"""The page cache: taking the files of one directory out of it, and looking whether they are gone.

Nothing else is dropped: neither other files nor the kernel's own memory. A page that some process
has mapped stays, so nobody may have the directory open. Below a virtual machine's disk there may be
another cache, which this does not reach.
"""

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_TRIES = 3


def drop(directory: Path) -> float:
    """Write a directory's files to disk and drop their pages; return the share that stayed."""
    share = 1.0
    for _ in range(_TRIES):
        for handle in _handles(directory):
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        share = resident(directory)
        if share == 0.0:
            break
    return share


def resident(directory: Path) -> float:
    """Return which share of the pages of a directory's files is in memory."""
    pages = there = 0
    for handle in _handles(directory):
        size = os.fstat(handle).st_size
        if not size:
            continue
        found = _in_core(handle, size)
        pages, there = pages + len(found), there + int((found & 1).sum())
    return there / max(pages, 1)


def disk_bytes(directory: Path) -> int:
    """Return how many bytes of the disk a directory's files take."""
    return sum(os.fstat(handle).st_blocks * 512 for handle in _handles(directory))


def _in_core(handle: int, size: int) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    """Return a number per page of a file, odd where it is in memory; touches none of them."""
    found = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(handle, size, prot=mmap.PROT_READ) as mapped:
        view = np.frombuffer(mapped, np.uint8)
        failed = libc.mincore(
            ctypes.c_void_p(view.ctypes.data),
            ctypes.c_size_t(size),
            ctypes.c_void_p(found.ctypes.data),
        )
        del view  # the map cannot be closed before
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return found


def _handles(directory: Path) -> Iterator[int]:
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield handle
            finally:
                os.close(handle)
