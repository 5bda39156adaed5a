"""Weights on their way down a slow line, and what that costs the experience that goes up.

A robot host as it is: spool, experience, echoes and weights share what is known of one link.

python -m user_system.cluster.bench.net_weights_acks PKI ADDRESS SIZE SEED
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comms.authority import Authority
from comms.credentials import Role
from comms.weight_publisher import WeightPublisher
from user_system.cluster.bench import net_weights_host as hosts
from user_system.cluster.bench.figures import Figure, Goal, judged, quantile
from user_system.cluster.bench.net_site import HOST, Site, site
from user_system.cluster.bench.options import Options
from user_system.cluster.bench.replay_stage import Stage
from user_system.cluster.bench.replay_work import FULL
from user_system.cluster.lab import Line, Profile

IDS = ("net.weights_ack_ratio",)
HZ = 20.0
LINK = Profile.both(Line(delay_ms=20.0, rate_bps=20e6, queue_bytes=256 << 10))
"""40 ms round trip, 20 Mbit/s each way, of which experience needs 5."""
LEARNER, TENSORS = "learner", 40
_WAIT_S = 120.0


@dataclass(frozen=True)
class Load:
    """How long and how much."""

    warm_s: float = 10.0
    before_s: float = 30.0
    size: int = 20_000_000
    versions: int = 4
    """Each as large, and nothing of it like the one before."""


QUICK = Load(1.0, before_s=2.0, size=1_000_000, versions=1)


@dataclass(frozen=True)
class Seen:
    """How long acknowledgements took, s, and the versions."""

    before: list[float]
    during: list[float]
    seconds: list[float]
    """From each publish until the robot host had laid the version down."""


def measure(options: Options) -> Iterator[Figure]:
    """Record, and publish meanwhile."""
    load = QUICK if options.quick else Load()
    with Stage(options.directory, FULL) as stage:
        seen = run(stage.directory, load)
    yield figure(load, seen)


def run(directory: Path, load: Load) -> Seen:
    """Record on a line that is free, then on one down which versions come, one after another."""
    with site(directory, LINK, hub=True) as here:
        Authority.open(directory / "pki").issue(LEARNER, Role.LEARNER)
        here.edge.ask("follow", 10.0, policy=hosts.POLICY, directory=str(directory / "weights"))
        here.edge.ask("begin", 10.0, hz=HZ)
        time.sleep(load.warm_s)
        before = _delays(here, lambda: time.sleep(load.before_s))
        seconds: list[float] = []

        def publish() -> None:
            for seed in range(load.versions):
                seconds.append(_publish(here, directory / "pki", load.size, seed))

        during = _delays(here, publish)
        here.edge.ask("end", _WAIT_S, timeout_s=_WAIT_S)
    return Seen(before, during, seconds)


def _delays(here: Site, work: Callable[[], None]) -> list[float]:
    """Return how long acknowledgements took of what was recorded while ``work`` went on."""
    since = time.monotonic_ns()
    work()
    until = time.monotonic_ns()
    found = here.edge.ask("delays", _WAIT_S, since_ns=since, until_ns=until, timeout_s=_WAIT_S)
    return list(found)


def _publish(here: Site, pki: Path, size: int, seed: int) -> float:
    """Publish a version from the head; return how long it took until the robot host had it, s."""
    facts = str(pki), here.head.link(HOST).hub, str(size), str(seed)
    argv = [sys.executable, "-m", "user_system.cluster.bench.net_weights_acks", *facts]
    began, version = map(int, here.lab.head.run(argv, timeout_s=_WAIT_S).split())
    had = here.edge.ask("has", _WAIT_S, version=version, timeout_s=_WAIT_S)
    return float(had - began) / 1e9


def figure(load: Load, seen: Seen) -> Figure:
    """Return what was seen."""
    before, during = quantile(seen.before, 0.99), quantile(seen.during, 0.99)
    line_s = load.size * 8 / 20e6
    took = ", ".join(f"{seconds:.1f}" for seconds in seen.seconds)
    return judged(
        IDS[0],
        during / before if before and during else None,
        Goal("<=", 2),
        reference=f"before: p99 {_ms(before)} ms of {len(seen.before)} records",
        note=f"p99 {_ms(during)} ms of {len(seen.during)} while {load.versions} versions of "
        f"{load.size / 1e6:g} MB came down 20 Mbit/s, {took} s each; the line alone {line_s:.1f}",
    )


def _ms(seconds: float | None) -> str:
    return "no" if seconds is None else f"{seconds * 1e3:.0f}"


def main() -> None:
    """Publish a version in the head's namespace; says when that began, and its number."""
    pki, address, size, seed = sys.argv[1:]
    with closing(hosts.tunnel_to(address, Path(pki), LEARNER)) as tunnel:
        weights = hosts.modules(np.random.default_rng(int(seed)), int(size), TENSORS)
        began = time.monotonic_ns()
        print(began, WeightPublisher(tunnel).publish(hosts.POLICY, weights))


if __name__ == "__main__":
    main()
