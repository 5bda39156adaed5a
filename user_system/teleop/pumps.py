"""Two threads that carry what others say into the page: the fresh lane, and the hub's status."""

import asyncio
import logging
import threading
from collections.abc import Mapping
from typing import Any

from comms.pb.fresh_pb2 import Preview, RobotState
from user_system.core.errors import UserSystemError
from user_system.teleop import video, view
from user_system.teleop.latest import Latest
from user_system.teleop.ports import FreshPort, HubPort

log = logging.getLogger(__name__)


class Pumps:
    """Newest states, previews and status; ``start`` and ``close`` are the app's lifespan.

    Args:
        hub: asked for the status twice a second.
        fresh: listened to all the time.
    """

    def __init__(self, hub: HubPort, fresh: FreshPort, *, status_s: float = 0.5):
        self._hub, self._fresh, self._status_s = hub, fresh, status_s
        self.states: Latest[RobotState] = Latest()
        self.previews: Latest[Preview] = Latest()
        self._status: Mapping[str, Any] = {"robots": [], "figures": {}, "away": "not heard yet"}
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to pump into ``loop``."""
        self._stop.clear()
        self.states.bind(loop)
        self.previews.bind(loop)
        for target in (self._listen, self._poll):
            thread = threading.Thread(target=target, name=f"teleop{target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def close(self) -> None:
        """Stop; returns when both threads ended."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._threads.clear()
        self.states.bind(None)
        self.previews.bind(None)

    def status(self) -> Mapping[str, Any]:
        """Return the newest status; ``away`` says why it is not new."""
        return self._status

    def _listen(self) -> None:
        while not self._stop.is_set():
            states: dict[str, RobotState] = {}
            previews: dict[str, Preview] = {}
            for message in self._fresh.receive(0.2):
                if isinstance(message, RobotState):
                    states[message.robot] = message
                elif isinstance(message, Preview):
                    previews[video.key_of(message)] = message
            self.states.put(states)
            self.previews.put(previews)

    def _poll(self) -> None:
        while not self._stop.wait(self._status_s):
            try:
                self._status = view.status(self._hub.status()) | {"away": ""}
            except UserSystemError as error:
                if not self._status["away"]:
                    log.warning("the hub does not say how things are: %s", error)
                self._status = {**self._status, "away": str(error)}
