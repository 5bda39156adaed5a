"""The replay's own process on a store and with certificates of its own, as every run has it."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from comms.authority import Authority
from comms.credentials import Role
from user_system.cluster.configs import LinkConfig, ReplayHostConfig
from user_system.cluster.parse import dump
from user_system.cluster.process import PARENT_VARIABLE, READY_VARIABLE, write_private
from user_system.core.errors import LinkError
from user_system.replay.store import Store

NAME = "replay"
UP_S, DOWN_S = 30.0, 30.0
POLL_S = 0.02


class Head:
    """A replay process that serves inside a ``with`` block; there is no hub, which it survives.

    Args:
        directory: of its certificates, store and log.
        hosts: names of the robot hosts that may send.
    """

    def __init__(self, directory: Path, hosts: list[str]):
        self._directory, self._hosts = directory, hosts
        self._pki = directory / "pki"
        self._address = ""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Head":
        authority = Authority.open(self._pki)
        authority.issue(NAME, Role.SERVICE)
        authority.issue("hub", Role.SERVICE)
        for host in self._hosts:
            authority.issue(host, Role.ROBOT)
        self._address = _free_address()
        config = ReplayHostConfig(self.link(NAME), "bench", self.store, 1 << 40, 1 << 30, {})
        path, ready = self._directory / "replay.json", self._directory / "ready"
        write_private(path, json.dumps(dump(config)))
        variables = {PARENT_VARIABLE: str(os.getpid()), READY_VARIABLE: str(ready)}
        with self._log.open("wb") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "user_system.cluster.replay_host", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env={**os.environ, **variables},
                start_new_session=True,
            )
        try:
            self._wait(ready)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(DOWN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def store(self) -> Path:
        """Its store."""
        return self._directory / "replay"

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid if self._process is not None else 0

    def cpu_s(self) -> float:
        """Return the processor time that it has taken so far."""
        # The name in parentheses may hold spaces; user and system time are fields 14 and 15.
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def _log(self) -> Path:
        return self._directory / "replay.log"

    def link(self, name: str) -> LinkConfig:
        """Return how a peer reaches it."""
        nobody = "127.0.0.1:1"
        return LinkConfig(name=name, pki=self._pki, hub=nobody, replay=self._address, fresh=nobody)

    def _wait(self, ready: Path) -> None:
        deadline = time.monotonic() + UP_S
        while not ready.exists():
            if self._process is None or self._process.poll() is not None:
                lines = self._log.read_text(errors="replace").strip().splitlines()
                raise LinkError("the replay process ended", got=lines[-1] if lines else "no word")
            if time.monotonic() > deadline:
                raise LinkError(f"the replay process does not serve after {UP_S:.0f} s")
            time.sleep(POLL_S)


def stored(path: Path, sources: list[tuple[str, int]]) -> dict[str, int]:
    """Return how many fragments of each source a store that nobody has open holds."""
    with Store(path).open() as store:
        return {producer: store.expected(producer, epoch) for producer, epoch in sources}


def _free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"
