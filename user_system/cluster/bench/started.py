"""Processes of ours that are started without the launcher, and waited for until they serve."""

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from user_system.cluster.process import PARENT_VARIABLE, READY_VARIABLE
from user_system.core.errors import LinkError

UP_S, DOWN_S = 120.0, 60.0
POLL_S = 0.02

Popen = Callable[..., "subprocess.Popen[bytes]"]
"""Starts a process, on this host or on one of a lab."""


class Started:
    """Processes that end, newest first, with the ``with`` block.

    Args:
        directory: where they log to.
        popen: starts them.
    """

    def __init__(self, directory: Path, popen: Popen = subprocess.Popen):
        self._directory, self._popen = directory, popen
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Started":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(DOWN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        waits: bool = True,
    ) -> "subprocess.Popen[bytes]":
        """Start a process, and wait until it serves unless told otherwise.

        Args:
            name: what to call it.
            argv: what it runs.
            env: variables beside those of this process.
            waits: whether it is one of ours, which says when it serves.

        Raises:
            LinkError: it ended, with its last words, or took too long.
        """
        ready = self._directory / f"{name}.ready"
        ready.unlink(missing_ok=True)
        variables = {PARENT_VARIABLE: str(os.getpid()), READY_VARIABLE: str(ready)}
        with self.log(name).open("wb") as sink:
            process = self._popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **(env or {}), **(variables if waits else {})},
                start_new_session=True,
            )
        self._processes.append(process)
        deadline = time.monotonic() + UP_S
        while waits and not ready.exists():
            self.check(name)
            if time.monotonic() > deadline:
                raise LinkError(
                    f"the {name} process does not serve after {UP_S:.0f} s",
                    todo=f"Look into {self.log(name)}.",
                )
            time.sleep(POLL_S)
        return process

    def log(self, name: str) -> Path:
        """Return where a process writes to."""
        return self._directory / f"{name}.log"

    def check(self, name: str) -> None:
        """Make sure that the newest process, which is called ``name``, still runs.

        Raises:
            LinkError: it ended.
        """
        if self._processes[-1].poll() is not None:
            lines = self.log(name).read_text(errors="replace").strip().splitlines()
            raise LinkError(
                f"the {name} process ended",
                got=lines[-1] if lines else "no word",
                todo=f"Look into {self.log(name)}.",
            )

    def cpu_s(self) -> float:
        """Return the processor time that all of them have taken so far."""
        return sum(_cpu_s(process.pid) for process in self._processes)


def _cpu_s(pid: int) -> float:
    # The name in parentheses may hold spaces; user and system time are fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
