"""What the machine itself takes: no acknowledgement is faster than its disk and its loopback."""

import os
import socket
import tempfile
import threading
import time
from pathlib import Path

from user_system.cluster.bench.figures import quantile

SIZE = 30 << 10


def sync_ms(directory: Path, count: int) -> list[float]:
    """Return how long it took each time to write 30 KiB and have them on the disk, ms."""
    times = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        data = os.urandom(SIZE)
        for _ in range(count):
            began = time.perf_counter()
            file.write(data)
            os.fdatasync(file.fileno())
            times.append((time.perf_counter() - began) * 1e3)
    return times


def echo_ms(count: int) -> list[float]:
    """Return how long 30 KiB to another thread over TCP on the loopback took, and one byte back."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=_echo, args=(server,), daemon=True)
        thread.start()
        with socket.create_connection(server.getsockname()) as client:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            data, times = os.urandom(SIZE), []
            for _ in range(count):
                began = time.perf_counter()
                client.sendall(data)
                client.recv(1)
                times.append((time.perf_counter() - began) * 1e3)
        thread.join()
    return times


def _echo(server: socket.socket) -> None:
    """Answer each 30 KiB with a byte, until the other side hangs up."""
    peer, _ = server.accept()
    buffer = memoryview(bytearray(SIZE))
    with peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        got = 0
        while part := peer.recv_into(buffer[got:]):
            got += part
            if got == SIZE:
                got = 0
                peer.sendall(b"!")


def said(directory: Path, count: int) -> str:
    """Measure both and return them as a reference."""
    sync, echo = sync_ms(directory, count), echo_ms(count)
    parts = []
    for name, times in (("30 KiB to the disk", sync), ("30 KiB over the loopback", echo)):
        parts.append(f"{name} {quantile(times, 0.5):.2f} ms, p99 {quantile(times, 0.99):.2f}")
    return "; ".join(parts)
