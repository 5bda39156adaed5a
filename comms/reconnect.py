"""Staying connected: one thread that holds a session, and dials again when it breaks.

Waits between attempts have full jitter under a doubling cap, so that robots which lost the head
together do not come back together. Where there is no connection it is gRPC that dials, with waits
and jitter of its own (``comms.tunnel``), and an attempt asks nobody: then it is made again soon, so
that a connection that is there again is used at once.
"""

import logging
import threading
import time
from collections.abc import Callable
from random import Random

import grpc

from comms.status import received, unreached
from user_system.core.errors import UserSystemError
from user_system.core.supervise import Backoff

log = logging.getLogger(__name__)

_BASE_S, _CAP_S, _QUIET_S = 0.1, 1.0, 5.0
_DIALLING_S = 0.5
"""Longest wait while there is no connection."""


class Reconnecting:
    """Runs ``session`` again and again until closed.

    Args:
        name: of the thread, and in the log.
        session: holds one connection; returns or raises when that is over. It must end soon after
            ``closing`` is set.
        backoff: waits between attempts.
    """

    def __init__(self, name: str, session: Callable[[], None], backoff: Backoff | None = None):
        self.closing = threading.Event()
        self._name = name
        self._session = session
        self._backoff = backoff or Backoff(_BASE_S, _CAP_S, _QUIET_S)
        self._rng = Random()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._sessions = 0
        self._errors = 0
        self._down_logged = False

    def start(self) -> None:
        """Start to dial."""
        self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """Set ``closing`` and wait for the thread; idempotent."""
        self.closing.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def up(self) -> None:
        """Note that the session is established."""
        if self._down_logged:
            log.info("%s: connected again", self._name)
        self._down_logged = False

    def stats(self) -> dict[str, float]:
        """Return how many sessions there were, and how many ended by an unforeseen error."""
        return {"sessions": float(self._sessions), "errors": float(self._errors)}

    def _run(self) -> None:
        while not self.closing.is_set():
            started, dialling = time.monotonic(), False
            self._sessions += 1
            try:
                self._session()
            except grpc.RpcError as error:
                dialling = unreached(error)
                self._down(received(error, f"keep {self._name} connected"))
            except UserSystemError as error:
                dialling = unreached(error)
                self._down(error)
            except Exception:  # top of a thread: it is told, counted, and tried again, with waits
                self._errors += 1
                log.exception("%s: unforeseen error", self._name)
            wait = self._backoff.died(time.monotonic() - started)
            self.closing.wait(min(wait, self._rng.uniform(0, _DIALLING_S)) if dialling else wait)

    def _down(self, error: UserSystemError) -> None:
        """Say it once per outage, not once per attempt."""
        if not self._down_logged and not self.closing.is_set():
            log.warning("%s: %s", self._name, error)
        self._down_logged = True
