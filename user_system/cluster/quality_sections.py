"""The sections of the data quality report: each number with what it means and what is good."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from user_system.cluster import quality_plots as plots
from user_system.cluster.quality_parts import (
    Format,
    Markup,
    cards,
    escape,
    estimate,
    figure,
    folded,
    join,
    percent,
    section,
    spread,
    table,
    two,
    whole,
)
from user_system.cluster.quality_plots import Row
from user_system.replay.quality.estimates import Estimate
from user_system.replay.quality.outliers import Outlier
from user_system.replay.quality.report import Report, Together
from user_system.replay.quality.tasks import Group, Task

_TASKS = 6
"""Tasks that are drawn, those with the most steps; the rest is in ``--json``."""
_ROWS = 20
"""Lines of a table, where there may be many."""


class _Chart(NamedTuple):
    """How one measure is drawn."""

    measure: str
    title: str
    axis: str
    caption: str
    format: Format
    log: bool = False


def outcome(report: Report) -> Markup:
    """Return who drove how much, and how episodes ended."""
    left_out = f"Not among them: {report.read['voids']:,} steps that a rewind undid"
    if eval_ := report.read["purposes"].get("EVAL", 0):
        left_out += f", and {eval_:,} EVAL episodes, which learners do not draw"
    bars = plots.bars(report.steps, "steps", "Steps by segment and by who drove")
    crews = report.crews[:_ROWS]
    ended = plots.intervals(
        [Row("", c.actors, c.success, _text(c.success.value, percent)) for c in crews],
        "success",
        "Success by who drove",
        "share of episodes of known success",
        percent=True,
    )
    long = plots.intervals(
        [Row("", c.actors, _length(c), f"{c.steps.median:,.0f}" if c.steps else "") for c in crews],
        "length",
        "Episode length by who drove",
        "steps",
    )
    columns = ("who drove", "episodes#", "steps each#", "return#", "success#", "not known#")
    rows = [
        (
            crew.actors,
            f"{crew.episodes:,}",
            spread(crew.steps, whole),
            spread(crew.returns, two),
            estimate(crew.success, percent),
            f"{crew.success_unknown:,}",
        )
        for crew in crews
    ]
    more = len(report.crews) - _ROWS
    note = f'<p class="quiet note">{more} more are in --json.</p>' if more > 0 else ""
    figures = (
        figure(bars, f"{left_out}.", "Steps by segment"),
        figure(ended, "Bars are 95 % intervals. Alone, and with whoever else drove.", "Success"),
        figure(long, "The median, and where the middle eight tenths lie.", "Episode length"),
    )
    return section(
        "outcome",
        "Who drove, and how it ended",
        [
            "Steps are counted by segment (what they were) and by whoever chose the action. HOLD, "
            "REWIND and RESET are the robot's own doing and are not judged below.",
            "Success, length and return are of whole episodes, by everybody who drove in them.",
        ],
        "Good: every group that a learner draws from has tens of episodes, and few outcomes are "
        "not known.",
        cards(figures) + folded("The numbers", table("Whole episodes", columns, rows) + note),
        full=True,
    )


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
                [Row("", name, found, _text(found.value, two)) for name, found in task.robots],
                f"robots-{number}",
                f"Transition diversity of each robot in {task.task}",
                "spread of the next state (1: as without the step)",
            ),
            "By robot, whoever drove it. A robot that stands out is loose, late or badly "
            "calibrated, or works in a different scene.",
            _title("By robot", task, report),
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
            _title("Where the states lie", task, report),
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


def help_(report: Report) -> Markup:
    """Return how much people helped the policies."""
    if not report.help:
        content = Markup('<p class="quiet">No policy drove in any episode.</p>')
    else:
        rate = report.help_rate
        said = (
            f"Over all {rate.episodes:,} episodes: {percent(rate.value)} of the steps "
            f"({percent(rate.low or 0.0)} to {percent(rate.high or 0.0)})."
            if rate.value is not None
            else f"Over all episodes: {rate.why}."
        )
        label = "Share of steps driven by people, over episodes"
        figures = [figure(plots.course(report.help, "help", label, "CORRECTION"), said, "Help")]
        if report.solved:
            label = "Share of episodes that succeeded without help, over episodes"
            picture = plots.course(report.solved, "solved", label, "AUTO")
            caption = "Share of episodes that succeeded while nobody else drove."
            figures.append(figure(picture, caption, "Success without help"))
        content = cards(figures)
    return section(
        "help",
        "Help by people",
        ["The share of driven steps that people drove, in episodes in which a policy drove too."],
        "Good: it falls while the success of the policy alone rises.",
        content,
    )


def timing(report: Report) -> Markup:
    """Return how evenly observations were captured."""
    rows = [
        (
            robot,
            f"{found.p50_ms:,.1f} ms",
            f"{found.p99_ms:,.1f} ms",
            f"{found.longest_ms:,.0f} ms",
            f"{found.missed:,} ({percent(found.missed_share)})",
            f"{found.intervals:,}",
        )
        for robot, found in report.clocks.items()
    ]
    columns = ("robot", "median#", "99 of 100#", "longest#", "missed#", "intervals#")
    content = table("Time between observations, on the robot's clock", columns, rows)
    return section(
        "timing",
        "Timing of observations",
        [
            "From the capture stamps of all steps. An observation counts as missed where the time "
            "to the next one is that of two periods or more.",
        ],
        "Good: the 99th of 100 intervals is close to the median, and none is missed. A policy "
        "learns one period per step; a step that took two teaches it the wrong speed.",
        content if rows else '<p class="quiet">There are no two observations to compare.</p>',
    )


def outliers(report: Report) -> Markup:
    """Return the episodes that somebody should look at."""
    parts = [part for task in report.tasks for part in _unusual(task, report)]
    nothing = '<p class="quiet">Too few episodes to call one of them unusual.</p>'
    return section(
        "outliers",
        "Episodes to look at",
        [
            "The ten whose actions differ most from those of all others in similar states, and "
            "those that went where no other episode did.",
            "The first is a ranking: somebody is always at its top. Twice the usual and more "
            "deserves a look. Alone is the share of an episode's steps to whose states no other "
            "episode came near.",
        ],
        "Look at one before you delete it: a brilliant recovery is unusual too.",
        join(parts) or nothing,
    )


def _unusual(task: Task, report: Report) -> Iterator[Markup]:
    columns = (
        "episode",
        "segment",
        "who drove",
        "robot",
        "steps#",
        "ended",
        "divergence#",
        "alone#",
    )
    for title, found in (
        (_title("Act differently", task, report), task.outliers),
        (_title("Go elsewhere", task, report), task.elsewhere),
    ):
        if found:
            yield table(title, columns, [_outlier(one) for one in found])


def _outlier(one: Outlier) -> Sequence[object]:
    ended = {True: "success", False: "failure", None: "not known"}[one.success]
    times = Markup('<span class="few">not comparable</span>')
    if one.divergence is not None and one.times is not None:
        usual = f"{one.times:.1f}× the usual"
        times = Markup(f'{two(one.divergence)}<span class="ci">{usual}</span>')
    name = Markup(f"<code>{escape(one.episode)}</code>")
    actors = ", ".join(one.actors)
    return name, one.segment, actors, one.robot, one.steps, ended, times, percent(one.alone)


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
    ]
    if not drawn:
        return section(id_, title, says, good, '<p class="quiet">Nobody drove yet.</p>')
    columns = ("who", "segment", *(["task"] if len(report.tasks) > 1 else []), "steps#")
    columns = (*columns, "sampled#", *(f"{chart.title.lower()}#" for chart in charts))
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


def _length(crew: Together) -> Estimate:
    """Return where most lengths lie, to be drawn like an interval."""
    if crew.steps is None:
        return Estimate.none(crew.success.why or "too few")
    return Estimate(crew.steps.median, crew.steps.low, crew.steps.high)


def _chart(chart: _Chart, task: Task, report: Report, number: int) -> Markup:
    picture = plots.intervals(
        [_line(group, chart) for group in task.groups],
        f"{chart.measure}-{number}",
        f"{chart.title} in {task.task}, by segment and who drove",
        chart.axis,
        log=chart.log,
        percent=chart.format is percent,
    )
    return figure(picture, chart.caption, _title(chart.title, task, report))


def _line(group: Group, chart: _Chart) -> Row:
    found = group.measures[chart.measure]
    return Row(group.segment, group.actor, found, _text(found.value, chart.format))


def _text(value: float | None, format_: Format) -> str:
    return "" if value is None else format_(value)


def _title(title: str, task: Task, report: Report) -> str:
    return f"{title}: {task.task}" if len(report.tasks) > 1 else title
