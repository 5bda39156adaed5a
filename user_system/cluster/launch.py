"""Starting the processes of a run in order, keeping them alive, and ending all of them.

The launcher owns processes and nothing else: it knows no robot, learner or wire. Each process gets
its own session, so that a terminal's Ctrl-C reaches only the launcher, which then ends the rest in
order; a log file; and SIGTERM from the kernel should the launcher itself be killed.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from user_system.cluster import census
from user_system.cluster.cores import confine
from user_system.cluster.process import (
    CORES_VARIABLE,
    NICE_VARIABLE,
    PARENT_VARIABLE,
    READY_VARIABLE,
    STATUS_CONFIG,
)
from user_system.core.errors import ConfigError, LinkError, UserSystemError
from user_system.core.supervise import Backoff

START_TRIES = 3
"""Starts of a process before the run is given up: a busy machine breaks others' time limits."""

log = logging.getLogger("user_system.launch")


@dataclass(frozen=True)
class ProcessSpec:
    """How to start one process."""

    name: str
    argv: tuple[str, ...]
    after: tuple[str, ...] = ()
    """Processes that must serve before this one starts."""
    stage: int = 0
    """Higher stages are ended first; within one stage all at once."""
    nice: int = 0
    cores: tuple[int, ...] = ()
    """CPUs that it and its children keep to; none: whichever the kernel chooses."""
    spare: tuple[int, ...] = ()
    """CPUs that it may use beside ``cores`` while nobody else needs them."""
    env: Mapping[str, str] = field(default_factory=dict)
    ready_line: str = ""
    """Text in its log that says it serves; "": it writes a ready file."""
    ready_after_s: float = 180.0
    """Time it may take to get ready."""
    restart: bool = True


@dataclass
class Child:
    """One process under supervision."""

    spec: ProcessSpec
    popen: "subprocess.Popen[bytes] | None" = None
    started: float = 0.0
    """Monotonic s."""
    log_start: int = 0
    """Where its log begins, bytes; what is before it is of earlier lives."""
    due: float | None = None
    """When to start it again, monotonic s."""
    backoff: Backoff = field(default_factory=Backoff)
    restarts: int = 0
    leaving: bool = False
    """Asked to end by itself; it is not started again."""

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.popen is not None and self.popen.poll() is None


class Supervisor:
    """Starts, watches, restarts and ends processes. Call everything from the main thread.

    The kernel's death signal is tied to the thread that forked, not to the process. The rest of
    what a child needs it does itself (``process.begin``), since running Python between fork and
    exec is not safe beside the threads of gRPC.

    Args:
        run: directory of the run; logs go to ``logs/``, ready files to ``ready/``.
        mark: identity of this run, carried by every process of it.
        page: address of the page, for whoever reads the record.
        temporary: directory of sockets, noted so that ``down`` can remove it.
    """

    def __init__(self, run: Path, mark: str, *, page: str = "", temporary: str = ""):
        self._run = run
        self._mark = mark
        self._page, self._temporary = page, temporary
        self._children: dict[str, Child] = {}
        self._lent = True
        """Whether spare CPUs may be used; nobody needs them before the first step."""

    # --- starting ----------------------------------------------------------------------------

    def start(
        self,
        specs: Sequence[ProcessSpec],
        interrupted: Callable[[], bool],
        served: Callable[[str], None] = lambda name: None,
    ) -> None:
        """Start processes, each as soon as those it comes ``after`` serve; wait for all.

        Args:
            specs: what to start.
            interrupted: looked at all the time; True ends the start.
            served: called with each name as it begins to serve.

        Raises:
            ConfigError: a process ended with status 2; the message is its own.
            LinkError: a process ended, or did not get ready in time.
        """
        for name in ("logs", "ready"):
            (self._run / name).mkdir(parents=True, exist_ok=True)
        waiting = list(specs)
        starting: list[Child] = []
        while (waiting or starting) and not interrupted():
            for spec in [s for s in waiting if all(map(self.is_ready, s.after))]:
                waiting.remove(spec)
                child = self._children[spec.name] = Child(spec)
                self._spawn(child)
                starting.append(child)
            for child in list(starting):
                if self.is_ready(child.spec.name):
                    starting.remove(child)
                    served(child.spec.name)
                else:
                    self._check_start(child)
            time.sleep(0.02)

    def is_ready(self, name: str) -> bool:
        """Whether a process serves."""
        child = self._children.get(name)
        if child is None:
            return False
        if not child.spec.ready_line:
            return self._ready_file(name).exists()
        return child.spec.ready_line in self._log_text(child)

    def _check_start(self, child: Child) -> None:
        name = child.spec.name
        if child.popen is not None and (status := child.popen.poll()) is not None:
            if status == STATUS_CONFIG or child.restarts >= START_TRIES - 1:
                raise self._failure(child, status)
            log.warning("%s", self._failure(child, status))
            child.restarts += 1
            self._spawn(child)
        if time.monotonic() - child.started > child.spec.ready_after_s:
            raise LinkError(
                f"process {name} did not get ready in {child.spec.ready_after_s:g} s",
                todo=f"Look into {self.log_file(name)}.",
            )

    def _failure(self, child: Child, status: int) -> UserSystemError:
        name, last = child.spec.name, self._last_error(child)
        if status == STATUS_CONFIG:
            return ConfigError(f"{name}: {last or 'configuration refused'}")
        return LinkError(
            f"process {name} ended with status {status}",
            got=last or None,
            todo=f"Look into {self.log_file(name)}.",
        )

    def _spawn(self, child: Child) -> None:
        spec = child.spec
        self._ready_file(spec.name).unlink(missing_ok=True)
        environment = {
            **os.environ,
            **spec.env,
            census.MARK: self._mark,
            READY_VARIABLE: str(self._ready_file(spec.name)),
            PARENT_VARIABLE: str(os.getpid()),
            NICE_VARIABLE: str(spec.nice),
            CORES_VARIABLE: ",".join(map(str, self._cores(spec))),
        }
        with self.log_file(spec.name).open("ab") as sink:
            child.log_start = sink.tell()
            child.popen = subprocess.Popen(
                spec.argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=environment,
                start_new_session=True,
            )
        child.started, child.due = time.monotonic(), None
        self.record().write(self._run)

    def _cores(self, spec: ProcessSpec) -> tuple[int, ...]:
        return spec.cores + spec.spare if self._lent else spec.cores

    def lend(self, lent: bool) -> None:
        """Let processes use the CPUs they may have to spare, or take those back."""
        if lent == self._lent:
            return
        self._lent = lent
        for child in self._children.values():
            if child.spec.spare and child.alive and child.popen is not None:
                confine([psutil.Process(child.popen.pid)], self._cores(child.spec))

    def record(self) -> census.Record:
        """Return what ``user-system down`` needs should this process be killed."""
        pids = {n: c.popen.pid for n, c in self._children.items() if c.popen is not None}
        return census.Record(
            mark=self._mark,
            launcher=os.getpid(),
            created=census.created(),
            processes=pids,
            page=self._page,
            temporary=self._temporary,
        )

    def log_file(self, name: str) -> Path:
        """Return where a process logs to."""
        return self._run / "logs" / f"{name}.log"

    def _ready_file(self, name: str) -> Path:
        return self._run / "ready" / name

    def _log_text(self, child: Child) -> str:
        with self.log_file(child.spec.name).open("rb") as file:
            file.seek(child.log_start)
            return file.read().decode(errors="replace")

    def _last_error(self, child: Child) -> str:
        lines = self._log_text(child).splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return errors[-1] if errors else ""

    # --- watching ----------------------------------------------------------------------------

    def poll(self) -> None:
        """Notice deaths and restart what is due; call it a few times a second.

        Raises:
            ConfigError: a process ended with status 2: starting it again cannot help.
            LinkError: a process that is not to be restarted ended.
        """
        now = time.monotonic()
        for child in self._children.values():
            if child.due is not None:
                if now >= child.due:
                    child.restarts += 1
                    self._spawn(child)
            elif child.leaving:
                continue
            elif child.popen is not None and (status := child.popen.poll()) is not None:
                self._died(child, status, now)

    def _died(self, child: Child, status: int, now: float) -> None:
        if status == STATUS_CONFIG or not child.spec.restart:
            raise self._failure(child, status)
        delay = child.backoff.died(now - child.started)
        child.due = now + delay
        log.warning(
            "%s ended with status %s: %s; again in %.1f s (see %s)",
            child.spec.name,
            status,
            self._last_error(child) or "no message",
            delay,
            self.log_file(child.spec.name),
        )

    def pid(self, name: str) -> int | None:
        """Return the pid of a living process."""
        child = self._children.get(name)
        return child.popen.pid if child and child.alive and child.popen else None

    def stats(self) -> dict[str, float]:
        """Return counts of processes and restarts."""
        return {
            "processes": float(sum(c.alive for c in self._children.values())),
            "restarts": float(sum(c.restarts for c in self._children.values())),
        }

    # --- ending ------------------------------------------------------------------------------

    def finish(self, name: str) -> None:
        """Ask a process to finish what it is at and then to end; it is not started again."""
        child = self._children[name]
        child.leaving, child.due = True, None
        if child.alive and child.popen is not None:
            child.popen.send_signal(signal.SIGUSR1)

    def end(
        self, names: Iterable[str], hurry: Callable[[], bool] = lambda: False, grace_s: float = 10.0
    ) -> None:
        """End some processes and forget them; the rest goes on."""
        ended = [child for name, child in self._children.items() if name in set(names)]
        for stage in sorted({child.spec.stage for child in ended}, reverse=True):
            self._stop_stage([c for c in ended if c.spec.stage == stage], hurry, grace_s)
        for child in ended:
            if child.popen is not None:
                child.popen.wait()
            del self._children[child.spec.name]
        self.record().write(self._run)

    def stop(self, hurry: Callable[[], bool] = lambda: False, grace_s: float = 10.0) -> None:
        """End everything that was started and all that it started; may be repeated."""
        for stage in sorted({c.spec.stage for c in self._children.values()}, reverse=True):
            self._stop_stage(
                [c for c in self._children.values() if c.spec.stage == stage], hurry, grace_s
            )
        census.end(self._mark, grace_s=0.5)
        for child in self._children.values():
            if child.popen is not None:
                child.popen.wait()
        self._children.clear()
        (self._run / census.FILE).unlink(missing_ok=True)

    def _stop_stage(
        self, children: Sequence[Child], hurry: Callable[[], bool], grace_s: float
    ) -> None:
        for child in children:
            child.due = None
            log.info("%s is asked to end", child.spec.name)
            if child.alive and child.popen is not None:
                child.popen.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while any(c.alive for c in children) and time.monotonic() < deadline and not hurry():
            time.sleep(0.02)
        for child in children:
            if child.alive and child.popen is not None:
                log.warning("%s did not end in %g s; killed", child.spec.name, grace_s)
                child.popen.kill()
