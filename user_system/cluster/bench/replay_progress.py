"""What a person sees while a benchmark runs: which part, for how long, and at most how long.

On the standard error, since the standard output is for figures.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from user_system.cluster.bench.figures import Figure
from user_system.cluster.bench.options import Options
from user_system.core.errors import LinkError, UserSystemError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID

log = logging.getLogger(__name__)


class Clock:
    """How much time a part has left.

    Args:
        limit_s: how long it may take in all.
        now: monotonic s.
    """

    def __init__(self, limit_s: float, now: Callable[[], float] = time.monotonic):
        self._now = now
        self.limit_s = limit_s
        self.began = now()

    @property
    def took_s(self) -> float:
        """How long it has taken."""
        return self._now() - self.began

    def left(self) -> float:
        """Return what is left, s.

        Raises:
            LinkError: nothing.
        """
        if self.took_s >= self.limit_s:
            raise LinkError(f"this part of the benchmark took longer than {self.limit_s:.0f} s")
        return self.limit_s - self.took_s


@dataclass(frozen=True)
class Part:
    """Figures that are measured together."""

    name: str
    ids: tuple[str, ...]
    measure: Callable[["Clock", "Shown"], Sequence[Figure]]
    limit_s: float


class Shown:
    """Progress bars on a terminal, one line per part elsewhere. Used inside a ``with`` block."""

    def __init__(self, console: "Console | None" = None):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = console or Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=self._console, transient=True)
        self._task: TaskID | None = None

    def __enter__(self) -> "Shown":
        if self._console.is_terminal:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @contextmanager
    def part(self, part: Part) -> Iterator[Clock]:
        """Show a part while it runs, and afterwards how long it took."""
        clock = Clock(part.limit_s)
        self._task = self._bars.add_task(part.name, total=None)
        self._say(f"{part.name}: at most {part.limit_s:.0f} s")
        try:
            yield clock
        finally:
            self._bars.remove_task(self._task)
            self._task = None
            self._say(f"{part.name}: took {clock.took_s:.1f} s")

    def step(self, text: str) -> None:
        """Say what a part does now."""
        if self._task is not None:
            self._bars.update(self._task, description=text)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)


def measure_parts(parts: Sequence[Part], options: Options) -> Iterator[Figure]:
    """Measure what is asked for; a part that fails is said so and does not stop the others."""
    with Shown() as shown:
        for part in parts:
            if options.wants(*part.ids):
                yield from _figures(part, shown)


def _figures(part: Part, shown: Shown) -> Sequence[Figure]:
    try:
        with shown.part(part) as clock:
            return part.measure(clock, shown)
    except UserSystemError as error:
        log.exception("could not measure %s", part.ids[0])
        return [Figure(name, None, ok=False, note=str(error)) for name in part.ids]
