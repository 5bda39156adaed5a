"""What the kernel knows of this process's own connections: segments sent, and sent again.

gRPC and ZeroMQ give their sockets to nobody, but a process may look at its own file descriptors.
A connection through somebody else's tunnel is one to this very host, whose kernel loses nothing:
what the tunnel's own connection loses is not seen from here, and then nothing is said about it.
"""

import os
import socket
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import NamedTuple

_TOTAL_RETRANS, _DATA_SEGS_OUT, _LEAST_BYTES = 100, 156, 160
"""Offsets in ``struct tcp_info`` of linux/tcp.h (Linux 4.6 and newer), and what it must hold."""


class Segments(NamedTuple):
    """Of all connections together, since each was made."""

    sent: int
    """With data, those sent again included."""
    again: int


def segments(ports: Collection[int]) -> dict[int, Segments]:
    """Return what was sent by each TCP connection of this process to one of ``ports``.

    Returns:
        Inode of the socket -> its segments; {}: none can be looked at.
    """
    found = {}
    for one in own(ports):
        counted = _segments(one)
        if counted is not None:
            found[os.fstat(one.fileno()).st_ino] = counted
    return found


def own(ports: Collection[int]) -> Iterator[socket.socket]:
    """Yield the TCP connections of this process to one of ``ports``, each open until the next."""
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # closed meanwhile, or not connected
            if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                with _copy(int(name)) as one:
                    if one.type == socket.SOCK_STREAM and _port(one) in ports:
                        yield one


def _copy(descriptor: int) -> socket.socket:
    copy = os.dup(descriptor)
    try:
        return socket.socket(fileno=copy)
    except OSError:  # another file has its number by now
        os.close(copy)
        raise


def _port(one: socket.socket) -> int | None:
    """Return the port at the other end of a TCP connection; None: it is another kind of socket."""
    internet = one.family in (socket.AF_INET, socket.AF_INET6)
    return int(one.getpeername()[1]) if internet else None


def _segments(one: socket.socket) -> Segments | None:
    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < _LEAST_BYTES:
        return None  # an older kernel, which does not count them
    (again,) = struct.unpack_from("=I", info, _TOTAL_RETRANS)
    (sent,) = struct.unpack_from("=I", info, _DATA_SEGS_OUT)
    return Segments(sent, again)
