"""Asking the head again and again what this robot host is to run, in a thread of its own."""

import logging
import threading
import time
import uuid
from collections.abc import Callable

import user_system
from comms.hub_client import HubClient
from comms.pb import hub_pb2
from comms.tunnel import Tunnel
from user_system.cluster import dial
from user_system.cluster.configs import LinkConfig
from user_system.core.errors import LinkError, UserSystemError
from user_system.core.supervise import Backoff
from user_system.core.versions import PROTOCOL, check_version

ASK_S = 2.0
"""Time between two questions while the head answers."""

ANSWER_S = 10.0

log = logging.getLogger(__name__)


class SetupWatch:
    """Keeps asking; a ``with`` block ends it. What it found is fetched by ``take``.

    Args:
        link: to the head. Its credentials are read anew after every failure, since a renewal or
            another join may have replaced them.
    """

    def __init__(self, link: Callable[[], LinkConfig]):
        self._link = link
        self._closing = threading.Event()
        self._news = threading.Event()
        """Set where the head should hear of something before the next question is due."""
        self._lock = threading.Lock()
        self._document, self._mismatch = b"", ""
        self._error: UserSystemError | None = None
        self._boot = uuid.uuid4().hex[:12]
        self._thread = threading.Thread(target=self._run, name="setup", daemon=True)
        self.running = ""
        """Hash of the setup that this host runs."""
        self.trouble = ""
        """What keeps it from running the newest one, for the people at the head."""

    def __enter__(self) -> "SetupWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._news.set()
        self._thread.join(ANSWER_S + 1.0)

    @property
    def error(self) -> UserSystemError | None:
        """Why there was no answer the last time; None: there was one, or it is still waited for."""
        with self._lock:
            return self._error

    def tell(self, *, running: str | None = None, trouble: str) -> None:
        """Let the head know what this host runs, and what keeps it from the newest."""
        self.running = self.running if running is None else running
        self.trouble = trouble
        self._news.set()

    def take(self) -> bytes:
        """Return a setup other than the running one, once; b"" where there is none."""
        with self._lock:
            document, self._document = self._document, b""
        return document

    def _run(self) -> None:
        backoff = Backoff(base_s=0.2, cap_s=5.0)
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                with dial.tunnel(self._link()) as way:
                    self._ask(way)
            except UserSystemError as error:
                self._failed(error)
            except Exception as error:  # top of a thread: without it no other setup would be heard
                log.exception("asking the head failed")
                self._failed(LinkError("asking the head failed", got=repr(error)[:200]))
            self._closing.wait(backoff.died(time.monotonic() - began))

    def _ask(self, way: Tunnel) -> None:
        """Ask every ``ASK_S`` until closed or refused.

        Raises:
            LinkError: there is no answer; where the tunnel knows why, in its words.
        """
        hub = HubClient(way, timeout_s=ANSWER_S)
        try:
            self._ask_on(hub)
        except LinkError as error:
            if why := way.trouble():
                raise LinkError(why) from error
            raise

    def _ask_on(self, hub: HubClient) -> None:
        while not self._closing.is_set():
            reply = hub.setup(
                hub_pb2.SetupQuery(
                    hash=self.running,
                    protocol=PROTOCOL,
                    version=user_system.__version__,
                    boot=self._boot,
                    trouble=self._mismatch or self.trouble,
                )
            )
            self._answered(reply)
            self._news.wait(ASK_S)
            if not self._closing.is_set():
                self._news.clear()

    def _answered(self, reply: hub_pb2.SetupReply) -> None:
        try:
            check_version(reply.protocol, reply.version, user_system.__version__)
        except UserSystemError as error:
            self._mismatch = str(error)
            self._failed(error)
            return
        self._mismatch = ""
        with self._lock:
            if self._error is not None:
                log.info("the head answers")
            self._error = None
            self._document = reply.document

    def _failed(self, error: UserSystemError) -> None:
        """Say it once, not once per attempt."""
        with self._lock:
            news = self._error is None or type(self._error) is not type(error)
            self._error = error
        if news:
            log.log(logging.INFO if isinstance(error, LinkError) else logging.ERROR, "%s", error)
