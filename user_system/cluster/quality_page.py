"""The data quality report as one HTML file: no script, no request, readable by everybody.

Its Content-Security-Policy forbids everything but its own style sheet, named by its hash.
"""

import base64
import contextlib
import hashlib
import os
import secrets
from pathlib import Path

from user_system.cluster import quality_episodes as episodes
from user_system.cluster import quality_sections as sections
from user_system.cluster import svg
from user_system.cluster.quality_parts import Markup, days, escape, join
from user_system.core.errors import ConfigError, StoreError
from user_system.replay.quality import Report
from user_system.replay.quality.options import (
    MIN_EPISODES,
    MIN_STEPS,
    SCORED_EPISODES,
    SCORED_STEPS,
)
from user_system.replay.quality.outliers import COMPARED

_MARK = '<meta name="generator" content="user-system replay report">'
_ATTENTION = ' class="attention"'
_SEE = {
    "read": "above",
    "timing": "timing",
    "outcome": "outcomes",
    "divergence": "divergence",
    "diversity": "diversity",
    "smoothness": "how they move",
}
"""Section that a finding is from -> what its link is called."""
_PAPER = "https://arxiv.org/abs/2306.02437"


def write(report: Report, path: Path) -> None:
    """Write the page to ``path``, whole or not at all; an earlier report there is replaced.

    Raises:
        ConfigError: there is something else at ``path``.
        StoreError: the disk failed.
        MissingError: matplotlib is not installed.
    """
    prepare(path)
    text = render(report)
    work = path.with_name(f".{path.name}.unfinished-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        work.write_text(text, encoding="utf-8")
        os.replace(work, path)
    except OSError as error:
        with contextlib.suppress(OSError):  # what is wrong with the path is said already
            work.unlink(missing_ok=True)
        todo = "Choose another name with --out."
        raise StoreError(f"cannot write {path}", got=error.strerror, todo=todo) from error


def prepare(path: Path) -> None:
    """Make sure that a page can be drawn, and that ``path`` is free or an earlier report.

    Raises:
        ConfigError: it is neither.
        StoreError: the system does not let us look.
        MissingError: matplotlib is not installed.
    """
    svg.settings()
    todo = "Choose another name with --out."
    try:
        if path.is_file():
            with path.open("rb") as file:
                if _MARK.encode() in file.read(2000):
                    return
        elif not path.exists():
            return
    except OSError as error:
        raise StoreError(f"cannot write {path}", got=error.strerror, todo=todo) from error
    raise ConfigError(f"{path} is there and no report of ours", allowed="a free name", todo=todo)


def render(report: Report) -> str:
    """Return the page."""
    style = Path(__file__).with_name("quality_page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    name = Path(report.store).resolve().name
    return join(
        (
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            _MARK,
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Data quality: {escape(name)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            _header(report),
            f"<main>{_main(report)}</main>",
            "<footer>Made by <code>user-system replay report</code>; the store was only "
            "read. The same numbers: <code>--json</code>.</footer>",
            "</body>",
            "</html>",
            "",
        )
    )


def _main(report: Report) -> Markup:
    if not report.read["episodes"]:
        empty = "<section><h2>Nothing to judge yet</h2><p>The store holds no episode.</p></section>"
        return Markup(empty)
    return join(
        (
            _findings(report),
            episodes.outcome(report),
            sections.divergence(report),
            sections.diversity(report),
            sections.coverage(report),
            sections.smoothness(report),
            episodes.help_(report),
            episodes.timing(report),
            episodes.outliers(report),
            _method(report),
        )
    )


def _header(report: Report) -> Markup:
    read = report.read
    facts = [
        (_plural(read["steps"], "step"), f"{read['steps']:,}", False),
        (_plural(read["episodes"], "episode"), f"{read['episodes']:,}", False),
        (_named("robot", read["robots"]), f"{len(read['robots'])}", False),
        (_named("person", read["operators"], "people"), f"{len(read['operators'])}", False),
        (_named("policy", read["policies"], "policies"), f"{len(read['policies'])}", False),
        (_named("task", read["tasks"]), f"{len(read['tasks'])}", False),
        (_named("run", read["runs"]), f"{len(read['runs'])}", False),
        ("recorded (UTC)", days(read["first_ns"], read["last_ns"]), False),
        ("EVAL episodes, left out", f"{read['purposes'].get('EVAL', 0):,}", False),
        ("voids: steps undone by a rewind, left out", f"{read['voids']:,}", False),
        _trouble("damaged, left out", read["damaged_records"]),
        _trouble("incomplete episodes", read["incomplete"]),
    ]
    items = "".join(
        f"<div{_ATTENTION if attention else ''}>"
        f"<dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>"
        for label, value, attention in facts
    )
    return Markup(
        "<header><h1>Data quality</h1>"
        f'<p class="path">Replay buffer <code>{escape(report.store)}</code></p>'
        f'<dl class="facts">{items}</dl></header>'
    )


def _findings(report: Report) -> Markup:
    items = "".join(
        f'<li><span class="tag {found.about}">{found.about}</span>'
        f"<span>{escape(found.text)} "
        f'<a href="#{found.section}">{_SEE[found.section]}</a></span></li>'
        for found in report.findings
    )
    said = (
        f'<ul class="findings">{items}</ul>'
        if items
        else "<p>Nothing: no record is missing or damaged, and nobody differs from the others in "
        "the same segment by more than the uncertainty of both.</p>"
    )
    return Markup(
        '<section id="read" aria-labelledby="read-title">'
        f'<h2 id="read-title">What stands out</h2>{said}</section>'
    )


def _method(report: Report) -> Markup:
    options = report.options
    radii = "".join(
        f"<li>{escape(task.task)}: states are {task.numbers} numbers from "
        f"{escape(', '.join(task.fields) or 'no field')}"
        f"{escape(_skipped(task.skipped))}; similar means closer than {task.state_radius:.2f} "
        f"(states) and {task.step_radius:.2f} (states and actions).</li>"
        for task in report.tasks
    )
    unsampled = (
        f"<p>{report.unsampled:,} steps are of groups beyond the limit and were only counted.</p>"
        if report.unsampled
        else ""
    )
    return Markup(f"""<section class="split" id="method" aria-labelledby="method-title">
<div class="say"><h2 id="method-title">How it was computed</h2></div>
<div class="method">
<p>All steps were read once and counted. Comparisons use a random sample of at most
{options.steps:,} steps of each group (a task, a segment, and who drove). The search for unusual
episodes takes {SCORED_STEPS} steps of each segment of an episode, of at most {SCORED_EPISODES:,} in
a task (there are {report.read["stretches"]:,} in all), against {COMPARED:,} of the others. Seed
{options.seed}: the same store and seed give the same page.</p>
<p>Left out of all comparisons: steps undone by a rewind, EVAL episodes, and what is damaged.
Images are not looked at.</p>
<h3>Similar</h3>
<p>Each number of a state is taken in standard deviations over the task; the distance of two states
is the root mean square over the numbers, about 1.4 for two at random. An episode far off
from all others does not stretch this scale. Two steps are similar if they
are of different episodes and closer than a radius, the same for everybody: at it, half of all
steps have {options.neighbours} similar ones.</p>
<ul>{radii}</ul>
<h3>Divergence and diversity</h3>
<p>Both notions are from Belkhale, Cui and Sadigh, <a href="{_PAPER}" rel="noreferrer">Data Quality
in Imitation Learning</a> (NeurIPS 2023). Estimated here from pairs of similar steps: half the mean
squared difference of their actions (or of the changes of state after them), without what a straight
line in the state (and action) explains, as a share of the variance over the task; shown as the
root. Two similar states are not the same state, so even perfect consistency reads a little above
0.</p>
<h3>Uncertainty</h3>
<p>Intervals hold 95 % of {options.resamples:,} repetitions that draw whole episodes anew; those of
success are Wilson's. A group with fewer than {MIN_EPISODES} episodes or {MIN_STEPS} comparable
steps gets no number. With many groups, one in twenty intervals misses the truth by chance.</p>
{unsampled}</div></section>""")


def _plural(count: int, word: str) -> str:
    return word if count == 1 else f"{word}s"


def _named(word: str, names: list[str], many: str = "") -> str:
    """Return what there are so many of, and their names if they are few."""
    kind = word if len(names) == 1 else many or f"{word}s"
    short = [name.removeprefix("policy ") for name in names]
    return f"{kind}: {', '.join(short)}" if 0 < len(names) <= 3 else kind


def _trouble(label: str, count: int) -> tuple[str, str, bool]:
    return label, f"{count:,}", count > 0


def _skipped(fields: tuple[str, ...]) -> str:
    return f" (left out, too wide: {', '.join(fields)})" if fields else ""
