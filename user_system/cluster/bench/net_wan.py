"""Experience over a bad link: 200 ms round trip, 5 % loss, five minutes, nothing lost."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from user_system.cluster.bench.figures import Figure, Goal, judged, quantile
from user_system.cluster.bench.net_site import Site, lost, site
from user_system.cluster.bench.options import Options
from user_system.cluster.bench.replay_stage import Stage
from user_system.cluster.bench.replay_work import FULL

IDS = ("net.wan_lost", "net.wan_backlog_s", "net.wan_ack_p99_s")
HZ, SIZE = 20.0, 30 << 10
_LOST, _BACKLOG, _ACK = Goal("==", 0), Goal("<=", 2), Goal("<=", 2.5)


@dataclass(frozen=True)
class Load:
    """For how long."""

    warm_s: float = 5.0
    seconds: float = 300.0
    raw_s: float = 60.0
    drain_s: float = 120.0


QUICK = Load(warm_s=1.0, seconds=5.0, raw_s=5.0)


@dataclass
class Seen:
    """What came of it."""

    lost: int
    faults: list[str]
    spooled: int
    backlog: list[float]
    delays: list[float]
    raw: list[float]
    said: str


def measure(options: Options) -> Iterator[Figure]:
    """Record for five minutes over the link."""
    with Stage(options.directory, FULL) as stage:
        seen = run(stage.directory, QUICK if options.quick else Load())
    yield from figures(seen)


def run(directory: Path, load: Load) -> Seen:
    """Record; then look into the store."""
    with site(directory, "wan", hub=True) as here:
        raw = here.raw(HZ, SIZE, load.raw_s)
        here.edge.ask("begin", 10.0, hz=HZ)
        time.sleep(load.warm_s)
        since = time.monotonic_ns()
        time.sleep(load.seconds)
        until = time.monotonic_ns()
        said = _said(here)
        backlog = here.edge.ask("backlog", 10.0, since_ns=since, until_ns=until)
        delays = here.edge.ask(
            "delays", load.drain_s, since_ns=since, until_ns=until, timeout_s=load.drain_s
        )
        end = here.edge.ask("end", load.drain_s, timeout_s=load.drain_s)
    spooled = dict(end["spooled"])
    count, faults = lost(directory, spooled)
    said += f", {end['sessions']:.0f} connection{'s' * (end['sessions'] != 1)}"
    return Seen(count, faults, sum(spooled.values()), backlog, delays, raw, said)


def _said(here: Site) -> str:
    stats = here.lab.link.stats()
    took = stats.up.lost / max(1, stats.up.packets)
    return (
        f"{here.lab.link.profile.round_trip_ms:g} ms round trip, {took:.1%} of packets lost, "
        f"emulated with at most {stats.late_ms:.0f} ms of lateness, TCP with {here.lab.congestion}"
    )


def figures(seen: Seen) -> list[Figure]:
    """Return what was seen."""
    raw = f"TCP alone at this pace: median {_s(seen.raw, 0.5)} s, p99 {_s(seen.raw, 0.99)} s"
    wait = f"p99 {_s(seen.backlog, 0.99)} s, at the end {seen.backlog[-1]:.2f} s"
    return [
        judged(
            IDS[0],
            float(seen.lost),
            _LOST,
            "records",
            reference=f"{seen.spooled} spooled; {seen.said}",
            note="; ".join(seen.faults[:3]),
        ),
        judged(
            IDS[1],
            max(seen.backlog, default=None),
            _BACKLOG,
            "s",
            reference=raw,
            note=f"most that waited, seconds of recording; {wait}",
        ),
        judged(
            IDS[2],
            quantile(seen.delays, 0.99),
            _ACK,
            "s",
            reference=raw,
            note=f"{len(seen.delays)} records; median {_s(seen.delays, 0.5)} s",
        ),
    ]


def _s(values: list[float], share: float) -> str:
    found = quantile(values, share)
    return "no" if found is None else f"{found:.2f}"
