"""Sixteen robot hosts at one head: how long answers take, and what each costs hub and replay."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from user_system.cluster.bench import ingest_floor
from user_system.cluster.bench.figures import Figure, Goal, judged, quantile
from user_system.cluster.bench.ingest_head import Head
from user_system.cluster.bench.options import Options
from user_system.cluster.bench.replay_child import Child
from user_system.cluster.bench.replay_stage import Stage
from user_system.cluster.bench.replay_work import FULL
from user_system.cluster.parse import dump
from user_system.core.clock import SECOND

IDS = ("net.fleet_ack_p99_ms", "net.fleet_cpu_pct", "net.fleet_cpu_pct_each")
HZ = 10.0
_ACK, _CPU = Goal("<=", 100), Goal("<=", 70)
_UP_S, _DRAIN_S = 60.0, 60.0


@dataclass(frozen=True)
class Load:
    """How many hosts, and for how long."""

    sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    warm_s: float = 3.0
    seconds: float = 20.0
    processes: int = 2
    """Among which the hosts are divided: one interpreter would make its own hosts wait."""


QUICK = Load(sizes=(1, 2), warm_s=0.5, seconds=1.0)


@dataclass
class Fleet:
    """What so many hosts came to."""

    hosts: int
    ms: list[float]
    cpu_pct: float
    """Processor time of hub and replay, of one core."""


def measure(options: Options) -> Iterator[Figure]:
    """Drive fleets that grow."""
    load = QUICK if options.quick else Load()
    with Stage(options.directory, FULL) as stage:
        count = 20 if options.quick else 500
        before = ingest_floor.said(stage.directory, count)
        fleets = run(stage.directory, load)
        # Disks of machines that are shared have moods: the floor of one moment says too little.
        after = ingest_floor.said(stage.directory, count)
    yield from figures(fleets, f"before: {before}; after: {after}")


def run(directory: Path, load: Load) -> list[Fleet]:
    """Return what fleets of all sizes came to, each larger one with the hosts of the last."""
    names = [f"host-{i}" for i in range(max(load.sizes))]
    with ExitStack() as stack:
        head = stack.enter_context(Head(directory, names, hub=True))
        module = "user_system.cluster.bench.net_fleet_hosts"
        children = [
            stack.enter_context(Child(module, directory, f"hosts-{i}"))
            for i in range(load.processes)
        ]
        fleets: list[Fleet] = []
        there = 0
        for size in load.sizes:
            for i, child in enumerate(children):
                links = [dump(head.link(name)) for name in names[there:size]]
                # Host k belongs to process k mod n, however the fleet has grown.
                mine = [link for k, link in enumerate(links, there) if k % len(children) == i]
                child.ask("connect", _UP_S, links=mine, timeout_s=_UP_S)
            there = size
            fleets.append(_drive(head, children, size, load))
    return fleets


def _drive(head: Head, children: Sequence[Child], size: int, load: Load) -> Fleet:
    start = time.monotonic_ns() + SECOND // 10
    # Evenly among each other, as robots that know nothing of one another are on average.
    begins = [start + int(k * SECOND / HZ / size) for k in range(size)]
    for i, child in enumerate(children):
        child.ask("begin", _UP_S, hz=HZ, at_ns=begins[i :: len(children)])
    time.sleep(load.warm_s)
    since, cpu = time.monotonic_ns(), head.cpu_s()
    time.sleep(load.seconds)
    until, cpu = time.monotonic_ns(), head.cpu_s() - cpu
    ms: list[float] = []
    for child in children:
        ms += child.ask("end", _DRAIN_S, since_ns=since, until_ns=until, timeout_s=_DRAIN_S)
    return Fleet(size, ms, 100.0 * cpu * SECOND / (until - since))


def figures(fleets: Sequence[Fleet], floor: str) -> list[Figure]:
    """Return what the largest fleet came to, and what each host more costs."""
    least, most = fleets[0], fleets[-1]
    each = "; ".join(f"{f.hosts}: {f.cpu_pct:.1f} %" for f in fleets)
    p99 = ", ".join(f"{f.hosts}: {quantile(f.ms, 0.99) or 0:.1f}" for f in fleets)
    said = f"{most.hosts} hosts x {HZ:g} Hz x 15 KiB, {len(most.ms)} records"
    slope = (most.cpu_pct - least.cpu_pct) / (most.hosts - least.hosts)
    return [
        judged(
            IDS[0],
            quantile(most.ms, 0.99),
            _ACK,
            "ms",
            reference=floor,
            note=f"{said}; median {quantile(most.ms, 0.5) or 0:.1f} ms; p99 by hosts {p99}",
        ),
        judged(
            IDS[1],
            most.cpu_pct,
            _CPU,
            "%",
            reference="100: one core",
            note=f"hub and replay together; by hosts {each}",
        ),
        Figure(
            IDS[2],
            slope,
            "%",
            note=f"for each host more, from {least.hosts} to {most.hosts}; "
            f"{10 * slope / HZ:.2f} ms of processor time for each record and state",
        ),
    ]
