"""The pictures of the data quality report; each returns an ``<svg>`` element for the page."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from user_system.cluster import svg
from user_system.replay.quality.estimates import Estimate
from user_system.replay.quality.tasks import Cloud

WIDTH = 4.9
"""Inches, 72 units of the picture each; small, so that letters stay legible on a phone."""
_ROW, _EDGE = 0.3, 0.62
_MARKS = {"DEMO": "o", "AUTO": "s", "RECOVERY": "^", "CORRECTION": "D", "SYNTHETIC": "v"}


class Row(NamedTuple):
    """One line of a chart."""

    segment: str
    """Names its colour; "" for none."""
    label: str
    estimate: Estimate
    text: str
    """Its value for people."""


def intervals(
    rows: Sequence[Row],
    name: str,
    label: str,
    axis: str,
    *,
    log: bool = False,
    percent: bool = False,
) -> str:
    """Return a chart of values with their intervals, one line each, grouped by segment.

    Args:
        rows: in order; those without a value say why.
        name: unique in the page.
        label: for people who do not see it.
        axis: what the numbers are.
        log: whether the axis is logarithmic.
        percent: whether the numbers are shares.
    """
    with svg.settings():
        lines = _lines(rows)
        figure, axes = _figure(len(lines))
        known = [row.estimate for row in rows if row.estimate.value is not None]
        _scale(axes, known, axis, log=log, percent=percent)
        for y, line in enumerate(lines):
            if isinstance(line, str):
                _heading(axes, y, line)
                continue
            _interval(axes, y, line)
        _labels(axes, lines)
        return svg.inline(figure, name, label)


def bars(rows: Sequence[tuple[str, str, int]], name: str, label: str) -> str:
    """Return bars of (segment, actor, steps), grouped by segment."""
    with svg.settings():
        marked = [Row(s, actor, Estimate(float(n)), f"{n:,}") for s, actor, n in rows]
        lines = _lines(marked)
        figure, axes = _figure(len(lines))
        most = max((n for _, _, n in rows), default=1)
        axes.set(xlim=(0, most * 1.22), xlabel="steps")
        for y, line in enumerate(lines):
            if isinstance(line, str):
                _heading(axes, y, line)
                continue
            width = line.estimate.value or 0.0
            axes.barh(y, width, height=0.62, color=_colour(line.segment), linewidth=0)
            axes.text(width + most * 0.015, y, line.text, va="center", fontsize=10)
        axes.xaxis.set_major_formatter(_thousands)
        axes.locator_params(axis="x", nbins=5)
        _labels(axes, lines)
        return svg.inline(figure, name, label)


def cloud(found: Cloud, name: str, label: str) -> str:
    """Return the states of a task, a dot each."""
    with svg.settings():
        figure, axes = _plain(height=4.2)
        segments = np.array(found.segment)
        for segment in (name for name in _MARKS if name in found.segment):
            dots = found.dots[segments == segment]
            axes.scatter(
                dots[:, 0],
                dots[:, 1],
                s=11,
                marker=_MARKS[segment],
                color=_colour(segment),
                alpha=0.6,
                linewidths=0,
                label=segment,
            )
        titles = [
            f"{', '.join(names)} ({share:.0%})"
            for names, share in zip(found.fields, found.explained, strict=True)
        ]
        axes.set(xlabel=_short(titles[0], 60), ylabel=_short(titles[1], 48))
        axes.set_xticks([])
        axes.set_yticks([])
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(-0.02, 1),
            ncols=4,
            frameon=False,
            fontsize=9.5,
            handletextpad=0,
            columnspacing=0.7,
            borderpad=0,
            markerscale=1.6,
        )
        return svg.inline(figure, name, label)


def course(bins: Sequence[tuple[int, int, float]], name: str, label: str, segment: str = "") -> str:
    """Return how a share went over episodes.

    Args:
        bins: (first, last, mean) of consecutive episodes.
        name: unique in the page.
        label: for people who do not see it.
        segment: names the colour.
    """
    with svg.settings():
        figure, axes = _plain(height=2.5)
        middles = [(first + last) / 2 + 1 for first, last, _ in bins]
        values = [mean for _, _, mean in bins]
        colour = _colour(segment)
        axes.fill_between(middles, values, color=colour, alpha=0.18, linewidth=0)
        axes.plot(middles, values, color=colour, linewidth=1.8, marker="o", markersize=2.5)
        axes.set(xlim=(0, bins[-1][1] + 2), ylim=(0, max(0.1, *values) * 1.12))
        axes.set(xlabel="episodes with a policy, in the order in which they began")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.tick_params(axis="y", length=0, labelcolor=svg.ROLES["quiet"], labelsize=10.5)
        axes.locator_params(axis="y", nbins=4)
        axes.grid(visible=True, axis="y")
        return svg.inline(figure, name, label)


# --- parts -----------------------------------------------------------------------------------


def _lines(rows: Sequence[Row]) -> list[Row | str]:
    """Return the rows with the name of its segment before each group."""
    lines: list[Row | str] = []
    before = ""
    for row in rows:
        if row.segment != before:
            lines.append(row.segment)
        before = row.segment
        lines.append(row)
    return lines


def _figure(lines: int) -> tuple[Any, Any]:
    figure, axes = _plain(height=_EDGE + _ROW * max(lines, 2))
    axes.set(ylim=(max(lines, 2) - 0.4, -0.6))
    axes.spines["left"].set_visible(False)
    axes.grid(visible=True, axis="x")
    return figure, axes


def _plain(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _heading(axes: Any, y: int, segment: str) -> None:
    axes.text(
        -0.02,
        y,
        segment,
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="center",
        fontweight="bold",
        fontsize=10,
        color=_colour(segment),
    )


def _labels(axes: Any, lines: Sequence[Row | str]) -> None:
    named = [(y, line.label) for y, line in enumerate(lines) if not isinstance(line, str)]
    axes.set_yticks([y for y, _ in named], [_short(text, 22) for _, text in named])
    axes.tick_params(axis="y", length=0)


def _scale(axes: Any, known: Sequence[Estimate], axis: str, *, log: bool, percent: bool) -> None:
    highs = [e.high for e in known if e.high is not None]
    lows = [e.low for e in known if e.low is not None]
    axes.set(xlabel=axis)
    if log and highs:
        axes.set_xscale("log")
        axes.set(xlim=(min(lows) / 1.3, max(highs) * 2.2))
        axes.xaxis.set_major_formatter(_thousands)
        axes.xaxis.set_minor_formatter(lambda *_: "")
        return
    most = max(highs, default=1.0) or 1.0
    axes.set(xlim=(-0.02 * most, most * 1.25))
    axes.locator_params(axis="x", nbins=5)
    if percent:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _interval(axes: Any, y: int, row: Row) -> None:
    estimate, colour = row.estimate, _colour(row.segment)
    low, high = axes.get_xlim()
    if estimate.value is None:
        why = _short(row.estimate.why, 52)
        axes.text(
            0.01,
            y,
            why,
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=9.5,
            color=svg.ROLES["quiet"],
        )
        return
    ends = (estimate.low, estimate.high)
    axes.plot(ends, (y, y), color=colour, linewidth=3, alpha=0.4, solid_capstyle="round")
    mark = _MARKS.get(row.segment, "o")
    axes.plot(estimate.value, y, mark, color=colour, markersize=6.5, markeredgewidth=0)
    after = (
        (estimate.high or estimate.value) * 1.1
        if axes.get_xscale() == "log"
        else ((estimate.high or estimate.value) + (high - low) * 0.025)
    )
    axes.text(after, y, row.text, va="center", fontsize=10)


def _colour(segment: str) -> str:
    return svg.ROLES.get(segment.lower(), svg.ROLES["accent"])


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _thousands(value: float, _: Any = None) -> str:
    return f"{value:,.0f}"
