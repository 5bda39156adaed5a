"""What processes of one host talk through: lossless rings in files, and a doorbell.

A ring is a single-producer, single-consumer queue of bytes in an mmapped file. Neither side ever
waits for the other: a full ring refuses and counts, so a driver keeps its tick whatever its agent
does; and since the file outlives both, either may be killed at any instruction and the other (or a
successor) reads on at the tail. A socket could do neither.

``Duplex`` is a pair of rings and a unix ``SOCK_SEQPACKET`` socket. The socket carries no data: a
byte on it wakes the peer, and its end of file is how each side learns at once that the other died.
"""

import fcntl
import logging
import mmap
import os
import select
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

import xxhash

from user_system.codec import arrays as codec
from user_system.core.errors import LinkError, StoreError
from user_system.core.types import Array

log = logging.getLogger(__name__)

MAGIC = 0x31474E4952535501
"""First word of a ring file; the last byte is the layout's version."""
_CAPACITY, _HEAD, _TAIL, _DROPPED = 1, 8, 16, 24
"""Indices of 8-byte words. Head and tail lie in cache lines of their own (64 bytes apart)."""
_DATA = 256
_RECORD = 16
"""Bytes before each record: length and xxh3-64, 8 each."""

MIN_CAPACITY = 1 << 20


class Ring:
    """A bounded queue of byte strings in a file; one process puts, one gets.

    Head and tail count bytes and never wrap; each is written by one side only, as one aligned
    8-byte store, after the bytes it publishes. The checksum of each record would show a machine
    that reorders the two.

    Args:
        path: the file.
        capacity: bytes of records and their headers that may wait; ``None`` takes the file's.
    """

    def __init__(self, path: Path, capacity: int | None = None):
        self.path, self._capacity = path, capacity or 0
        self.damaged = 0
        self._map: mmap.mmap | None = None
        self._words: memoryview
        self._data: memoryview

    def open(self) -> None:
        """Map the file; the side that knows the capacity makes it, or keeps one that fits.

        Raises:
            LinkError: there is no such ring, or the file is something else.
            StoreError: the disk has no room for it.
        """
        if self._capacity and not self._fits():
            self._create()
        try:
            with open(self.path, "r+b") as file:
                self._map = mmap.mmap(file.fileno(), 0)
        except (OSError, ValueError) as error:
            raise LinkError("no ring to open", got=f"{self.path}: {error}") from error
        if len(self._map) < _DATA:
            self._map.close()
            raise LinkError("not a ring file", got=self.path, todo="Delete it and restart.")
        self._words = memoryview(self._map)[:_DATA].cast("Q")
        waiting = self._words[_HEAD] - self._words[_TAIL]
        whole = self._words[0] == MAGIC and len(self._map) == _DATA + self._words[_CAPACITY]
        if not whole or not 0 <= waiting <= self._words[_CAPACITY]:
            self.close()
            raise LinkError("not a ring file", got=self.path, todo="Delete it and restart.")
        self._capacity = self._words[_CAPACITY]
        self._data = memoryview(self._map)[_DATA:]

    def _fits(self) -> bool:
        try:
            with open(self.path, "rb") as file:
                words = memoryview(file.read(16)).cast("Q")
                return (
                    list(words) == [MAGIC, self._capacity]
                    and os.fstat(file.fileno()).st_size == _DATA + self._capacity
                )
        except (FileNotFoundError, TypeError):
            return False

    def _create(self) -> None:
        # A new name and a rename: a peer that still maps the old file keeps a whole one.
        temporary = self.path.with_suffix(self.path.suffix + ".new")
        try:
            with open(temporary, "wb") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(MAGIC.to_bytes(8, "little") + self._capacity.to_bytes(8, "little"))
                # Every block of it now: a put into a hole of a full disk would be a SIGBUS.
                os.posix_fallocate(file.fileno(), 0, _DATA + self._capacity)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise StoreError(
                f"cannot make {self.path}",
                got=error,
                allowed=f"{(_DATA + self._capacity) >> 10} KiB of disk",
                todo="Free some space.",
            ) from error
        os.replace(temporary, self.path)

    def put(self, payload: bytes) -> bool:
        """Append one record; False, and counted, where it does not fit.

        Raises:
            StoreError: it would not fit into the empty ring either.
        """
        size = _RECORD + len(payload)
        if size > self._capacity:
            raise StoreError(
                "a message is larger than its ring",
                got=f"{size} bytes",
                allowed=f"{self._capacity} in {self.path.name}",
            )
        head = self._words[_HEAD]
        if size > self._capacity - (head - self._words[_TAIL]):
            self._words[_DROPPED] += 1
            return False
        prefix = len(payload).to_bytes(8, "little")
        self._write(head, prefix + xxhash.xxh3_64_intdigest(payload).to_bytes(8, "little"))
        self._write(head + _RECORD, payload)
        self._words[_HEAD] = head + size
        return True

    def get(self) -> bytes | None:
        """Take the oldest record; None where there is none."""
        payload = self.peek()
        if payload is not None:
            self.advance(payload)
        return payload

    def advance(self, payload: bytes) -> None:
        """Take the record that ``peek`` returned."""
        self._words[_TAIL] += _RECORD + len(payload)

    def peek(self) -> bytes | None:
        """Return the oldest record and leave it there; None where there is none.

        Damage is never served: it is counted, logged, and everything waiting is skipped, since the
        lengths that led to it cannot be trusted.
        """
        tail, head = self._words[_TAIL], self._words[_HEAD]
        if tail == head:
            return None
        if head - tail >= _RECORD:
            prefix = self._read(tail, _RECORD)
            size = int.from_bytes(prefix[:8], "little")
            if size <= head - tail - _RECORD:
                payload = self._read(tail + _RECORD, size)
                if xxhash.xxh3_64_intdigest(payload) == int.from_bytes(prefix[8:], "little"):
                    return payload
        self.damaged += 1
        log.warning("%s: damaged record at %d, skipped %d bytes", self.path, tail, head - tail)
        self._words[_TAIL] = head
        return None

    def look(self, at: int) -> tuple[int, bytes] | None:
        """Return (where the record behind it begins, the record at ``at``) and take nothing.

        For an onlooker who keeps up: begin at ``head`` and go on from each answer. None: nothing is
        there yet.

        Raises:
            LinkError: it was overwritten since; begin again at ``head``.
        """
        head = self.head
        if at >= head:
            return None
        prefix = self._read(at, _RECORD)
        size, check = int.from_bytes(prefix[:8], "little"), int.from_bytes(prefix[8:], "little")
        if size <= head - at - _RECORD:
            payload = self._read(at + _RECORD, size)
            if xxhash.xxh3_64_intdigest(payload) == check:
                return at + _RECORD + size, payload
        raise LinkError(f"{self.path.name} ran away from its onlooker")

    @property
    def head(self) -> int:
        """Where the next record will begin."""
        return int(self._words[_HEAD])

    def _write(self, at: int, payload: bytes) -> None:
        begin = at % self._capacity
        first = min(len(payload), self._capacity - begin)
        self._data[begin : begin + first] = payload[:first]
        self._data[: len(payload) - first] = payload[first:]

    def _read(self, at: int, size: int) -> bytes:
        begin = at % self._capacity
        first = min(size, self._capacity - begin)
        if first == size:
            return bytes(self._data[begin : begin + size])
        return bytes(self._data[begin:]) + bytes(self._data[: size - first])

    @property
    def waiting(self) -> int:
        """Bytes put and not yet got."""
        return int(self._words[_HEAD] - self._words[_TAIL]) if self._map is not None else 0

    @property
    def dropped(self) -> int:
        """Records refused because the ring was full, over its whole life."""
        return int(self._words[_DROPPED]) if self._map is not None else 0

    def close(self) -> None:
        """Unmap the file; it stays."""
        if self._map is not None:
            for name in ("_data", "_words"):
                if hasattr(self, name):
                    getattr(self, name).release()
            self._map.close()
            self._map = None


Message = tuple[dict[str, Any], dict[str, Array]]
"""JSON-able meta and named arrays."""


class Duplex:
    """Two rings and a doorbell between two processes of one host.

    The ``listen`` side owns the rings and takes a successor of its peer in at any time, the newest
    wins; the ``connect`` side calls ``open`` again when its peer was restarted. Not thread-safe:
    each side belongs to one thread.

    Args:
        path: of the socket; the rings lie beside it as ``.up`` (to the listener) and ``.down``.
        side: which end this is.
        capacity: bytes per direction; the listener's business.
    """

    def __init__(
        self, path: Path, side: Literal["listen", "connect"], capacity: int = MIN_CAPACITY
    ):
        self.path, self.side = path, side
        own = capacity if side == "listen" else None
        up, down = (Ring(path.with_name(path.name + s), own) for s in (".up", ".down"))
        self._in, self._out = (up, down) if side == "listen" else (down, up)
        self._lock: IO[str] | None = None
        self._listener: socket.socket | None = None
        self._peer: socket.socket | None = None
        self._epoll: select.epoll | None = None
        self.connects = 0

    @property
    def connected(self) -> bool:
        """Whether the peer was alive when last heard of."""
        return self._peer is not None

    def open(self) -> None:
        """Listen, or connect (again).

        Raises:
            LinkError: nobody listens, or the rings cannot be mapped.
        """
        self.close()
        self._epoll = select.epoll()
        try:
            if self.side == "listen":
                self._listen()
            else:
                self._connect()
        except LinkError:
            self.close()
            raise

    def _listen(self) -> None:
        # Two listeners would take each other's messages out of the rings.
        self._lock = open(self.path.with_name(self.path.name + ".lock"), "w")  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LinkError(
                f"another process listens at {self.path}", todo="End it, or take it over."
            ) from error
        self._in.open()
        self._out.open()
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        self._listener.bind(str(self.path))
        self.path.chmod(0o600)
        self._listener.listen(4)
        self._poller.register(self._listener, select.EPOLLIN)

    def _connect(self) -> None:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            peer.connect(str(self.path))
        except OSError as error:
            peer.close()
            raise LinkError(f"nobody listens at {self.path}", got=error) from error
        self._adopt(peer)
        self._in.open()
        self._out.open()

    def _adopt(self, peer: socket.socket) -> None:
        self._drop()
        peer.setblocking(False)
        self._peer = peer
        self._poller.register(peer, select.EPOLLIN)
        self.connects += 1

    def _drop(self) -> None:
        if self._peer is not None:
            self._poller.unregister(self._peer)
            self._peer.close()
            self._peer = None

    @property
    def _poller(self) -> select.epoll:
        if self._epoll is None:
            raise LinkError(f"{self.path} is not open")
        return self._epoll

    @property
    def pending(self) -> bool:
        """Whether a message is waiting."""
        return self._in.waiting > 0

    def send(self, meta: Mapping[str, Any], arrays: Mapping[str, Array] | None = None) -> bool:
        """Put a message and ring; False where the ring is full. Never blocks.

        With the peer dead the message waits in the file for its successor.
        """
        sent = self._out.put(codec.pack(meta, arrays or {}))
        if self._peer is not None:
            try:
                self._peer.send(b"!")
            except BlockingIOError:
                # The peer has unread rings of the bell: it will look.
                return sent
            except OSError:
                self._drop()
        return sent

    def receive(self, timeout_s: float = 0.0) -> Message | None:
        """Return the oldest message, waiting up to ``timeout_s``; None where none came.

        Returns early with None when the peer comes or goes; see ``connected``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            record = self._in.get()
            if record is not None:
                return codec.unpack(record)
            changed = self._attend(max(0.0, deadline - time.monotonic()))
            if (changed or time.monotonic() >= deadline) and self._in.waiting == 0:
                return None

    def _attend(self, timeout_s: float) -> bool:
        """Serve the sockets; True when the peer came or went."""
        before = self.connects, self.connected
        for fd, _ in self._poller.poll(timeout_s):
            if self._listener is not None and fd == self._listener.fileno():
                self._accept(self._listener)
            elif self._peer is not None and fd == self._peer.fileno():
                self._silence(self._peer)
        return before != (self.connects, self.connected)

    def _accept(self, listener: socket.socket) -> None:
        try:
            peer, _ = listener.accept()
        except BlockingIOError:
            return  # it gave up between poll and accept
        self._adopt(peer)

    def _silence(self, peer: socket.socket) -> None:
        """Take all rings of the bell off the socket; end of file means the peer died."""
        while True:
            try:
                if not peer.recv(16):
                    return self._drop()
            except BlockingIOError:
                return None
            except OSError:
                return self._drop()

    def fileno(self) -> int:
        """File descriptor that is readable when ``receive`` has something to look at."""
        return self._poller.fileno()

    def stats(self) -> dict[str, float]:
        """Return counters and gauges."""
        return {
            "connects": float(self.connects),
            "dropped": float(self._out.dropped),
            "damaged": float(self._in.damaged),
            "waiting_bytes": float(self._in.waiting),
        }

    def close(self) -> None:
        """Hang up; the rings stay in their files."""
        if self._epoll is None:
            return
        self._drop()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            self.path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        self._epoll.close()
        self._epoll = None
        self._in.close()
        self._out.close()
