"""Outages: how soon each lane works again, and what draining the spool costs live data.

The link is silent, not closed: nobody is told. After a long outage everything that waits longer the
longer it lasts has reached its limit within a minute (TCP's retransmissions end with the connection
after ten seconds of silence, waits between attempts stop growing at two), so the ten minutes are
scaled: sixty seconds, in which the robot records ten times as fast, and so spools as much.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from user_system.cluster.bench.figures import Figure, Goal, judged, quantile
from user_system.cluster.bench.net_site import Site, lost, site
from user_system.cluster.bench.options import Options
from user_system.cluster.bench.replay_stage import Stage
from user_system.cluster.bench.replay_work import FULL
from user_system.cluster.lab import Line, Profile
from user_system.core.errors import LinkError

IDS = ("net.reconnect_s", "net.reconnect_10min_s", "net.drain_ack_ratio")
HZ, SIZE = 20.0, 30 << 10
_SHORT, _LONG, _RATIO = Goal("<=", 2), Goal("<=", 5), Goal("<=", 2)
LINK = Profile.both(Line(delay_ms=20.0, rate_bps=100e6, queue_bytes=512 << 10))
"""40 ms round trip, 100 Mbit/s: draining 12,000 records of 30 KiB takes half a minute and more."""


@dataclass(frozen=True)
class Load:
    """How long and how much."""

    warm_s: float = 3.0
    before_s: float = 30.0
    """Live data before the outages, to compare with."""
    short_s: float = 30.0
    long_s: float = 60.0
    pace: float = 10.0
    """How much faster it records in the long one."""
    repeats: int = 3
    """Short outages; the slowest counts."""
    limit_s: float = 60.0
    drain_s: float = 240.0


QUICK = Load(1.0, before_s=3.0, short_s=2.0, long_s=3.0, repeats=1)


@dataclass
class Seen:
    """What came of it."""

    load: Load
    short: list[dict[str, float]] = field(default_factory=list)
    """Lane -> s until it worked again, for each outage."""
    long: dict[str, float] = field(default_factory=dict)
    behind: int = 0
    """Records that waited when the long outage ended."""
    drained_s: float = 0.0
    before: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    """How long acknowledgements of live data took, s."""
    raw: list[float] = field(default_factory=list)


def measure(options: Options) -> Iterator[Figure]:
    """Cut the link, mend it, and look."""
    with Stage(options.directory, FULL) as stage:
        seen = run(stage.directory, QUICK if options.quick else Load())
    yield from figures(seen)


def run(directory: Path, load: Load) -> Seen:
    """Live data, short outages, a long one, and the drain.

    Raises:
        LinkError: a lane did not come back, or a record is lost.
    """
    seen = Seen(load)
    with site(directory, LINK, hub=True) as here:
        seen.raw = here.raw(HZ, SIZE, load.before_s)
        here.edge.ask("begin", 10.0, hz=HZ)
        time.sleep(load.warm_s)
        seen.before = _live(here, load, load.before_s)
        for _ in range(load.repeats):
            seen.short.append(_outage(here, load, load.short_s))
            _settle(here, load)
        here.edge.ask("begin", 10.0, hz=HZ * load.pace)
        seen.long = _outage(here, load, load.long_s, seen)
        _drain(here, load, seen)
        end = here.edge.ask("end", load.drain_s, timeout_s=load.drain_s)
    count, faults = lost(directory, dict(end["spooled"]))
    if count:
        raise LinkError(f"{count} records are lost", got="; ".join(faults[:3]))
    return seen


def _outage(here: Site, load: Load, seconds: float, seen: Seen | None = None) -> dict[str, float]:
    """Cut the link for so long; return after how many seconds each lane worked again."""
    with here.lab.link.outage():
        time.sleep(seconds)
        if seen is not None:
            here.edge.ask("begin", 10.0, hz=HZ)
            seen.behind = here.edge.ask("waiting", 10.0)
    mended = time.monotonic_ns()
    back = dict(here.edge.ask("back", load.limit_s, since_ns=mended, timeout_s=load.limit_s))
    if here.viewer is not None:
        wait = load.limit_s
        back["fresh"] = here.viewer.ask("back", wait, since_ns=mended, timeout_s=wait)
    return back


def _settle(here: Site, load: Load) -> None:
    """Wait until what piled up has gone."""
    deadline = time.monotonic() + load.drain_s
    while here.edge.ask("waiting", 10.0) > HZ:
        if time.monotonic() > deadline:
            raise LinkError(f"the spool did not drain in {load.drain_s:.0f} s")
        time.sleep(0.1)


def _live(here: Site, load: Load, seconds: float) -> list[float]:
    since = time.monotonic_ns()
    time.sleep(seconds)
    until = time.monotonic_ns()
    wait = load.drain_s
    return list(here.edge.ask("delays", wait, since_ns=since, until_ns=until, timeout_s=wait))


def _drain(here: Site, load: Load, seen: Seen) -> None:
    """Drain the spool; live data is what is recorded from the next episode on."""
    began = time.monotonic()
    episode_ns = here.edge.ask("episode_after", load.limit_s, at_ns=time.monotonic_ns())
    _settle(here, load)
    until = time.monotonic_ns()
    seen.drained_s = time.monotonic() - began
    wait = load.drain_s
    seen.during = list(
        here.edge.ask("delays", wait, since_ns=episode_ns, until_ns=until, timeout_s=wait)
    )


def figures(seen: Seen) -> list[Figure]:
    """Return what was seen."""
    load = seen.load
    raw = f"TCP alone, before: p99 {_ms(seen.raw)} ms"
    slowest = max(seen.short, key=lambda back: max(back.values()))
    every = ", ".join(f"{max(back.values()):.2f}" for back in seen.short)
    before, during = quantile(seen.before, 0.99), quantile(seen.during, 0.99)
    scaled = f"{load.long_s:g} s in which it recorded {load.pace:g} times as fast"
    return [
        judged(
            IDS[0],
            max(slowest.values()),
            _SHORT,
            "s",
            reference="round trip 0.04 s",
            note=f"after {load.short_s:g} s, slowest lane and outage of {every}; {_lanes(slowest)}",
        ),
        judged(
            IDS[1],
            max(seen.long.values()),
            _LONG,
            "s",
            reference="round trip 0.04 s",
            note=f"after {scaled}; {_lanes(seen.long)}",
        ),
        judged(
            IDS[2],
            during / before if during and before else None,
            _RATIO,
            reference=raw,
            note=f"live p99 {_ms(seen.during)} ms while {seen.behind} records drained in "
            f"{seen.drained_s:.0f} s, {_ms(seen.before)} ms before",
        ),
    ]


def _lanes(back: dict[str, float]) -> str:
    return ", ".join(f"{lane} {seconds:.2f} s" for lane, seconds in sorted(back.items()))


def _ms(values: list[float]) -> str:
    found = quantile(values, 0.99)
    return "no" if found is None else f"{found * 1e3:.0f}"
