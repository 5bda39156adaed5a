"""A TCP proxy that treats connections badly: resets them, and delivers late what one still held.

Bytes of a connection that its client has lost may still be under way. ``late`` keeps the server's
side of a reset connection open, and gives it the rest of what came only after the client's next
connection has begun to speak.
"""

import random
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress

_RESET = struct.pack("ii", 1, 0)
"""Linger for no time: closing sends RST."""
_PART = 4096
_OPENING = 24 << 10
"""Bytes from the client that a connection is always granted: handshakes and a few messages."""


class Proxy:
    """Stands between clients and ``target`` inside a ``with`` block.

    Args:
        target: ``host:port``.
        rng: chooses after how many bytes from the client a connection ends, and how.
        most: bytes from the client by which every connection has ended, beside the opening.
    """

    def __init__(self, target: str, rng: random.Random, most: int = 128 << 10):
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._rng, self._most = rng, most
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.resets = self.late = 0
        """Connections that ended, and those whose last bytes came after the next one's first."""
        self.gentle = False
        """Whether connections live."""
        self._lock = threading.Lock()
        self._held: list[tuple[socket.socket, bytes]] = []
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Proxy":
        self._start(self._accept)
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join()  # nobody comes any more
        _shut(*self._ends)
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def _start(self, work: Callable[..., None], *values: object) -> None:
        thread = threading.Thread(target=work, args=values, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target)
            except OSError:
                _reset(near)
                continue
            self._ends += [near, far]
            with self._lock:
                budget = _OPENING + self._rng.randrange(self._most)
                late = self._rng.random() < 0.5
            self._start(self._forth, near, far, budget, late)
            self._start(self._back, far, near)

    def _forth(self, near: socket.socket, far: socket.socket, budget: int, late: bool) -> None:
        """Move what the client says until its bytes are spent."""
        moved = 0
        with suppress(OSError):
            while data := near.recv(_PART):
                if moved + len(data) > budget and not self.gentle:
                    self._end(near, far, data, budget - moved, late)
                    return
                far.sendall(data)
                moved += len(data)
                if moved > _OPENING:
                    self._deliver()
        _shut(near, far)

    def _end(
        self, near: socket.socket, far: socket.socket, data: bytes, cut: int, late: bool
    ) -> None:
        """End a connection in the middle of a packet; maybe keep what it still held."""
        far.sendall(data[:cut])
        rest = [data[cut:]]
        if late:  # what the client's kernel had sent already
            near.settimeout(0.02)
            with suppress(OSError):
                while part := near.recv(_PART):
                    rest.append(part)
        with self._lock:
            self.resets += 1
            if late:
                self._held.append((far, b"".join(rest)))
        _reset(near)
        if not late:
            _reset(far)

    def _deliver(self) -> None:
        """Give the server what connections of before still held, and then end those."""
        with self._lock:
            held, self._held = self._held, []
            self.late += len(held)
        for far, rest in held:
            with suppress(OSError):
                far.sendall(rest)
            _shut(far)

    def _back(self, far: socket.socket, near: socket.socket) -> None:
        with suppress(OSError):
            while data := far.recv(_PART):
                with suppress(OSError):  # the client may be gone while the server still speaks
                    near.sendall(data)
        _shut(near)


def _reset(end: socket.socket) -> None:
    with suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        end.shutdown(socket.SHUT_RD)  # wakes who reads it
    end.close()


def _shut(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
