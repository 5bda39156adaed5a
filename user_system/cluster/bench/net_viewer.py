"""A person's page at the head, as far as a network is concerned: it hears the robots' states.

python -m user_system.cluster.bench.net_viewer
"""

import threading
import time
from contextlib import ExitStack
from typing import Any

from comms.fresh import FreshPeer
from comms.pb import fresh_pb2
from user_system.cluster import dial
from user_system.cluster.bench.replay_child import serve
from user_system.cluster.configs import LinkConfig
from user_system.cluster.parse import load
from user_system.core.clock import SECOND
from user_system.core.errors import ConfigError, LinkError

POLL_S = 0.005


class Viewer:
    """Hears the states of all robots."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._peer: FreshPeer | None = None
        self._states: list[tuple[int, float]] = []
        """When each was heard, monotonic ns, and how old it was, s."""

    def connect(self, link: dict[str, Any]) -> None:
        """Dial."""
        way = self._stack.enter_context(dial.tunnel(load(LinkConfig, link)))
        self._peer = FreshPeer(way, role="viewer", robots=["*"])
        self._peer.start()
        self._stack.callback(self._peer.close)
        threading.Thread(target=self._listen, args=(self._peer,), daemon=True).start()

    def back(self, since_ns: int, timeout_s: float) -> float:
        """Return after how many seconds a state was heard that was sent after a moment.

        Raises:
            LinkError: none was in time.
        """
        if self._peer is None:
            raise ConfigError("not connected")
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            for at, age in list(self._states):
                if at - age * SECOND > since_ns:
                    return (at - since_ns) / SECOND
            time.sleep(POLL_S)
        raise LinkError(f"no state of a robot was heard in {timeout_s:.0f} s")

    def close(self) -> None:
        """Hang up."""
        self._stack.close()

    def _listen(self, peer: FreshPeer) -> None:
        while True:
            for message in peer.receive(1.0):
                if isinstance(message, fresh_pb2.RobotState):
                    now = time.monotonic_ns()
                    self._states.append((now, now / SECOND - message.figures["sent_s"]))


def main() -> None:
    """Do what is asked for."""
    viewer = Viewer()
    try:
        serve({"connect": viewer.connect, "back": viewer.back})
    finally:
        viewer.close()


if __name__ == "__main__":
    main()
