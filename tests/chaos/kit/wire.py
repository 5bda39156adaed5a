"""The real way of experience: producers, gRPC with mutual TLS, the service, the store."""

import random
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
from kit import made
from kit.history import Journal
from kit.namespace import tiny_disk
from kit.spools import open_spool, put_until_taken
from kit.stores import ONLY_FEW, records, stored
from kit.zygote import Channel

from comms.authority import Authority
from comms.credentials import AllowList, Credentials, Role
from comms.experience_client import ExperienceClient
from comms.experience_service import ExperienceService
from comms.packing import Packing
from comms.serving import serve as listen
from comms.tunnel import DirectTunnel, Endpoints
from user_system.core.interfaces import Draw, NotReady
from user_system.core.ports import Refused
from user_system.core.types import Fragment
from user_system.replay import env as env_module
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store, reader

UNDER_WAY = 24
"""Fragments that a producer keeps waiting for an ack before it makes another."""


def enrol(directory: Path, hosts: int) -> None:
    """Make the credentials of a replay process and of so many robot hosts."""
    authority = Authority.open(directory)
    authority.issue("replay", Role.SERVICE)
    for number in range(hosts):
        authority.issue(made.name(number), Role.ROBOT)


def serve(channel: Channel, path: str, keys: str, address: str, first_map: int = ONLY_FEW) -> None:
    """Be the replay process; answer ``stats``, and end in order when told anything else."""
    env_module.INITIAL_MAP = first_map
    begun = time.perf_counter()
    with Store(path).open(create=True) as store:
        opened = time.perf_counter() - begun
        credentials, allow = Credentials.load(Path(keys), "replay"), AllowList(Path(keys))
        service = ExperienceService(store)
        with listen([service], credentials=credentials, allow=allow, address=address):
            channel.send({"opened_s": opened})
            while channel.receive(1e6) == "stats":
                channel.send(dict(store.stats()))
    channel.send("closed")


class Outbox:
    """A robot host's spool in memory, which writes down what it is promised."""

    def __init__(self, journal: Journal):
        self._journal = journal
        self._kept: dict[tuple[str, int], dict[int, Fragment]] = defaultdict(dict)
        self._news = threading.Condition()
        self._count = self._seen = 0

    def put(self, fragment: Fragment) -> None:
        self._journal.note("S", *stored(fragment), fragment.header.episode)
        with self._news:
            header = fragment.header
            self._kept[header.producer, header.epoch][header.sequence] = fragment
            self._count += 1
            self._news.notify_all()

    def wait_below(self, count: int) -> None:
        """Wait until fewer than ``count`` fragments wait for an ack."""
        with self._news:
            self._news.wait_for(lambda: sum(map(len, self._kept.values())) < count)

    def sources(self) -> Sequence[tuple[str, int]]:
        with self._news:
            return sorted((s for s, kept in self._kept.items() if kept), key=lambda s: -s[1])

    def boot(self, producer: str, epoch: int) -> str:
        with self._news:
            return next((f.header.boot for f in self._kept[producer, epoch].values()), "")

    def read(self, producer: str, epoch: int, start: int, limit: int) -> Sequence[Fragment]:
        with self._news:
            kept = self._kept[producer, epoch]
            return [kept[k] for k in sorted(kept) if k >= start][:limit]

    def forget(self, producer: str, epoch: int, below: int) -> None:
        with self._news:
            kept = self._kept[producer, epoch]
            covered = [k for k in kept if k < below]
            for sequence in covered:
                del kept[sequence]
            if covered:
                self._journal.note("A", producer, epoch, below)
                self._news.notify_all()

    def set_aside(self, refused: Refused) -> None:
        # Nothing here may be refused: an ack of it that follows shows as lost.
        self.forget(refused.producer, refused.epoch, refused.sequence + 1)

    def lost(self, producer: str, epoch: int, sequence: int) -> Refused | None:
        return None

    def note_stuck(self, producer: str, epoch: int, why: str) -> None:
        assert not why, why

    def wait(self, timeout_s: float) -> bool:
        with self._news:
            came = self._news.wait_for(lambda: self._count > self._seen, timeout_s)
            self._seen = self._count
            return came


class Echoing(grpc.StreamStreamClientInterceptor):  # type: ignore[misc]
    """A tunnel that repeats messages after the first of a stream, those of streams before too.

    Args:
        tunnel: that carries them.
        rng: chooses.
        share: of the messages that an older one follows.
    """

    def __init__(self, tunnel: DirectTunnel, rng: random.Random, share: float):
        self._tunnel, self._rng, self._share = tunnel, rng, share
        self._sent: deque[Any] = deque(maxlen=32)
        self.close, self.trouble, self.stats = tunnel.close, tunnel.trouble, tunnel.stats
        self.fresh = tunnel.fresh

    def channel(self, service: str) -> grpc.Channel:
        return grpc.intercept_channel(self._tunnel.channel(service), self)

    def intercept_stream_stream(self, go_on: Any, details: Any, requests: Iterator[Any]) -> Any:
        return go_on(details, self._repeated(requests))

    def _repeated(self, requests: Iterator[Any]) -> Iterator[Any]:
        yield next(requests)
        for request in requests:
            yield request
            self._sent.append(request)
            if self._rng.random() < self._share:
                yield self._rng.choice(self._sent)


def produce(
    channel: Channel,
    number: int,
    keys: str,
    address: str,
    journal: str,
    seed: int,
    first_epoch: int = 1,
    per_s: float = 0.0,
    under_way: int = UNDER_WAY,
    side: int = made.SIDE,
    echo: float = 0.0,
) -> None:
    """Be a robot host that makes fragments until told to stop, then waits for the last ack.

    With ``echo`` such a share of its messages is followed by one that was sent before.
    """
    rng, host = random.Random(seed), made.name(number)
    outbox = Outbox(Journal(journal))
    me, packing = Credentials.load(Path(keys), host), Packing(rng.choice(["raw", "zstd"]))
    tunnel = Echoing(DirectTunnel(Endpoints(replay=address), me), rng, echo)
    client = ExperienceClient(tunnel, outbox, host, packing=packing)
    client.start()
    channel.send("ready")
    epoch, sequence, begun, count = first_epoch, 0, time.monotonic(), 0
    while not channel.pending():
        outbox.put(made.fragment(host, epoch, sequence, side))
        sequence, count = sequence + 1, count + 1
        if rng.random() < 0.01:
            epoch, sequence = epoch + 1, 0
        outbox.wait_below(under_way)
        if per_s:
            time.sleep(max(0.0, begun + count / per_s - time.monotonic()))
    channel.receive()
    outbox.wait_below(1)
    client.close()
    tunnel.close()
    channel.send("drained")


def learn(channel: Channel, path: str, seed: int, side: int = made.SIDE) -> None:
    """Be a learner beside the writer: draw until told to stop, look at every row."""
    rows, wrong = 0, []
    with reader(path).open() as env:
        data = ReplayData(env, seed=seed)
        channel.send("ready")
        while not channel.pending():
            try:
                batch = data.draw(Draw(64))
            except NotReady:
                time.sleep(0.01)
                continue
            rows += len(batch)
            wrong += made.wrong_rows(batch, side)
            time.sleep(0.01)  # leave the cores to the others
        channel.receive()
        channel.send({"rows": rows, "wrong": wrong[:20], "damaged": data.stats()["damaged_steps"]})


def serve_tiny(
    channel: Channel, path: str, keys: str, address: str, size: int, ballast: int
) -> None:
    """Be the replay process on a disk of ``size`` bytes, of which something else takes some.

    Answers ``figures``, ``draw`` and ``rows``; ``free`` gives the disk the ballast back.
    """
    place = Path(path)
    try:
        tiny_disk(place, size)
    except OSError as error:
        channel.send({"skip": str(error)})
        return
    (place / "ballast").write_bytes(bytes(ballast))
    env_module.INITIAL_MAP = ONLY_FEW
    with Store(place / "replay").open(create=True) as store:
        service = ExperienceService(store)
        credentials, allow = Credentials.load(Path(keys), "replay"), AllowList(Path(keys))
        data = ReplayData(store.env, seed=1)
        with listen([service], credentials=credentials, allow=allow, address=address):
            channel.send({"ready": True})
            while (order := channel.receive(1e6)) != "end":
                if order == "figures":
                    channel.send({**store.stats(), **service.stats()})
                elif order == "draw":
                    channel.send(made.wrong_rows(data.draw(Draw(64))))
                elif order == "free":
                    (place / "ballast").unlink()
                elif order == "rows":
                    channel.send([stored(fragment) for _, fragment in records(store.env)])
    channel.send("closed")


def host(
    channel: Channel, place: str, number: int, keys: str, address: str, journal: str, seed: int
) -> None:
    """Be a robot host with a real spool, until killed; ``stop``: make no more, and drain."""
    rng, name = random.Random(seed), made.name(number)
    _queue, spool = open_spool(Path(place))
    notes = Journal(journal)
    tunnel = DirectTunnel(Endpoints(replay=address), Credentials.load(Path(keys), name))
    client = ExperienceClient(tunnel, spool, name)
    client.start()
    epoch, sequence = spool.begin_epoch(name), 0
    channel.send("ready")
    while not channel.pending():
        fragment = made.fragment(name, epoch, sequence)
        notes.note("S", *stored(fragment), fragment.header.episode)
        put_until_taken(spool, fragment)
        notes.note("A", name, epoch, sequence + 1)
        sequence += 1
        time.sleep(rng.uniform(0, 0.01))
    while spool.waiting or spool.depth:
        time.sleep(0.01)
    client.close()
    tunnel.close()
    channel.send("drained")
