"""How evenly the real agent keeps 20 Hz at robot-clock rate 1 while a learner trains beside it.

A whole system runs, its robots at 20 Hz and rate 1, its learner without a limit on its updates, so
that it takes all the processor time it gets. Each robot's loop measures its own periods (see
``user_system.edge.periods``). Beside it, all the while, three reference loops keep the same period:
the peers' relative sleep, absolute deadlines as everybody else is scheduled, and absolute deadlines
under SCHED_FIFO, the floor of this machine.
"""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from user_system.cluster.bench import pacing
from user_system.cluster.bench.figures import Figure, Goal, judged, quantile
from user_system.cluster.bench.options import Options
from user_system.cluster.bench.system import System
from user_system.cluster.manifest import Manifest, load_manifest
from user_system.cluster.status import Looker, View
from user_system.core.clock import SECOND
from user_system.core.errors import LinkError

IDS = ("loop.period_p99_ms", "loop.period_peer_p99_ms", "loop.period_floor_p99_ms")
HZ = 20.0
TICK_HZ = 100.0
PERIOD_NS = round(SECOND / HZ)
TRAINING_S = 300.0
"""Time until the learner updates: demonstrations take as long as they take at rate 1."""
LOOK_S = 1.0
NEVER = 10**9


@dataclass(frozen=True)
class Reference:
    """How one reference loop kept its period."""

    kind: str
    p99_ms: float | None
    slow: float
    """Share by which it ran slow over all."""
    fifo: bool


def settings(manifest: Manifest) -> list[str]:
    """Return the overrides that make the manifest a test of the period."""
    robots = [
        setting
        for name in manifest.robots
        for setting in (
            f"robots.{name}.rate=1",
            f"robots.{name}.config.control={HZ:g}Hz",
            # Ticks of which a whole number makes a period; those of the demo are 20 ms long.
            f"robots.{name}.config.tick={TICK_HZ:g}Hz",
        )
    ]
    learners = [f"learners.{name}.config.updates_per_step={NEVER}" for name in manifest.learners]
    rule = {
        "demos": 2,
        "eval_episodes": 2,
        "eval_pass": 2,
        "eval_every": NEVER,
        # A learner without a limit is always behind: robots would wait for it and stand still.
        "max_behind_steps": 0,
        "stop_when_done": "false",
    }
    return [*robots, *learners, *(f"schedule.{key}={value}" for key, value in rule.items())]


def measure(options: Options) -> Iterator[Figure]:
    """Run the system for as many periods as wanted.

    Raises:
        LinkError: the system did not come up or did not get to training.
    """
    manifest = load_manifest(options.manifest)
    run = options.directory / "period"
    with (
        System(options.manifest, run, settings(manifest)) as system,
        system.wait_up() as looker,
    ):
        before = _wait(system, looker, _trains, TRAINING_S)
        counts = {r.name: r.figures.get("periods_measured", 0.0) for r in before.robots}
        with _references(run.with_name("pacing")) as references:
            after = _wait(
                system,
                looker,
                lambda view: min(_periods(view, counts)) >= options.periods,
                3.0 * options.periods / HZ + 60.0,
            )
    yield from figures(before, after, references, options.periods)


def _trains(view: View) -> bool:
    return view.phase == "train" and view.figures.get("updates", 0.0) > 0


def _periods(view: View, since: Mapping[str, float]) -> list[float]:
    return [r.figures.get("periods_measured", 0.0) - since[r.name] for r in view.robots]


def _wait(system: System, looker: Looker, until: Callable[[View], bool], timeout_s: float) -> View:
    """Look once a second until something is so; return that look."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        system.check()
        view = looker.look()
        if until(view):
            return view
        time.sleep(LOOK_S)
    raise LinkError(
        "the system did not get far enough to measure its period",
        got=f"phase {view.phase}, {view.figures.get('updates', 0.0):.0f} updates",
        todo=f"Look into {system.run / 'logs'}.",
    )


@contextlib.contextmanager
def _references(directory: Path) -> Iterator[dict[str, Reference]]:
    """Run the reference loops inside the block; what they measured is there after it."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = {kind: directory / f"{kind}.json" for kind in pacing.KINDS}
    found: dict[str, Reference] = {}
    loops = [
        subprocess.Popen(
            [sys.executable, "-m", "user_system.cluster.bench.pacing", kind, str(HZ), str(path)]
        )
        for kind, path in paths.items()
    ]
    try:
        yield found
    finally:
        for loop in loops:
            loop.send_signal(signal.SIGTERM)
        for loop in loops:
            loop.wait()
    found.update({kind: read(path) for kind, path in paths.items()})


def read(path: Path) -> Reference:
    """Return what a reference loop measured."""
    told = json.loads(path.read_text())
    starts = told["starts"]
    return Reference(
        kind=told["kind"],
        p99_ms=quantile(pacing.errors_ms(starts, PERIOD_NS), 0.99),
        slow=pacing.slow_share(starts, PERIOD_NS),
        fifo=told["fifo"],
    )


def figures(
    before: View, after: View, references: Mapping[str, Reference], periods: int
) -> Iterator[Figure]:
    """Return the figures of a run between two looks at it.

    Raises:
        LinkError: no robot acted meanwhile: how evenly one stands says nothing.
    """
    if after.figures.get("env_steps", 0.0) <= before.figures.get("env_steps", 0.0):
        raise LinkError("the robots stood still while their periods were timed")
    robots = {r.name: r.figures for r in after.robots}
    peer, plain, floor = (references[kind] for kind in ("relative", "absolute", "floor"))
    rate = after.figures.get("updates", 0.0) - before.figures.get("updates", 0.0)
    each = ", ".join(f"{name} {f['period_p99_ms']:.2f}" for name, f in sorted(robots.items()))
    yield judged(
        "loop.period_p99_ms",
        max(f["period_p99_ms"] for f in robots.values()),
        Goal("<=", 2.0),
        "ms",
        reference=(
            f"relative sleep {peer.p99_ms:.2f} ms and {peer.slow:.2%} slow; absolute deadlines "
            f"{plain.p99_ms:.2f} ms; floor ({'FIFO' if floor.fifo else 'no FIFO'}) "
            f"{floor.p99_ms:.2f} ms"
        ),
        note=f"{periods} periods, {HZ:g} Hz, {rate:.0f} updates meanwhile; p99 of {each} ms",
    )
    yield Figure("loop.period_peer_p99_ms", peer.p99_ms, "ms", note="relative sleep, as the peers")
    yield Figure("loop.period_floor_p99_ms", floor.p99_ms, "ms", note="no loop can do better here")
