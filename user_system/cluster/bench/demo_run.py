"""One run of the demo from its command to its last evaluation, and what it cost."""

import contextlib
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from user_system.cluster.bench.memory import PeakMemory
from user_system.cluster.bench.options import Options
from user_system.cluster.bench.system import System
from user_system.cluster.manifest import Manifest, load_manifest
from user_system.core.errors import LinkError
from user_system.hub.schedule import read_journal

GIVE_UP_STEPS = 12000
"""Env steps after which a run that did not freeze is a failed one: twice the goal."""
RUN_S = 1800.0
"""Time for one run, the final poses included."""
LOOK_S = 2.0


@dataclass(frozen=True)
class Outcome:
    """What one run of the demo reached."""

    seed: int
    success: float
    """Share of the final poses; 0 where the policy never froze."""
    baseline: float
    """Share of successes of version 0."""
    env_steps: float
    """At the freeze; infinite where there was none."""
    wall_s: float
    """From the command to the freeze."""
    learn_s: float
    """From the first step to the freeze."""
    rss_bytes: int
    weights_age_s: float
    """99th percentile of weights ready -> acting, of the worst robot."""
    intervention_rate: float


def settings(manifest: Manifest, seed: int) -> list[str]:
    """Return the overrides that make a run one of ``seed``."""
    learners = [f"learners.{name}.seed={seed}" for name in manifest.learners]
    rule = [f"schedule.seed={seed}", f"schedule.give_up_steps={GIVE_UP_STEPS}"]
    return [*rule, "schedule.stop_when_done=true", *learners]


def measure(options: Options, seed: int) -> Outcome:
    """Run the demo once.

    Raises:
        LinkError: it did not come up, or not to an end.
    """
    manifest = load_manifest(options.manifest)
    run = options.directory / f"seed-{seed}"
    with System(options.manifest, run, settings(manifest, seed)) as system, PeakMemory(system) as m:
        hub_began = _watch(system)
        system.wait_end(60.0)
        report = system.report()
    journal = read_journal(system.run / "hub" / "episodes.jsonl")
    rates = {name: robot.rate for name, robot in manifest.robots.items()}
    return outcome(report, journal, rates, hub_began - system.began, m.bytes)


def _watch(system: System) -> float:
    """Wait until the run is over; return when its hub began, monotonic s.

    The hub states its own age with each look, which ties its clock to ours.
    """
    looker = system.wait_up()
    with looker:
        view = looker.look()
        hub_began = time.monotonic() - view.figures["wall_s"]
        deadline = time.monotonic() + RUN_S
        while system.ended is None and view.phase != "done":
            if time.monotonic() > deadline:
                raise LinkError(f"the run did not finish in {RUN_S:g} s", got=view.phase)
            time.sleep(LOOK_S)
            with contextlib.suppress(LinkError):  # the hub ends just after the run is done
                view = looker.look()
    return hub_began


def outcome(
    report: Mapping[str, Any],
    journal: Sequence[Mapping[str, Any]],
    rates: Mapping[str, float],
    hub_after_s: float,
    rss_bytes: int,
    control_hz: float = 10.0,
) -> Outcome:
    """Return what a finished run reached.

    Args:
        report: its ``report.json``.
        journal: its episodes.
        rates: robot -> robot seconds per wall second.
        hub_after_s: when the hub began, in s after the command.
        rss_bytes: largest sum of proportional set sizes.
        control_hz: steps per robot second.
    """
    freeze = report["freeze"]
    frozen_s = float(freeze.get("wall_s", math.inf))
    evaluations = report["evaluations"]
    first = evaluations[0] if evaluations else None
    ages = [robot.get("weights_age_p99_s", math.inf) for robot in report["robots"].values()]
    return Outcome(
        seed=int(report["seed"]),
        success=float(report["success_rate"]) if freeze else 0.0,
        baseline=first["successes"] / max(first["episodes"], 1) if first else math.nan,
        env_steps=float(freeze.get("env_steps", math.inf)),
        wall_s=hub_after_s + frozen_s,
        learn_s=frozen_s - first_step_s(journal, rates, control_hz),
        rss_bytes=rss_bytes,
        weights_age_s=max(ages, default=math.inf),
        intervention_rate=float(report["intervention_rate"]),
    )


def first_step_s(
    journal: Sequence[Mapping[str, Any]], rates: Mapping[str, float], control_hz: float
) -> float:
    """Return when the first step of a run began, in s of the hub's clock."""
    return min(
        (e["wall_s"] - e["steps"] / (rates[e["robot"]] * control_hz) for e in journal),
        default=math.nan,
    )


def median(values: Sequence[float]) -> float | None:
    """Return the median, None where it is not finite: too many runs failed."""
    middle = statistics.median(values) if values else math.nan
    return middle if math.isfinite(middle) else None
