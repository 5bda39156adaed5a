"""How much of a server one caller may take: calls at once, and time to say what it wants.

A call holds a thread of its server from its first byte, and only its caller decides when it ends.
So one enrolled host, broken or stolen, could take them all: by opening streams on which it says
nothing, or by beginning requests that it never finishes. Whoever is known has a share of the
threads, and the first words of every call come soon or the call ends.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError

from comms.credentials import Peer, Role
from user_system.core.errors import LinkError, SpecError

M = TypeVar("M")

WORKERS = 256
"""Calls of all callers at once; a lasting stream is one."""

CALLS = 32
"""Calls of one caller at once: an edge host has its stream, and a few short ones."""

SERVICE_CALLS = 96
"""The same for a service, which asks for many people at once."""

PATIENCE_S = 10.0
"""Time for the first message of a call, and for each message of a request that comes in parts."""


class Doorway:
    """Counts the calls of each caller, and ends those that say nothing. Thread-safe.

    Args:
        calls: of one caller at once; None: as its role may.
        patience_s: see ``PATIENCE_S``.
    """

    def __init__(self, calls: int | None = None, patience_s: float = PATIENCE_S):
        self._calls, self.patience_s = calls, patience_s
        self._lock = threading.Lock()
        self._inside: Counter[str] = Counter()
        self._numbers = itertools.count()
        self._silent: dict[int, tuple[float, grpc.ServicerContext]] = {}
        self._figures = dict.fromkeys(("crowded", "silent"), 0.0)
        self._closed = threading.Event()
        self._watch = threading.Thread(target=self._run, name="doorway", daemon=True)

    def start(self) -> None:
        """Begin to look for callers that say nothing."""
        self._watch.start()

    def close(self) -> None:
        """Stop to look; idempotent."""
        self._closed.set()
        if self._watch.is_alive():
            self._watch.join()

    def stats(self) -> dict[str, float]:
        """Return calls refused because their caller had too many, and calls ended in silence."""
        with self._lock:
            return {**self._figures, "calls": float(self._inside.total())}

    @contextmanager
    def enter(self, peer: Peer) -> Iterator[None]:
        """Be one call of ``peer`` for the length of a ``with`` block.

        Raises:
            LinkError: it has as many as it may; when one of them ends it can come again.
        """
        most = self._calls or (SERVICE_CALLS if peer.role is Role.SERVICE else CALLS)
        with self._lock:
            if self._inside[peer.name] >= most:
                self._figures["crowded"] += 1
                raise LinkError(
                    f"{peer.name!r} has too many calls under way",
                    got=most + 1,
                    allowed=most,
                    todo="Does something open streams and leave them? Two processes by one name?",
                )
            self._inside[peer.name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside[peer.name] -= 1
                self._inside += Counter()  # without those that have none

    def request(
        self, requests: Iterator[bytes], context: grpc.ServicerContext, decode: Callable[[bytes], M]
    ) -> M:
        """Return the one request of a call.

        Raises:
            SpecError: there is none, or bytes that are none.
            grpc.RpcError: its caller did not send it in time, or went away.
        """
        with self.listening(context):
            request = next(requests, None)
        if request is None:
            raise SpecError("a call without a request", allowed="one message")
        return decoded(request, decode)

    def requests(
        self,
        requests: Iterator[bytes],
        context: grpc.ServicerContext,
        decode: Callable[[bytes], M],
        *,
        every: bool,
    ) -> "Requests[M]":
        """Return the messages of a stream, the first (or ``every``) one waited for so long only."""
        return Requests(self, requests, context, decode, every)

    @contextmanager
    def listening(self, context: grpc.ServicerContext) -> Iterator[None]:
        """End the call should its caller say nothing for too long within this ``with`` block."""
        number = next(self._numbers)
        with self._lock:
            self._silent[number] = time.monotonic() + self.patience_s, context
        try:
            yield
        finally:
            with self._lock:
                self._silent.pop(number, None)

    def _run(self) -> None:
        while not self._closed.wait(self.patience_s / 4):
            now = time.monotonic()
            with self._lock:
                over = [n for n, (until, _) in self._silent.items() if now > until]
                contexts = [self._silent.pop(number)[1] for number in over]
                self._figures["silent"] += len(contexts)
            for context in contexts:
                context.cancel()  # type: ignore[no-untyped-call]  # grpc-stubs leave it so


class Requests(Generic[M]):
    """What a caller sends, as its method iterates over it."""

    def __init__(
        self,
        doorway: Doorway,
        requests: Iterator[bytes],
        context: grpc.ServicerContext,
        decode: Callable[[bytes], M],
        every: bool,
    ):
        self._doorway, self._requests, self._context = doorway, requests, context
        self._decode, self._every, self._waited = decode, every, False

    def __iter__(self) -> "Requests[M]":
        return self

    def __next__(self) -> M:
        if self._waited and not self._every:
            return decoded(next(self._requests), self._decode)
        self._waited = True
        with self._doorway.listening(self._context):
            request = next(self._requests)
        return decoded(request, self._decode)


def decoded(data: bytes, decode: Callable[[bytes], M]) -> M:
    """Return a message from its bytes.

    Raises:
        SpecError: they are none.
    """
    try:
        return decode(data)
    except DecodeError as error:
        raise SpecError("bytes that are no message", got=f"{len(data)} of them") from error
