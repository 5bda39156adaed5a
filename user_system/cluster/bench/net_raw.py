"""What TCP itself makes of a link: the same bytes at the same pace, one byte back for each record.

No protocol on TCP acknowledges sooner over the same link. The sockets belong to the hosts of a lab,
the threads to the benchmark.
"""

import socket
import threading
import time
from contextlib import closing

from user_system.cluster.lab import Lab
from user_system.core.clock import SECOND, WallClock
from user_system.core.errors import LinkError

_DRAIN_S = 30.0


def echo(lab: Lab, port: int, hz: float, size: int, seconds: float) -> list[float]:
    """Return how long each answer took, s.

    Raises:
        LinkError: the link took less than was sent.
    """
    server = lab.head.within(lambda: socket.create_server((lab.head.address, port)))
    with server:
        call = lab.edge.within(lambda: socket.create_connection((lab.head.address, port), 30.0))
        peer, _ = server.accept()
    with call, closing(peer):
        for sock in (call, peer):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(_DRAIN_S)
        threading.Thread(target=_answer, args=(peer, size), daemon=True).start()
        submitted: list[int] = []
        count = int(hz * seconds)
        sender = threading.Thread(target=_send, args=(call, submitted, count, hz, size))
        sender.start()
        answered: list[int] = []
        try:
            while len(answered) < count:
                came = len(call.recv(4096))
                answered += [time.monotonic_ns()] * came
        except TimeoutError:
            raise LinkError(f"TCP itself did not carry {hz:g} x {size} bytes a second") from None
        sender.join()
    return [(b - a) / SECOND for a, b in zip(submitted, answered, strict=True)]


def _send(call: socket.socket, submitted: list[int], count: int, hz: float, size: int) -> None:
    clock, due, data = WallClock(), time.monotonic_ns(), b"." * size
    for _ in range(count):
        clock.sleep_until(due)
        submitted.append(time.monotonic_ns())
        call.sendall(data)
        due += int(SECOND / hz)


def _answer(peer: socket.socket, size: int) -> None:
    """Answer each record with a byte, until the other side hangs up."""
    buffer, got = bytearray(1 << 16), 0
    try:
        while part := peer.recv_into(buffer):
            got += part
            while got >= size:
                got -= size
                peer.sendall(b"!")
    except OSError:
        return  # the other side has what it wanted, or says itself that it has not
