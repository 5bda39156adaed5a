"""The report: what was read, what it says, and what stands out."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from user_system.core.types import Array, Purpose
from user_system.replay.episodes import Episodes
from user_system.replay.progress import Progress
from user_system.replay.quality import findings, tasks
from user_system.replay.quality.clocks import Timing
from user_system.replay.quality.estimates import Estimate, Spread, share
from user_system.replay.quality.findings import Finding
from user_system.replay.quality.measures import Bootstrap
from user_system.replay.quality.options import Options
from user_system.replay.quality.survey import Crew, Survey
from user_system.replay.quality.tasks import Task

_HELP_BINS = 40


@dataclass(frozen=True, slots=True)
class Together:
    """Whole episodes in which the same people and policies drove."""

    actors: str
    episodes: int
    steps: Spread | None
    """Of an episode, those that a rewind undid left out; None: too few episodes."""
    returns: Spread | None
    returns_unknown: int
    success: Estimate
    success_unknown: int


@dataclass(frozen=True, slots=True)
class Report:
    """What is known of the data of a store."""

    store: str
    options: Options
    read: Mapping[str, Any]
    """How much of what there is."""
    steps: tuple[tuple[str, str, int], ...]
    """(segment, actor, steps), EVAL and voids left out."""
    unsampled: int
    """Steps of groups beyond those that are sampled."""
    crews: tuple[Together, ...]
    clocks: Mapping[str, Timing]
    """By robot."""
    help_rate: Estimate
    """Mean over episodes of the share of driven steps that people drove."""
    help: tuple[tuple[int, int, float], ...]
    """(first, last, mean) of the same over episodes in order."""
    solved: tuple[tuple[int, int, float], ...]
    """Likewise the share of episodes that succeeded without people, of those of known success."""
    tasks: tuple[Task, ...]
    findings: tuple[Finding, ...]

    def plain(self) -> dict[str, Any]:
        """Return it for JSON: without the dots of the pictures."""
        value = {f.name: getattr(self, f.name) for f in fields(self)}
        value |= {"options": asdict(self.options), "tasks": [t.plain() for t in self.tasks]}
        for name in ("crews", "findings"):
            value[name] = [asdict(entry) for entry in value[name]]
        value["clocks"] = {name: asdict(timing) for name, timing in self.clocks.items()}
        value["help_rate"] = asdict(self.help_rate)
        value["steps"] = [
            dict(zip(("segment", "actor", "steps"), s, strict=True)) for s in self.steps
        ]
        for name in ("help", "solved"):
            names = "first", "last", "mean"
            value[name] = [dict(zip(names, entry, strict=True)) for entry in value[name]]
        return value


def examine(
    episodes: Episodes, options: Options | None = None, progress: Progress | None = None
) -> Report:
    """Read all episodes once and say how good they are.

    Args:
        episodes: those of a store, or some of them.
        options: see ``Options``.
        progress: told how far it is.

    Raises:
        SpecError: ``options.fields`` names one that is not there.
    """
    options = options or Options()
    survey = Survey(options)
    total = len(episodes)
    for episode in episodes:
        survey.add(episode)
        if progress:
            progress("reading", min(episode.number + 1, total), total)
    compared = tasks.compare(survey, options, progress)
    read = _read(survey, episodes.stats())
    crews = tuple(_together(name, crew) for name, crew in survey.crews.items())
    crews = tuple(sorted(crews, key=lambda c: (-c.episodes, c.actors)))
    timings = {robot: clock.timing() for robot, clock in sorted(survey.clocks.items())}
    clocks = {robot: timing for robot, timing in timings.items() if timing is not None}
    steps = sorted(survey.steps.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
    boot = Bootstrap(options.resamples, options.seed)
    help_ = np.array(survey.help)
    return Report(
        store=str(episodes.env.path),
        options=options,
        read=read,
        steps=tuple((segment.name, actor, count) for (segment, actor), count in steps),
        unsampled=sum(survey.unsampled.values()),
        crews=crews,
        clocks=clocks,
        help_rate=boot.each(help_),
        help=tuple(_binned(help_)),
        solved=tuple(_binned(np.array(survey.solved))),
        tasks=compared,
        findings=tuple(findings.find(read, compared, clocks, crews)),
    )


def _read(survey: Survey, stats: Mapping[str, float]) -> dict[str, Any]:
    return {
        **{name: int(value) for name, value in stats.items()},
        "voids": survey.voids,
        "incomplete": survey.parts,
        "purposes": {p.name: survey.purposes[p] for p in Purpose if survey.purposes[p]},
        "runs": sorted(survey.seen["run"]),
        "tasks": sorted(survey.seen["task"]),
        "robots": sorted(survey.seen["robot"]),
        "schemas": sorted(survey.seen["schema"]),
        "operators": sorted(survey.people),
        "policies": sorted(survey.policies),
        "first_ns": survey.first_ns,
        "last_ns": survey.last_ns,
        "stretches": survey.stretches,
    }


def _together(name: str, crew: Crew) -> Together:
    return Together(
        actors=name,
        episodes=len(crew.steps),
        steps=Spread.of(np.array(crew.steps)),
        returns=Spread.of(np.array(crew.returns)),
        returns_unknown=len(crew.steps) - len(crew.returns),
        success=share(crew.successes, crew.successes + crew.failures),
        success_unknown=crew.unknown,
    )


def _binned(values: Array) -> Iterator[tuple[int, int, float]]:
    """Yield (first, last, mean of those that are known) of consecutive values."""
    for part in np.array_split(np.arange(len(values)), min(_HELP_BINS, max(1, len(values)))):
        known = part[np.isfinite(values[part])]
        if len(known):
            yield int(part[0]), int(part[-1]), float(values[known].mean())
