"""The sections of the data quality report that compare groups: what it means, what is good."""

from collections.abc import Sequence
from typing import NamedTuple

from user_system.cluster import quality_plots as plots
from user_system.cluster.quality_parts import (
    Format,
    Markup,
    cards,
    estimate,
    figure,
    folded,
    percent,
    section,
    table,
    task_title,
    two,
    value_text,
    whole,
)
from user_system.cluster.quality_plots import Row
from user_system.replay.quality.report import Report
from user_system.replay.quality.tasks import Group, Task

_TASKS = 6
"""Tasks that are drawn, those with the most steps; the rest is in ``--json``."""


class _Chart(NamedTuple):
    """How one measure is drawn."""

    measure: str
    title: str
    axis: str
    caption: str
    format: Format
    log: bool = False


def divergence(report: Report) -> Markup:
    """Return how differently people and policies act in similar states."""
    return _measured(
        report,
        "divergence",
        "Action divergence",
        [
            "How differently the same person or policy acts when the robot is in a similar state "
            "again. 0: always the same; 1: the state says nothing about the action.",
            "Beside it, the distance to the others: by how many standard deviations somebody's "
            "usual action differs from what the others do in similar states.",
        ],
        "Good: low in what is imitated. A policy that imitates cannot be more certain than the "
        "people it learns from, and two ways of doing the same thing average to neither. "
        "Compare people and segments; the level itself depends on the task.",
        [
            _Chart(
                "divergence",
                "Divergence from one's own episodes",
                "standard deviation given the state (1: as without)",
                "Lower is more consistent. Bars are 95 % intervals.",
                two,
            ),
            _Chart(
                "disagreement",
                "Distance to the others in the segment",
                "standard deviations between usual actions",
                "0: they act alike on average. A bar that starts at 0 says: no difference found.",
                two,
            ),
        ],
    )


def diversity(report: Report) -> Markup:
    """Return how predictable the outcomes of similar steps are."""
    robots = [
        figure(
            plots.intervals(
                [Row("", name, found, value_text(found.value, two)) for name, found in task.robots],
                f"robots-{number}",
                f"Transition diversity of each robot in {task.task}",
                "spread of the next state (1: as without the step)",
            ),
            "By robot, whoever drove it. A robot that stands out is loose, late or badly "
            "calibrated, or works in a different scene.",
            task_title("By robot", task, report),
        )
        for number, task in enumerate(report.tasks[:_TASKS])
    ]
    return _measured(
        report,
        "diversity",
        "Transition diversity",
        [
            "How differently the world goes on after the same action in a similar state. 0: "
            "always the same way; 1: state and action say nothing about what comes next.",
        ],
        "Good: alike for all robots. Some spread is healthy, since a learner then sees states "
        "beside the straight path and how to come back; much of it hides what an action does.",
        [
            _Chart(
                "diversity",
                "By who drove",
                "spread of the next state (1: as without the step)",
                "Bars are 95 % intervals.",
                two,
            )
        ],
        robots,
    )


def coverage(report: Report) -> Markup:
    """Return where the states lie."""
    clouds = [
        figure(
            plots.cloud(task.cloud, f"cloud-{number}", f"States of {task.task}, by segment"),
            "Each dot is the state of one sampled step, on the two directions in which states "
            "vary most; in brackets the share of their variance.",
            task_title("Where the states lie", task, report),
        )
        for number, task in enumerate(report.tasks[:_TASKS])
        if task.cloud is not None
    ]
    return _measured(
        report,
        "situations",
        "State coverage",
        [
            "Among how many different situations the steps of a group are spread: if two steps "
            "of different episodes are similar with a chance of one in a hundred, it is a "
            "hundred. An episode repeated exactly adds nothing.",
        ],
        "Good: demonstrations reach every place where the policy goes (AUTO), and corrections lie "
        "where the policy fails. Dots of AUTO without any human ones beside them are where it is "
        "on its own.",
        [
            _Chart(
                "situations",
                "Different situations",
                "number of situations (logarithmic)",
                "More is wider. Bars are 95 % intervals.",
                whole,
                log=True,
            )
        ],
        clouds,
    )


def smoothness(report: Report) -> Markup:
    """Return how people and policies move."""
    return _measured(
        report,
        "smoothness",
        "How they move",
        [
            "Jerkiness is how much the action changes from one step to the next: 0 for a steady "
            "hand, 1 where each action has nothing to do with the one before.",
            "Size is that of the executed action against the usual one of the task. It says how "
            "fast somebody drives where actions are increments, and where they drive if they are "
            "absolute targets. Idle steps are those in which the state hardly changed.",
        ],
        "Good: people who demonstrate are smooth and seldom idle. Idle steps teach a policy to "
        "wait where nothing will happen.",
        [
            _Chart("jerkiness", "Jerkiness", "change from step to step", "Lower is smoother.", two),
            _Chart("idle", "Idle steps", "share of steps", "Lower is better.", percent),
            _Chart(
                "magnitude",
                "Size of actions",
                "1: usual in the task",
                "Neither large nor small is good by itself.",
                two,
            ),
        ],
        full=True,
    )


# --- sections of measures --------------------------------------------------------------------


def _measured(
    report: Report,
    id_: str,
    title: str,
    says: Sequence[str],
    good: str,
    charts: Sequence[_Chart],
    more: Sequence[str] = (),
    *,
    full: bool = False,
) -> Markup:
    """Return a section with a chart of each measure and task, then ``more``, then the numbers."""
    drawn = [
        _chart(chart, task, report, number)
        for number, task in enumerate(report.tasks[:_TASKS])
        for chart in charts
        if chart.measure != "disagreement" or _several(task)
    ]
    if not drawn:
        return section(id_, title, says, good, '<p class="quiet">Nobody drove yet.</p>')
    columns = ("who", "segment", *(["task"] if len(report.tasks) > 1 else []), "steps#")
    columns = (*columns, "sampled#", *(f"{chart.measure}#" for chart in charts))
    rows = [
        (
            group.actor,
            group.segment,
            *([task.task] if len(report.tasks) > 1 else []),
            f"{group.steps:,}",
            f"{group.sampled:,}",
            *(estimate(group.measures[chart.measure], chart.format) for chart in charts),
        )
        for task in report.tasks
        for group in task.groups
    ]
    numbers = folded("The numbers", table(title, columns, rows))
    return section(id_, title, says, good, cards([*drawn, *more]) + numbers, full=full)


def _several(task: Task) -> bool:
    """Return whether anybody has others to be compared with."""
    segments = [group.segment for group in task.groups]
    return len(set(segments)) < len(segments)


def _chart(chart: _Chart, task: Task, report: Report, number: int) -> Markup:
    picture = plots.intervals(
        [_line(group, chart) for group in task.groups],
        f"{chart.measure}-{number}",
        f"{chart.title} in {task.task}, by segment and who drove",
        chart.axis,
        log=chart.log,
        percent=chart.format is percent,
    )
    return figure(picture, chart.caption, task_title(chart.title, task, report))


def _line(group: Group, chart: _Chart) -> Row:
    found = group.measures[chart.measure]
    return Row(group.segment, group.actor, found, value_text(found.value, chart.format))
