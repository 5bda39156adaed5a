"""The head's own processes on a store and with certificates of its own, as every run has them."""

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from comms.authority import Authority
from comms.credentials import Role
from user_system.cluster.bench.started import Popen, Started
from user_system.cluster.configs import HubHostConfig, LinkConfig, ReplayHostConfig
from user_system.cluster.parse import dump
from user_system.cluster.process import write_private
from user_system.core.schedule import ScheduleConfig
from user_system.replay.store import Store

NAME, HUB = "replay", "hub"


@dataclass(frozen=True)
class Place:
    """Where a head is: this machine's loopback, or a host of a lab."""

    address: str = "127.0.0.1"
    popen: Popen = subprocess.Popen
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
        hub: whether there is a hub.
    """

    def __init__(
        self, directory: Path, hosts: Sequence[str], place: Place | None = None, hub: bool = False
    ):
        self._directory, self._hosts, self._with_hub = directory, hosts, hub
        self._pki = directory / "pki"
        self._place = place or Place()
        self._hub = self._replay = self._fresh = ""
        self._started = Started(directory, self._place.popen)

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
                home = self._directory / "hub"
                hub = HubHostConfig(self.link(HUB), "bench", home, ScheduleConfig(), listen=listen)
                self._serve(HUB, dump(hub))
            replay = ReplayHostConfig(
                self.link(NAME), "bench", self.store, 1 << 40, 1 << 30, {}, {}, listen=listen
            )
            self._serve(NAME, dump(replay))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._started.__exit__(kind, error, trace)

    @property
    def store(self) -> Path:
        """Its store."""
        return self._directory / "replay"

    def cpu_s(self) -> float:
        """Return the processor time that its processes have taken so far."""
        return self._started.cpu_s()

    def link(self, name: str) -> LinkConfig:
        """Return how a peer reaches it."""
        nobody = "127.0.0.1:1"
        hub, fresh = (self._hub, self._fresh) if self._with_hub else (nobody, nobody)
        return LinkConfig(name=name, pki=self._pki, hub=hub, replay=self._replay, fresh=fresh)

    def _serve(self, name: str, config: Any) -> None:
        path = self._directory / f"{name}.json"
        write_private(path, json.dumps(config))
        argv = [sys.executable, "-m", f"user_system.cluster.{name}_host", str(path)]
        self._started.start(name, argv)


def stored(path: Path, sources: list[tuple[str, int]]) -> dict[str, int]:
    """Return how many fragments of each source a store that nobody has open holds."""
    with Store(path).open() as store:
        return {producer: store.expected(producer, epoch) for producer, epoch in sources}


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
