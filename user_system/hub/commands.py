"""People's wishes on their way to a robot's session, and the answers on their way back.

A wish is sent at once, and again until it is answered: the stream to the host may break at any
moment. Its id makes that harmless, because a session answers an id it has seen with the same
answer; and because answers are remembered here, a person whose own line broke may ask again too.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from comms.pb.hub_pb2 import Answer, Request
from user_system.core.errors import LinkError

_REMEMBERED = 1024


@dataclass
class _Pending:
    robot: str
    answered: threading.Event = field(default_factory=threading.Event)
    answer: Answer | None = None
    askers: int = 0


class Wishes:
    """Requests under way. Thread-safe.

    Args:
        send: gives a request to the host of its robot; LinkError while the host is away.
        repeat_s: time without an answer after which a request is sent again, in wall s.
    """

    def __init__(self, send: Callable[[Request], None], *, repeat_s: float = 0.5):
        self._send, self._repeat_s = send, repeat_s
        self._lock = threading.Lock()
        self._pending: dict[str, _Pending] = {}
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._figures = dict.fromkeys(("asked", "sent", "answered", "unanswered"), 0.0)

    def ask(self, request: Request, timeout_s: float) -> Answer:
        """Send ``request`` until it is answered; return the answer.

        Raises:
            LinkError: nobody answered within ``timeout_s``; whether it was done is not known.
        """
        with self._lock:
            self._figures["asked"] += 1
            known = self._answers.get(request.id)
            if known is not None and known.robot == request.robot:
                return known
            pending = self._pending.setdefault(request.id, _Pending(request.robot))
            pending.askers += 1
        try:
            return self._wait(request, pending, time.monotonic() + timeout_s)
        finally:
            with self._lock:
                pending.askers -= 1
                if not pending.askers:
                    self._pending.pop(request.id, None)

    def answer(self, answer: Answer) -> None:
        """Take an answer in; the first one to an id counts, if the robot asked has given it."""
        with self._lock:
            pending = self._pending.get(answer.id)
            if pending is None or pending.answer is not None or pending.robot != answer.robot:
                return
            self._answers[answer.id] = answer
            if len(self._answers) > _REMEMBERED:
                self._answers.popitem(last=False)
            self._figures["answered"] += 1
            pending.answer = answer
            pending.answered.set()

    def stats(self) -> dict[str, float]:
        """Return counters since the start."""
        with self._lock:
            return {f"wishes_{name}": value for name, value in self._figures.items()}

    def _wait(self, request: Request, pending: _Pending, deadline: float) -> Answer:
        away = ""
        while True:
            try:
                self._send(request)
                self._figures["sent"] += 1
                away = ""
            except LinkError as error:
                away = str(error)  # it may dial again before the deadline
            left = deadline - time.monotonic()
            pending.answered.wait(max(0.0, min(self._repeat_s, left)))
            if pending.answer is not None:
                return pending.answer
            if left <= self._repeat_s:
                break
        with self._lock:
            self._figures["unanswered"] += 1
        raise LinkError(
            f"{request.robot} did not answer {request.event!r} in time",
            got=away or "no answer from its host",
            todo="Look whether its host is online; the request may still have been carried out.",
        )
