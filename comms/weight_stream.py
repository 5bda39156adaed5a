"""The robot host's end of one stream of weights, and what came over it."""

import threading
from collections import deque
from queue import SimpleQueue

import grpc

from comms.pb import weights_pb2 as pb
from comms.status import received
from comms.tunnel import Tunnel
from comms.weights import stub
from user_system.core.errors import LinkError, UserSystemError

MOST_WAITING = 16
"""Events of a stream that wait to be looked at."""


class Stream:
    """One call, and a thread that takes in what comes."""

    def __init__(self, tunnel: Tunnel):
        self._outgoing: SimpleQueue[pb.PullRequest | None] = SimpleQueue()
        self._inbox = Inbox()
        self._call = stub(tunnel).Pull(iter(self._outgoing.get, None))
        self._over = False
        threading.Thread(target=self._read, name="weights in", daemon=True).start()

    def _read(self) -> None:
        try:
            for event in self._call:
                self._inbox.put(event)
        except grpc.RpcError as error:
            self._inbox.end(received(error, "pull weights"))
        else:
            self._inbox.end(LinkError("the stream of weights ended"))

    def send(self, request: pb.PullRequest) -> None:
        """Say something to the store."""
        self._outgoing.put(request)

    def next(self, limit_s: float) -> pb.PullEvent | None:
        """Return what comes next; None: ``wake`` was called.

        Raises:
            LinkError: nothing came for so long, or the stream is over.
            UserSystemError: what the store raised.
        """
        try:
            return self._inbox.get(limit_s)
        except TimeoutError:
            self._call.cancel()
            text = f"nothing for {limit_s:g} s"
            raise LinkError("the weight store fell silent", got=text) from None

    def wake(self) -> None:
        """Have ``next`` return."""
        self._inbox.wake()

    def close(self) -> None:
        """End it."""
        self._outgoing.put(None)
        self._call.cancel()
        self._inbox.end(LinkError("the stream of weights was closed"))


class Inbox:
    """What came and was not looked at yet: a few events, so that gRPC holds back the others.

    A store sends only what was asked for; one that was taken over sends what it likes.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events: deque[pb.PullEvent] = deque()
        self._woken = False
        self._end: UserSystemError | None = None

    def put(self, event: pb.PullEvent) -> None:
        """Take one in; wait while there are too many. After the end it is dropped."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._events) < MOST_WAITING or self._end)
            if self._end is None:
                self._events.append(event)
                self._changed.notify_all()

    def end(self, error: UserSystemError) -> None:
        """Nothing more comes; the first reason counts."""
        with self._changed:
            self._end = self._end or error
            self._changed.notify_all()

    def wake(self) -> None:
        """Have ``get`` return None."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def get(self, limit_s: float) -> pb.PullEvent | None:
        """Return the next event; None: woken.

        Raises:
            TimeoutError: nothing came for so long.
            UserSystemError: why nothing comes any more.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._woken or self._events or self._end, limit_s)
            if self._woken:
                self._woken = False
                return None
            if self._events:
                event = self._events.popleft()
                self._changed.notify_all()
                return event
            raise self._end or TimeoutError
