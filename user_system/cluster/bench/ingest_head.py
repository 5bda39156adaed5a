"""The head's own processes on a store and with certificates of its own, as every run has it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from comms.authority import Authority
from comms.credentials import Role
from user_system.cluster.configs import HubHostConfig, LinkConfig, ReplayHostConfig
from user_system.cluster.parse import dump
from user_system.cluster.process import PARENT_VARIABLE, READY_VARIABLE, write_private
from user_system.core.errors import LinkError
from user_system.core.schedule import ScheduleConfig
from user_system.replay.store import Store

NAME, HUB = "replay", "hub"
UP_S, DOWN_S = 30.0, 30.0
POLL_S = 0.02


@dataclass(frozen=True)
class Place:
    """Where a head is: this machine's loopback, or a host of a lab."""

    address: str = "127.0.0.1"
    popen: "Callable[..., subprocess.Popen[bytes]]" = subprocess.Popen
    port: int = 0
    """First of three ports; 0: whatever is free on the loopback."""

    def endpoints(self) -> Sequence[str]:
        """Return three addresses to listen on."""
        if self.port:
            return [f"{self.address}:{self.port + i}" for i in range(3)]
        return [_free_address() for _ in range(3)]


class Head:
    """A replay process that serves inside a ``with`` block, and a hub where one is wanted.

    Args:
        directory: of its certificates, store and log.
        hosts: names of the robot hosts that may send.
        place: where it runs.
        hub: whether there is a hub all the same.
    """

    def __init__(
        self, directory: Path, hosts: Sequence[str], place: Place | None = None, hub: bool = False
    ):
        self._directory, self._hosts, self._with_hub = directory, hosts, hub
        self._pki = directory / "pki"
        self._place = place or Place()
        self._hub = self._replay = self._fresh = ""
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Head":
        authority = Authority.open(self._pki)
        for service in (NAME, HUB):
            authority.issue(service, Role.SERVICE, ("localhost", "127.0.0.1", self._place.address))
        for host in self._hosts:
            authority.issue(host, Role.ROBOT)
        self._hub, self._replay, self._fresh = self._place.endpoints()
        listen = self._place.address
        try:
            if self._with_hub:
                schedule = ScheduleConfig()
                told = HubHostConfig(
                    self.link(HUB), "bench", self._directory / "hub", schedule, listen=listen
                )
                self._serve(HUB, dump(told))
            config = ReplayHostConfig(
                self.link(NAME), "bench", self.store, 1 << 40, 1 << 30, {}, listen=listen
            )
            self._serve(NAME, dump(config))
        except BaseException:
            self._end(0.0)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end(DOWN_S)

    @property
    def store(self) -> Path:
        """Its store."""
        return self._directory / "replay"

    def cpu_s(self) -> float:
        """Return the processor time that its processes have taken so far."""
        return sum(_cpu_s(process.pid) for process in self._processes)

    def link(self, name: str) -> LinkConfig:
        """Return how a peer reaches it."""
        nobody = "127.0.0.1:1"
        hub, fresh = (self._hub, self._fresh) if self._with_hub else (nobody, nobody)
        return LinkConfig(name=name, pki=self._pki, hub=hub, replay=self._replay, fresh=fresh)

    def _serve(self, name: str, config: Any) -> None:
        """Start a process and wait until it serves."""
        path, ready = self._directory / f"{name}.json", self._directory / f"{name}.ready"
        write_private(path, json.dumps(config))
        variables = {PARENT_VARIABLE: str(os.getpid()), READY_VARIABLE: str(ready)}
        with self._log(name).open("wb") as sink:
            process = self._place.popen(
                [sys.executable, "-m", f"user_system.cluster.{name}_host", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **variables},
                start_new_session=True,
            )
        self._processes.append(process)
        deadline = time.monotonic() + UP_S
        while not ready.exists():
            if process.poll() is not None:
                lines = self._log(name).read_text(errors="replace").strip().splitlines()
                raise LinkError(f"the {name} process ended", got=lines[-1] if lines else "no word")
            if time.monotonic() > deadline:
                raise LinkError(f"the {name} process does not serve after {UP_S:.0f} s")
            time.sleep(POLL_S)

    def _log(self, name: str) -> Path:
        return self._directory / f"{name}.log"

    def _end(self, grace_s: float) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(grace_s)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


def _cpu_s(pid: int) -> float:
    # The name in parentheses may hold spaces; user and system time are fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def stored(path: Path, sources: list[tuple[str, int]]) -> dict[str, int]:
    """Return how many fragments of each source a store that nobody has open holds."""
    with Store(path).open() as store:
        return {producer: store.expected(producer, epoch) for producer, epoch in sources}


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
