"""Many robot hosts in one process: connections and presence of each, and nothing to record."""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from kit.zygote import HANGS_S, Channel

from comms.credentials import Credentials
from comms.experience_client import ExperienceClient
from comms.link import Link
from comms.tunnel import DirectTunnel, Endpoints
from user_system.cluster.bench.ingest_outbox import Outbox
from user_system.cluster.bench.net_presence import Presence
from user_system.core.clock import SECOND

_SHAPE = (8, 8, 3)


class Member:
    """One robot host. What it does is as in every robot host; its spool is in memory."""

    def __init__(self, way: DirectTunnel, name: str):
        link = Link()
        self.box = Outbox(name, _SHAPE)
        self.client = ExperienceClient(way, self.box, name, budget=link.experience)
        self.presence = Presence(way, name, link)
        self._wanted = 0

    def start(self) -> None:
        self.client.start()
        self.presence.start()

    def close(self) -> None:
        self.client.close()
        self.presence.close()

    def mark(self) -> None:
        """Record one fragment, which only a head that is back can acknowledge."""
        self.box.put()
        self._wanted = len(self.box.sent)

    def back(self, since_ns: int) -> bool:
        """Whether hub and replay have both answered since a moment."""
        here = self.presence.stats()["connected"] and self.presence.heard_ns > since_ns
        return bool(here) and self.box.acked >= self._wanted

    def sessions(self) -> tuple[float, float]:
        """Return how often replay and hub were dialled."""
        return self.client.stats()["sessions"], self.presence.stats()["sessions"]

    def missing(self) -> str:
        """Return what it waits for, for people."""
        return f"{self.box.acked} of {self._wanted} acked, hub {self.presence.stats()}"


def be(channel: Channel, names: list[str], keys: str, endpoints: dict[str, str]) -> None:
    """Be robot hosts; ``mark`` has each record, ``back`` answers how soon each was heard, s."""
    with ExitStack() as stack:
        members = []
        for name in names:
            way = DirectTunnel(Endpoints(**endpoints), Credentials.load(Path(keys), name))
            stack.callback(way.close)
            member = Member(way, name)
            stack.callback(member.close)
            member.start()
            members.append(member)
        for member in members:
            member.mark()
        _until(lambda: all(member.back(0) for member in members))
        channel.send("there")
        while (order := channel.receive(1e6)) != "end":
            if order == "mark":
                for member in members:
                    member.mark()
                channel.send("marked")
            elif order == "sessions":
                channel.send([s for member in members for s in member.sessions()])
            else:
                channel.send(_waits(members, order["since_ns"]))
    channel.send("closed")


def _waits(members: list[Member], since_ns: int) -> list[float]:
    waits: dict[int, float] = {}

    def look() -> bool:
        for number, member in enumerate(members):
            if number not in waits and member.back(since_ns):
                waits[number] = (time.monotonic_ns() - since_ns) / SECOND
        return len(waits) == len(members)

    try:
        _until(look)
    except TimeoutError:
        lost = [m.missing() for k, m in enumerate(members) if k not in waits]
        print("lost:", lost, file=sys.stderr)
        raise
    return list(waits.values())


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANGS_S / 2
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("hosts of a herd are not all there")
        time.sleep(0.01)
