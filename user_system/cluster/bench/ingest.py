"""``bench ingest``: how many records a second become durable, and how long an answer takes.

A replay process as every run has it (gRPC with mutual TLS, the store on disk), and four processes
with the client of a robot host. What is counted is acknowledged, so it is on the disk; at the end
the store is opened and must hold all of it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

from user_system.cluster.bench import ingest_floor
from user_system.cluster.bench.figures import Figure, Goal, judged, quantile
from user_system.cluster.bench.ingest_head import Head, stored
from user_system.cluster.bench.ingest_outbox import EPOCH
from user_system.cluster.bench.options import Options
from user_system.cluster.bench.replay_child import Child
from user_system.cluster.bench.replay_progress import Clock, Part, Shown, measure_parts
from user_system.cluster.bench.replay_stage import Stage
from user_system.cluster.bench.replay_work import FULL
from user_system.cluster.parse import dump
from user_system.core.clock import SECOND
from user_system.core.errors import LinkError

PRODUCER = "user_system.cluster.bench.ingest_producer"
RECORDS, ACK, ACK_SLOW = Goal(">=", 1_500), Goal("<=", 50), Goal("<=", 20)
IDS = (
    "ingest.records_s",
    "ingest.ack_p99_ms",
    "ingest.ack_p99_ms_1500",
    "ingest.ack_p99_ms_200",
)
LIMIT_S = 300.0
_RECORD_BYTES, _MOST_HZ = 40_000, 10_000
_ON_PACE = 0.95
"""Share of a pace below which that pace was not measured."""


@dataclass(frozen=True)
class Load:
    """How much is sent, and for how long it is measured."""

    producers: int = 4
    warm_s: float = 2.0
    """Time of each load that does not count."""
    flood_s: float = 10.0
    paced_s: float = 20.0
    floor: int = 1_000
    """Times that disk and loopback are measured."""
    drain_s: float = 30.0


QUICK = Load(warm_s=0.2, flood_s=1.0, paced_s=1.0, floor=20)


@dataclass
class Answers:
    """What the producers saw of one load."""

    seconds: float
    acked: int = 0
    """Fragments that were acknowledged in that time."""
    ms: list[float] = field(default_factory=list)
    """How long each took that was submitted in that time."""
    head_ms: float = 0.0
    """Processor time of the head per acknowledged fragment."""

    @property
    def records_s(self) -> float:
        """Durable records per second."""
        return self.acked / self.seconds


@dataclass
class Measured:
    """All loads, and what the machine itself takes."""

    flood: Answers
    fast: Answers
    slow: Answers
    floor: str = ""


def measure(options: Options) -> Iterator[Figure]:
    """Measure all loads, one after the other, in a directory that is removed afterwards."""
    load = QUICK if options.quick else Load()
    with Stage(options.directory, FULL) as stage:
        parts = [Part("ingest", IDS, partial(_measure, stage, load), LIMIT_S)]
        yield from measure_parts(parts, options)


def _measure(stage: Stage, load: Load, clock: Clock, shown: Shown) -> Sequence[Figure]:
    seconds = load.warm_s + load.flood_s
    stage.require(int(seconds * _MOST_HZ * _RECORD_BYTES))
    shown.step("disk and loopback by themselves")
    floor = ingest_floor.said(stage.directory, load.floor)
    hosts = [f"host-{i}" for i in range(load.producers)]
    with ExitStack() as stack:
        head = stack.enter_context(Head(stage.directory, hosts))
        children = [stack.enter_context(stage.child(PRODUCER, host)) for host in hosts]
        for child, host in zip(children, hosts, strict=True):
            child.tell("connect", link=dump(head.link(host)), timeout_s=load.drain_s)
        for child in children:
            child.hear(clock.left())
        drive = partial(run_load, children, head.cpu_s, load, clock, shown)
        slow = drive(200.0, load.paced_s)
        fast = drive(1500.0, load.paced_s)
        measured = Measured(drive(0.0, load.flood_s), fast, slow, floor)
        acked = {
            host: int(child.ask("count", clock.left()))
            for host, child in zip(hosts, children, strict=True)
        }
    check_stored(head.store, acked)
    return figures(measured)


def run_load(
    children: Sequence[Child],
    cpu_s: Callable[[], float],
    load: Load,
    clock: Clock,
    shown: Shown,
    hz: float,
    seconds: float,
) -> Answers:
    """Have all producers send ``hz`` records per second in all, as many as credit allows for 0."""
    shown.step(f"{hz:.0f} records/s" if hz else "records as fast as credit allows")
    start = time.monotonic_ns() + SECOND // 10
    each = hz / len(children)
    for i, child in enumerate(children):
        # Evenly among each other, as robots that know nothing of one another are on average.
        at = start + int(i * SECOND / hz) if hz else start
        child.ask("begin", clock.left(), hz=each, at_ns=at)
    since = start + int(load.warm_s * SECOND)
    until = since + int(seconds * SECOND)
    time.sleep(max(0.0, (since - time.monotonic_ns()) / SECOND))
    cpu = cpu_s()
    time.sleep(max(0.0, (until - time.monotonic_ns()) / SECOND))
    cpu = cpu_s() - cpu
    for child in children:
        child.tell("end", since_ns=since, until_ns=until, timeout_s=load.drain_s)
    found = [child.hear(clock.left()) for child in children]
    times = list(chain.from_iterable(answer["ms"] for answer in found))
    acked = sum(answer["acked"] for answer in found)
    return Answers(seconds, acked, times, 1e3 * cpu / max(1, acked))


def check_stored(path: Path, acked: dict[str, int]) -> None:
    """Make sure that all that was acknowledged is on disk.

    Raises:
        LinkError: it is not.
    """
    found = stored(path, [(producer, EPOCH) for producer in acked])
    if missing := {name: found[name] for name, count in acked.items() if found[name] != count}:
        raise LinkError("acknowledged records are not in the store", got=missing, allowed=acked)


def figures(measured: Measured) -> list[Figure]:
    """Return what all loads came to."""
    flood = measured.flood
    seen = (
        f"{len(flood.ms)} records of 30 KiB, 4 producers, {flood.seconds:g} s; "
        f"{flood.head_ms:.2f} ms of processor time at the head for each"
    )
    return [
        judged(IDS[0], flood.records_s, RECORDS, "records/s", reference=measured.floor, note=seen),
        judged(
            IDS[1],
            quantile(flood.ms, 0.99),
            ACK,
            "ms",
            reference=measured.floor,
            note=f"at {flood.records_s:.0f} records/s, as fast as credit allows; "
            f"median {_middle(flood)} ms",
        ),
        _paced(IDS[2], measured.fast, 1500.0, None, measured.floor),
        _paced(IDS[3], measured.slow, 200.0, ACK_SLOW, measured.floor),
    ]


def _paced(name: str, answers: Answers, hz: float, goal: Goal | None, floor: str) -> Figure:
    """Return how long answers took at a pace; none where the pace was not reached."""
    reached = answers.records_s >= _ON_PACE * hz
    value = quantile(answers.ms, 0.99) if reached else None
    note = f"at {answers.records_s:.0f} of {hz:.0f} records/s; median {_middle(answers)} ms"
    if goal is None:
        return Figure(name, value, "ms", reference=floor, note=note)
    return judged(name, value, goal, "ms", reference=floor, note=note)


def _middle(answers: Answers) -> str:
    middle = quantile(answers.ms, 0.5)
    return "no" if middle is None else f"{middle:.1f}"
