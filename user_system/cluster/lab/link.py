"""The emulated link as its owner sees it: switched and read while it works."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from typing import Any

from user_system.cluster.lab.plan import Plan
from user_system.cluster.lab.profiles import Profile
from user_system.core.errors import LinkError

_UP_S, _ANSWER_S, _END_S = 180.0, 60.0, 15.0
"""They bound a hang. Before it has its priority, what answers is one of many on a busy machine: to
start Python, 0.3 s of work, has taken more than a minute."""


@dataclass(frozen=True, slots=True)
class Counters:
    """What became of the packets of one direction."""

    packets: int = 0
    """That came to the link."""
    bytes: int = 0
    delivered: int = 0
    """That left it at the other end, doubled ones twice."""
    delivered_bytes: int = 0
    lost: int = 0
    """By chance."""
    dropped: int = 0
    """Because the queue was full."""
    cut: int = 0
    """Because the link was down."""
    duplicated: int = 0
    reordered: int = 0

    def __sub__(self, other: "Counters") -> "Counters":
        names = [field.name for field in fields(self)]
        return Counters(*(getattr(self, name) - getattr(other, name) for name in names))


@dataclass(frozen=True, slots=True)
class Stats:
    """What a link did so far."""

    up: Counters
    down: Counters
    late_ms: float
    """By how much the latest packet since the last question left later than it should have."""
    cpu_s: float
    """Processor time of the emulator so far."""


class Link:
    """The process that moves the packets; ``start`` it, ``close`` it. Thread-safe."""

    def __init__(self, profile: Profile):
        self.profile = profile
        """What it does now."""
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._heard = b""

    def start(self, hosts: tuple[str, ...], ends: tuple[str, str], seed: int) -> dict[str, str]:
        """Make the namespaces and the link; return host -> path of its namespace.

        Raises:
            LinkError: the machine does not permit it.
        """
        up, down = self.profile.up.plain(), self.profile.down.plain()
        plan = json.dumps(asdict(Plan(os.getpid(), hosts, up, down, ends, seed)))
        process = self._process = subprocess.Popen(
            [sys.executable, "-m", "user_system.cluster.lab.relay", plan],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        spaces = self._hear(_UP_S)
        return {host: f"/proc/{process.pid}/fd/{number}" for host, number in spaces.items()}

    @property
    def pid(self) -> int:
        """Of the emulator; 0: it does not run."""
        return self._process.pid if self._process is not None else 0

    def close(self) -> None:
        """End the link, and whatever still runs in its namespaces; idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
        if process.poll() is None:
            process.kill()
            process.wait()

    def cut(self) -> None:
        """Take the link down: every packet is lost, those under way too. Nobody is told."""
        self._ask("cut", cut=True)

    def mend(self) -> None:
        """Take it up again."""
        self._ask("cut", cut=False)

    @contextmanager
    def outage(self) -> Iterator[float]:
        """Keep the link down inside a ``with`` block; yields when it went, monotonic s."""
        self.cut()
        try:
            yield time.monotonic()
        finally:
            self.mend()

    def change(self, **values: Any) -> None:
        """Change numbers of both directions from now on, e.g. ``rate_bps=1e6``."""
        self.become(self.profile.but(**values))

    def become(self, profile: Profile) -> None:
        """Be another link from now on; what is under way arrives as it would have."""
        self._ask("change", up=profile.up.plain(), down=profile.down.plain())
        self.profile = profile

    def stats(self) -> Stats:
        """Return what it did so far."""
        found = self._ask("stats")
        up, down = Counters(**found["up"]), Counters(**found["down"])
        return Stats(up, down, found["late_ms"], found["cpu_s"])

    def _ask(self, do: str, **values: Any) -> Any:
        with self._lock:
            process = self._process
            if process is None or process.stdin is None:
                raise LinkError("the lab is not open")
            with suppress(BrokenPipeError):  # noticed where its answer is waited for
                process.stdin.write(json.dumps({"do": do, **values}).encode() + b"\n")
            return self._hear(_ANSWER_S)

    def _hear(self, limit_s: float) -> Any:
        process, deadline = self._process, time.monotonic() + limit_s
        if process is None or process.stdout is None:
            raise LinkError("the lab is not open")
        while b"\n" not in self._heard:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([process.stdout], [], [], left)[0]:
                raise LinkError(f"the emulated link did not answer in {limit_s:g} s")
            if not (part := os.read(process.stdout.fileno(), 1 << 16)):
                raise LinkError("the process that emulates the link ended", got=process.poll())
            self._heard += part
        line, _, self._heard = self._heard.partition(b"\n")
        found = json.loads(line)
        if "error" in found:
            raise LinkError("the emulated link", got=found["error"])
        return found["answer"]
