"""Network namespaces and TUN devices, by descriptor: nothing here has a name on the machine."""

import ctypes
import fcntl
import os
import struct

from user_system.core.errors import MissingError

CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_OWN = "/proc/thread-self/ns/net"

libc = ctypes.CDLL(None, use_errno=True)


def enter(descriptor: int) -> None:
    """Move the calling thread into a network namespace.

    Raises:
        OSError: it may not.
    """
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter a network namespace")


def make_namespace() -> int:
    """Make a network namespace and return a descriptor of it; the caller stays where it is."""
    here = os.open(_OWN, os.O_RDONLY)
    try:
        if libc.unshare(CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise MissingError(
                "cannot make a network namespace",
                got=os.strerror(number),
                todo="Run as root, or under `unshare -Urn` where the kernel permits it.",
            )
        return os.open(_OWN, os.O_RDONLY)
    finally:
        enter(here)
        os.close(here)


def open_tun(descriptor: int, name: str) -> int:
    """Make a TUN device in a namespace; return the descriptor that moves its packets."""
    here = os.open(_OWN, os.O_RDONLY)
    try:
        enter(descriptor)
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
        fcntl.ioctl(device, _TUNSETIFF, request)
        return device
    finally:
        enter(here)
        os.close(here)
