"""One run of the whole system as a benchmark sees it: a command line, a directory, processes."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from user_system.cluster import census, status
from user_system.core.errors import LinkError

UP_S = 120.0
"""Time for all processes to serve."""
DOWN_S = 60.0
POLL_S = 0.25


class System:
    """``user-system up`` in a child process; the ``with`` block ends all that it started.

    The launcher has a session of its own: Ctrl-C reaches the benchmark alone, which then ends the
    system in order.

    Args:
        manifest: what to start.
        run: its directory.
        settings: overrides, ``path=value``.
    """

    def __init__(self, manifest: Path, run: Path, settings: Sequence[str] = ()):
        self.run = run.resolve()
        self.began = 0.0
        """When the command was given, monotonic s."""
        wanted = [f"run_dir={self.run}", "teleop.port=0", *settings]
        sets = [word for setting in wanted for word in ("--set", setting)]
        self._argv = [sys.executable, "-m", "user_system.cli", "up", str(manifest), *sets]
        self._process: subprocess.Popen[bytes] | None = None
        self._record: census.Record | None = None

    def __enter__(self) -> "System":
        self.run.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as sink:
            self.began = time.monotonic()
            self._process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, "CI": "true"},
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        process, record = self._process, self.record
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(DOWN_S)
        if process.poll() is None:
            process.kill()
            process.wait()
        if record is not None:
            census.end(record.mark)

    @property
    def log(self) -> Path:
        """What the command printed; beside the run directory, which the command itself makes."""
        return self.run.with_name(f"{self.run.name}.log")

    @property
    def ended(self) -> int | None:
        """Exit status of the command, None while it runs."""
        return self._process.poll() if self._process is not None else None

    @property
    def record(self) -> census.Record | None:
        """What the launcher wrote about its processes, also after it removed it."""
        found = census.read_record(self.run)
        if found is not None and self._process is not None and found.launcher == self._process.pid:
            self._record = found
        return self._record

    def processes(self) -> list[psutil.Process]:
        """Return every living process of the run, the launcher included."""
        record = self.record
        if record is None:
            return []
        found = census.members(record.mark)
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(record.launcher))
        return found

    def wait_up(self) -> status.Looker:
        """Wait until the hub answers for all robots; return a way to ask it, not yet entered.

        Raises:
            LinkError: the command ended, or it took too long.
        """
        deadline = time.monotonic() + UP_S
        config = self.run / "config" / status.FILE
        self._until(lambda: config.exists() and self.record is not None, deadline)
        with status.Looker(self.run) as looker:
            self._until(lambda: _all_online(looker), deadline)
        return status.Looker(self.run)

    def _until(self, so: Callable[[], bool], deadline: float) -> None:
        while not so():
            self.check()
            if time.monotonic() > deadline:
                raise LinkError(
                    f"the system did not come up in {UP_S:g} s", todo=f"Look into {self.log}."
                )
            time.sleep(POLL_S)

    def check(self) -> None:
        """Make sure that it still runs.

        Raises:
            LinkError: it ended; with the last line it printed.
        """
        if self.ended is not None:
            lines = self.log.read_text(errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), "")
            raise LinkError(
                f"user-system up ended with status {self.ended}",
                got=last,
                todo=f"Look into {self.log} and {self.run / 'logs'}.",
            )

    def wait_end(self, timeout_s: float) -> int:
        """Wait until the run ends by itself; return its exit status.

        Raises:
            LinkError: it did not within ``timeout_s``.
        """
        if self._process is None:
            raise LinkError("the system was not started")
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise LinkError(
                f"the run did not end in {timeout_s:g} s", todo=f"Look into {self.log}."
            ) from error

    def report(self) -> dict[str, Any]:
        """Return ``report.json`` of a run that ended.

        Raises:
            LinkError: there is none.
        """
        path = self.run / "report.json"
        if not path.exists():
            raise LinkError("the run left no report", got=str(path), todo=f"Look into {self.log}.")
        return dict(json.loads(path.read_text()))


def _all_online(looker: status.Looker) -> bool:
    """Return whether the hub answers and knows every robot to be there."""
    try:
        robots = looker.look().robots
    except LinkError:  # it is not up yet
        return False
    return bool(robots) and all(robot.online for robot in robots)
