"""The head's own processes, as a run starts them, with a small store and people of all roles."""

import json
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from kit import made

from comms.authority import Authority
from comms.credentials import Credentials, Role
from comms.tunnel import DirectTunnel, Endpoints
from user_system.cluster import configs
from user_system.cluster.bench.started import Started
from user_system.cluster.parse import dump
from user_system.cluster.process import write_private
from user_system.core.schedule import ScheduleConfig
from user_system.core.types import Parcel
from user_system.replay.store import Store
from user_system.teleop.auth import make_accounts

PEERS = {
    "hub": Role.SERVICE,
    "replay": Role.SERVICE,
    "replay-reader": Role.SERVICE,
    "teleop": Role.SERVICE,
    "host-1": Role.ROBOT,
    "host-2": Role.ROBOT,
    "host-9": Role.ROBOT,
    "learner": Role.LEARNER,
    "kim": Role.ENGINEER,
    "ada": Role.OPERATOR,
    "eve": Role.VIEWER,
    "rogue": Role.SERVICE,
    "policy-pick": Role.SERVICE,
}
"""Who is enrolled: one of each role that means no good, and those who work."""

ACTOR = "pick"
"""Whose policy acts at the head."""

OWNERS = {"arm-1": "host-1", "arm-2": "host-2"}
PEOPLE = {"vic": "viewer", "ann": "operator", "eng": "engineer", "joe": "operator"}
_ANONYMOUS = re.compile(r"^Anonymous:\s+(\d+) kB", re.MULTILINE)


class Heads:
    """Hub, replay, reader and page; they serve inside a ``with`` block.

    Args:
        directory: of everything they have.
    """

    KINDS: tuple[str, ...] = ("hub", "replay", "reader", "teleop")
    SECURE = False
    """Whether the page is served over TLS, as it is off loopback."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.pki = directory / "pki"
        self.owners = dict(OWNERS)
        """Robot -> host."""
        self.secrets: Mapping[str, str] = {}
        self.ports: dict[str, int] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._started = Started(directory)

    def __enter__(self) -> "Heads":
        authority = Authority.open(self.pki)
        for name, role in PEERS.items():
            authority.issue(name, role)
        self.secrets = make_accounts(self.directory / "people.json", PEOPLE)
        self._choose_ports()
        self._fill_store()
        try:
            for kind in self.KINDS:
                self._start(kind)
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
    def url(self) -> str:
        """Of the page."""
        return f"{'https' if self.SECURE else 'http'}://127.0.0.1:{self.ports['page']}"

    def trust(self) -> ssl.SSLContext | bool:
        """How a browser is brought to believe the page."""
        return ssl.create_default_context(cafile=str(self.pki / "ca.crt")) if self.SECURE else True

    def address(self, name: str) -> str:
        """Of a listener: hub, replay, fresh, reader, page."""
        return f"127.0.0.1:{self.ports[name]}"

    def endpoints(self) -> Endpoints:
        """Of the services."""
        names = ("hub", "replay", "fresh", "reader")
        policies = {ACTOR: self.address("policy")}
        return Endpoints(**{name: self.address(name) for name in names}, policies=policies)

    def credentials(self, name: str) -> Credentials:
        """Of a peer."""
        return Credentials.load(self.pki, name)

    def tunnel(self, name: str) -> DirectTunnel:
        """A peer's way to them."""
        return DirectTunnel(self.endpoints(), self.credentials(name))

    def alive(self) -> dict[str, bool]:
        """Return which of them run."""
        return {kind: process.poll() is None for kind, process in self.processes.items()}

    def memory(self) -> dict[str, float]:
        """Return the memory of each that is its own and of no file, MB."""
        found = {}
        for kind, process in self.processes.items():
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
            match = _ANONYMOUS.search(text)
            assert match is not None
            found[kind] = int(match[1]) * 1024 / 1e6
        return found

    def log(self, kind: str) -> Path:
        """Where one writes to."""
        return self._started.log(kind)

    def _choose_ports(self) -> None:
        with ExitStack() as held:
            for name in ("hub", "replay", "fresh", "reader", "page", "policy"):
                probe = held.enter_context(socket.socket())
                probe.bind(("127.0.0.1", 0))
                self.ports[name] = probe.getsockname()[1]

    def _fill_store(self) -> None:
        with Store(self.directory / "replay").open(create=True) as store:
            store.append([_parcel(1, 1, sequence) for sequence in range(10)])

    def _config(self, kind: str) -> Any:
        link = configs.LinkConfig(
            name={"reader": "replay-reader"}.get(kind, kind),
            pki=self.pki,
            **{n: self.address(n) for n in ("hub", "replay", "fresh", "reader")},
        )
        place = self.directory
        if kind == "hub":
            rule = ScheduleConfig(run="run", task="task", demos=0)
            return configs.HubHostConfig(
                link, "run", place / "hub", rule, owners=self.owners, publishers={"p": "learner"}
            )
        if kind == "replay":
            sizes = (4 << 30, 1 << 20)
            return configs.ReplayHostConfig(link, "run", place / "replay", *sizes, {}, self.owners)
        if kind == "reader":
            return configs.ReaderHostConfig(link, place / "replay")
        return configs.TeleopHostConfig(
            link, "run", "127.0.0.1", self.ports["page"], place / "people.json", tls=self.SECURE
        )

    def _start(self, kind: str) -> None:
        path = self.directory / f"{kind}.json"
        write_private(path, json.dumps(dump(self._config(kind))))
        argv = [sys.executable, "-m", f"user_system.cluster.{kind}_host", str(path)]
        env = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.processes[kind] = self._started.start(kind, argv, env=env)


class Whole(Heads):
    """All that listens at a head or on a robot host: a policy host and a site's shard as well."""

    KINDS = ("hub", "replay", "reader", "teleop", "policy", "shard", "offer")
    SECURE = True

    @property
    def shard(self) -> configs.ShardConfig:
        """The shard of host-1, as its agent finds it."""
        return configs.ShardConfig("host-1", self.directory / "s", self.directory / "near")

    def shard_credentials(self) -> Credentials:
        """Of the agent of host-1, towards its shard."""
        return Credentials.load(self.shard.pki, self.shard.host)

    def _config(self, kind: str) -> Any:
        place, names = self.directory, {"policy": f"policy-{ACTOR}"}
        link = replace(super()._config("hub").link, name=names.get(kind, "host-1"))
        if kind == "policy":
            arm = configs.PluginConfig("sim.franka")
            robots = [configs.PolicyRobot(name, host, arm) for name, host in self.owners.items()]
            return configs.PolicyHostConfig(
                replace(link, policies={ACTOR: self.address("policy")}),
                actor=ACTOR,
                policy="p",
                learner=configs.PluginConfig("rlpd"),
                robots=tuple(robots),
                directory=place / "policy",
                hang_s=60.0,
            )
        if kind == "shard":
            return configs.ShardHostConfig(link, self.shard, place / "site", 4 << 30, 1 << 20, {})
        if kind == "offer":
            return configs.OfferHostConfig(link, place / "site")
        return super()._config(kind)


def _parcel(producer: int, epoch: int, sequence: int) -> Parcel:
    from user_system.codec import fragments

    fragment = made.fragment(made.name(producer), epoch, sequence)
    return Parcel(fragment, fragments.record(fragment))
