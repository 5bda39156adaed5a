"""One direction of an emulated link, without a network: times and packets in, packets out."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_system.cluster.lab.line import NEVER, Direction
from user_system.cluster.lab.profiles import PROFILES, Line, Profile, profile
from user_system.core.errors import ConfigError


class Seen:
    """Moves a direction on to exactly the times at which something is due."""

    def __init__(self, line: Line, seed: int = 0):
        self.direction = Direction(line, Random(seed))
        self.came: list[tuple[float, bytes]] = []

    def until(self, end: float = NEVER) -> "Seen":
        while (due := self.direction.due()) != NEVER and due <= end:
            self.look(due)
        return self

    def look(self, now: float) -> None:
        self.direction.deliver(now, lambda packet: self.came.append((now, packet)))

    def send(self, packet: bytes, at: float) -> None:
        self.until(at)
        self.direction.send(packet, at)

    @property
    def times(self) -> list[float]:
        return [at for at, _ in self.came]


def numbered(i: int, size: int = 1000) -> bytes:
    return i.to_bytes(4, "big").ljust(size, b".")


def test_a_packet_arrives_after_its_delay() -> None:
    seen = Seen(Line(delay_ms=100))
    seen.send(b"a", 1.0)
    seen.send(b"b", 1.05)
    assert seen.until().times == pytest.approx([1.1, 1.15])


def test_a_line_takes_bits_one_after_the_other() -> None:
    seen = Seen(Line(delay_ms=10, rate_bps=8e5))  # 1000 bytes take 10 ms
    for i in range(5):
        seen.send(numbered(i), 0.0)
    assert seen.until().times == pytest.approx([0.02, 0.03, 0.04, 0.05, 0.06])


def test_looking_late_makes_no_packet_later_than_itself() -> None:
    seen = Seen(Line(rate_bps=8e5))
    for i in range(3):
        seen.direction.send(numbered(i), 0.0)
    seen.look(0.025)
    assert [packet for _, packet in seen.came] == [numbered(0), numbered(1)]
    assert seen.until().times[-1] == pytest.approx(0.03)


def test_a_full_queue_drops_what_comes_last() -> None:
    seen = Seen(Line(rate_bps=8e5, queue_bytes=3000))
    for i in range(10):
        seen.send(numbered(i), 0.0)  # one on the line, three wait
    assert [packet for _, packet in seen.until().came] == [numbered(i) for i in range(4)]
    assert seen.direction.counters["dropped"] == 6


def test_a_change_of_rate_holds_for_what_waits() -> None:
    seen = Seen(Line(rate_bps=8e5))
    for i in range(3):
        seen.send(numbered(i), 0.0)
    seen.until(0.01)
    seen.direction.change(Line(rate_bps=8e6), 0.011)
    # The second was on the line already; the third goes ten times as fast.
    assert seen.until().times == pytest.approx([0.01, 0.02, 0.021])


def test_a_line_that_gets_no_limit_any_more_lets_all_go() -> None:
    seen = Seen(Line(rate_bps=8e5))
    for i in range(3):
        seen.send(numbered(i), 0.0)
    seen.direction.change(Line(), 0.005)
    seen.send(numbered(3), 0.006)
    assert [packet for _, packet in seen.until().came] == [numbered(i) for i in range(4)]
    assert seen.times[-1] == pytest.approx(0.01)


def test_an_outage_loses_what_comes_and_what_is_under_way() -> None:
    seen = Seen(Line(delay_ms=100))
    seen.send(b"before", 0.0)
    seen.direction.cut = True
    seen.send(b"meanwhile", 0.05)
    seen.until(0.15)
    seen.direction.cut = False
    seen.send(b"after", 0.2)
    assert seen.until().came == [(pytest.approx(0.3), b"after")]
    assert seen.direction.counters["cut"] == 2


def test_jitter_keeps_the_order() -> None:
    seen = Seen(Line(delay_ms=10, jitter_ms=50))
    for i in range(200):
        seen.send(numbered(i), i * 1e-3)
    assert [packet for _, packet in seen.until().came] == [numbered(i) for i in range(200)]
    late = [at - i * 1e-3 for i, at in enumerate(seen.times)]
    assert min(late) >= 0.01
    assert max(late) > 0.03


def test_reordering_lets_later_ones_overtake() -> None:
    seen = Seen(Line(delay_ms=10, reorder=0.2, reorder_ms=5))
    for i in range(500):
        seen.send(numbered(i), i * 1e-3)
    order = [int.from_bytes(packet[:4], "big") for _, packet in seen.until().came]
    assert sorted(order) == list(range(500))
    assert order != sorted(order)
    assert 60 < seen.direction.counters["reordered"] < 140


def test_loss_and_doubling_are_as_frequent_as_asked() -> None:
    seen = Seen(Line(loss=0.05, duplicate=0.1))
    for i in range(4000):
        seen.send(numbered(i, 50), i * 1e-3)
    counters = seen.until().direction.counters
    assert 140 < counters["lost"] < 260
    assert 310 < counters["duplicated"] < 450


def test_the_same_seed_means_the_same_fate() -> None:
    def lost(seed: int) -> list[bytes]:
        seen = Seen(Line(loss=0.3), seed)
        for i in range(100):
            seen.send(numbered(i), i * 1e-3)
        return [packet for _, packet in seen.until().came]

    assert lost(1) == lost(1)
    assert lost(1) != lost(2)


lines = st.builds(
    Line,
    delay_ms=st.floats(0, 50),
    jitter_ms=st.floats(0, 20),
    loss=st.floats(0, 0.5),
    rate_bps=st.sampled_from([0.0, 1e5, 1e6, 1e8]),
    queue_bytes=st.integers(1500, 20_000),
    duplicate=st.floats(0, 0.5),
    reorder=st.floats(0, 0.5),
)
events = st.lists(
    st.tuples(st.floats(0, 0.01), st.integers(20, 1500), st.sampled_from("sssssscmx")), max_size=60
)


@given(lines, lines, events)
def test_every_packet_is_accounted_for(line: Line, other: Line, moves: list) -> None:
    seen, now = Seen(line), 0.0
    for wait, size, what in moves:
        now += wait
        if what == "s":
            seen.send(b"." * size, now)
        elif what == "x":
            seen.until(now)
            seen.direction.change(other, now)
        else:
            seen.until(now)
            seen.direction.cut = what == "c"
    counters = seen.until().direction.counters
    gone = counters["lost"] + counters["dropped"] + counters["cut"]
    assert counters["packets"] + counters["duplicated"] == counters["delivered"] + gone
    assert len(seen.came) == counters["delivered"]
    assert sum(len(packet) for _, packet in seen.came) == counters["delivered_bytes"]


@given(st.lists(st.tuples(st.floats(0, 0.02), st.integers(100, 1500)), min_size=1, max_size=80))
def test_no_line_is_faster_than_its_rate(moves: list) -> None:
    """What arrives within any stretch of time is at most rate x stretch, and one packet."""
    rate = 1e6
    seen, now = Seen(Line(rate_bps=rate, queue_bytes=4000)), 0.0
    for wait, size in moves:
        now += wait
        seen.send(b"." * size, now)
    came = seen.until().came
    for i, (begin, _) in enumerate(came):
        total = 0
        for at, packet in came[i + 1 :]:
            total += len(packet)
            assert total * 8 <= rate * (at - begin) + 1e-3


def test_names_of_links() -> None:
    assert profile("wan").round_trip_ms == 200
    assert profile("wan").but(loss=0.0).up == Line(delay_ms=100.0)
    assert set(PROFILES) == {"lan", "wan", "remote", "slow", "line20"}
    with pytest.raises(ConfigError, match="allowed: lan, wan"):
        profile("moon")


@pytest.mark.parametrize(
    "wrong",
    [{"loss": 1.1}, {"delay_ms": -1}, {"rate_bps": float("inf")}, {"queue_bytes": 1}, {"los": 1}],
)
def test_impossible_lines_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError):
        Line.of(wrong)


def test_a_line_survives_being_said() -> None:
    line = Line(delay_ms=1.5, loss=0.25, rate_bps=1e6)
    assert Line.of(line.plain()) == line
    assert Profile.both(line).but(loss=0).down.loss == 0
