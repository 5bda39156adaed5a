"""One learner's session at the replay reader: a thread that draws, and a stream that may come anew.

The thread belongs to the session, not to a connection: a learner whose connection broke opens the
session again and finds its window, its place and the answers it did not hear. Nothing a client does
or leaves undone makes any other thread wait.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

from comms import data_wire
from comms.data_answers import UNNUMBERED, Answers, Window, unforeseen
from comms.data_wire import SKIPPED, Opening
from comms.pb import data_pb2 as pb
from user_system.codec import arrays
from user_system.core.errors import SpecError, UserSystemError
from user_system.core.interfaces import NotReady

log = logging.getLogger(__name__)

CREDIT = 16
"""Asks of one stream that may wait for their answers; no more are read."""

_JOIN_S = 30.0

Make = Callable[[Opening], Window]
"""Makes the window of a new session; called in the session's thread, where it may take its time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one reader process gives its learners."""

    sessions: int = 8
    """At once; each has an index of the whole store in memory."""
    batch_bytes: int = arrays.MAX_BYTES
    """Largest answer."""
    kept_bytes: int = 512 << 20
    """Answers of one session that were not delivered; more are not made ahead."""
    idle_s: float = 900.0
    """A stream without a question for so long is ended; its learner comes back by itself."""
    detached_s: float = 60.0
    """A session whose stream broke is kept for so long."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer on its way out."""

    data: bytes
    serial: int = 0
    """Of the ask; 0: somebody waits for it."""


class Stream:
    """One connection of a session: what is to be sent, and how many more asks may be read."""

    def __init__(self) -> None:
        self.ended = False
        self.outgoing: SimpleQueue[Reply | UserSystemError | None] = SimpleQueue()
        self._credit = threading.Semaphore(CREDIT)

    def acquire(self) -> bool:
        """Wait until one more ask may be unanswered; False: the stream is over."""
        self._credit.acquire()
        return not self.ended

    def release(self) -> None:
        """Note that an answer was sent."""
        self._credit.release()

    def end(self, error: UserSystemError | None = None) -> None:
        """End the stream, with an error or in order; only the first call counts."""
        if self.ended:
            return
        self.ended = True
        self.outgoing.put(error)
        self._credit.release()


@dataclass(frozen=True, slots=True)
class _Job:
    stream: Stream
    message: pb.DataOpen | pb.DataAsk
    serial: int


class Session:
    """Draws for one learner. Thread-safe, except where said.

    Args:
        name: for the log.
        make: makes its window.
        limits: what it may take.
    """

    def __init__(self, name: str, make: Make, limits: Limits):
        self.name = name
        self.stream: Stream | None = None
        """The current connection; set under the lock of the service."""
        self.left_at = 0.0
        """When the last one went, monotonic s; set under the lock of the service."""
        self._make, self._limits = make, limits
        self._opening: Opening | None = None
        self._answers: Answers | None = None
        self._inbox: SimpleQueue[_Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._serial = self._overtaken = 0
        self._asked_at = time.monotonic()
        self._rebuilt = 0
        self._thread = threading.Thread(target=self._run, name=f"draws {name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """Have the thread end after what it does now."""
        self._inbox.put(None)

    def join(self) -> None:
        """Wait for the thread."""
        self._thread.join(_JOIN_S)

    def put(self, stream: Stream, message: pb.DataOpen | pb.DataAsk) -> None:
        """Have a message answered on ``stream``, after all those before it."""
        with self._lock:
            self._serial += 1
            self._asked_at = time.monotonic()
            if _demands(message):
                self._overtaken = self._serial
            job = _Job(stream, message, self._serial)
            self._inbox.put(job)

    def wanted(self, reply: Reply) -> bytes:
        """Return what to send for ``reply``: not what has been overtaken in the meantime."""
        return SKIPPED if 0 < reply.serial < self._overtaken else reply.data

    @property
    def idle_s(self) -> float:
        """Seconds since anything was asked."""
        return time.monotonic() - self._asked_at

    def stats(self) -> dict[str, float]:
        """Return counters of this session."""
        answers = self._answers
        figures = {"windows": float(self._rebuilt)}
        return figures if answers is None else {**figures, **answers.figures}

    def _run(self) -> None:
        while (job := self._inbox.get()) is not None:
            if job.stream.ended:
                continue
            try:
                data = self._answer(job)
            except (NotReady, UserSystemError) as error:
                data = data_wire.encode_error(error, None)
            except Exception as error:  # top of a request: its learner hears of it, others go on
                log.exception("session %s failed", self.name)
                data = data_wire.encode_error(unforeseen(error), None)
            ahead = isinstance(job.message, pb.DataAsk) and job.message.ahead
            job.stream.outgoing.put(Reply(data, job.serial if ahead else 0))

    def _answer(self, job: _Job) -> bytes:
        if isinstance(job.message, pb.DataOpen):
            return self._open(job.message)
        if job.message.ahead and job.serial < self._overtaken:
            return SKIPPED
        if self._answers is None:
            raise SpecError("session is not open", todo="Open it again; the first answer says why.")
        return self._answers.answer(job.message)

    def _open(self, message: pb.DataOpen) -> bytes:
        opening, state = data_wire.decode_opening(message.content)
        answers, delivered = self._answers, message.delivered
        rebuilt = False
        if answers is None or opening != self._opening or not answers.covers(delivered):
            self._answers = None
            if state is None and delivered:
                raise SpecError("a session that goes on needs a state", got=f"number {delivered}")
            window = self._make(opening)
            if state is not None:
                window.load_state_dict(state)
            limits = self._limits
            answers = Answers(
                window, delivered, batch_bytes=limits.batch_bytes, kept_bytes=limits.kept_bytes
            )
            self._answers, self._opening = answers, opening
            self._rebuilt += 1
            rebuilt = True
        return data_wire.encode_state(answers.state_at(delivered), rebuilt=rebuilt)


def _demands(message: pb.DataOpen | pb.DataAsk) -> bool:
    """Whether somebody waits for this, so that what was asked ahead before it is not wanted."""
    if isinstance(message, pb.DataOpen):
        return True
    return not message.ahead and message.kind not in UNNUMBERED
