"""Silence on a lasting stream: the server speaks every two seconds, the client ends a silent one.

gRPC's keepalive watches a connection. A call that was lost together with its connection, and a
process that stands still while its kernel and gRPC's own threads go on answering pings, are only
noticed by somebody who waits for words.
"""

import threading
import time
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Protocol, TypeVar

import grpc

from user_system.core.errors import LinkError, UserSystemError

M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)

BEAT_S = 2.0
"""A server that has nothing to say for so long says so."""

LIMIT_S = 10.0
"""A client that hears nothing for so long ends the stream and dials again."""


class Call(Protocol[M_co]):
    """The client's side of a stream, as gRPC gives it."""

    def __next__(self) -> M_co:
        """Wait for the next message."""

    def cancel(self) -> object:
        """End the stream; usable from any thread."""


def speak(outgoing: "SimpleQueue[M | UserSystemError | None]", beat: M) -> Iterator[M]:
    """Yield what is put into ``outgoing``, ``beat`` when that is nothing for ``BEAT_S``.

    Args:
        outgoing: messages; an error, which is raised, or None ends the stream.
        beat: a message without news.
    """
    while True:
        try:
            message = outgoing.get(timeout=BEAT_S)
        except Empty:
            message = beat
        if message is None:
            return
        if isinstance(message, UserSystemError):
            raise message
        yield message


def listen(call: Call[M], who: str, limit_s: float = LIMIT_S) -> Iterator[M]:
    """Yield the messages of a stream until it ends.

    Args:
        call: the stream.
        who: the other side, for the error.
        limit_s: longest wait for one message; what the caller does with it does not count.

    Raises:
        LinkError: nothing came for so long; the stream is ended.
        grpc.RpcError: the stream broke.
    """
    with _Watch(call, limit_s) as watch:
        while True:
            watch.since = time.monotonic()
            try:
                message = next(call)
            except StopIteration:
                return
            except grpc.RpcError as error:
                if watch.ended:
                    raise LinkError(f"{who} fell silent", got=f"nothing for {limit_s:g} s") from (
                        error
                    )
                raise
            watch.since = None
            yield message


class _Watch:
    """Cancels a call when ``since`` lies too far back."""

    def __init__(self, call: Call[object], limit_s: float):
        self.since: float | None = None
        """When the wait for the next message began, on the monotonic clock; None: no wait."""
        self.ended = False
        self._call = call
        self._limit_s = limit_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="silence", daemon=True)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(self._limit_s / 10):
            since = self.since
            if since is not None and time.monotonic() - since >= self._limit_s:
                self.ended = True
                self._call.cancel()
                return
