"""A producer in a process of its own: the client that every robot host has, over a made-up spool.

python -m user_system.cluster.bench.ingest_producer
"""

import threading
import time
from contextlib import AbstractContextManager, ExitStack
from typing import Any

from comms.experience_client import ExperienceClient
from comms.tunnel import Tunnel
from user_system.cluster import dial
from user_system.cluster.bench.ingest_outbox import Outbox, Sent
from user_system.cluster.bench.replay_child import serve
from user_system.cluster.configs import LinkConfig
from user_system.cluster.parse import load
from user_system.core.clock import SECOND, WallClock
from user_system.core.errors import ConfigError, LinkError

POLL_S = 0.02


class Producer:
    """One robot host that sends."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._box: Outbox | None = None
        self._client: ExperienceClient | None = None
        self._first = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def connect(self, link: dict[str, Any], timeout_s: float) -> None:
        """Dial, and wait until the replay has said Welcome.

        Raises:
            LinkError: it did not.
        """
        config = load(LinkConfig, link)
        self._box = Outbox(config.name)
        way = self._stack.enter_context(self.tunnel(config))
        self._client = ExperienceClient(way, self._box, config.name)
        self._client.start()
        self._stack.callback(self._client.close)
        deadline = time.monotonic() + timeout_s
        while not self._client.stats()["connected"]:
            if time.monotonic() > deadline:
                raise LinkError(f"no connection to the replay in {timeout_s:.0f} s")
            time.sleep(POLL_S)

    def tunnel(self, config: LinkConfig) -> AbstractContextManager[Tunnel]:
        """Return the way to the head."""
        return dial.tunnel(config)

    def begin(self, hz: float, at_ns: int) -> None:
        """Submit ``hz`` fragments per second, the first at ``at_ns``; 0: as credit allows."""
        box = self._outbox()
        self._first = len(box.sent)
        if hz == 0:
            box.begin_flood()
            return
        self._stop.clear()
        self._thread = threading.Thread(target=self._pace, args=(box, hz, at_ns), daemon=True)
        self._thread.start()

    def end(self, since_ns: int, until_ns: int, timeout_s: float) -> dict[str, Any]:
        """Stop, wait until all is acknowledged, and return what was in a stretch of time.

        Returns:
            ``acked`` in it, and how long each took that was submitted in it, ms.
        """
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        box = self._outbox()
        box.drain(timeout_s)
        sent = box.sent[self._first :]
        return {
            "acked": sum(since_ns <= each.acked < until_ns for each in sent),
            "ms": [_ms(each) for each in sent if since_ns <= each.submitted < until_ns],
        }

    def count(self) -> int:
        """Return how many fragments were acknowledged in all."""
        return self._outbox().acked

    def close(self) -> None:
        """Hang up."""
        self._stack.close()

    def _outbox(self) -> Outbox:
        if self._box is None:
            raise ConfigError("not connected")
        return self._box

    def _pace(self, box: Outbox, hz: float, at_ns: int) -> None:
        """Submit on a grid, however long answers take: a slow one delays nobody's clock."""
        clock, due = WallClock(), at_ns
        while not self._stop.is_set():
            clock.sleep_until(due)
            box.put()
            due += int(SECOND / hz)


def _ms(sent: Sent) -> float:
    return (sent.acked - sent.submitted) / 1e6


def main() -> None:
    """Send what is asked for."""
    producer = Producer()
    questions = (producer.connect, producer.begin, producer.end, producer.count)
    try:
        serve({question.__name__: question for question in questions})
    finally:
        producer.close()


if __name__ == "__main__":
    main()
