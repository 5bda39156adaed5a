"""Finding runs: which are alive, where their processes are, and ending one from outside."""

import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from user_system.cluster import census
from user_system.core.errors import ConfigError, LinkError

RUNS = Path("runs")
DOWN_S = 60.0
"""Time for a launcher to end its run."""


@dataclass(frozen=True)
class Found:
    """A run that has, or had, processes."""

    root: Path
    record: census.Record

    @property
    def alive(self) -> bool:
        """Whether anything of it still runs."""
        return self.record.launcher_alive or bool(census.members(self.record.mark))


def living(base: Path = RUNS) -> list[Found]:
    """Return the runs below ``base`` of which something runs, by name."""
    if not base.is_dir():
        return []
    roots = sorted(path.parent for path in base.glob(f"*/{census.FILE}"))
    records = [(root, census.read_record(root)) for root in roots]
    found = [Found(root, record) for root, record in records if record is not None]
    return [run for run in found if run.alive]


def choose(run: Path | None) -> Found:
    """Return the run that a person means: the one named, or the only one that is alive.

    Raises:
        ConfigError: none is, or several are and none was named.
    """
    if run is not None:
        record = census.read_record(run)
        if record is None:
            raise ConfigError(f"no run is up in {run}", todo="See `ls runs`; start one with up.")
        return Found(run, record)
    found = living()
    if len(found) != 1:
        names = ", ".join(str(item.root) for item in found)
        raise ConfigError(
            "several runs are up" if found else "no run is up",
            got=names or None,
            todo="Name one." if found else "Start one: user-system up deploy/demo.yaml.",
        )
    return found[0]


def check_free(root: Path) -> None:
    """Check that nothing of an earlier start of this run is alive, and tidy up after it.

    Raises:
        ConfigError: something is.
    """
    record = census.read_record(root)
    if record is None:
        return
    if Found(root, record).alive:
        raise ConfigError(
            f"run {root} is up already",
            got=f"launcher {record.launcher}",
            todo=f"End it first: user-system down {root}.",
        )
    _tidy(root, record)


def _tidy(root: Path, record: census.Record) -> None:
    """Remove what only the processes of a start needed."""
    if record.temporary:
        shutil.rmtree(record.temporary, ignore_errors=True)
    (root / census.FILE).unlink(missing_ok=True)


def down(run: Found) -> int:
    """End a run and everything it started; return how many processes had to be ended by hand.

    Raises:
        LinkError: its launcher did not end.
    """
    record = run.record
    if record.launcher_alive:
        os.kill(record.launcher, signal.SIGTERM)
        deadline = time.monotonic() + DOWN_S
        while record.launcher_alive:
            if time.monotonic() > deadline:
                raise LinkError(
                    f"launcher {record.launcher} of {run.root} does not end",
                    todo=f"kill -9 {record.launcher}, then user-system down {run.root} again.",
                )
            time.sleep(0.05)
    ended = census.end(record.mark)
    _tidy(run.root, record)
    return len(ended)
