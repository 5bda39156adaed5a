"""Silence on a lasting stream: the server speaks every two seconds, the client ends a silent one.

gRPC's keepalive watches a connection. A call that was lost together with its connection, and a
process that stands still while its kernel and gRPC's own threads go on answering pings, are only
noticed by somebody who waits for words.
"""

import threading
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Generic, Protocol, TypeVar

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
    reader = _Reader(call)
    try:
        while True:
            try:
                message = reader.next(limit_s)
            except StopIteration:
                return
            except Empty:
                call.cancel()
                raise LinkError(f"{who} fell silent", got=f"nothing for {limit_s:g} s") from None
            yield message
    finally:
        reader.let_go()


class _Reader(Generic[M]):
    """Waits for the next message in a thread of its own, which can be left behind.

    gRPC has no wait with a limit, and a receive that was lost together with its connection does
    not even end when its call is cancelled. So whoever waited for it here would wait for good.
    """

    def __init__(self, call: Call[M]):
        self._call = call
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._came: SimpleQueue[M | Exception] = SimpleQueue()
        threading.Thread(target=self._run, name="listener", daemon=True).start()

    def next(self, limit_s: float) -> M:
        """Return the next message.

        Raises:
            Empty: there was none in time.
            StopIteration: the stream is over.
            grpc.RpcError: it broke.
        """
        self._wanted.put(True)
        came = self._came.get(timeout=limit_s)
        if isinstance(came, Exception):
            raise came
        return came

    def let_go(self) -> None:
        """Have the thread end, at once or when its call does."""
        self._wanted.put(False)

    def _run(self) -> None:
        while self._wanted.get():
            try:
                self._came.put(next(self._call))
            except Exception as error:  # top of a thread: whoever waits for it is told
                self._came.put(error)
                return
