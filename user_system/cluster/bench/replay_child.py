"""Processes of a benchmark, each asked one thing at a time in lines of JSON.

    {"do": "rate", "seconds": 2.0}   ->   {"answer": {...}}   or   {"error": "what went wrong"}

What is measured lives in a process of its own, so that neither its memory nor its threads are those
of anything else. A process ends with its standard input, and with the benchmark.
"""

import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from user_system.cluster.bench.paired import THREADS
from user_system.cluster.bench.started import Popen
from user_system.cluster.process import PARENT_VARIABLE, begin
from user_system.core.errors import LinkError, UserSystemError

END_S = 30.0
"""How long a process may take to end in order."""

log = logging.getLogger(__name__)


class Child:
    """A process that answers questions inside a ``with`` block, which ends it.

    Args:
        module: what it runs, with a ``main`` that calls ``serve``; arguments may follow it.
        directory: where it logs to.
        name: what to call it.
        popen: starts it, on this host unless said otherwise.
    """

    def __init__(
        self,
        module: str,
        directory: Path,
        name: str,
        popen: Popen = subprocess.Popen,
    ):
        self.name = name
        self._popen = popen
        self._argv = [sys.executable, "-m", *module.split()]
        self._log = directory / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = b""

    def __enter__(self) -> "Child":
        environment = {**os.environ, **dict.fromkeys(THREADS, "1")}
        with self._log.open("ab") as errors:
            self._process = self._popen(
                self._argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                env={**environment, PARENT_VARIABLE: str(os.getpid())},
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._started() as process:
            if process.stdin is not None:
                process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.0 if kind else END_S)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # it leads a group: what it started, too

    def ask(self, do: str, limit_s: float, **values: Any) -> Any:
        """Return the answer to one question.

        Raises:
            LinkError: it failed, ended, or took longer than ``limit_s``.
        """
        self.tell(do, **values)
        return self.hear(limit_s)

    def tell(self, do: str, **values: Any) -> None:
        """Put a question whose answer ``hear`` takes later."""
        stdin = self._started().stdin
        # One that has ended is noticed, with its reason, where its answer is waited for.
        with contextlib.suppress(BrokenPipeError):
            if stdin is not None:
                stdin.write(json.dumps({"do": do, **values}).encode() + b"\n")

    def hear(self, limit_s: float) -> Any:
        """Return the answer to the oldest question without one; raises as ``ask``."""
        line = self._line(time.monotonic() + limit_s, limit_s)
        found = json.loads(line)
        if "error" in found:
            raise LinkError(f"{self.name} failed", got=found["error"])
        return found["answer"]

    def _line(self, deadline: float, limit_s: float) -> bytes:
        out = self._started().stdout
        while b"\n" not in self._heard and out is not None:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([out], [], [], left)[0]:
                raise LinkError(f"{self.name} took longer than {limit_s:.0f} s")
            if not (part := os.read(out.fileno(), 1 << 20)):
                lines = self._log.read_text(errors="replace").strip().splitlines()
                raise LinkError(f"{self.name} ended", got=lines[-1] if lines else "no word")
            self._heard += part
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            raise LinkError(f"{self.name} was not started")
        return self._process


def serve(actions: Mapping[str, Callable[..., Any]]) -> None:
    """Answer questions until there are no more; what ``main`` of such a process does."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    begin()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    with answers:
        for line in sys.stdin:
            answers.write(json.dumps(_answer(actions, json.loads(line))) + "\n")
            answers.flush()


def _answer(actions: Mapping[str, Callable[..., Any]], question: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"answer": actions[question.pop("do")](**question)}
    except UserSystemError as error:
        log.warning("%s", error)
        return {"error": str(error)}
    except Exception as error:  # top of the process: the benchmark hears what broke
        log.exception("a question was not answered")
        return {"error": f"{type(error).__name__}: {error}"}


def private_mb() -> float:
    """Return the private memory of this process that no file backs, MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LinkError("the kernel does not tell the private memory of a process")
