"""A learner's connection to the replay reader: asks out, answers in, in order, received at once.

A thread takes in what comes whether or not anybody waits for it: that is what makes an answer that
was asked for ahead be there when it is wanted.
"""

import logging
import threading
from collections import deque
from contextlib import suppress
from queue import SimpleQueue

import grpc
import numpy as np

from comms import data_wire
from comms.data_wire import SHARD, Answer
from comms.pb import data_pb2 as pb
from comms.pb import data_pb2_grpc
from comms.silence import Call, listen
from comms.status import received
from comms.tunnel import Tunnel
from user_system.codec import arrays
from user_system.core.errors import DamageError, LinkError, UserSystemError
from user_system.core.types import Array

log = logging.getLogger(__name__)

_END_S = 2.0
"""How long the end of a session in order may take."""

Key = tuple[int, bytes]
"""Kind and content of an ask: what it means, whatever its number."""


class Late(LinkError):
    """An answer takes longer than whoever asked can wait; the connection may be sound."""


class Pending:
    """An answer that is on its way.

    Args:
        key: what was asked.
        max_bytes: larger ones are refused before there is memory for them.
    """

    def __init__(self, key: Key, max_bytes: int = arrays.MAX_BYTES):
        self.key = key
        self.max_bytes = max_bytes
        self.unwanted = False
        """Set when nobody will look at it: it is not even decoded."""
        self._there = threading.Event()
        self._answer = Answer()
        self._error: Exception | None = None

    def come(self, answer: Answer) -> None:
        """Note the answer."""
        self._answer = answer
        self._there.set()

    def fail(self, error: Exception) -> None:
        """Note that it will not come."""
        self._error = error
        self._there.set()

    @property
    def done(self) -> bool:
        """Whether ``wait`` returns at once."""
        return self._there.is_set()

    def wait(self, timeout_s: float | None = None) -> Answer:
        """Return the answer once it is here.

        Args:
            timeout_s: how long it may take; None: as long as the other side says that it is there,
                since the receiver watches for silence and then ends every wait.

        Raises:
            Late: it takes longer; nobody will look at it.
            LinkError: the connection broke before.
            DamageError: what came is not what was sent.
        """
        if not self._there.wait(timeout_s):
            self.unwanted = True
            raise Late("no answer came", allowed=f"{timeout_s:.1f} s")
        if self._error is not None:
            raise self._error
        return self._answer


class Link:
    """One stream of one session. Thread-safe.

    Args:
        tunnel: the way to the replay reader.
        silence_s: a reader that says nothing for so long is given up.
        shard: host whose own shard is wanted; "": the reader's.
    """

    def __init__(self, tunnel: Tunnel, silence_s: float, shard: str = ""):
        self._silence_s = silence_s
        self._outgoing: SimpleQueue[pb.DataRequest | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: deque[Pending] = deque()
        self._error: Exception | None = None
        self._buffer: Array | None = None
        self._got = 0
        self.bytes = 0
        """Bytes of answers received."""
        stub = data_pb2_grpc.DataStub(tunnel.channel("reader"))  # type: ignore[no-untyped-call]
        self._call: Call[pb.DataPart] = stub.Attach(
            iter(self._outgoing.get, None), metadata=((SHARD, shard),) if shard else None
        )
        self._thread = threading.Thread(target=self._receive, name="draws", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether anything can still be asked."""
        return self._error is None

    def ask(self, message: pb.DataRequest, pending: Pending) -> Pending:
        """Send a message whose answer ``pending`` stands for; return ``pending``.

        Raises:
            LinkError: the connection is broken.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            self._waiting.append(pending)
            self._outgoing.put(message)
        return pending

    def close(self, *, forget: bool = False) -> None:
        """End the stream; ``forget``: the session too. What was not received yet fails."""
        if forget and self.alive:
            self._outgoing.put(pb.DataRequest(close=pb.DataClose()))
            self._thread.join(_END_S)
        self._call.cancel()
        self._thread.join(_END_S)

    def _receive(self) -> None:
        error: Exception = LinkError("the replay reader ended the session")
        try:
            for part in listen(self._call, "the replay reader", self._silence_s):
                if part.total:
                    self._take(part)
        except grpc.RpcError as broken:
            error = received(broken, "draw from the replay reader")
        except UserSystemError as wrong:
            error = wrong
        except Exception as unforeseen:  # top of a thread: whoever waits hears of it
            log.exception("receiving draws failed")
            error = LinkError("receiving draws failed", got=unforeseen)
        finally:
            self._end(error)

    def _end(self, error: Exception) -> None:
        self._outgoing.put(None)
        with suppress(Exception):
            self._call.cancel()
        with self._lock:
            self._error = error
            waiting = list(self._waiting)
            self._waiting.clear()
        for pending in waiting:
            pending.fail(error)

    def _take(self, part: pb.DataPart) -> None:
        """Put a part in its place; after the last one, hand over the answer."""
        with self._lock:
            pending = self._waiting[0] if self._waiting else None
        if pending is None:
            raise DamageError("an answer that nobody asked for", got=f"{part.total} bytes")
        if self._buffer is None:
            if part.total > pending.max_bytes:
                raise DamageError("answer is too large", got=part.total, allowed=pending.max_bytes)
            self._buffer, self._got = np.empty(part.total, np.uint8), 0
        end = self._got + len(part.data)
        if part.total != len(self._buffer) or part.offset != self._got or end > part.total:
            got = (part.offset, end, part.total)
            raise DamageError("parts of an answer do not follow each other", got=got)
        self._buffer[self._got : end] = np.frombuffer(part.data, np.uint8)
        self._got = end
        if end == part.total:
            self._complete(pending, self._buffer)

    def _complete(self, pending: Pending, buffer: Array) -> None:
        self._buffer = None
        self.bytes += len(buffer)
        with self._lock:
            self._waiting.popleft()
        if pending.unwanted:
            pending.come(Answer(skipped=True))
            return
        try:
            pending.come(data_wire.decode_answer(buffer))
        except UserSystemError as error:
            pending.fail(error)
