"""A robot host in a process of its own: the spool and the links that each has, made-up episodes.

python -m user_system.cluster.bench.net_host
"""

import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from comms.experience_client import ExperienceClient
from comms.link import Link
from comms.tunnel import Tunnel
from comms.weight_puller import WeightPuller
from user_system.cluster import dial
from user_system.cluster.bench.ingest_outbox import EPISODE, Factory
from user_system.cluster.bench.net_presence import Presence
from user_system.cluster.bench.replay_child import serve
from user_system.cluster.configs import LinkConfig
from user_system.cluster.parse import load
from user_system.core.clock import SECOND, WallClock
from user_system.core.errors import ConfigError, LinkError, StoreError
from user_system.core.ports import Outbox, Refused
from user_system.core.types import Fragment
from user_system.edge.messages import WeightsReady
from user_system.edge.recorder import BACKLOG
from user_system.edge.spool import Spool
from user_system.edge.weight_client import WeightClient
from user_system.replay.queue import Queue

POLL_S = 0.005
_SAMPLE_S = 0.1
_QUOTA = 4 << 30


@dataclass(slots=True)
class Life:
    """What became of one fragment; monotonic ns, 0: not yet."""

    epoch: int
    sequence: int
    submitted: int
    acked: int = 0


@dataclass
class Books:
    """What was put and what was acknowledged, of one producer. Thread-safe."""

    lives: list[Life] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    last_ns: int = 0
    """When an acknowledgement last covered something new."""
    _acked: dict[int, int] = field(default_factory=dict)
    _begin: dict[int, int] = field(default_factory=dict)
    """Epoch -> index of its first life."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def put(self, epoch: int, sequence: int) -> None:
        """Note that a fragment is on this host's disk as of now."""
        with self._lock:
            self._begin.setdefault(epoch, len(self.lives))
            self.lives.append(Life(epoch, sequence, time.monotonic_ns()))

    def take_back(self) -> None:
        """Forget the last ``put``: it was refused."""
        with self._lock:
            self.lives.pop()

    def acknowledged(self, epoch: int, below: int) -> None:
        """Note that all of an epoch below a sequence is on the head's disk."""
        now = time.monotonic_ns()
        with self._lock:
            for sequence in range(self._acked.get(epoch, 0), below):
                self.lives[self._begin[epoch] + sequence].acked = now
                self.last_ns = now
            self._acked[epoch] = max(below, self._acked.get(epoch, 0))

    @property
    def waiting(self) -> int:
        """Fragments that are not known to be on the head's disk."""
        with self._lock:
            return len(self.lives) - sum(self._acked.values())

    def first_after(self, at_ns: int) -> int:
        """Return when something was first acknowledged after a moment; 0: nothing was yet."""
        with self._lock:
            return min((life.acked for life in self.lives if life.acked > at_ns), default=0)

    def spooled(self) -> list[tuple[int, int]]:
        """Return (epoch, fragments) of all epochs."""
        with self._lock:
            counts: dict[int, int] = {}
            for life in self.lives:
                counts[life.epoch] = counts.get(life.epoch, 0) + 1
            return list(counts.items())


class Noted:
    """A spool's outbox that notes what is acknowledged; everything else is the spool's."""

    def __init__(self, outbox: Outbox, books: Books):
        self._outbox, self._books = outbox, books
        self.sources, self.boot, self.read = outbox.sources, outbox.boot, outbox.read
        self.lost, self.note_stuck, self.wait = outbox.lost, outbox.note_stuck, outbox.wait

    def forget(self, producer: str, epoch: int, below: int) -> None:
        """Drop, and note when."""
        self._outbox.forget(producer, epoch, below)
        self._books.acknowledged(epoch, below)

    def set_aside(self, refused: Refused) -> None:
        """Note a refusal: these fragments are sound, so the figure is not."""
        self._books.refused.append(refused.reason)
        self._outbox.set_aside(refused)


class Host:
    """One robot host that records and sends."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.books = Books()
        self._name = ""
        self._hz = 0.0
        self._episode_ns = 0
        """When the newest episode began."""
        self._depths: list[tuple[int, float]] = []
        self._closing = threading.Event()
        self._spool: Spool | None = None
        self._client: ExperienceClient | None = None
        self._presence: Presence | None = None
        self._way: Tunnel | None = None
        self._lanes = Link()
        """As on every robot host: bulk never fills the link (`comms.lanes`)."""
        self._versions: dict[int, int] = {}
        """Version -> when it was laid down, monotonic ns."""

    def connect(self, link: dict[str, Any], directory: str, hub: bool, timeout_s: float) -> None:
        """Open the spool, dial, and wait until all lanes are there.

        Raises:
            LinkError: they are not.
        """
        config, place = load(LinkConfig, link), Path(directory)
        self._name = config.name
        queue = Queue(place / "spool", max_bytes=2 * _QUOTA, first_epoch=int(time.time()))
        self._stack.enter_context(queue.open(create=True))
        way = self._way = self._stack.enter_context(dial.tunnel(config))
        spool = self._spool = Spool(queue, quota_bytes=_QUOTA)
        spool.start(place / "journals")
        self._stack.callback(spool.close)
        lanes = self._lanes
        self._client = ExperienceClient(
            way,
            Noted(spool, self.books),
            config.name,
            budget=lanes.experience,
            behind=lanes.behind,
        )
        self._client.start()
        self._stack.callback(self._client.close)
        if hub:
            self._presence = Presence(way, config.name, lanes)
            self._presence.start()
            self._stack.callback(self._presence.close)
        self._wait_connected(timeout_s)

    def begin(self, hz: float) -> None:
        """Record so many fragments per second from now on."""
        first, self._hz = not self._hz, hz
        if first:
            for work in (self._record, self._watch):
                threading.Thread(target=work, daemon=True).start()

    def follow(self, policy: str, directory: str) -> None:
        """Fetch each version of a policy from now on.

        Raises:
            ConfigError: not connected.
        """
        if (way := self._way) is None:
            raise ConfigError("not connected")

        def ready(policy: str, found: WeightsReady) -> None:
            del policy
            self._versions[found.version] = time.monotonic_ns()

        client = WeightClient(
            lambda: WeightPuller(way, budget=self._lanes.weights), Path(directory), ready
        )
        client.start()
        self._stack.callback(client.close)
        client.follow(policy)

    def has(self, version: int, timeout_s: float) -> int:
        """Wait for a version; return when it was laid down, monotonic ns.

        Raises:
            LinkError: it did not come in time.
        """
        deadline = time.monotonic() + timeout_s
        while version not in self._versions:
            if time.monotonic() > deadline:
                raise LinkError(f"version {version} did not come in {timeout_s:.0f} s")
            time.sleep(POLL_S)
        return self._versions[version]

    def delays(self, since_ns: int, until_ns: int, timeout_s: float) -> list[float]:
        """Return how long each acknowledgement took of what was recorded in a stretch of time, s.

        Raises:
            LinkError: not all of it was acknowledged in time.
        """
        lives = [li for li in list(self.books.lives) if since_ns <= li.submitted < until_ns]
        deadline = time.monotonic() + timeout_s
        while not all(life.acked for life in lives):
            if time.monotonic() > deadline:
                left = sum(not life.acked for life in lives)
                raise LinkError(f"{left} fragments were not acknowledged in {timeout_s:.0f} s")
            time.sleep(POLL_S)
        return [(life.acked - life.submitted) / SECOND for life in lives]

    def backlog(self, since_ns: int, until_ns: int) -> list[float]:
        """Return what waited in a stretch of time, ten times a second, s of recording."""
        return [depth for at, depth in list(self._depths) if since_ns <= at < until_ns]

    def waiting(self) -> int:
        """Return how many fragments wait for the head."""
        return self.books.waiting

    def sessions(self) -> float:
        """Return how often experience was dialled so far."""
        return self._client.stats()["sessions"] if self._client else 0.0

    def episode_after(self, at_ns: int, timeout_s: float = 60.0) -> int:
        """Return when the next episode begins after a moment: what is live lies there.

        An outage opens an epoch at an episode, so that little of what piled up is in front of it.

        Raises:
            LinkError: none did in time.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if self._episode_ns > at_ns:
                return self._episode_ns
            time.sleep(POLL_S)
        raise LinkError(f"no episode began in {timeout_s:.0f} s")

    def back(self, since_ns: int, timeout_s: float) -> dict[str, float]:
        """Return after how many seconds each lane worked again that stood still at a moment.

        Experience: something new was acknowledged. Hub: it was heard.

        Raises:
            LinkError: one did not in time.
        """
        found: dict[str, float] = {}
        deadline = time.monotonic() + timeout_s
        lanes = ("experience", "hub") if self._presence else ("experience",)
        while len(found) < len(lanes):
            for lane in lanes:
                if lane not in found and (at := self._works(lane, since_ns)):
                    found[lane] = (at - since_ns) / SECOND
            if time.monotonic() > deadline:
                raise LinkError(f"not back in {timeout_s:.0f} s", got=", ".join(found) or "nobody")
            time.sleep(POLL_S)
        return found

    def end(self, timeout_s: float) -> dict[str, Any]:
        """Record no more, wait until all is acknowledged; return what was spooled.

        Raises:
            LinkError: it was not, or something was refused.
        """
        self._closing.set()
        deadline = time.monotonic() + timeout_s
        while self.books.waiting:
            if time.monotonic() > deadline:
                raise LinkError(f"{self.books.waiting} fragments left after {timeout_s:.0f} s")
            time.sleep(POLL_S)
        if self.books.refused:
            raise LinkError("the replay refused a fragment", got=self.books.refused[0])
        return {"spooled": self.books.spooled(), "sessions": self.sessions()}

    def close(self) -> None:
        """Hang up."""
        self._closing.set()
        self._stack.close()

    def _works(self, lane: str, since_ns: int) -> int:
        """Return when a lane was first heard of after a moment, monotonic ns; 0: not yet."""
        if lane == "experience":
            return self.books.first_after(since_ns)
        heard = self._presence.heard_ns if self._presence else 0
        return heard if heard > since_ns else 0

    def _wait_connected(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not all(link.stats()["connected"] for link in (self._client, self._presence) if link):
            if time.monotonic() > deadline:
                raise LinkError(f"no connection to the head in {timeout_s:.0f} s")
            time.sleep(POLL_S)

    def _record(self) -> None:
        """Record on a grid, whatever the link does; a backlog opens an epoch at an episode."""
        if self._spool is None:
            raise ConfigError("not connected")
        spool, clock = self._spool, WallClock()
        factory, epoch, sequence, count = Factory(self._name), 0, 0, 0
        due = time.monotonic_ns()
        while not self._closing.is_set():
            clock.sleep_until(due)
            due += int(SECOND / self._hz)
            behind = epoch and spool.backlog(self._name, epoch) > BACKLOG
            if not epoch or (count % EPISODE == 0 and behind):
                epoch, sequence = spool.begin_epoch(self._name), 0
            if count % EPISODE == 0:
                self._episode_ns = time.monotonic_ns()
            made = factory.make(count)
            header = replace(made.header, epoch=epoch, sequence=sequence)
            self._put(spool, replace(made, header=header))
            sequence, count = sequence + 1, count + 1

    def _put(self, spool: Spool, fragment: Fragment) -> None:
        header = fragment.header
        while not self._closing.is_set():
            # Before it is put: an answer may be faster than the note.
            self.books.put(header.epoch, header.sequence)
            try:
                spool.put(fragment)
            except StoreError:  # the disk is behind: a paced-up robot waits for it
                self.books.take_back()
                time.sleep(POLL_S)
            else:
                return

    def _watch(self) -> None:
        while not self._closing.wait(_SAMPLE_S):
            self._depths.append((time.monotonic_ns(), self.books.waiting / self._hz))


def main() -> None:
    """Do what is asked for."""
    host = Host()
    questions = (
        host.connect, host.begin, host.delays, host.backlog, host.waiting, host.sessions,
        host.episode_after, host.back, host.end, host.follow, host.has,
    )  # fmt: skip
    try:
        serve({question.__name__: question for question in questions})
    finally:
        host.close()


if __name__ == "__main__":
    main()
