"""The network's benchmark: what counts as lost, late or back, and that each figure can say no."""

import ast
import importlib
import re
import statistics
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_system.cluster import bench
from user_system.cluster.bench import (
    net,
    net_episode,
    net_fleet,
    net_host,
    net_mtls,
    net_outage,
    net_plain,
    net_raw,
    net_wan,
)
from user_system.cluster.bench.figures import Figure
from user_system.cluster.bench.net_episode import Acks, Episode
from user_system.cluster.bench.net_fleet import Fleet
from user_system.cluster.bench.net_host import Books, Noted
from user_system.cluster.bench.net_outage import Load, Seen
from user_system.cluster.lab import Wire, available
from user_system.core.errors import ConfigError, LinkError
from user_system.core.ports import Refused

ROOT = Path(__file__).parents[2]
LAB = pytest.mark.skipif(bool(available()), reason=available() or "can be made")


# --- which figures there are ---------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(set(net.FIGURES.values())))
def test_each_module_measures_what_the_table_says(name):
    module = importlib.import_module(f"user_system.cluster.bench.{name}")
    assert set(module.IDS) == {figure for figure, where in net.FIGURES.items() if where == name}


def test_only_what_is_asked_for_is_measured_and_a_part_that_fails_stops_no_other(monkeypatch):
    def measured(options):
        yield Figure("net.mtls_cost", 1.0)

    def fails(options):
        yield Figure("net.wan_lost", 0.0)
        raise LinkError("the machine is on fire")

    monkeypatch.setattr(net_wan, "measure", fails)
    monkeypatch.setattr(net_mtls, "measure", measured)
    monkeypatch.setattr(net_fleet, "measure", lambda options: pytest.fail("not asked for"))
    found = list(net.measure(bench.Options(only=("net.wan_ack_p99_s", "net.mtls_cost"))))
    assert [f.id for f in found] == [*net_wan.IDS, "net.mtls_cost"]
    assert [f.ok for f in found] == [False, False, False, None]
    assert "on fire" in found[0].note


def test_a_figure_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match=r"net\.wan_lost"):
        bench.run("net", bench.Options(only=("net.wan",)))


# --- what a host notes ---------------------------------------------------------------------------


class Box:
    """A spool's outbox that does nothing."""

    def __init__(self) -> None:
        self.aside: list[Refused] = []

    def forget(self, producer: str, epoch: int, below: int) -> None:
        pass

    def set_aside(self, refused: Refused) -> None:
        self.aside.append(refused)

    sources = boot = read = lost = note_stuck = wait = None


moves = st.lists(
    st.one_of(st.just(("put",)), st.just(("epoch",)), st.tuples(st.just("ack"), st.floats(0, 1))),
    max_size=60,
)


@given(moves)
def test_books_know_what_waits(steps):
    books, box = Books(), Box()
    noted = Noted(box, books)
    counts, acked = [0], [0]
    for step in steps:
        if step[0] == "put":
            books.put(100 + len(counts), counts[-1])
            counts[-1] += 1
        elif step[0] == "epoch" and counts[-1]:
            counts.append(0)
            acked.append(0)
        elif step[0] == "ack":
            for i, (count, before) in enumerate(zip(counts, acked, strict=True)):
                acked[i] = before + int(step[1] * (count - before))
                noted.forget("arm", 101 + i, acked[i])
                noted.forget("arm", 101 + i, 0)  # an old answer changes nothing
    assert books.waiting == sum(counts) - sum(acked)
    assert dict(books.spooled()) == {101 + i: n for i, n in enumerate(counts) if n}
    assert sum(life.acked > 0 for life in books.lives) == sum(acked)
    assert (books.first_after(0) > 0) is (sum(acked) > 0)


def test_the_first_acknowledgement_after_a_moment_counts(monkeypatch):
    now = [0]
    monkeypatch.setattr(net_host.time, "monotonic_ns", lambda: now[0])
    books = Books()
    for at in (10, 20, 30):
        now[0] = at
        books.put(1, len(books.lives))
    now[0] = 100
    books.acknowledged(1, 1)
    now[0] = 200
    books.acknowledged(1, 3)
    assert [books.first_after(at) for at in (50, 150, 250)] == [100, 200, 0]


def test_what_was_refused_by_the_disk_was_not_put():
    books = Books()
    books.put(1, 0)
    books.take_back()
    books.put(1, 0)
    assert (len(books.lives), books.waiting) == (1, 1)


def test_a_refusal_is_noted():
    books, box = Books(), Box()
    Noted(box, books).set_aside(Refused("arm", 1, 0, "wrong shape"))
    assert books.refused == ["wrong shape"]
    assert len(box.aside) == 1


# --- figures -------------------------------------------------------------------------------------


def wan(lost=0, backlog=(0.5,), delays=(0.5,)):
    seen = net_wan.Seen(lost, ["gone"] * lost, 100, list(backlog), list(delays), [0.4], "a link")
    return [figure.ok for figure in net_wan.figures(seen)]


def test_a_bad_link():
    assert wan() == [True, True, True]
    assert wan(lost=1) == [False, True, True]
    assert wan(backlog=[0.1] * 99 + [2.1]) == [True, False, True]  # the worst moment counts
    assert wan(delays=[0.1] * 98 + [2.6] * 2) == [True, True, False]
    assert wan(delays=[0.1] * 99 + [2.6]) == [True, True, True]


def outage(short=1.0, long=1.0, during=0.1):
    seen = Seen(Load(), [{"hub": 0.1, "fresh": short}, {"hub": 0.2, "fresh": 0.1}])
    seen.long = {"hub": long, "fresh": 0.3}
    seen.before, seen.during = [0.1] * 100, [during] * 100
    return [figure.ok for figure in net_outage.figures(seen)]


def test_an_outage():
    assert outage() == [True, True, True]
    assert outage(short=2.1) == [False, True, True]  # the slowest lane of the slowest outage
    assert outage(long=5.1) == [True, False, True]
    assert outage(during=0.21) == [True, True, False]
    assert net_outage.figures(Seen(Load(), [{"hub": 1.0}], {"hub": 1.0}))[2].ok is False


def test_a_fleet():
    fleets = [Fleet(1, [5.0], 10.0), Fleet(16, [50.0] * 98 + [101.0] * 2, 55.0)]
    ack, cpu, each = net_fleet.figures(fleets, "the floor")
    assert (ack.value, ack.ok, ack.reference) == (101.0, False, "the floor")
    assert (cpu.value, cpu.ok) == (55.0, True)
    assert each.value == 3.0
    assert "4.50" not in each.note
    assert "3.00 ms" in each.note
    assert net_fleet.figures([fleets[0], Fleet(16, [1.0], 71.0)], "")[1].ok is False


def test_the_cost_of_tls_is_the_median_of_rounds():
    load = net_mtls.Load(rounds=3)
    pairs = [(1100.0, 1000.0), (1300.0, 1000.0), (1000.0, 1000.0)]
    figure = net_mtls.figure(pairs, load, "the floor")
    assert figure.value == pytest.approx(1.1)
    assert "1.00, 1.10, 1.30" in figure.note
    assert not net_mtls.figure([*pairs[:2], (1200.0, 1000.0)], load, "").ok
    assert not net_mtls.figure([*pairs[:2], (1200.0, 0.0)], load, "").ok  # nothing came


def episode_figures(*done: Episode):
    load = net_episode.Load(episodes=2)
    ids = ("net.episode_lan_s", "net.episode_lan_ack_s")
    return [(f.value, f.ok) for f in net_episode.figures(ids, done, load, "", "a link")]


def test_episodes():
    fine = Episode(100, 10.0, 0.2)
    assert episode_figures(fine, Episode(100, 10.4, 0.9)) == [(10.4, True), (0.9, True)]
    assert episode_figures(fine, Episode(100, 10.6, 1.1)) == [(10.6, False), (1.1, False)]
    assert episode_figures(fine) == [(None, False)] * 2  # one is missing
    assert episode_figures(fine, Episode(60, 6.0, 0.1)) == [(None, False)] * 2  # it ended early
    assert episode_figures(fine, Episode(100, 10.0, None)) == [(10.0, True), (None, False)]


class Seeing:
    """What lies in a spool, as a test says."""

    def __init__(self) -> None:
        self.count, self.kept = 0, set()

    def spooled(self):
        return {("arm", 1): self.count}

    def waiting(self):
        return {("arm", 1): self.kept} if self.kept else {}


def test_acknowledged_is_what_the_spool_has_let_go_of(monkeypatch):
    now = [0]
    monkeypatch.setattr(net_episode.time, "time_ns", lambda: now[0])
    acks, spool = Acks(), Seeing()
    for at, count, kept in [(1, 2, {0, 1}), (2, 3, {1, 2}), (3, 3, {1, 2}), (4, 4, set())]:
        now[0], spool.count, spool.kept = at, count, kept
        acks.look(spool)
    assert [acks.of(("arm", 1), k) for k in range(5)] == [2, 4, 4, 4, 0]
    assert acks.of(("arm", 2), 0) == 0


# --- without TLS, here and nowhere else ----------------------------------------------------------


def test_nothing_else_knows_the_server_without_tls():
    """The comparison is started by its module name, in a process of its own."""
    name = "net_plain"
    for folder in ("user_system", "comms", "learners", "robots"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name == f"{name}.py":
                continue
            tree = ast.parse(path.read_text())
            taken = [
                ast.dump(n) for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)
            ]
            assert not any(name in each for each in taken), path
            if path.parent.name != "bench":
                assert name not in path.read_text(), path
                assert not re.search("insecure_(port|channel)", path.read_text()), path


def test_the_server_without_tls_listens_on_the_loopback_only():
    tree = ast.parse(Path(net_plain.__file__).read_text())
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and "add_insecure_port" in ast.unparse(node.func)
    ]
    assert [ast.unparse(call.args[0]) for call in calls] == ["_LOOPBACK"]
    assert net_plain._LOOPBACK.startswith("127.0.0.1:")


# --- over links ----------------------------------------------------------------------------------


@LAB
def test_tcp_itself_is_measured():
    with Wire("remote") as wire:
        times = net_raw.echo(wire, 7000, hz=20, size=3000, seconds=1.0)
    assert len(times) == 20
    assert min(times) >= 0.12
    assert statistics.median(times) < 1.0


@LAB
@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_lane_is_back_soon_after_an_outage(tmp_path):
    """Half a minute: by then the kernel would ask for a connection only every sixteen seconds."""
    load = Load(warm_s=1.0, limit_s=60.0)
    with net_outage.site(tmp_path, net_outage.LINK, hub=True) as here:
        here.edge.ask("begin", 10.0, hz=20.0)
        time.sleep(load.warm_s)
        back = net_outage._outage(here, load, 24.0)
        net_outage._settle(here, load)
        end = here.edge.ask("end", 60.0, timeout_s=60.0)
    assert set(back) == {"experience", "hub", "fresh"}
    # Two intervals of a handshake and its answer: seconds, however long it lasted.
    assert max(back.values()) < 6.0, back
    assert net_outage.lost(tmp_path, dict(end["spooled"])) == (0, [])


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", [net_fleet, net_mtls])
def test_figures_of_the_loopback_are_measured_and_nothing_is_left(tmp_path, module):
    found = list(module.measure(bench.Options(directory=tmp_path, quick=True)))
    assert tuple(f.id for f in found) == module.IDS
    # Processor time is counted in ticks: two short runs do not tell which of them took more.
    assert all(f.value is not None for f in found), found
    assert all(f.value > 0 for f in found if f.id != "net.fleet_cpu_pct_each"), found
    assert not list(tmp_path.iterdir())


@LAB
@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("module", [net_wan, net_outage, net_episode])
def test_figures_of_links_are_measured_and_nothing_is_left(tmp_path, module):
    found = {f.id: f for f in module.measure(bench.Options(directory=tmp_path, quick=True))}
    assert tuple(found) == module.IDS
    assert all(f.value is not None for f in found.values()), found
    if module is net_wan:
        assert found["net.wan_lost"].value == 0
        assert found["net.wan_ack_p99_s"].value >= 0.2  # no answer before its round trip
    if module is net_episode:
        assert found["net.episode_wan_ack_s"].value >= 0.1
        # Periods are on time to well below a tenth of one.
        assert found["net.episode_wan_s"].value >= (net_episode.QUICK.steps - 0.5) / 10
    assert not list(tmp_path.iterdir())
