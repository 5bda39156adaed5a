"""A file system of a process's own, so that filling it harms nobody."""

import ctypes
import os
from pathlib import Path

_NEWNS, _NEWUSER = 0x00020000, 0x10000000
_PRIVATE, _RECURSIVE = 1 << 18, 1 << 14


def tiny_disk(place: Path, size: int) -> None:
    """Mount a file system of ``size`` bytes at ``place``, which only this process sees.

    Raises:
        OSError: this process may not; say so and skip.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_NEWNS) != 0:
        _check(libc.unshare(_NEWUSER | _NEWNS), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _check(libc.mount(b"none", b"/", None, _PRIVATE | _RECURSIVE, None), "mount --make-private")
    place.mkdir(parents=True, exist_ok=True)
    options = f"size={size}".encode()
    _check(libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, options), "mount a tmpfs")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"may not {what}: {os.strerror(number)}")
