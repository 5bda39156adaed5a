"""What mutual TLS costs: the same service, client and disk, with it and without, in turns."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from comms.authority import Authority
from comms.credentials import Role
from user_system.cluster.bench import ingest_floor
from user_system.cluster.bench.figures import Figure, Goal, judged
from user_system.cluster.bench.ingest_producer import Producer
from user_system.cluster.bench.options import Options
from user_system.cluster.bench.replay_child import Child
from user_system.cluster.bench.replay_stage import Stage
from user_system.cluster.bench.replay_work import FULL
from user_system.cluster.configs import LinkConfig
from user_system.cluster.parse import dump
from user_system.core.clock import SECOND

IDS = ("net.mtls_cost",)
HOST = "host-0"
PLAIN, SECURE = "user_system.cluster.bench.net_plain", Producer.__module__
_GOAL = Goal("<=", 1.1)
_UP_S, _DRAIN_S = 60.0, 60.0


@dataclass(frozen=True)
class Load:
    """How often and for how long each is driven."""

    rounds: int = 7
    warm_s: float = 1.0
    seconds: float = 5.0


QUICK = Load(rounds=1, warm_s=0.2, seconds=1.0)


def measure(options: Options) -> Iterator[Figure]:
    """Drive both in turns, as fast as credit allows."""
    load = QUICK if options.quick else Load()
    with Stage(options.directory, FULL) as stage:
        floor = ingest_floor.said(stage.directory, 20 if options.quick else 500)
        pairs = run(stage.directory, load)
    yield figure(pairs, load, floor)


def run(directory: Path, load: Load) -> list[tuple[float, float]]:
    """Return records/s without TLS and with it, round by round."""
    authority = Authority.open(directory / "pki")
    for name, role in (("hub", Role.SERVICE), ("replay", Role.SERVICE), (HOST, Role.ROBOT)):
        authority.issue(name, role)
    pairs: list[tuple[float, float]] = []
    with ExitStack() as stack:
        server = stack.enter_context(Child(f"{PLAIN} serve", directory, "server"))
        ports = server.ask("open", _UP_S, directory=str(directory), host=HOST)
        children = {}
        for kind, module in (("plain", f"{PLAIN} send"), ("tls", SECURE)):
            child = children[kind] = stack.enter_context(Child(module, directory, kind))
            nobody = "127.0.0.1:1"
            link = LinkConfig(HOST, directory / "pki", nobody, f"127.0.0.1:{ports[kind]}", nobody)
            child.ask("connect", _UP_S, link=dump(link), timeout_s=_UP_S)
        for number in range(load.rounds):
            # Whoever is second may find a warmer or a busier machine: turn and turn about.
            order = ("plain", "tls") if number % 2 else ("tls", "plain")
            rates = {kind: _rate(children[kind], load) for kind in order}
            pairs.append((rates["plain"], rates["tls"]))
    return pairs


def _rate(child: Child, load: Load) -> float:
    """Return how many records per second become durable, as fast as credit allows."""
    child.ask("begin", _UP_S, hz=0.0, at_ns=0)
    time.sleep(load.warm_s)
    since = time.monotonic_ns()
    time.sleep(load.seconds)
    until = time.monotonic_ns()
    found = child.ask("end", _DRAIN_S, since_ns=since, until_ns=until, timeout_s=_DRAIN_S)
    return float(found["acked"]) * SECOND / (until - since)


def figure(pairs: list[tuple[float, float]], load: Load, floor: str) -> Figure:
    """Return the median of the ratios within a round."""
    ratios = [plain / secure for plain, secure in pairs if secure]
    plain, secure = (median(rates) for rates in zip(*pairs, strict=True))
    each = ", ".join(f"{ratio:.2f}" for ratio in sorted(ratios))
    return judged(
        IDS[0],
        median(ratios) if len(ratios) == len(pairs) else None,
        _GOAL,
        reference=floor,
        note=f"{plain:.0f} records/s of 30 KiB plain, {secure:.0f} with mutual TLS, to the disk; "
        f"{load.rounds} rounds of {load.seconds:g} s: {each}",
    )
