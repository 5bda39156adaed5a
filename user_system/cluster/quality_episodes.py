"""The sections of the data quality report on whole episodes: outcome, help, timing, oddities."""

from collections.abc import Iterator, Sequence

from user_system.cluster import quality_plots as plots
from user_system.cluster.quality_parts import (
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
    task_title,
    two,
    value_text,
    whole,
)
from user_system.cluster.quality_plots import Row
from user_system.replay.quality.estimates import Estimate
from user_system.replay.quality.outliers import Outlier
from user_system.replay.quality.report import Report, Together
from user_system.replay.quality.tasks import Task

_ROWS = 20
"""Lines of a table, where there may be many."""


def outcome(report: Report) -> Markup:
    """Return who drove how much, and how episodes ended."""
    left_out = f"Not among them: {report.read['voids']:,} steps that a rewind undid"
    if eval_ := report.read["purposes"].get("EVAL", 0):
        left_out += f", and {eval_:,} EVAL episodes, which learners do not draw"
    bars = plots.bars(report.steps, "steps", "Steps by segment and by who drove")
    crews = report.crews[:_ROWS]
    ended = plots.intervals(
        [Row("", c.actors, c.success, value_text(c.success.value, percent)) for c in crews],
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
    content = table("Time between observations", columns, rows)
    return section(
        "timing",
        "Timing of observations",
        [
            "From the capture stamps of all steps, on the robot's clock. Where the time to the "
            "next observation is one and a half periods or more, those that should have been in "
            "between count as missed.",
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
        (task_title("Act differently", task, report), task.outliers),
        (task_title("Go elsewhere", task, report), task.elsewhere),
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


def _length(crew: Together) -> Estimate:
    """Return where most lengths lie, to be drawn like an interval."""
    if crew.steps is None:
        return Estimate.none(crew.success.why or "too few")
    return Estimate(crew.steps.median, crew.steps.low, crew.steps.high)
