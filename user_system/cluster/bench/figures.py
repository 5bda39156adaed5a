"""What a benchmark says: figures with units and goals, on which machine, by which command."""

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table

Sense = Literal["<=", ">=", "=="]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure should reach."""

    sense: Sense
    value: float

    def met(self, value: float | None) -> bool:
        """Return whether ``value`` reaches it; what could not be measured does not."""
        if value is None or not math.isfinite(value):
            return False
        match self.sense:
            case "<=":
                return value <= self.value
            case ">=":
                return value >= self.value
            case "==":
                return value == self.value

    def __str__(self) -> str:
        return f"{self.sense} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number."""

    id: str
    value: float | None
    """None: it could not be measured; ``note`` says why."""
    unit: str = ""
    goal: str = ""
    ok: bool | None = None
    """None where there is no goal: the figure stands beside one that has."""
    reference: str = ""
    """What others, or the machine itself, reach; measured in the same run where it has numbers."""
    note: str = ""


def judged(
    name: str,
    value: float | None,
    goal: Goal,
    unit: str = "",
    *,
    reference: str = "",
    note: str = "",
) -> Figure:
    """Return a figure that is compared with its goal."""
    return Figure(name, value, unit, str(goal), goal.met(value), reference, note)


@dataclass(frozen=True)
class Result:
    """The figures of one benchmark, with all that is needed to measure them again."""

    command: str
    machine: str
    figures: Sequence[Figure]

    @property
    def ok(self) -> bool:
        """Whether every figure that has a goal reaches it."""
        return all(figure.ok is not False for figure in self.figures)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        figures = [
            {key: value for key, value in asdict(f).items() if key != "note" or value}
            for f in self.figures
        ]
        return {"machine": self.machine, "command": self.command, "figures": figures}

    def table(self) -> "Table":
        """Return it for a terminal."""
        from rich.table import Table

        table = Table(title=f"{self.command}\n{self.machine}", title_justify="left")
        for heading in ("figure", "value", "to reach", "", "reference"):
            table.add_column(heading, justify="right" if heading == "value" else "left")
        for figure in self.figures:
            verdict = {True: "ok", False: "MISSED", None: ""}[figure.ok]
            reference = "\n".join(text for text in (figure.reference, figure.note) if text)
            table.add_row(figure.id, _number(figure), figure.goal, verdict, reference)
        return table


def _number(figure: Figure) -> str:
    if figure.value is None:
        return "not measured"
    return f"{figure.value:.4g} {figure.unit}".rstrip()


def machine() -> str:
    """Return what this machine is and how busy it was, in one line."""
    model = "unknown CPU"
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return (
        f"{model}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load {os.getloadavg()[0]:.1f}"
    )


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the smallest value that ``share`` of all do not exceed; None for no values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
