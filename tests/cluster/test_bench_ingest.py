"""The ingest's benchmark: what is sent, what counts as acknowledged, and that it can say no."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from comms.authority import Authority
from comms.credentials import AllowList, Credentials, Role
from comms.experience_service import ExperienceService
from comms.serving import serve
from user_system.cluster import bench
from user_system.cluster.bench import ingest, ingest_floor, ingest_outbox, ingest_producer
from user_system.cluster.bench.ingest import Answers, Load, Measured
from user_system.cluster.bench.ingest_outbox import EPOCH, Factory, Outbox, Sent
from user_system.cluster.bench.ingest_producer import Producer
from user_system.cluster.bench.replay_progress import Clock
from user_system.cluster.configs import LinkConfig
from user_system.cluster.parse import dump
from user_system.codec import fragments
from user_system.core.errors import ConfigError, LinkError, StoreError
from user_system.core.ports import Refused
from user_system.core.types import Fragment, Parcel
from user_system.replay.store import Store

GENEROUS_S = 60.0
"""Bounds hangs only."""
MS = 1_000_000


# --- what is sent --------------------------------------------------------------------------------


def test_records_are_sound_and_of_30_kib():
    factory = Factory("arm")
    for sequence in range(2 * ingest_outbox.EPISODE):
        fragment = factory.make(sequence)
        fragments.check(fragment)
        header = fragment.header
        assert (len(fragment), header.sequence, header.start) == (1, sequence, sequence % 100)
        assert fragment.final is (sequence % 100 == 99)
    assert len({factory.make(k).header.episode for k in range(200)}) == 2
    size = factory.make(0).observation["camera"].nbytes
    assert 0.95 * (30 << 10) < size <= 30 << 10


@pytest.fixture
def now(monkeypatch) -> list[int]:
    """A clock of our own, in ns."""
    clock = [1000 * MS]
    monkeypatch.setattr(ingest_outbox.time, "monotonic_ns", lambda: clock[0])
    return clock


def test_an_outbox_takes_note_of_when(now):
    box = Outbox("arm")
    assert box.sources() == []
    assert not box.wait(0.0)
    box.put()
    now[0] += 5 * MS
    box.put()
    assert box.wait(0.0)
    assert box.sources() == [("arm", EPOCH)]
    assert [f.header.sequence for f in box.read("arm", EPOCH, 0, 8)] == [0, 1]
    now[0] += 5 * MS
    box.forget("arm", EPOCH, 1)
    assert box.read("arm", EPOCH, 1, 8)[0].header.sequence == 1
    now[0] += 5 * MS
    box.forget("arm", EPOCH, 2)
    box.forget("arm", EPOCH, 1)  # an old answer changes nothing
    assert [(s.acked - s.submitted) // MS for s in box.sent] == [10, 10]
    assert (box.acked, box.sources()) == (2, [])
    box.drain(0.0)


def test_a_flood_is_submitted_as_it_is_taken(now):
    box = Outbox("arm")
    box.begin_flood()
    assert box.sources() == [("arm", EPOCH)]
    assert len(box.read("arm", EPOCH, 0, 3)) == 3
    now[0] += 7 * MS
    assert [f.header.sequence for f in box.read("arm", EPOCH, 2, 2)] == [2, 3]
    assert [s.submitted // MS for s in box.sent] == [1000, 1000, 1000, 1007]
    box.forget("arm", EPOCH, 2)
    with pytest.raises(StoreError, match="2 fragments were not acknowledged"):
        box.drain(0.0)
    assert [f.header.sequence for f in box.read("arm", EPOCH, 2, 8)] == [2, 3]  # no more of it


def test_a_refusal_is_no_acknowledgement():
    box = Outbox("arm")
    box.put()
    box.set_aside(Refused("arm", EPOCH, 0, "wrong shape"))
    box.forget("arm", EPOCH, 1)
    with pytest.raises(StoreError, match="wrong shape"):
        box.drain(0.0)


# --- figures -------------------------------------------------------------------------------------


def answers(records_s: float, ms: list[float]) -> Answers:
    return Answers(2.0, int(2 * records_s), ms)


def measured(**values: Answers) -> Measured:
    fine = {"flood": answers(1600, [40.0]), "fast": answers(1500, [30.0])}
    return Measured(**{**fine, "slow": answers(200, [10.0]), "floor": "the floor", **values})


def test_figures():
    found = {f.id: f for f in ingest.figures(measured())}
    assert tuple(found) == ingest.IDS
    assert {f.id: (f.value, f.ok) for f in found.values()} == {
        "ingest.records_s": (1600.0, True),
        "ingest.ack_p99_ms": (40.0, True),
        "ingest.ack_p99_ms_1500": (30.0, None),
        "ingest.ack_p99_ms_200": (10.0, True),
    }
    assert all(f.reference == "the floor" for f in found.values())


def test_the_99th_percentile_counts():
    tail = [1.0] * 98 + [60.0, 60.0]
    figure = ingest.figures(measured(flood=answers(1499, tail)))
    assert [f.ok for f in figure[:2]] == [False, False]
    assert figure[1].value == 60.0
    assert ingest.figures(measured(flood=answers(1499, [1.0] * 99 + [60.0])))[1].ok


def test_a_pace_that_was_not_reached_is_no_figure():
    found = {f.id: f for f in ingest.figures(measured(slow=answers(150, [1.0])))}
    slow = found["ingest.ack_p99_ms_200"]
    assert (slow.value, slow.ok) == (None, False)
    assert "150 of 200" in slow.note


def test_what_was_acknowledged_must_be_in_the_store(tmp_path):
    factory = Factory("host-0")
    with Store(tmp_path / "replay").open(create=True) as store:
        assert not store.append([factory.make(k) for k in range(5)])
    ingest.check_stored(tmp_path / "replay", {"host-0": 5})
    with pytest.raises(LinkError, match="not in the store"):
        ingest.check_stored(tmp_path / "replay", {"host-0": 6})


def test_every_figure_of_the_issue_is_measured():
    assert {"ingest.records_s", "ingest.ack_p99_ms", "ingest.ack_p99_ms_200"} <= set(ingest.IDS)
    with pytest.raises(ConfigError, match=r"ingest\.records_s"):
        bench.run("ingest", bench.Options(only=("ingest.record",)))


def test_the_floor_is_measured(tmp_path):
    assert len(ingest_floor.sync_ms(tmp_path, 5)) == 5
    assert len(ingest_floor.echo_ms(5)) == 5
    said = ingest_floor.said(tmp_path, 5)
    assert "to the disk" in said
    assert "over the loopback" in said
    assert not list(tmp_path.iterdir())


# --- over the wire -------------------------------------------------------------------------------


class SlowStore(Store):
    """A store on a slow disk."""

    seconds = 0.1

    def append(self, fragments: Sequence[Fragment | Parcel]) -> Any:
        time.sleep(self.seconds)
        return super().append(fragments)


class Here:
    """A producer in this process, asked as one in its own is."""

    def __init__(self) -> None:
        self.producer = Producer()
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def tell(self, do: str, **values: Any) -> None:
        self.asked.append((do, values))

    def hear(self, limit_s: float) -> Any:
        do, values = self.asked.pop(0)
        return getattr(self.producer, do)(**values)

    def ask(self, do: str, limit_s: float, **values: Any) -> Any:
        self.tell(do, **values)
        return self.hear(limit_s)


@contextmanager
def one_producer(store: Store, pki: Path) -> Iterator[Here]:
    """Serve ``store``, and connect one producer."""
    authority = Authority.open(pki)
    for name, role in (("hub", Role.SERVICE), ("replay", Role.SERVICE), ("host-0", Role.ROBOT)):
        authority.issue(name, role)
    service, me = ExperienceService(store), Credentials.load(pki, "replay")
    here = Here()
    with serve([service], credentials=me, allow=AllowList(pki)) as server:
        nobody = "127.0.0.1:1"
        way = f"127.0.0.1:{server.port}"
        link = LinkConfig(name="host-0", pki=pki, hub=nobody, replay=way, fresh=nobody)
        here.producer.connect(dump(link), GENEROUS_S)
        try:
            yield here
        finally:
            here.producer.close()


class Silent:
    """Nobody looks on."""

    def step(self, text: str) -> None:
        pass


LOAD = Load(producers=1, warm_s=0.2, drain_s=GENEROUS_S)


@pytest.mark.parametrize("hz", [0.0, 50.0])
def test_a_slow_disk_misses_the_goals(tmp_path, hz):
    with (
        SlowStore(tmp_path / "replay").open(create=True) as store,
        one_producer(store, tmp_path / "pki") as here,
    ):
        got = ingest.run_load([here], time.process_time, LOAD, Clock(GENEROUS_S), Silent(), hz, 1.0)
        count = here.producer.count()
        assert store.expected("host-0", EPOCH) == count
    assert 0 < got.acked <= count
    assert min(got.ms) >= 1e3 * SlowStore.seconds
    found = ingest.figures(measured(flood=got, slow=got))
    assert [f.ok for f in found] == [False, False, None, False]


def test_a_pace_is_a_grid_however_late_one_of_them_is(monkeypatch):
    """Played on a clock of our own: each wake-up comes 7 ms late."""
    now, producer, put = 0, Producer(), []

    class Clock:
        def sleep_until(self, deadline_ns: int) -> None:
            nonlocal now
            now = max(now, deadline_ns) + 7 * MS

    class Box:
        def put(self) -> None:
            put.append(now)
            if len(put) == 50:
                producer._stop.set()

    monkeypatch.setattr(ingest_producer, "WallClock", Clock)
    producer._pace(Box(), 50.0, 1000 * MS)
    assert put == [(1007 + 20 * k) * MS for k in range(50)]


def test_only_what_lies_in_the_time_counts():
    producer, box = Producer(), Outbox("arm")
    producer._box = box
    times = [(0, 90), (90, 110), (100, 150), (150, 199), (190, 200), (200, 210)]
    box.sent = [Sent(None, submitted, acked) for submitted, acked in times]
    box._acked = len(times)
    got = producer.end(100, 200, 0.0)
    assert got["acked"] == 3
    assert [round(ms * MS) for ms in got["ms"]] == [50, 49, 10]


@pytest.mark.system
@pytest.mark.timeout(300)
def test_all_figures_are_measured_and_nothing_is_left(tmp_path):
    options = bench.Options(directory=tmp_path, quick=True)
    found = {figure.id: figure for figure in ingest.measure(options)}
    assert tuple(found) == ingest.IDS
    assert found["ingest.records_s"].value > 0, found
    assert found["ingest.ack_p99_ms"].value > 0
    for name in ("ingest.ack_p99_ms_1500", "ingest.ack_p99_ms_200"):
        figure = found[name]
        assert figure.value is not None or " of " in figure.note  # busy machines are slow
        assert "over the loopback" in figure.reference
    assert not list(tmp_path.iterdir())
