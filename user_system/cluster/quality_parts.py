"""Pieces of HTML that the sections of the data quality report are made of; all text is escaped."""

import datetime
import html
from collections.abc import Callable, Iterable, Sequence

from user_system.replay.quality.estimates import Estimate, Spread
from user_system.replay.quality.report import Report
from user_system.replay.quality.tasks import Task

Format = Callable[[float], str]


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Return any text as HTML."""
    return text if isinstance(text, Markup) else Markup(html.escape(str(text)))


def join(parts: Iterable[str]) -> Markup:
    """Return pieces of HTML as one."""
    return Markup("\n".join(parts))


def two(value: float) -> str:
    """Return a number with two decimals."""
    return f"{value:.2f}"


def percent(value: float) -> str:
    """Return a share in per cent."""
    return f"{value:.1%}" if 0 < value < 0.1 else f"{value:.0%}"


def whole(value: float) -> str:
    """Return a number without decimals."""
    return f"{value:,.0f}"


def estimate(found: Estimate, format_: Format) -> Markup:
    """Return a value with its interval, or why there is none."""
    if found.value is None or found.low is None or found.high is None:
        return Markup(f'<span class="few">{escape(found.why)}</span>')
    between = f"{format_(found.low)}–{format_(found.high)}"
    return Markup(f'{format_(found.value)}<span class="ci">{between}</span>')


def spread(found: Spread | None, format_: Format) -> Markup:
    """Return a median with where most lie."""
    if found is None:
        return Markup('<span class="few">too few</span>')
    between = f"{format_(found.low)}–{format_(found.high)}"
    return Markup(f'{format_(found.median)}<span class="ci">{between}</span>')


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markup:
    """Return a table: the first column names the row; ``#`` ends the names of those of numbers."""
    numeric = [name.endswith("#") for name in columns]
    head = "".join(
        f'<th scope="col"{_class(number)}>{escape(name.removesuffix("#"))}</th>'
        for name, number in zip(columns, numeric, strict=True)
    )
    body = "\n".join(f"<tr>{_row(row, numeric)}</tr>" for row in rows)
    return Markup(
        f'<div class="scroll wide"><table><caption>{escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def _row(row: Sequence[object], numeric: Sequence[bool]) -> str:
    first = f'<th scope="row">{escape(row[0])}</th>'
    rest = zip(row[1:], numeric[1:], strict=True)
    return first + "".join(f"<td{_class(number)}>{escape(cell)}</td>" for cell, number in rest)


def _class(number: bool) -> str:
    return ' class="number"' if number else ""


def folded(title: str, inside: str) -> Markup:
    """Return what is shown on request."""
    return Markup(f"<details><summary>{escape(title)}</summary>{inside}</details>")


def figure(picture: str, caption: str, title: str = "", *, wide: bool = False) -> Markup:
    """Return a picture with what it says."""
    above = f"<h3>{escape(title)}</h3>" if title else ""
    kind = ' class="wide"' if wide else ""
    return Markup(
        f"<figure{kind}>{above}{picture}<figcaption>{escape(caption)}</figcaption></figure>"
    )


def section(
    id_: str, title: str, says: Sequence[str], good: str, content: str, *, full: bool = False
) -> Markup:
    """Return a section: what its numbers mean and what is good, beside them.

    Args:
        id_: what findings link to.
        title: of the section.
        says: paragraphs.
        good: what a reader hopes to see; "" where there is no such thing.
        content: figures and tables.
        full: they need the whole width.
    """
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in says)
    kind = "split full" if full else "split"
    hope = f'<p class="good">{escape(good)}</p>' if good else ""
    return Markup(
        f'<section class="{kind}" id="{id_}" aria-labelledby="{id_}-title">\n'
        f'<div class="say"><h2 id="{id_}-title">{escape(title)}</h2>{paragraphs}{hope}</div>\n'
        f"<div>{content}</div>\n</section>"
    )


def cards(figures: Iterable[str]) -> Markup:
    """Return figures beside each other, where there is room."""
    return Markup(f'<div class="cards">{join(figures)}</div>')


def utc(ns: int) -> str:
    """Return a day."""
    when = datetime.datetime.fromtimestamp(ns / 1e9, datetime.UTC)
    return f"{when.day} {when:%b %Y}"


def days(first: int | None, last: int | None) -> str:
    """Return a period of days."""
    if first is None or last is None:
        return "none"
    low, high = utc(first), utc(last)
    if low == high:
        return low
    day, _, rest = low.partition(" ")
    return f"{day if high.endswith(rest) else low} to {high}"


def value_text(value: float | None, format_: Format) -> str:
    """Return a number; "" where there is none."""
    return "" if value is None else format_(value)


def task_title(title: str, task: Task, report: Report) -> str:
    """Return a title that names the task, where there are several."""
    return f"{title}: {task.task}" if len(report.tasks) > 1 else title
