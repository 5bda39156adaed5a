"""What a reader should look at first: rules over the numbers, nothing that is not among them.

Groups are called different only where their 95 % intervals do not overlap.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from user_system.replay.quality.clocks import Timing
from user_system.replay.quality.tasks import Group, Task

if TYPE_CHECKING:
    from user_system.replay.quality.report import Together

_MISSED = 0.01
"""Share of missing observations that is worth a word."""
_APART = 0.3
"""Standard deviations between mean actions that are."""
_IDLE = 0.3
"""Share of steps without motion that is."""
_SAYING = {
    "divergence": "acts less consistently than {other} in similar states",
    "jerkiness": "moves less smoothly than {other}",
    "diversity": "meets less predictable outcomes than {other} after similar steps",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence."""

    about: str
    """``data`` for what is missing or wrong in the recording, ``people`` for how it was driven."""
    text: str
    section: str
    """Of the page, where the numbers are."""


def find(
    read: Mapping[str, Any],
    tasks: Sequence[Task],
    clocks: Mapping[str, Timing],
    crews: Sequence["Together"],
) -> Iterator[Finding]:
    """Yield what stands out, the data's own trouble first."""
    yield from _damage(read)
    yield from _timing(clocks)
    yield from _unknown(crews)
    for task in tasks:
        yield from _robots(task)
    for task in tasks:
        for segment in dict.fromkeys(group.segment for group in task.groups):
            groups = [group for group in task.groups if group.segment == segment]
            yield from _between(task, groups, several=len(tasks) > 1)


def _damage(read: Mapping[str, Any]) -> Iterator[Finding]:
    said = {
        "damaged_records": "Damaged and left out, in records: {}; `replay verify` says more.",
        "gaps": "Places where a fragment of an episode is missing: {}.",
        "breaks": "Places where a fragment does not continue the one before it: {}.",
        "incomplete": "Episodes that lack their beginning or their end: {}.",
    }
    for name, text in said.items():
        if read[name]:
            yield Finding("data", text.format(f"{read[name]:,}"), "read")


def _timing(clocks: Mapping[str, Timing]) -> Iterator[Finding]:
    for robot, timing in clocks.items():
        if timing.missed_share > _MISSED:
            text = (
                f"{robot} misses {timing.missed_share:.1%} of its observations: "
                f"the longest gap is {timing.longest_ms:,.0f} ms at a period of "
                f"{timing.p50_ms:,.0f} ms."
            )
            yield Finding("data", text, "timing")


def _unknown(crews: Sequence["Together"]) -> Iterator[Finding]:
    success = sum(crew.success_unknown for crew in crews)
    returns = sum(crew.returns_unknown for crew in crews)
    total = sum(crew.episodes for crew in crews)
    if success:
        text = f"Whether they succeeded is not known of {success:,} of {total:,} whole episodes."
        yield Finding("data", text, "outcome")
    if returns:
        text = f"{returns:,} of {total:,} whole episodes have steps whose reward is not known."
        yield Finding("data", text, "outcome")


def _robots(task: Task) -> Iterator[Finding]:
    """Say which robot's answers to the same action are the least predictable."""
    known = sorted((e.value, name, e) for name, e in task.robots if e.value is not None)
    if len(known) > 1 and known[-1][2].above(known[0][2]):
        (low, other, _), (high, robot, _) = known[0], known[-1]
        text = (
            f"{task.task}: after similar steps {robot} goes to less predictable states than "
            f"{other} ({high:.2f} against {low:.2f})."
        )
        yield Finding("data", text, "diversity")


def _between(task: Task, groups: Sequence[Group], *, several: bool) -> Iterator[Finding]:
    """Compare the actors of one segment."""
    where = f"{groups[0].segment}" + (f" of {task.task}" if several else "")
    for measure, saying in _SAYING.items():
        yield from _extremes(where, groups, measure, saying)
    for group in groups:
        apart = group.measures["disagreement"]
        if apart.low is not None and apart.low > _APART:
            text = (
                f"{where}: the usual action of {group.actor} is {apart.value:.2f} standard "
                f"deviations from that of the others in similar states."
            )
            yield Finding("people", text, "divergence")
        idle = group.measures["idle"]
        if idle.low is not None and idle.low > _IDLE:
            text = f"{where}: {group.actor} hardly moves in {idle.value:.0%} of the steps."
            yield Finding("people", text, "smoothness")


def _extremes(where: str, groups: Sequence[Group], measure: str, saying: str) -> Iterator[Finding]:
    """Say who has the highest value, if it is surely higher than the lowest."""
    known = [g for g in groups if g.measures[measure].value is not None]
    if len(known) < 2:
        return
    known.sort(key=lambda g: g.measures[measure].value or 0.0)
    low, high = known[0], known[-1]
    least, most = low.measures[measure], high.measures[measure]
    if most.above(least) and most.value is not None and least.value is not None:
        what = saying.format(other=low.actor)
        section = "smoothness" if measure == "jerkiness" else measure
        text = f"{where}: {high.actor} {what} ({most.value:.2f} against {least.value:.2f})."
        yield Finding("people", text, section)
