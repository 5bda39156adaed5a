"""``bench loop``: does the whole loop learn, how fast, at what price, and does it survive."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from user_system.cluster.bench import demo_run, kills, paired, period
from user_system.cluster.bench.demo_run import Outcome
from user_system.cluster.bench.figures import Figure, Goal, judged
from user_system.cluster.bench.options import Options
from user_system.cluster.manifest import load_manifest
from user_system.core.errors import UserSystemError

log = logging.getLogger(__name__)

_RUNS = (
    "loop.success",
    "loop.success_worst",
    "loop.baseline",
    "loop.steps",
    "loop.wall_s",
    "loop.weights_age_p99_s",
    "loop.rss_gb",
)
_COST = ("loop.cost_ratio",)
IDS = (*_RUNS, *_COST, *period.IDS, *kills.IDS)


@dataclass
class Pairs:
    """Runs of the demo, and the single-process loops beside them, by seed."""

    systems: list[Outcome] = field(default_factory=list)
    ratios: dict[int, float] = field(default_factory=dict)
    """Seed -> wall time of the system over that of the single-process loop."""
    failures: list[str] = field(default_factory=list)


def measure(options: Options) -> Iterator[Figure]:
    """Measure what is asked for; a part that fails is said so and does not stop the others."""
    if options.wants(*_RUNS, *_COST):
        yield from _figures(_run_pairs(options))
    if options.wants(*period.IDS):
        yield from _part(lambda: period.measure(options), period.IDS)
    if options.wants(*kills.IDS):
        yield from _part(lambda: kills.measure(options), kills.IDS)


def _part(measure_part: Callable[[], Iterator[Figure]], ids: tuple[str, ...]) -> Iterator[Figure]:
    """Yield a part's figures; where it fails, all of its figures as missed."""
    try:
        yield from list(measure_part())
    except UserSystemError as error:
        log.exception("could not measure %s", ids[0])
        for name in ids:
            yield Figure(name, None, ok=False, note=str(error))


def _run_pairs(options: Options) -> Pairs:
    """Run system and single-process loop one after the other, seed by seed."""
    manifest, pairs = load_manifest(options.manifest), Pairs()
    options.directory.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        try:
            outcome = demo_run.measure(options, seed)
        except UserSystemError as error:
            log.exception("seed %d failed", seed)
            pairs.failures.append(f"seed {seed}: {error}")
            continue
        log.info("%s", outcome)
        pairs.systems.append(outcome)
        if options.wants(*_COST):
            single = paired.measure(manifest, seed, options.directory)
            log.info("%s", single)
            # A single-process loop that never froze says nothing about the price of the planes.
            pairs.ratios[seed] = outcome.learn_s / single.learn_s if single.froze else math.nan
    return pairs


def _figures(pairs: Pairs) -> Iterator[Figure]:
    runs, failed = pairs.systems, len(pairs.failures)
    # A run that did not come to an end counts as one in which nothing was learned.
    rates = [run.success for run in runs] + [0.0] * failed
    note = "; ".join(pairs.failures) or f"{len(runs)} seeds, 100 poses each"
    each = ", ".join(f"{rate:.2f}" for rate in rates)
    never = [math.inf] * failed
    steps = [run.env_steps for run in runs] + never
    walls = [run.wall_s for run in runs] + never
    listed = ", ".join(f"{value:.0f}" for value in steps)
    yield judged(
        "loop.success", sum(rates) / max(len(rates), 1), Goal(">=", 0.95), reference=each, note=note
    )
    yield judged("loop.success_worst", min(rates, default=None), Goal(">=", 0.90))
    yield judged(
        "loop.baseline",
        max((run.baseline for run in runs), default=None),
        Goal("<=", 0.2),
        note="success of version 0, worst seed",
    )
    yield judged(
        "loop.steps", demo_run.median(steps), Goal("<=", 6000), "env steps", note=f"of {listed}"
    )
    yield judged(
        "loop.wall_s",
        demo_run.median(walls),
        Goal("<=", 300),
        "s",
        note="command to freeze, of " + ", ".join(f"{value:.0f}" for value in walls),
    )
    yield _cost(pairs)
    yield judged(
        "loop.weights_age_p99_s",
        max((run.weights_age_s for run in runs), default=None),
        Goal("<=", 1.0),
        "s",
        note="worst robot of all runs",
    )
    yield judged(
        "loop.rss_gb",
        max((run.rss_bytes / 2**30 for run in runs), default=None),
        Goal("<=", 3.0),
        "GiB",
        note="largest sum of proportional set sizes, sampled every 5 s",
    )


def _cost(pairs: Pairs) -> Figure:
    paired_up = [ratio for ratio in pairs.ratios.values() if not math.isnan(ratio)]
    ratios = [*paired_up, *[math.inf] * len(pairs.failures)]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return judged(
        "loop.cost_ratio",
        demo_run.median(ratios),
        Goal("<=", 1.15),
        reference="single-process loop, same seed, one torch thread: 1",
        note=f"first step to freeze, of {each}",
    )
