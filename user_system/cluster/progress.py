"""What a person sees while a run is up: a live table on a terminal, plain lines elsewhere."""

import os
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live
from rich.table import Table

from user_system.cluster.status import HostView, View

LINE_S = 5.0
"""Period of plain lines."""
HEADINGS = ("phase", "env steps", "success", "helped", "updates/s", "version", "stale", "spool")


HOST_HEADINGS = ("host", "where", "link", "seen", "boot", "version", "needs")


def cells(view: View) -> tuple[str, ...]:
    """Return the figures under ``HEADINGS``."""
    figures = view.figures
    return (
        view.phase,
        f"{figures.get('env_steps', 0):.0f}",
        f"{figures.get('success_rate', 0):.0%}",
        f"{figures.get('intervention_rate', 0):.0%}",
        f"{figures.get('updates_per_s', 0):.0f}",
        str(view.version),
        f"{figures.get('weights_age_s', 0):.1f} s",
        f"{view.spooled:.0f}",
    )


def host_cells(host: HostView) -> tuple[str, ...]:
    """Return what stands under ``HOST_HEADINGS``."""
    where = "remote" if host.remote else "here"
    seen = "never" if host.link == "awaited" else f"{host.last_seen_s:.1f} s ago"
    return host.name, where, host.link, seen, host.boot, host.version, host.needs


class Progress:
    """Shows views; a ``with`` block restores the terminal.

    Args:
        page: address of the page, shown beside the figures.
        console: where to; the standard output unless a test owns it.
        clock: monotonic s.
    """

    def __init__(
        self,
        page: str = "",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._console = console or Console(highlight=False)
        self._page, self._clock = page, clock
        self._began, self._next = clock(), 0.0
        self._live: Live | None = None
        self._evaluations = 0

    @property
    def plain(self) -> bool:
        """Whether lines are printed instead of a live table."""
        return bool(os.environ.get("CI")) or not self._console.is_terminal

    def __enter__(self) -> "Progress":
        if not self.plain:
            # No refresh thread: the launcher's main thread is the only one that draws.
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def show(self, view: View) -> None:
        """Show the present state."""
        for evaluation in view.evaluations[self._evaluations :]:
            self.say(
                f"evaluation of version {evaluation['version']:.0f}: "
                f"{evaluation['successes']:.0f}/{evaluation['episodes']:.0f} "
                f"after {evaluation['env_steps']:.0f} env steps"
            )
        self._evaluations = len(view.evaluations)
        if self._live is not None:
            self._live.update(self._table(view), refresh=True)
        elif self._clock() >= self._next:
            self._next = self._clock() + LINE_S
            pairs = zip(HEADINGS, cells(view), strict=True)
            words = [f"{name} {value}" for name, value in pairs]
            words += [f"awaited {', '.join(view.awaited)}"] if view.awaited else []
            self.say(" · ".join(words))

    def say(self, text: str) -> None:
        """Print one line above whatever is live."""
        elapsed = self._clock() - self._began
        line = f"[{elapsed:6.1f} s] {text}"
        # As it is: a fingerprint may hold what the library takes for the name of a picture.
        self._console.print(line, markup=False, emoji=False, soft_wrap=True)

    def _table(self, view: View) -> Table:
        table = Table(title=f"{view.run}   {self._page}", title_justify="left", expand=False)
        for heading in HEADINGS:
            table.add_column(heading, justify="right")
        table.add_row(*cells(view))
        robots = "   ".join(
            f"{r.name}: {r.mode or 'offline'}{f' ({r.holder})' if r.holder else ''}"
            f"{f' - {r.help}' if r.help else ''}"
            for r in view.robots
        )
        if view.awaited:
            robots += f"   awaited: {', '.join(view.awaited)}"
        table.caption, table.caption_justify = robots, "left"
        return table
