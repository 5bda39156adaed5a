"""The weights' benchmark: each figure can say no, and whoever compares does so with all of it."""

import io
from contextlib import ExitStack

import pytest

from user_system.cluster import bench
from user_system.cluster.bench import (
    net,
    net_weights,
    net_weights_acks,
    net_weights_line,
    net_weights_peers,
)
from user_system.cluster.bench.figures import Figure
from user_system.cluster.bench.net_weights_acks import Seen
from user_system.cluster.bench.net_weights_line import CHUNK, Found
from user_system.cluster.lab import available
from user_system.core.errors import LinkError


def measured(tmp_path, *ids: str, quick: bool = True) -> dict[str, Figure]:
    options = bench.Options(only=ids, directory=tmp_path, quick=quick)
    return {figure.id: figure for figure in net.measure(options)}


# --- beside peers --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "ray", "plain", "value", "ok"),
    [
        (0.010, 0.010, 0.020, 1.0, True),
        (0.010, 0.020, 0.010, 1.0, True),
        (0.030, 0.010, 0.020, 3.0, False),
        (0.030, 0.020, 0.010, 3.0, False),
    ],
)
def test_it_is_compared_with_the_faster_peer(tmp_path, monkeypatch, ours, ray, plain, value, ok):
    times = {"ours": [ours, 0.0, 1.0], "wire": [0.077], "ray": [ray], "grpc": [plain]}
    monkeypatch.setattr(net_weights_peers, "run", lambda directory, rounds: times)
    (figure,) = measured(tmp_path, net_weights.PEER).values()
    assert (figure.value, figure.ok) == (pytest.approx(value), ok)
    assert "77.0 ms sent over mutual TLS" in figure.note
    assert f"Ray object store {1e3 * ray:.1f} ms" in figure.reference


def test_a_process_that_ends_is_a_figure_that_is_missed(tmp_path, monkeypatch):
    def run(directory, rounds):
        with ExitStack() as stack:
            return net_weights_peers._start(stack, "net_weights_host", "hub")()

    monkeypatch.setattr(net_weights_peers, "run", run)
    figure = measured(tmp_path, net_weights.PEER)[net_weights.PEER]
    assert (figure.value, figure.ok) == (None, False)
    assert "net_weights_host ended" in figure.note
    assert list(tmp_path.iterdir()) == []


def test_another_version_than_was_published_is_no_measurement(monkeypatch):
    way = object.__new__(net_weights_peers._Ours)
    way._publisher = type("P", (), {"publish": lambda self, policy, weights: 4})()
    way._edges = [lambda: "4 10 0\n", lambda: "3 9 0\n"]
    with pytest.raises(LinkError, match="other versions"):
        way({})


def test_the_slowest_edge_counts(monkeypatch):
    way = object.__new__(net_weights_peers._Ours)
    way._publisher = type("P", (), {"publish": lambda self, policy, weights: 4})()
    way._edges = [lambda: "4 3000000000 0\n", lambda: "4 2000000000 0\n"]
    monkeypatch.setattr(net_weights_peers.time, "monotonic_ns", lambda: 1_000_000_000)
    assert way({}) == 2.0


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_quick_run_has_all_ways(tmp_path):
    """Ours on one disk and over the wire, Ray, a plain stream: each process is real."""
    found = net_weights_peers.run(tmp_path / "peers", rounds=1)
    assert set(found) == {"ours", "wire", "ray", "grpc"}
    assert all(len(times) == 1 and times[0] > 0 for times in found.values())


# --- on a slow line ------------------------------------------------------------------------------


@pytest.mark.parametrize("worse", ["killed", "silent"])
@pytest.mark.parametrize(("again", "ok"), [(3 * CHUNK, True), (3 * CHUNK + 1, False)])
def test_what_was_sent_again_counts_by_the_cut(tmp_path, monkeypatch, again, ok, worse):
    def run(directory, size, cuts, silence_s=0.0):
        assert bool(silence_s) == (directory.name == "silent")
        here = directory.name == worse
        return Found(8.0 * size / net_weights_line.RATE_BPS, size + (again if here else 0))

    monkeypatch.setattr(net_weights, "available", lambda: None)
    monkeypatch.setattr(net_weights_line, "run", run)
    found = measured(tmp_path, net_weights.LINE, net_weights.CUT)
    assert found[net_weights.LINE].value == pytest.approx(1.0)
    assert found[net_weights.CUT].ok is ok


def test_without_namespaces_it_is_said_why(tmp_path, monkeypatch):
    monkeypatch.setattr(net_weights, "available", lambda: "no rights here")
    found = measured(tmp_path, net_weights.LINE, net_weights.CUT)
    assert [(f.value, f.ok, f.note) for f in found.values()] == [
        (None, False, "no rights here")
    ] * 2


def test_a_host_that_ends_is_said_so():
    process = type("Process", (), {"stdout": io.StringIO(""), "args": ["edge"]})()
    with pytest.raises(LinkError, match="a process of the benchmark ended"):
        net_weights_line._line(process)


def test_acknowledgements_meanwhile_are_compared_with_those_before():
    seen = Seen([0.05] * 99 + [0.06] * 2, [0.1] * 99 + [0.12] * 2, [8.0, 8.1])
    figure = net_weights_acks.figure(net_weights_acks.Load(), seen)
    assert (figure.value, figure.ok) == (pytest.approx(2.0), True)
    assert "the line alone 8.0" in figure.note
    slower = Seen(seen.before, [0.2] * 100, [8.0])
    assert not net_weights_acks.figure(net_weights_acks.Load(), slower).ok
    nobody = Seen(seen.before, [], [])
    assert net_weights_acks.figure(net_weights_acks.Load(), nobody).value is None


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.skipif(bool(available()), reason=available() or "can be made")
def test_a_quick_run_records_while_weights_come(tmp_path):
    figure = measured(tmp_path, *net_weights_acks.IDS)[net_weights_acks.IDS[0]]
    assert figure.value is not None, figure.note
    assert "1 versions of 1 MB" in figure.note


# --- at the swap ---------------------------------------------------------------------------------


def test_the_worst_of_both_sizes_counts(tmp_path, monkeypatch):
    times = iter([[0.001, 0.002], [0.001, 0.006]])
    monkeypatch.setattr("user_system.cluster.bench.net_weights_swap.run", lambda *args: next(times))
    (figure,) = measured(tmp_path, net_weights.SWAP).values()
    assert (figure.value, figure.ok) == (pytest.approx(6.0), False)


def test_a_quick_run_swaps(tmp_path):
    (figure,) = measured(tmp_path, net_weights.SWAP).values()
    assert figure.value is not None
    assert figure.value >= 0
    assert "demo: p50" in figure.note
