"""What was tried and what went wrong, as a table for people."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from kit.history import Verdict

WRONG = ("lost", "doubled", "reordered", "gaps", "corrupt", "invented")


class Tally:
    """Counts of one session, a row per thing that was survived."""

    def __init__(self) -> None:
        self.tried: dict[str, str] = {}
        self.counts: dict[str, Counter[str]] = {}
        self.notes: dict[str, dict[str, object]] = {}

    def add(
        self, row: str, tried: str, *verdicts: Verdict, acked: int | None = None, **notes: object
    ) -> None:
        """Add a row.

        Args:
            row: what was survived.
            tried: how much of it.
            verdicts: of its histories; wrongs are summed up.
            acked: where the sum over verdicts would count some twice.
            notes: further figures.
        """
        counts: Counter[str] = Counter()
        for verdict in verdicts:
            counts.update(verdict.counts())
            counts["acked"] += verdict.acked
        if acked is not None:
            counts["acked"] = acked
        self.tried[row], self.counts[row], self.notes[row] = tried, counts, notes

    def table(self) -> str:
        """Return the rows as Markdown."""
        columns = ("acked", *WRONG)
        lines = [f"| survived | tried | {' | '.join(columns)} | further |"]
        lines.append("|" + "---|" * (len(columns) + 3))
        for row, tried in self.tried.items():
            counts = self.counts[row]
            cells = [f"{counts[name]:,}" for name in columns]
            lines.append(f"| {row} | {tried} | {' | '.join(cells)} | {_text(self.notes[row])} |")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        path.write_text(self.table() + "\n")


def _text(notes: Mapping[str, object]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in notes.items())


def percent(part: float, whole: float) -> str:
    """Return a share as text."""
    return f"{100 * part / whole:.2f} %" if whole else "-"


def quantile(values: list[float], q: float) -> float:
    """Return the value below which a share ``q`` of them lies."""
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else 0.0
