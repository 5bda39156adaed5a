"""Several robot hosts in one process: each has its own certificate, connections and records.

    python -m user_system.cluster.bench.net_fleet_hosts

Their spools are in memory: what is measured is the head, and one disk under all of them would be
nobody's.
"""

import threading
import time
from contextlib import ExitStack
from typing import Any

from comms.experience_client import ExperienceClient
from comms.link import Link
from user_system.cluster import dial
from user_system.cluster.bench.ingest_outbox import Outbox
from user_system.cluster.bench.net_presence import Presence
from user_system.cluster.bench.replay_child import serve
from user_system.cluster.configs import LinkConfig
from user_system.cluster.parse import load
from user_system.core.clock import SECOND, WallClock
from user_system.core.errors import LinkError

SHAPE = (64, 79, 3)
"""Of the one image of a fragment: 15,168 bytes, with the columns 15 KiB."""
POLL_S = 0.02


class Member:
    """One robot host."""

    def __init__(self, config: LinkConfig):
        self._stack = ExitStack()
        self._link = config
        self.box = Outbox(config.name, SHAPE)
        self._stop = threading.Event()
        self._first = 0

    def connect(self, deadline: float) -> None:
        """Dial, and wait until hub and replay have answered."""
        way = self._stack.enter_context(dial.tunnel(self._link))
        link = Link()
        budget = link.experience
        client = ExperienceClient(way, self.box, self._link.name, budget=budget)
        presence = Presence(way, self._link.name, link)
        client.start()
        self._stack.callback(client.close)
        presence.start()
        self._stack.callback(presence.close)
        while not (client.stats()["connected"] and presence.stats()["connected"]):
            if time.monotonic() > deadline:
                raise LinkError(f"{self._link.name} has no connection to the head")
            time.sleep(POLL_S)

    def begin(self, hz: float, at_ns: int) -> None:
        """Record on a grid from ``at_ns`` on."""
        self._first = len(self.box.sent)
        self._stop.clear()
        threading.Thread(target=self._pace, args=(hz, at_ns), daemon=True).start()

    def end(self, since_ns: int, until_ns: int, timeout_s: float) -> list[float]:
        """Record no more; return how long answers took to what is of a stretch of time, ms."""
        self._stop.set()
        self.box.drain(timeout_s)
        sent = self.box.sent[self._first :]
        return [(s.acked - s.submitted) / 1e6 for s in sent if since_ns <= s.submitted < until_ns]

    def close(self) -> None:
        """Hang up."""
        self._stop.set()
        self._stack.close()

    def _pace(self, hz: float, at_ns: int) -> None:
        clock, due = WallClock(), at_ns
        while not self._stop.is_set():
            clock.sleep_until(due)
            if not self._stop.is_set():
                self.box.put()
            due += int(SECOND / hz)


class Hosts:
    """All of this process."""

    def __init__(self) -> None:
        self._members: list[Member] = []

    def connect(self, links: list[dict[str, Any]], timeout_s: float) -> None:
        """Bring these hosts into service, beside those that are."""
        deadline = time.monotonic() + timeout_s
        for link in links:
            member = Member(load(LinkConfig, link))
            self._members.append(member)
            member.connect(deadline)

    def begin(self, hz: float, at_ns: list[int]) -> None:
        """Record, each host from its own moment on."""
        for member, at in zip(self._members, at_ns, strict=True):
            member.begin(hz, at)

    def end(self, since_ns: int, until_ns: int, timeout_s: float) -> list[float]:
        """Record no more; return how long answers took, ms."""
        found: list[float] = []
        for member in self._members:
            found += member.end(since_ns, until_ns, timeout_s)
        return found

    def close(self) -> None:
        """Hang up."""
        for member in self._members:
            member.close()


def main() -> None:
    """Do what is asked for."""
    hosts = Hosts()
    try:
        serve({"connect": hosts.connect, "begin": hosts.begin, "end": hosts.end})
    finally:
        hosts.close()


if __name__ == "__main__":
    main()
