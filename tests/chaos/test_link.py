"""A bad link between a robot host and its head: silence of any length, and packets out of order.

Real processes in network namespaces: hub, replay, and a robot host with its spool. What a wait
depends on has reached its limits within a minute of silence (TCP's connection has ended, waits
between attempts grow no more), so ten minutes are scaled: one, in which ten times as much is
recorded.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kit.tally import Tally

from user_system.cluster.bench.net_site import Site, lost, site
from user_system.cluster.lab import Line, Profile, available

if TYPE_CHECKING:
    from conftest import Size

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.system,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(available()), reason=available() or "can be made"),
]

HZ = 20.0
LINK = Profile.both(Line(delay_ms=20.0, rate_bps=100e6, queue_bytes=512 << 10))
BACK_S, DRAIN_S = 20.0, 300.0


@dataclass
class Recorded:
    """A robot host's run, and what came of it."""

    here: Site
    began: float = 0.0
    sessions: float = 0.0
    count: int = 0
    wrong: list[str] = field(default_factory=list)

    def outage(self, seconds: float, pace: float) -> dict[str, Any]:
        """Cut the link for so long; return how much it recorded, and how soon lanes were back."""
        edge = self.here.edge
        before = edge.ask("waiting", 10.0)
        edge.ask("begin", 10.0, hz=HZ * pace)
        with self.here.lab.link.outage() as cut:
            time.sleep(seconds)
            waits = edge.ask("waiting", 10.0) - before
            edge.ask("begin", 10.0, hz=HZ)
            dark = time.monotonic() - cut
        mended = time.monotonic_ns()
        back = edge.ask("back", BACK_S, since_ns=mended, timeout_s=BACK_S)
        assert waits > 0.7 * HZ * pace * seconds, "it went on recording"
        return {"waits": waits, "dark_s": dark, "back_s": max(back.values())}

    def drained(self) -> None:
        while self.here.edge.ask("waiting", 10.0) > HZ:
            assert time.monotonic() - self.began < DRAIN_S, "the spool does not drain"
            time.sleep(0.05)


@contextmanager
def recorded(directory: Path, link: Profile, seed: int) -> Iterator[Recorded]:
    """Run a host that records; afterwards everything that it spooled must be there."""
    with site(directory, link, hub=True, seed=seed) as here:
        run = Recorded(here, time.monotonic())
        here.edge.ask("begin", 10.0, hz=HZ)
        time.sleep(1.0)
        yield run
        end = here.edge.ask("end", DRAIN_S, timeout_s=DRAIN_S)
        run.sessions = end["sessions"]
    spooled = dict(end["spooled"])
    run.count = sum(spooled.values())
    wrongs, run.wrong = lost(directory, spooled)
    assert not wrongs, run.wrong[:5]


def test_partitions(tmp_path: Path, seed: int, size: "Size", tally: Tally) -> None:
    """Nothing is lost or twice there; a second of silence does not even end the connection."""
    (tmp_path / "run").mkdir()
    found = []
    with recorded(tmp_path / "run", LINK, seed) as run:
        for seconds, pace in size.partitions:
            before = run.here.edge.ask("sessions", 10.0)
            found.append(run.outage(seconds, pace))
            run.drained()
            if seconds <= 1.0:
                after = run.here.edge.ask("sessions", 10.0)
                assert after == before, "a second of silence is no reason to connect again"
    tally.add(
        "partitions between a robot host and its head",
        ", ".join(f"{seconds:g} s" for seconds, _ in size.partitions),
        acked=run.count,
        recorded_in_the_dark=sum(one["waits"] for one in found),
        back_after_at_most=f"{max(one['back_s'] for one in found):.1f} s",
    )


def test_packets_that_come_twice_late_or_not_at_all(
    tmp_path: Path, seed: int, size: "Size", tally: Tally
) -> None:
    (tmp_path / "run").mkdir()
    bad = LINK.but(duplicate=0.05, reorder=0.1, reorder_ms=30.0, loss=0.01)
    with recorded(tmp_path / "run", bad, seed) as run:
        before = run.here.edge.ask("sessions", 10.0)
        time.sleep(size.bad_link_s)
        stats = run.here.lab.link.stats()
    for way in (stats.up, stats.down):
        assert min(way.duplicated, way.reordered, way.lost) > 0, way
    assert run.sessions == before, "nobody took such a link for a broken one"
    tally.add(
        "packets doubled, overtaken and lost",
        f"{stats.up.packets + stats.down.packets:,} packets",
        acked=run.count,
        doubled_packets=stats.up.duplicated + stats.down.duplicated,
        overtaken_packets=stats.up.reordered + stats.down.reordered,
    )
