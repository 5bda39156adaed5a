"""Experience from spool to store: exactly once, in order, whatever breaks in between."""

import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from comms import experience_client, experience_messages, experience_service, wire
from comms.credentials import AllowList, Credentials, Peer, Role
from comms.experience_client import ExperienceClient, label, replay_stats
from comms.experience_service import ExperienceService
from comms.lanes import Ticket
from comms.pb import experience_pb2 as pb
from comms.rate import Mark
from comms.serving import Server, serve
from comms.tunnel import DirectTunnel, Endpoints
from user_system.codec import arrays
from user_system.codec import fragments as codec
from user_system.core.errors import LinkError, SecurityError, SpecError, StoreError
from user_system.core.ports import Outbox, Refused
from user_system.core.types import Array, Fragment, Parcel
from user_system.edge.spool import Spool
from user_system.replay.queue import Queue
from user_system.replay.store import Store

GENEROUS_S = 60.0
"""Bounds hangs only."""

Source = tuple[str, int]


class ModelIngest:
    """The replay buffer as a dict; what ``append`` promised survives everything."""

    def __init__(self) -> None:
        self.stored: dict[Source, list[Fragment]] = defaultdict(list)
        self.next: dict[Source, int] = defaultdict(int)
        self.order: list[tuple[str, int, int]] = []
        self.commits: list[int] = []
        self.skipped: list[Refused] = []
        self.refusals: list[Refused] = []
        self.labels: list[Any] = []
        self.refuse: set[tuple[str, int, int]] = set()
        self.fail: Callable[[], bool] = lambda: False
        self.lock = threading.Lock()

    def expected(self, producer: str, epoch: int) -> int:
        return self.next[producer, epoch]

    def strange(self, producer: str, epoch: int, boot: str) -> bool:
        began = self.stored[producer, epoch]
        return bool(began and began[0].header.boot != boot)

    def append(self, fragments: Sequence[Parcel]) -> Sequence[Refused]:
        if self.fail():
            raise StoreError("the disk failed") from OSError(28, "No space left on device")
        refused = []
        with self.lock:
            self.commits.append(len(fragments))
            for fragment in (parcel.fragment for parcel in fragments):
                header = fragment.header
                source = header.producer, header.epoch
                if header.sequence != self.next[source]:
                    continue
                self.next[source] += 1
                if (*source, header.sequence) in self.refuse:
                    refused.append(Refused(*source, header.sequence, "wrong shape"))
                    self.refusals.append(refused[-1])
                    continue
                self.stored[source].append(fragment)
                self.order.append((*source, header.sequence))
        return refused

    def skip(self, refused: Refused) -> None:
        source = refused.producer, refused.epoch
        if self.next[source] == refused.sequence:
            self.next[source] += 1
            self.skipped.append(refused)

    def refused(self, producer: str, epoch: int, start: int) -> Sequence[Refused]:
        known = [*self.skipped, *self.refusals]
        source = producer, epoch
        return [r for r in known if (r.producer, r.epoch) == source and r.sequence >= start]

    def label(
        self, episode: str, name: str, version: str, success: bool | None, values: Array | None
    ) -> None:
        self.labels.append((episode, name, version, success, values))

    def stats(self) -> Mapping[str, float]:
        return {"stored": float(sum(map(len, self.stored.values())))}


class ModelOutbox:
    """The spool as a dict."""

    def __init__(self) -> None:
        self.kept: dict[Source, dict[int, Fragment]] = defaultdict(dict)
        self.aside: list[Refused] = []
        self.stuck: dict[Source, str] = {}
        self.news = threading.Condition()
        self.count = self.seen = 0

    def put(self, fragment: Fragment) -> None:
        with self.news:
            header = fragment.header
            self.kept[header.producer, header.epoch][header.sequence] = fragment
            self.count += 1
            self.news.notify_all()

    def sources(self) -> Sequence[Source]:
        with self.news:
            return sorted((s for s, kept in self.kept.items() if kept), key=lambda s: -s[1])

    def boot(self, producer: str, epoch: int) -> str:
        with self.news:
            return next((f.header.boot for f in self.kept[producer, epoch].values()), "")

    def read(self, producer: str, epoch: int, start: int, limit: int) -> Sequence[Fragment]:
        with self.news:
            kept = self.kept[producer, epoch]
            return [kept[k] for k in sorted(kept) if k >= start][:limit]

    def forget(self, producer: str, epoch: int, below: int) -> None:
        with self.news:
            kept = self.kept[producer, epoch]
            for sequence in [k for k in kept if k < below]:
                del kept[sequence]
            self.news.notify_all()

    def set_aside(self, refused: Refused) -> None:
        with self.news:
            self.kept[refused.producer, refused.epoch].pop(refused.sequence, None)
            self.aside.append(refused)

    def lost(self, producer: str, epoch: int, sequence: int) -> Refused | None:
        with self.news:
            keys = {(r.producer, r.epoch, r.sequence): r for r in self.aside}
            return keys.get((producer, epoch, sequence))

    def note_stuck(self, producer: str, epoch: int, why: str) -> None:
        self.stuck[producer, epoch] = why

    def wait(self, timeout_s: float) -> bool:
        with self.news:
            came = self.news.wait_for(lambda: self.count > self.seen, timeout_s)
            self.seen = self.count
            return came

    def wait_empty(self) -> None:
        with self.news:
            assert self.news.wait_for(lambda: not any(self.kept.values()), GENEROUS_S), self.left()

    def left(self) -> dict[Source, int]:
        return {source: len(kept) for source, kept in self.kept.items() if kept}


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + GENEROUS_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Head:
    """The replay process: can be stopped and started again on the same store and port."""

    def __init__(
        self, ingest: ModelIngest, credentials: Credentials, allow: AllowList, **options: Any
    ):
        self.ingest, self.credentials, self.allow, self.options = (
            ingest,
            credentials,
            allow,
            options,
        )
        self.server: Server | None = None
        self.service: ExperienceService | None = None

    def start(self, port: int = 0) -> int:
        self.service = ExperienceService(self.ingest, **self.options)
        self.server = serve(
            [self.service],
            credentials=self.credentials,
            allow=self.allow,
            address=f"127.0.0.1:{port}",
        )
        return self.server.port

    def stop(self, grace_s: float = 0.0) -> None:
        if self.server:
            self.server.stop(grace_s)


@pytest.fixture
def ingest() -> ModelIngest:
    return ModelIngest()


@pytest.fixture
def outbox() -> ModelOutbox:
    return ModelOutbox()


@pytest.fixture
def head(
    ingest: ModelIngest, credentials: Callable[[str], Credentials], allow: AllowList
) -> Iterator[Head]:
    head = Head(ingest, credentials("replay"), allow)
    yield head
    head.stop()


@contextmanager
def client_of(
    port: int, outbox: Outbox, credentials: Credentials, host: str = "host-1", **options: Any
) -> Iterator[ExperienceClient]:
    tunnel = DirectTunnel(Endpoints(replay=f"127.0.0.1:{port}"), credentials)
    client = ExperienceClient(tunnel, outbox, host, **options)
    client.start()
    try:
        yield client
    finally:
        client.close()
        tunnel.close()


def check_exactly_once(ingest: ModelIngest, made: Mapping[Source, int]) -> None:
    assert {source: len(kept) for source, kept in ingest.stored.items() if kept} == dict(made)
    for source, kept in ingest.stored.items():
        assert [f.header.sequence for f in kept] == list(range(made[source])), source
        for fragment in kept:
            assert float(fragment.observation["q"][0, 0]) == float(fragment.header.sequence)


def test_what_is_put_arrives_and_is_forgotten(
    head: Head,
    ingest: ModelIngest,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    append = ingest.append

    def like_a_disk(fragments: Sequence[Parcel]) -> Sequence[Refused]:
        time.sleep(0.002)  # while it writes, what arrives next comes together
        return append(fragments)

    ingest.append = like_a_disk  # type: ignore[method-assign]
    for k in range(200):
        outbox.put(make_fragment(sequence=k, image=4))
    with client_of(head.start(), outbox, credentials("host-1")) as client:
        outbox.wait_empty()
        for k in range(200, 300):  # and while connected, a source that was empty at Hello too
            outbox.put(make_fragment(sequence=k))
            outbox.put(make_fragment("arm-2", 3, k - 200))
        outbox.wait_empty()
        assert client.stats()["refused"] == 0
        assert client.stats()["connected"] == 1
    check_exactly_once(ingest, {("arm-1", 0): 300, ("arm-2", 3): 100})
    assert ingest.stored["arm-1", 0][7].observation["wrist"].shape == (2, 4, 4, 3)
    assert max(ingest.commits) > 1, "fragments were not committed in groups"
    assert max(ingest.commits) <= 64


def test_another_runs_replay_gets_nothing(
    ingest: ModelIngest,
    outbox: ModelOutbox,
    allow: AllowList,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    head = Head(ingest, credentials("replay"), allow, run="lab-eval-1")
    port = head.start()
    try:
        outbox.put(make_fragment())
        with client_of(port, outbox, credentials("host-1"), run="lab") as client:
            deadline = time.monotonic() + 20.0
            while client.stats()["sessions"] < 3:  # it goes on asking
                assert time.monotonic() < deadline
                time.sleep(0.02)
        assert not ingest.stored
        assert outbox.sources(), "it is kept"
        with client_of(port, outbox, credentials("host-1"), run="lab-eval-1"):
            outbox.wait_empty()
    finally:
        head.stop()
    check_exactly_once(ingest, {("arm-1", 0): 1})


def test_an_idle_source_goes_on_after_a_break(
    cutter: Any,
    head: Head,
    ingest: ModelIngest,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    """At the second Hello the outbox is empty, so Welcome says nothing of the source."""
    cutter.target = head.start()
    with client_of(cutter.port, outbox, credentials("host-1")) as client:
        for k in range(10):
            outbox.put(make_fragment(sequence=k))
        outbox.wait_empty()
        cutter.cut()
        deadline = time.monotonic() + GENEROUS_S
        while client.stats()["sessions"] < 2 or not client.stats()["connected"]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for k in range(10, 20):
            outbox.put(make_fragment(sequence=k))
        outbox.wait_empty()
        assert client.stats()["under_way"] == 0
    check_exactly_once(ingest, {("arm-1", 0): 20})


@pytest.mark.parametrize("seed", random.SystemRandom().sample(range(10**6), 3))
def test_exactly_once_over_cuts_and_restarts(
    seed: int,
    cutter: Any,
    head: Head,
    ingest: ModelIngest,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    """Two hosts, three robots, two epochs each; links cut, replay restarted, disk failing."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    stop = threading.Event()
    ingest.fail = lambda: rng.random() < 0.05 and not stop.is_set()
    cutter.target = head.start()
    producers = {"host-1": ["arm-1", "arm-2"], "host-2": ["arm-3"]}
    outboxes = {host: ModelOutbox() for host in producers}
    made: dict[Source, int] = defaultdict(int)

    def disturb() -> None:
        while not stop.wait(rng.uniform(0.02, 0.3)):
            if rng.random() < 0.3:
                head.stop()
                cutter.target = head.start()
            cutter.cut()

    with (
        client_of(cutter.port, outboxes["host-1"], credentials("host-1")),
        client_of(cutter.port, outboxes["host-2"], credentials("host-2"), "host-2"),
    ):
        trouble = threading.Thread(target=disturb)
        trouble.start()
        for k in range(400):
            for host, names in producers.items():
                for name in names:
                    source = (name, 1 + (k >= 200))
                    outboxes[host].put(make_fragment(*source, made[source]))
                    made[source] += 1
            time.sleep(0.004)
        stop.set()
        trouble.join()
        for outbox in outboxes.values():
            outbox.wait_empty()
    check_exactly_once(ingest, made)


def test_exactly_once_from_the_real_spool_into_the_real_store(
    tmp_path: Path,
    cutter: Any,
    credentials: Callable[[str], Credentials],
    allow: AllowList,
    make_fragment: Callable[..., Fragment],
) -> None:
    """The same with the parts that are used: agent and replay restart, the link is cut."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    made: dict[Source, int] = {}
    appended = 0.0
    store = Store(tmp_path / "replay").open(create=True)
    head = Head(store, credentials("replay"), allow)  # type: ignore[arg-type]
    cutter.target = head.start()
    for _ in range(3):  # three lives of the agent
        queue = Queue(tmp_path / "spool").open(create=True)
        spool = Spool(queue, quota_bytes=1 << 30)
        spool.start(tmp_path / "journals")
        epochs = {name: spool.begin_epoch(name) for name in ("arm-1", "arm-2")}
        with client_of(cutter.port, spool, credentials("host-1")):
            for sequence in range(100):
                for source in epochs.items():
                    fragment = make_fragment(*source, sequence, image=8, final=sequence % 5 == 4)
                    spool.put(fragment)
                    made[source] = sequence + 1
                if rng.random() < 0.05:
                    cutter.cut()
                if rng.random() < 0.03:
                    head.stop()
                    appended += store.stats()["appended_fragments"]
                    store.close()
                    head.ingest = store = Store(tmp_path / "replay").open()  # type: ignore[assignment]
                    cutter.target = head.start()
                time.sleep(0.003)
        spool.close()
        queue.close()
    queue = Queue(tmp_path / "spool").open()
    spool = Spool(queue, quota_bytes=1 << 30)
    spool.start(tmp_path / "journals")
    with client_of(cutter.port, spool, credentials("host-1")):
        deadline = time.monotonic() + GENEROUS_S
        while spool.sources():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    head.stop()
    assert {source: store.expected(*source) for source in made} == made
    appended += store.stats()["appended_fragments"]
    assert appended == sum(made.values()), "something was stored twice or refused"
    store.close()
    spool.close()
    queue.close()


def test_live_data_does_not_wait_behind_what_an_outage_left(
    head: Head,
    ingest: ModelIngest,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    """However much is behind, no more of it is in front than may be under way."""
    gate, append = threading.Event(), ingest.append

    def gated(fragments: Sequence[Parcel]) -> Sequence[Refused]:
        gate.wait(GENEROUS_S)
        return append(fragments)

    ingest.append = gated  # type: ignore[method-assign]
    for k in range(600):
        outbox.put(make_fragment("arm-1", 1, k))
    for k in range(30):
        outbox.put(make_fragment("arm-1", 2, k))
        outbox.put(make_fragment("arm-2", 2, k))
    with client_of(head.start(), outbox, credentials("host-1")) as client:
        wait_until(lambda: client.stats()["sent"] >= 60 + 64)
        gate.set()
        outbox.wait_empty()
    live = [k for k, (_, epoch, _) in enumerate(ingest.order) if epoch == 2]
    assert live[-1] < 60 + 3 * 64
    # And no robot waits until the other one is through.
    assert {ingest.order[k][0] for k in live[:20]} == {"arm-1", "arm-2"}
    check_exactly_once(ingest, {("arm-1", 1): 600, ("arm-1", 2): 30, ("arm-2", 2): 30})


def test_an_epoch_that_ends_under_way_changes_over_without_a_gap(
    head: Head,
    ingest: ModelIngest,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    """What was live a moment ago is behind now: it goes on over the other stream."""
    gate, append = threading.Event(), ingest.append

    def gated(fragments: Sequence[Parcel]) -> Sequence[Refused]:
        gate.wait(GENEROUS_S)
        return append(fragments)

    ingest.append = gated  # type: ignore[method-assign]
    for k in range(200):
        outbox.put(make_fragment("arm-1", 1, k))
    with client_of(head.start(), outbox, credentials("host-1")) as client:
        wait_until(lambda: client.stats()["sent"] >= 60)
        for k in range(50):
            outbox.put(make_fragment("arm-1", 2, k))
        gate.set()
        outbox.wait_empty()
        assert client.stats()["gaps"] == 0
        assert client.stats()["sent"] == 250, "nothing went twice"
    check_exactly_once(ingest, {("arm-1", 1): 200, ("arm-1", 2): 50})


def test_the_stream_for_what_is_behind_is_there_while_something_is(
    head: Head,
    ingest: ModelIngest,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(experience_client, "_LINGER_S", 0.3)
    outbox.put(make_fragment("arm-1", 1, 0))
    with client_of(head.start(), outbox, credentials("host-1")) as client:
        outbox.wait_empty()
        assert head.service is not None
        assert head.service.stats()["streams"] == 1
        for epoch in (10, 20):
            for k in range(20):
                outbox.put(make_fragment("arm-1", epoch + 1, k))
                outbox.put(make_fragment("arm-1", epoch, k))
            wait_until(lambda: head.service.stats()["streams"] == 2)
            outbox.wait_empty()
            wait_until(lambda: head.service.stats()["streams"] == 1)
            assert client.stats()["connected"] == 1
    check_exactly_once(ingest, {("arm-1", 1): 1} | {("arm-1", e): 20 for e in (10, 11, 20, 21)})


def test_refused_fragments_are_set_aside_and_block_nothing(
    head: Head,
    ingest: ModelIngest,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    ingest.refuse = {("arm-1", 0, 3), ("arm-1", 0, 4)}
    for k in range(10):
        outbox.put(make_fragment(sequence=k))
    with client_of(head.start(), outbox, credentials("host-1")) as client:
        outbox.wait_empty()
        assert client.stats()["refused"] == 2
    assert [(r.sequence, r.reason) for r in outbox.aside] == [
        (3, "wrong shape"),
        (4, "wrong shape"),
    ]
    assert [f.header.sequence for f in ingest.stored["arm-1", 0]] == [0, 1, 2, 5, 6, 7, 8, 9]


def test_a_refusal_whose_answer_was_lost_is_set_aside_all_the_same(
    cutter: Any,
    head: Head,
    ingest: ModelIngest,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    """The link breaks after the refusal and before its Ack: Welcome must say it again."""
    ingest.refuse = {("arm-1", 0, 1)}
    append, broken = ingest.append, threading.Event()

    def then_break(fragments: Sequence[Parcel]) -> Sequence[Refused]:
        refused = append(fragments)
        if refused and not broken.is_set():
            broken.set()
            cutter.moving.clear()
            cutter.cut()
            time.sleep(0.3)
            cutter.moving.set()
        return refused

    ingest.append = then_break  # type: ignore[method-assign]
    for k in range(4):
        outbox.put(make_fragment(sequence=k))
    cutter.target = head.start()
    with client_of(cutter.port, outbox, credentials("host-1")) as client:
        outbox.wait_empty()
        assert client.stats()["sessions"] >= 2
        assert client.stats()["refused"] == 0, "the Ack was heard: nothing is shown"
    assert [(r.sequence, r.reason) for r in outbox.aside] == [(1, "wrong shape")]
    assert [f.header.sequence for f in ingest.stored["arm-1", 0]] == [0, 2, 3]


@pytest.mark.parametrize("where", [0, 3, 9])
@pytest.mark.parametrize("known", [True, False], ids=["at hello", "while connected"])
def test_what_the_spool_lost_is_passed_over(
    where: int,
    known: bool,
    tmp_path: Path,
    credentials: Callable[[str], Credentials],
    allow: AllowList,
    make_fragment: Callable[..., Fragment],
) -> None:
    """A damaged item goes to quarantine, and all behind it arrive, in this session or the next."""
    store = Store(tmp_path / "replay").open(create=True)
    head = Head(store, credentials("replay"), allow)  # type: ignore[arg-type]
    port = head.start()
    queue = Queue(tmp_path / "spool").open(create=True)
    spool = Spool(queue, quota_bytes=1 << 30)
    spool.start(tmp_path / "journals")
    epoch = spool.begin_epoch("arm-1")

    def put(first: int, last: int) -> None:
        for k in range(first, last):
            damaged = k == where
            data = b"not a fragment" if damaged else codec.encode(make_fragment("arm-1", epoch, k))
            queue.append("arm-1", epoch, k, data)

    def drained() -> None:
        deadline = time.monotonic() + GENEROUS_S
        while spool.sources():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    if known:
        put(0, 10)
    with client_of(port, spool, credentials("host-1")):
        if not known:
            put(0, 10)
        drained()
    with client_of(port, spool, credentials("host-1")):
        put(10, 20)
        drained()
        while store.expected("arm-1", epoch) < 20:  # what came last may be under way
            time.sleep(0.01)
    assert store.stats()["appended_fragments"] == 19
    assert store.stats()["skipped"] == 1
    (why,) = store.refused("arm-1", epoch, 0)
    assert why.sequence == where
    assert "lost on its host" in why.reason
    assert [a.sequence for a in queue.aside()] == [where]
    head.stop()
    for part in (store, spool, queue):
        part.close()


def test_a_producer_that_fits_no_key_ends_its_own_stream_only(
    tmp_path: Path,
    credentials: Callable[[str], Credentials],
    allow: AllowList,
    make_fragment: Callable[..., Fragment],
) -> None:
    store = Store(tmp_path / "replay").open(create=True)
    head = Head(store, credentials("replay"), allow)  # type: ignore[arg-type]
    port = head.start()
    bad, good = ModelOutbox(), ModelOutbox()
    with (
        client_of(port, bad, credentials("host-1")) as one,
        client_of(port, good, credentials("host-2"), "host-2") as other,
    ):
        good.put(make_fragment("arm-2", 0, 0))
        good.wait_empty()
        bad.put(make_fragment("a\0b", 0, 0))
        deadline = time.monotonic() + GENEROUS_S
        while one.stats()["sessions"] < 3:
            good.put(make_fragment("arm-2", 0, store.expected("arm-2", 0)))
            good.wait_empty()
            assert time.monotonic() < deadline
        assert other.stats()["sessions"] == 1
    head.stop()
    store.close()


def lived(fragment: Fragment, boot: str) -> Fragment:
    return replace(fragment, header=replace(fragment.header, boot=boot))


@pytest.mark.parametrize("late", [False, True])
def test_a_robot_with_anothers_name_keeps_what_it_recorded(
    tmp_path: Path,
    credentials: Callable[[str], Credentials],
    allow: AllowList,
    make_fragment: Callable[..., Fragment],
    caplog: pytest.LogCaptureFixture,
    late: bool,
) -> None:
    """What the replay says of that name is no acknowledgement of what this host has."""

    def ours(boot: str, sequence: int) -> Fragment:
        return lived(make_fragment("arm-1", 7, sequence), boot)

    store = Store(tmp_path / "replay").open(create=True)
    head = Head(store, credentials("replay"), allow)  # type: ignore[arg-type]
    port = head.start()
    first, second = ModelOutbox(), ModelOutbox()
    with client_of(port, first, credentials("host-1")):
        for k in range(3):
            first.put(ours("one", k))
        first.wait_empty()
        if not late:  # otherwise the stranger comes while its host is connected
            for k in range(5):
                second.put(ours("two", k))
        with client_of(port, second, credentials("host-2"), "host-2") as other:
            wait_until(lambda: other.stats()["connected"] == 1)
            for k in range(5):
                second.put(ours("two", k))
            wait_until(lambda: other.stats()["stuck"] == 1)
            second.put(make_fragment("arm-2", 0, 0))
            wait_until(lambda: ("arm-2", 0) not in second.left())
        first.put(ours("one", 3))
        first.wait_empty()
    assert second.left() == {("arm-1", 7): 5}
    assert second.aside == []
    assert store.expected("arm-1", 7) == 4
    assert "give this robot another name" in caplog.text
    assert "from another process" in second.stuck["arm-1", 7]
    assert second.stuck.get(("arm-2", 0), "") == ""
    head.stop()
    store.close()


@pytest.mark.parametrize("readable", [True, False])
def test_a_damaged_spool_is_not_taken_for_that_of_anothers_robot(
    tmp_path: Path,
    credentials: Callable[[str], Credentials],
    allow: AllowList,
    make_fragment: Callable[..., Fragment],
    readable: bool,
) -> None:
    """Its first fragments cannot be read, so they do not say whose they are: the books do."""
    store = Store(tmp_path / "replay").open(create=True)
    head = Head(store, credentials("replay"), allow)  # type: ignore[arg-type]
    port, first = head.start(), ModelOutbox()
    queue = Queue(tmp_path / "spool").open(create=True)
    spool = Spool(queue, quota_bytes=1 << 30)
    for k in range(5):
        whole = codec.encode(lived(make_fragment("arm-1", 7, k), "two"))
        queue.append("arm-1", 7, k, whole if k and readable else b"no fragment", boot="two")
    with client_of(port, first, credentials("host-1")):
        for k in range(4):
            first.put(lived(make_fragment("arm-1", 7, k), "one"))
        first.wait_empty()
        with client_of(port, spool, credentials("host-2"), "host-2") as other:
            wait_until(lambda: other.stats()["connected"] == 1)
            wait_until(lambda: other.stats()["stuck"] == 1)
        first.put(lived(make_fragment("arm-1", 7, 4), "one"))
        first.wait_empty()
    assert len(queue) + len(queue.aside()) == 5
    assert "from another process" in queue.stuck("arm-1", 7)
    assert store.stats()["appended_fragments"] == 5
    assert store.stats()["skipped"] == 0
    head.stop()
    store.close()
    queue.close()


def test_a_loss_that_is_nobodys_passes_over_nothing(
    tmp_path: Path, make_fragment: Callable[..., Fragment]
) -> None:
    """It may be of any robot of that name, and the one meant next may not have lost it."""
    with Store(tmp_path / "replay").open(create=True) as store:
        service = ExperienceService(store)
        one, two = (experience_service._Stream(Peer(n, Role.ROBOT), 64) for n in ("a", "b"))
        service._commit(arrivals(service, (one, [lived(make_fragment(), "1")])))
        for boot, says in (("", "is nobody's"), ("2", "another process")):
            source = pb.Source(producer="arm-1", boot=boot)
            lost = pb.HostMessage(lost=pb.Lost(source=source, sequence=1, reason="damaged"))
            two = experience_service._Stream(Peer("b", Role.ROBOT), 64)
            service._read(two, iter([lost]))
            if not service._arrivals.empty():
                two.ended = False  # its host has ended it, having nothing more to say
                service._commit([service._arrivals.get()])
            assert says in str(heard(two)[1])
        assert store.expected("arm-1", 0) == 1
        service._commit(arrivals(service, (one, [lived(make_fragment(sequence=1), "1")])))
        assert store.stats()["appended_fragments"] == 2


def arrivals(service: ExperienceService, *sent: tuple[Any, Sequence[Fragment]]) -> list[Any]:
    found = []
    for stream, fragments in sent:
        for fragment in fragments:
            part = wire.fragment_to_proto(fragment)
            found.append(experience_service._Arrival.of(stream, part))
    return found


def heard(stream: Any) -> tuple[list[Any], Any]:
    """Return the answers that a stream got, and the error that ended it."""
    answers, error = [], None
    while not stream.outgoing.empty():
        item = stream.outgoing.get()
        if isinstance(item, Exception):
            error = item
        elif item is not None:
            answers.append(item.ack)
    return answers, error


@pytest.mark.parametrize("apart", [False, True])
def test_of_two_robots_that_begin_one_name_together_only_the_first_is_answered(
    tmp_path: Path, make_fragment: Callable[..., Fragment], apart: bool
) -> None:
    """Both were welcome; what the second one hears must not make it forget what nobody has."""
    with Store(tmp_path / "replay").open(create=True) as store:
        service = ExperienceService(store)
        one, two = (experience_service._Stream(Peer(n, Role.ROBOT), 64) for n in ("a", "b"))
        first = arrivals(service, (one, [lived(make_fragment(sequence=k), "1") for k in range(3)]))
        second = arrivals(service, (two, [lived(make_fragment(sequence=k), "2") for k in range(5)]))
        for group in [first, second] if apart else [first + second]:
            service._commit(group)
        answers, error = heard(two)
        assert answers == []
        assert "another process" in str(error)
        answers, error = heard(one)
        assert error is None
        assert [n.next for ack in answers for n in ack.next] == [3]
        assert [list(ack.refusals) for ack in answers] == [[]]
        assert store.expected("arm-1", 0) == 3


def test_what_was_not_stored_makes_nobody_the_owner(
    tmp_path: Path, make_fragment: Callable[..., Fragment]
) -> None:
    """A stranger's fragments that leave a gap are ignored, and so is whose they are."""
    with Store(tmp_path / "replay").open(create=True) as store:
        service = ExperienceService(store)
        one, two = (experience_service._Stream(Peer(n, Role.ROBOT), 64) for n in ("a", "b"))
        service._commit(arrivals(service, (two, [lived(make_fragment(sequence=5), "2")])))
        service._commit(arrivals(service, (one, [lived(make_fragment(sequence=0), "1")])))
        answers, error = heard(one)
        assert error is None
        assert [n.next for ack in answers for n in ack.next] == [1]
        service._commit(arrivals(service, (two, [lived(make_fragment(sequence=5), "2")])))
        assert "another process" in str(heard(two)[1])


def test_what_was_refused_has_an_owner_too(
    tmp_path: Path, make_fragment: Callable[..., Fragment]
) -> None:
    """The first fragments of a life were refused, or lost: its numbers are still nobody else's."""
    with Store(tmp_path / "replay").open(create=True) as store:
        service = ExperienceService(store)
        stream = experience_service._Stream(Peer("a", Role.ROBOT), 64)
        bad = wire.fragment_to_proto(lived(make_fragment(sequence=0), "1"))
        bad.record = bad.record[:-1]
        service._commit([experience_service._Arrival.of(stream, bad)])
        assert store.expected("arm-1", 0) == 1
        assert store.strange("arm-1", 0, "2")
        assert not store.strange("arm-1", 0, "1")


@pytest.mark.parametrize(("producer", "boot"), [("arm", "x" * 300), ("x" * 300, "b"), ("", "b")])
def test_names_that_nobody_has_end_the_stream_before_they_are_kept(
    tmp_path: Path, producer: str, boot: str
) -> None:
    with Store(tmp_path / "replay").open(create=True) as store:
        service = ExperienceService(store)
        stream = experience_service._Stream(Peer("a", Role.ROBOT), 64)
        source = pb.Source(producer=producer, boot=boot)
        service._read(stream, iter([pb.HostMessage(lost=pb.Lost(source=source))]))
        _, error = heard(stream)
        assert isinstance(error, SpecError)
        assert service._arrivals.empty()


def test_a_group_is_bounded_by_what_it_becomes(make_fragment: Callable[..., Fragment]) -> None:
    """Black pictures are small on the wire; all of a group is in memory decoded."""
    service = ExperienceService(ModelIngest(), commit_bytes=100_000)
    stream = experience_service._Stream(Peer("a", Role.ROBOT), 64)
    for k in range(10):
        made = make_fragment(sequence=k)
        black = {"top": np.zeros((2, 64, 64, 3), np.uint8)}
        part = wire.fragment_to_proto(replace(made, observation=black))
        assert part.ByteSize() < 4000
        service._arrivals.put(experience_service._Arrival.of(stream, part))
    group, _ = service._collect()
    assert len(group) == 4


def test_a_reason_that_is_no_text_is_kept_as_text(
    tmp_path: Path, make_fragment: Callable[..., Fragment]
) -> None:
    with Store(tmp_path / "replay").open(create=True) as store:
        service = ExperienceService(store)
        stream = experience_service._Stream(Peer("a", Role.ROBOT), 64)
        part = wire.fragment_to_proto(make_fragment())
        meta, parts = arrays.unpack(part.record)
        part.record = arrays.pack(meta, {**parts, "z/\ud800" + "y" * 5000: parts["c/reward"]})
        service._commit([experience_service._Arrival.of(stream, part)])
        (refused,) = store.refused("arm-1", 0, 0)
        assert len(refused.reason) < 2100
        assert store.expected("arm-1", 0) == 1


def test_a_fragment_that_breaks_the_store_stops_no_other_host(
    head: Head,
    ingest: ModelIngest,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    """Whatever the store trips over: the other host goes on, even in the same group commit."""
    append = ingest.append

    def trip(fragments: Sequence[Parcel]) -> Sequence[Refused]:
        if any(p.fragment.header.producer == "arm-1" for p in fragments):
            raise ZeroDivisionError
        return append(fragments)

    ingest.append = trip  # type: ignore[method-assign]
    head.options = {"commit_ms": 50.0}
    port = head.start()
    bad, good = ModelOutbox(), ModelOutbox()
    bad.put(make_fragment("arm-1", 0, 0))
    for k in range(200):
        good.put(make_fragment("arm-2", 0, k))
    with (
        client_of(port, bad, credentials("host-1")) as one,
        client_of(port, good, credentials("host-2"), "host-2") as other,
    ):
        deadline = time.monotonic() + GENEROUS_S
        while one.stats()["sessions"] < 3:
            good.put(make_fragment("arm-2", 0, ingest.expected("arm-2", 0)))
            good.wait_empty()
            assert time.monotonic() < deadline
        assert other.stats()["sessions"] == 1
    assert bad.left() == {("arm-1", 0): 1}


def test_a_fragment_that_cannot_travel_is_set_aside(
    head: Head,
    ingest: ModelIngest,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(experience_messages, "MAX_MESSAGE", (64 << 10) + 20_000)
    for k in range(5):
        fragment = make_fragment(sequence=k)
        if k == 2:
            noise = np.random.default_rng(0).random((2, 100_000))
            fragment.observation["noise"] = noise  # type: ignore[index]
        outbox.put(fragment)
    with client_of(head.start(), outbox, credentials("host-1")):
        outbox.wait_empty()
    assert [r.sequence for r in outbox.aside] == [2]
    assert [r.sequence for r in ingest.skipped] == [2]
    assert [f.header.sequence for f in ingest.stored["arm-1", 0]] == [0, 1, 3, 4]


def test_what_fits_only_compressed_goes_though_its_camera_did_not_shrink_before(
    head: Head,
    ingest: ModelIngest,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(experience_messages, "MAX_MESSAGE", (64 << 10) + 60_000)
    for k in range(4):
        side = 128 if k else 32  # of a large picture, half of whose bits are noise
        noise = np.random.default_rng(k).integers(0, 256, (2, side, side, 3), np.uint8)
        seen = {"top": noise & 15 if k else noise}
        outbox.put(replace(make_fragment(sequence=k), observation=seen))
    with client_of(head.start(), outbox, credentials("host-1")):
        outbox.wait_empty()
    assert outbox.aside == []
    assert [f.header.sequence for f in ingest.stored["arm-1", 0]] == [0, 1, 2, 3]


def test_a_gap_sends_the_host_back(
    head: Head,
    ingest: ModelIngest,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    """The store loses one fragment without an error: the host hears what is expected."""
    lost = iter([True])
    append = ingest.append

    def forgetful(fragments: Sequence[Parcel]) -> Sequence[Refused]:
        drop = any(p.fragment.header.sequence == 3 for p in fragments) and next(lost, False)
        return append([p for p in fragments if not (drop and p.fragment.header.sequence == 3)])

    ingest.append = forgetful  # type: ignore[method-assign]
    for k in range(100):
        outbox.put(make_fragment(sequence=k))
    with client_of(head.start(), outbox, credentials("host-1")) as client:
        outbox.wait_empty()
        assert client.stats()["gaps"] >= 1
        assert client.stats()["sessions"] == 1
    check_exactly_once(ingest, {("arm-1", 0): 100})


def test_store_failure_acknowledges_nothing_and_the_host_retries(
    head: Head,
    ingest: ModelIngest,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    failing = threading.Event()
    failing.set()
    ingest.fail = failing.is_set
    for k in range(20):
        outbox.put(make_fragment(sequence=k))
    with client_of(head.start(), outbox, credentials("host-1")) as client:
        deadline = time.monotonic() + GENEROUS_S
        while client.stats()["sessions"] < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert outbox.left() == {("arm-1", 0): 20}
        assert not ingest.order
        failing.clear()
        outbox.wait_empty()
    check_exactly_once(ingest, {("arm-1", 0): 20})


def test_never_more_than_the_credit_is_under_way(
    ingest: ModelIngest,
    outbox: ModelOutbox,
    allow: AllowList,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    head = Head(ingest, credentials("replay"), allow, credit=4)
    gate = threading.Event()
    append = ingest.append

    def slow(fragments: Sequence[Parcel]) -> Sequence[Refused]:
        gate.wait(GENEROUS_S)
        return append(fragments)

    ingest.append = slow  # type: ignore[method-assign]
    for k in range(50):
        outbox.put(make_fragment(sequence=k))
    with client_of(head.start(), outbox, credentials("host-1")) as client:
        deadline = time.monotonic() + GENEROUS_S
        while client.stats()["sent"] < 4:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.3)  # more would have been sent by now
        assert client.stats()["sent"] == 4
        assert client.stats()["under_way"] == 4
        gate.set()
        outbox.wait_empty()
    assert max(ingest.commits) <= 4
    head.stop()
    check_exactly_once(ingest, {("arm-1", 0): 50})


class Meter:
    """A budget that counts: so many bytes at once, in pieces of that size."""

    def __init__(self, limit: int, chunk: int) -> None:
        self._limit, self._chunk = limit, chunk
        self.now = self.most = self.pieces = self.lost_pieces = 0
        self.room = threading.Condition()

    def chunk(self) -> int:
        return self._chunk

    def limit(self) -> int:
        return self._limit

    def take(self, size: int, timeout_s: float) -> Ticket | None:
        with self.room:
            may = self.room.wait_for(
                lambda: not self.now or self.now + size <= self._limit, timeout_s
            )
            if not may:
                return None
            self.now += size
            self.most, self.pieces = max(self.most, self.now), self.pieces + 1
            return Ticket(size, Mark(0.0, 0.0, 0, 0.0, False))

    def done(self, ticket: Ticket) -> None:
        with self.room:
            self.now -= ticket.size
            self.room.notify_all()

    def lost(self, ticket: Ticket) -> None:
        self.lost_pieces += 1
        self.done(ticket)


def test_on_a_slow_link_fragments_go_in_pieces_and_few_bytes_are_under_way(
    head: Head,
    ingest: ModelIngest,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    meter = Meter(limit=5000, chunk=1000)
    for k in range(30):
        outbox.put(make_fragment(sequence=k, image=64))
    with client_of(head.start(), outbox, credentials("host-1"), budget=meter):
        outbox.wait_empty()
        wait_until(lambda: meter.now == 0)
    check_exactly_once(ingest, {("arm-1", 0): 30})
    assert meter.pieces > 60, "a fragment is several pieces"
    assert meter.most <= 5000


def test_small_fragments_go_whole_and_ask_for_few_receipts(
    head: Head,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    meter = Meter(limit=1 << 20, chunk=256 << 10)
    for k in range(100):
        outbox.put(make_fragment(sequence=k))
    with client_of(head.start(), outbox, credentials("host-1"), budget=meter):
        outbox.wait_empty()
        wait_until(lambda: meter.now == 0)
    assert meter.pieces < 100, "several share a message"


def test_what_is_under_way_does_not_wait_for_a_slow_disk(
    ingest: ModelIngest,
    outbox: ModelOutbox,
    allow: AllowList,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    """The link is free when the bytes have arrived, whatever the disk does."""
    head, gate = Head(ingest, credentials("replay"), allow), threading.Event()
    append = ingest.append

    def slow(fragments: Sequence[Parcel]) -> Sequence[Refused]:
        gate.wait(GENEROUS_S)
        return append(fragments)

    ingest.append = slow  # type: ignore[method-assign]
    meter = Meter(limit=5000, chunk=1000)
    for k in range(20):
        outbox.put(make_fragment(sequence=k, image=32))
    with client_of(head.start(), outbox, credentials("host-1"), budget=meter) as client:
        wait_until(lambda: client.stats()["sent"] == 20 and meter.now == 0)
        assert not ingest.order
        gate.set()
        outbox.wait_empty()
    head.stop()


def test_links_that_break_in_the_midst_of_a_fragment_lose_nothing(
    head: Head,
    ingest: ModelIngest,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
    cutter: Any,
) -> None:
    meter = Meter(limit=4000, chunk=1000)
    cutter.target = head.start()
    for k in range(20):
        outbox.put(make_fragment(sequence=k, image=64))
    with client_of(cutter.port, outbox, credentials("host-1"), budget=meter):
        for cut in range(1, 4):
            wait_until(lambda cut=cut: meter.pieces > 20 * cut or not outbox.left())
            cutter.cut()
        outbox.wait_empty()
        wait_until(lambda: meter.now == 0)
    check_exactly_once(ingest, {("arm-1", 0): 20})


@pytest.mark.parametrize(
    "messages",
    [
        [pb.HostMessage(piece=pb.Piece(total=1 << 30, data=b"x"))],
        [
            pb.HostMessage(piece=pb.Piece(total=9, data=b"x")),
            pb.HostMessage(fragments=pb.Fragments(fragments=[pb.Fragment()])),
        ],
    ],
)
def test_pieces_that_are_none_end_the_stream_with_the_reason(
    head: Head, credentials: Callable[[str], Credentials], messages: list[pb.HostMessage]
) -> None:
    tunnel = DirectTunnel(Endpoints(replay=f"127.0.0.1:{head.start()}"), credentials("host-1"))
    sent = [pb.HostMessage(hello=pb.Hello(host="host-1")), *messages]
    stream = experience_client._stub(tunnel).Stream(iter(sent))
    with pytest.raises(grpc.RpcError, match="piece"):
        list(stream)
    tunnel.close()


def test_receipts_that_nobody_reads_fill_nothing() -> None:
    stream = experience_service._Stream(Peer("host-1", Role.ROBOT), 4)
    asks = [pb.HostMessage(piece=pb.Piece(total=100, data=b"x"), receipt=True) for _ in range(99)]
    assert stream.next_message(iter(asks)) is None
    assert stream.outgoing.qsize() == 1
    answer = stream.with_arrived(stream.outgoing.get())  # type: ignore[arg-type]
    assert (answer.arrived, answer.WhichOneof("message")) == (99, "received")


def test_a_replay_that_lost_its_disk_is_noticed(
    head: Head,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
) -> None:
    """The spool begins at 5, the store wants 0: nothing is invented, other sources go on."""
    for k in range(5, 8):
        outbox.put(make_fragment("arm-1", 1, k))
    outbox.put(make_fragment("arm-1", 2, 0))
    with client_of(head.start(), outbox, credentials("host-1")) as client:
        deadline = time.monotonic() + GENEROUS_S
        while not client.stats()["stuck"] or ("arm-1", 2) in outbox.left():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert outbox.left() == {("arm-1", 1): 3}
        assert "wants fragment 0, but the spool begins at 5" in outbox.stuck["arm-1", 1]


def test_a_host_cannot_speak_for_another(
    head: Head,
    ingest: ModelIngest,
    outbox: ModelOutbox,
    credentials: Callable[[str], Credentials],
    make_fragment: Callable[..., Fragment],
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox.put(make_fragment())
    with client_of(head.start(), outbox, credentials("host-1"), host="host-2") as client:
        deadline = time.monotonic() + GENEROUS_S
        while client.stats()["sessions"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not ingest.order
    assert "another name" in caplog.text


def test_labels_and_stats(
    head: Head, ingest: ModelIngest, credentials: Callable[[str], Credentials]
) -> None:
    port = head.start()
    tunnel = DirectTunnel(Endpoints(replay=f"127.0.0.1:{port}"), credentials("learner"))
    label(tunnel, "e", "success", "1", success=True)
    label(tunnel, "e", "reward", "2", values=np.array([1.0, 2.0], np.float32))
    assert ingest.labels[0] == ("e", "success", "1", True, None)
    assert ingest.labels[1][3] is None
    np.testing.assert_array_equal(ingest.labels[1][4], [1, 2])
    with pytest.raises(SpecError, match="needs an episode"):
        label(tunnel, "", "success", "1")
    assert replay_stats(tunnel)["stored"] == 0
    tunnel.close()

    robot = DirectTunnel(Endpoints(replay=f"127.0.0.1:{port}"), credentials("host-1"))
    with pytest.raises(SecurityError, match="may not call"):
        label(robot, "e", "success", "1")
    robot.close()
    head.stop()
    gone = DirectTunnel(Endpoints(replay=f"127.0.0.1:{port}"), credentials("learner"))
    with pytest.raises(LinkError, match="could not label"):
        label(gone, "e", "success", "1")
    gone.close()
