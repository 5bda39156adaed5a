"""What each composed process is told of the others: addresses, sockets, CPUs, its command line."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comms.tunnel import Endpoints
from user_system.cluster import resources, tunnels
from user_system.cluster.configs import LinkConfig, PluginConfig
from user_system.cluster.cores import Cores, divide
from user_system.cluster.launch import ProcessSpec
from user_system.cluster.layout import RunDir
from user_system.cluster.manifest import Manifest
from user_system.cluster.parse import dump
from user_system.cluster.plan import Process
from user_system.cluster.ports import Ports
from user_system.core.addresses import with_port

HEAD = "head"

LAST, WORLDS, ROBOTS, PEOPLE = 0, 1, 2, 3
"""Stages of the end: people let go first, then robots stop, then what recorded them closes."""


@dataclass(frozen=True)
class Wiring:
    """What all processes of one start have in common."""

    manifest: Manifest
    run: RunDir
    ports: Ports
    cores: Sequence[int]
    """CPUs that there are."""
    gpus: int = 0
    ray_env: Mapping[str, str] = field(default_factory=dict)
    """Variables of the processes that speak to Ray, its token among them."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Account -> secret, for scripted operators."""
    learning: bool = True
    """Whether there are learners, and Ray to place them; an evaluation needs neither."""
    far: bool = False
    """Whether processes of another machine are composed."""

    @property
    def places(self) -> Cores:
        """Which CPUs are whose; those of other machines are theirs to give."""
        if self.far:
            return Cores()
        learners = self.manifest.learners.values() if self.learning else ()
        wanted = sum(entry.cpus for entry in learners)
        return divide(self.cores, wanted) if self.manifest.ray.apart else Cores()

    @property
    def page(self) -> str:
        """Address of the page."""
        return self.page_at(self.manifest.page_names[0])

    def page_at(self, name: str) -> str:
        """Return the address of the page on a host called ``name``."""
        scheme = "https" if self.manifest.page_secure else "http"
        return f"{scheme}://{with_port(name, self.ports.page)}"

    def ours(
        self,
        name: str,
        kind: str,
        config: Any,
        host: str,
        what: str,
        *,
        robots: tuple[str, ...] = (),
        cpus: float = 0.0,
        ports: tuple[int, ...] = (),
        after: tuple[str, ...] = (),
        stage: int = LAST,
        nice: int = 0,
        env: Mapping[str, str] | None = None,
        cores: tuple[int, ...] | None = None,
        children: tuple[Process, ...] = (),
    ) -> Process:
        """Return a process of ours: ``user_system.cluster.<kind>_host`` with its config's path."""
        path = self.run.config / f"{name}.json"
        argv = (sys.executable, "-m", f"user_system.cluster.{kind}_host", str(path))
        spec = ProcessSpec(
            name,
            argv,
            after=after,
            stage=stage,
            nice=nice,
            cores=self.places.robots if cores is None else cores,
            spare=self.places.learners if cores is None else (),
            env=env or {},
        )
        return Process(spec, config, host, what, robots, cpus, ports, children, self.far)

    def ray_process(
        self,
        name: str,
        argv: list[str],
        host: str,
        what: str,
        *,
        robots: tuple[str, ...] = (),
        cpus: float = 0.0,
        ports: tuple[int, ...] = (),
        after: tuple[str, ...] = (),
    ) -> Process:
        """Return a process of Ray's."""
        spec = ProcessSpec(
            name,
            tuple(argv),
            after=after,
            stage=LAST,
            # Ray starts learners itself, and they inherit where they may run.
            cores=self.places.learners,
            env=self.ray_env,
            ready_line=resources.READY_LINE,
        )
        return Process(spec, None, host, what, robots, cpus, ports)

    def link(self, name: str) -> LinkConfig:
        """Return how the process called ``name`` reaches the head."""
        return self._link(name, self.far)

    def _link(self, name: str, far: bool) -> LinkConfig:
        way = self.manifest.tunnel
        at = tunnels.seen(way, self.near) if far else self.near
        return LinkConfig(
            name=name,
            pki=self.run.pki,
            hub=at.hub,
            replay=at.replay,
            fresh=at.fresh,
            reader=at.reader,
            kind=way.kind if far else "direct",
            settings=tunnels.settings(way) if far else {},
            policies=at.policies,
        )

    @property
    def near(self) -> Endpoints:
        """Where processes of the head reach its services."""
        host, ports = self.manifest.tunnel.near, self.ports
        return Endpoints(
            hub=f"{host}:{ports.hub}",
            replay=f"{host}:{ports.replay}",
            fresh=f"{host}:{ports.fresh}",
            reader=f"{host}:{ports.reader}",
            policies={actor: f"{host}:{port}" for actor, port in ports.policies.items()},
        )

    def world_socket(self, robot: str) -> Path:
        """Return where a simulated robot's world listens."""
        return self.run.sockets / f"w-{robot}"

    def driver_socket(self, robot: str) -> Path:
        """Return where a robot's driver listens."""
        return self.run.sockets / f"d-{robot}"

    def seat_socket(self, robot: str) -> Path:
        """Return where a robot's policy worker listens."""
        return self.run.sockets / f"p-{robot}"


def plugin(entry: Any) -> PluginConfig:
    """Return the plugin that an entry of the manifest names."""
    return PluginConfig(entry.kind, dump(entry.config))
