"""From a manifest to processes: the picture of the system, read from top to bottom.

The head first, then each robot host, then who uses them. Nothing here starts or opens anything, so
``user-system plan`` prints exactly what ``user-system up`` would start.
"""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from comms.tunnel import Endpoints
from user_system.cluster import away, configs, resources, tunnels
from user_system.cluster.configs import LinkConfig, PluginConfig
from user_system.cluster.cores import Cores, divide
from user_system.cluster.enrol import PAGE, READER
from user_system.cluster.launch import ProcessSpec
from user_system.cluster.layout import RunDir
from user_system.cluster.manifest import (
    ActorEntry,
    LearnerEntry,
    Manifest,
    OperatorEntry,
    RobotEntry,
)
from user_system.cluster.parse import dump
from user_system.cluster.plan import Process
from user_system.cluster.ports import Ports
from user_system.core.addresses import is_wildcard, with_port

HEAD = "head"
CUBE_HALF = 0.02
"""Half an edge of the cube where the task does not say, m."""

_LAST, _WORLDS, _ROBOTS, _PEOPLE = 0, 1, 2, 3
"""Stages of the end: people let go first, then robots stop, then what recorded them closes."""


@dataclass(frozen=True)
class Composer:
    """Derives processes; one instance per start."""

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

    def processes(self) -> list[Process]:
        """Return every process that the launcher starts, in the order of starting."""
        learners = self.manifest.learners if self.learning else {}
        parts = [self._ray()] if learners else []
        parts += [self._hub(), self._replay()]
        parts += [self._reader()] if self._draws_remotely else []
        parts += [self._policy(name, entry) for name, entry in self.manifest.away.items()]
        for host in self.manifest.edge_hosts:
            parts += [self._resource_node(host)] if learners else []
            if not self.manifest.is_remote(host):
                parts += self.of_host(host)
        parts += [self._learner(name, entry) for name, entry in learners.items()]
        if self.manifest.teleop.enabled:
            parts.append(self._teleop())
        parts += [self._operator(name, e) for name, e in self.manifest.operators.items()]
        return parts

    def remote(self, host: str) -> list[Process]:
        """Return what a remote robot host runs itself; its paths are relative to its directory."""
        return replace(self, run=RunDir(Path(), Path()), far=True).of_host(host)

    def of_host(self, host: str) -> list[Process]:
        """Return what runs on a robot host."""
        shard = [self._shard(host), self._offer(host)] if host in self.manifest.shards else []
        return [*self._worlds(host), *shard, self._edge(host)]

    @property
    def join_facts(self) -> configs.JoinFacts:
        """What a robot host that joins is told."""
        link = self._link("", far=True)
        return configs.JoinFacts(
            run=self.manifest.name,
            hub=link.hub,
            replay=link.replay,
            fresh=link.fresh,
            reader=link.reader,
            kind=link.kind,
            page=self.page if self.manifest.teleop.enabled else "",
        )

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
        return self._page_at(self.manifest.page_names[0])

    def _page_at(self, name: str) -> str:
        scheme = "https" if self.manifest.page_secure else "http"
        return f"{scheme}://{with_port(name, self.ports.page)}"

    # --- the head ----------------------------------------------------------------------------

    def _hub(self) -> Process:
        config = configs.HubHostConfig(
            link=self.link("hub"),
            run=self.manifest.name,
            directory=self.run.hub,
            schedule=self.manifest.schedule.rule(
                self.manifest.name, next(iter(self.manifest.tasks))
            ),
            lifetime_s=self.manifest.security.lifetime_s,
            listen=self.manifest.tunnel.listen,
            owners=self._owners,
            setups=self.run.setups,
            join_facts=self.join_facts,
        )
        ports = (self.ports.hub, self.ports.fresh)
        return self._ours("hub", "hub", config, HEAD, "registry, leases, weights", ports=ports)

    def _replay(self) -> Process:
        config = configs.ReplayHostConfig(
            link=self.link("replay"),
            run=self.manifest.name,
            directory=self.run.replay,
            size_bytes=self.manifest.replay.size_bytes,
            reserve_bytes=self.manifest.replay.reserve_bytes,
            codecs=self.manifest.replay.codecs,
            owners=self._owners,
            listen=self.manifest.tunnel.listen,
        )
        ports = (self.ports.replay,)
        return self._ours("replay", "replay", config, HEAD, "experience on disk", ports=ports)

    def _reader(self) -> Process:
        config = configs.ReaderHostConfig(
            link=self.link(READER),
            directory=self.run.replay,
            listen=self.manifest.tunnel.listen,
        )
        return self._ours(
            READER,
            "reader",
            config,
            HEAD,
            "draws for other hosts",
            ports=(self.ports.reader,),
            after=("hub", "replay"),
            # It works for learners, so it has their place behind the robots.
            nice=max(entry.nice for entry in self.manifest.learners.values()),
        )

    @property
    def _owners(self) -> dict[str, str]:
        return {name: robot.host for name, robot in self.manifest.robots.items()}

    @property
    def _draws_remotely(self) -> bool:
        return self.learning and self.manifest.draws_remotely

    def _ray(self) -> Process:
        entry = self.manifest.ray
        cpus = entry.cpus if entry.cpus is not None else float(len(self.cores))
        taken = sum(map(len, away.gpus(self.manifest, self.gpus).values()))
        argv = resources.head_argv(
            self.ports.ray,
            self.ports.ray_client,
            cpus,
            self.gpus - taken,
            entry.object_store_bytes,
            self.run.short / "ray",
        )
        ports = (self.ports.ray, self.ports.ray_client)
        return self._ray_process("ray", argv, HEAD, "places learners", ports=ports, cpus=cpus)

    def _policy(self, actor: str, entry: ActorEntry) -> Process:
        name = f"{away.PEER}{actor}"
        config = away.config(self.manifest, actor, self.link(name), self.run)
        return self._ours(
            name,
            "policy",
            config,
            HEAD,
            f"policy {entry.learner}",
            robots=tuple(robot.name for robot in config.robots),
            cpus=entry.cpus,
            ports=(self.ports.policies[actor],),
            after=("hub",),
            nice=entry.nice,
            env=away.environment(self.manifest, actor, self.gpus),
        )

    def _teleop(self) -> Process:
        config = configs.TeleopHostConfig(
            link=self.link(PAGE),
            run=self.manifest.name,
            host=self.manifest.page_host,
            port=self.ports.page,
            accounts=self.run.accounts,
            names=self.manifest.page_names,
            tls=self.manifest.page_secure,
        )
        return self._ours(
            PAGE,
            "teleop",
            config,
            HEAD,
            "page",
            ports=(self.ports.page,),
            after=("hub",),
            stage=_PEOPLE,
        )

    def _learner(self, name: str, entry: LearnerEntry) -> Process:
        robots = {
            robot: r
            for robot, r in self.manifest.robots.items()
            if self.manifest.actors[r.actor].learner == name
        }
        shards = self._shards(dict.fromkeys(r.host for r in robots.values()))
        remote = entry.replay == "remote" or shards != ("",)
        config = configs.LearnerHostConfig(
            link=self.link("learner"),
            name=name,
            run=self.manifest.name,
            plugin=_plugin(entry),
            robot=_plugin(next(iter(robots.values()))),
            robots=tuple(robots),
            seed=entry.seed,
            cpus=entry.cpus,
            gpus=entry.gpus,
            threads=entry.threads,
            nice=entry.nice,
            publish_every_s=entry.publish_every_s,
            checkpoint_every_s=entry.checkpoint_every_s,
            max_restarts=entry.max_restarts,
            replay=self.run.replay,
            shards=shards,
            access=entry.replay,
            ahead=entry.ahead,
            ahead_bytes=entry.ahead_memory_bytes,
            views=dump(entry.views),
            encoders={camera: _plugin(e) for camera, e in entry.encoders.items()},
            cache_bytes=entry.cache_bytes,
            directory=self.run.learner(name),
            log=self.run.log(f"learner-{name}.actor"),
            ray=f"{resources.LOOPBACK}:{self.ports.ray}",
            weights_dtype=entry.weights.dtype,
            shelf=self.run.weights,
        )
        return self._ours(
            f"learner-{name}",
            "learner",
            config,
            HEAD,
            f"learner {entry.kind}" + (", remote draws" if remote else ""),
            robots=config.robots,
            cpus=entry.cpus,
            after=("hub", READER if remote else "replay", "ray"),
            stage=_PEOPLE,
            env=self.ray_env,
            cores=self.places.learners,
        )

    def _shards(self, hosts: Collection[str]) -> tuple[str, ...]:
        """Return the stores in which the experience of some hosts is, the head's first."""
        own = [host for host in hosts if host in self.manifest.shards]
        return (*([""] if len(own) < len(hosts) else []), *own)

    # --- a robot host --------------------------------------------------------------------------

    def _resource_node(self, host: str) -> Process:
        argv = resources.node_argv(
            f"{resources.LOOPBACK}:{self.ports.ray}",
            self.manifest.robots_of(host),
            self.manifest.ray.object_store_bytes,
            self.run.short / f"ray-{host}",
        )
        return self._ray_process(
            f"resources-{host}",
            argv,
            HEAD,
            f"robots of {host} as Ray resources",
            after=("ray",),
            robots=tuple(self.manifest.robots_of(host)),
        )

    def _worlds(self, host: str) -> list[Process]:
        return [
            self._world(host, name, robot)
            for name, robot in self.manifest.robots_of(host).items()
            if _simulated(robot)
        ]

    def _world(self, host: str, name: str, robot: RobotEntry) -> Process:
        config = configs.WorldHostConfig(
            socket=self._world_socket(name),
            space=robot.config.space,
            rate=robot.rate,
            image_size=robot.config.image_size,
            cube_half=getattr(self.manifest.tasks[robot.task].config, "cube_half", CUBE_HALF),
        )
        return self._ours(
            f"world-{name}",
            "world",
            config,
            host,
            "physics and control box",
            robots=(name,),
            stage=_WORLDS,
        )

    def _edge(self, host: str) -> Process:
        robots = self.manifest.robots_of(host)
        children = [self._driver(host, name, robot) for name, robot in robots.items()]
        actors = dict.fromkeys(robot.actor for robot in robots.values())
        children += [self._worker(host, actor, robots) for actor in actors]
        config = configs.EdgeHostConfig(
            link=self.link(host),
            host=host,
            run=self.manifest.name,
            directory=self.run.edge(host),
            spool_bytes=self.manifest.replay.spool_bytes,
            robots=tuple(self._edge_robot(host, name, robot) for name, robot in robots.items()),
            children=tuple(self._edge_child(child) for child in children),
            shard=self._shard_of(host) if host in self.manifest.shards else None,
            lossy=tuple(n for n, codec in self.manifest.replay.codecs.items() if codec == "jpeg"),
            shelf=None if self.manifest.is_remote(host) else self.run.weights,
        )
        # No robot moves before everything serves that watches over it and learns from it.
        learners = [f"learner-{name}" for name in self.manifest.learners if self.learning]
        policies = [f"{away.PEER}{actor}" for actor in actors if actor in self.manifest.away]
        head = () if self.far else ("hub", "replay", "teleop", *learners, *policies)
        worlds = [process.spec.name for process in self._worlds(host)]
        worlds += [f"shard-{host}"] if host in self.manifest.shards else []
        return self._ours(
            f"edge-{host}",
            "edge",
            config,
            host,
            "agent",
            robots=tuple(robots),
            after=(*head, *worlds),
            stage=_ROBOTS,
            children=tuple(children),
        )

    def _shard(self, host: str) -> Process:
        entry = self.manifest.replay
        config = configs.ShardHostConfig(
            link=self.link(host),
            shard=self._shard_of(host),
            directory=self.run.shard(host),
            size_bytes=entry.size_bytes,
            reserve_bytes=entry.reserve_bytes,
            codecs=entry.codecs,
        )
        what = "experience on the host's disk"
        return self._ours(f"shard-{host}", "shard", config, host, what)

    def _offer(self, host: str) -> Process:
        config = configs.OfferHostConfig(link=self.link(host), directory=self.run.shard(host))
        return self._ours(
            f"offer-{host}",
            "offer",
            config,
            host,
            "draws for learners",
            after=(f"shard-{host}",),
            # It works for learners, so it has their place behind the robots.
            nice=max(entry.nice for entry in self.manifest.learners.values()),
        )

    def _shard_of(self, host: str) -> configs.ShardConfig:
        return configs.ShardConfig(
            host=host,
            socket=self.run.sockets / f"r-{host}",
            pki=self.run.edge(host) / "pki",
        )

    def _edge_robot(self, host: str, name: str, robot: RobotEntry) -> configs.EdgeRobot:
        actor = self.manifest.actors[robot.actor]
        weights = self.manifest.learners[actor.learner].weights
        return configs.EdgeRobot(
            name=name,
            task=robot.task,
            policy=actor.learner,
            max_weights_age_s=weights.max_age_s if weights.on_stale == "hold" else None,
            rate=robot.rate,
            worker=_worker_name(host, robot.actor),
            driver=self._driver_socket(name),
            seat=self._seat_socket(name),
            remote=actor.where == "head",
            help_after_s=actor.help_after_s,
        )

    def _edge_child(self, child: Process) -> configs.EdgeChild:
        return configs.EdgeChild(
            name=child.spec.name,
            module=child.spec.argv[2],
            config=Path(child.spec.argv[3]),
            log=self.run.log(child.spec.name),
            socket=getattr(child.config, "socket", None),
            nice=child.spec.nice,
        )

    def _driver(self, host: str, name: str, robot: RobotEntry) -> Process:
        config = configs.DriverHostConfig(
            robot=name,
            socket=self._driver_socket(name),
            memory=self.run.edge(host) / f"driver-{name}.json",
            plugin=_plugin(robot),
            previews=robot.previews,
            world=self._world_socket(name) if _simulated(robot) else None,
        )
        return self._ours(
            f"driver-{name}", "driver", config, host, f"driver {robot.kind}", robots=(name,)
        )

    def _worker(self, host: str, actor: str, robots: Mapping[str, RobotEntry]) -> Process:
        entry = self.manifest.actors[actor]
        seats = tuple(
            configs.SeatEntry(
                robot=name,
                socket=self._seat_socket(name),
                plugin=_plugin(robot),
                task=_plugin(self.manifest.tasks[robot.task]),
            )
            for name, robot in robots.items()
            if robot.actor == actor
        )
        learner = self.manifest.learners[entry.learner]
        way = away.way(actor, entry, self.link(host))
        config = configs.WorkerHostConfig(
            policy=entry.learner, learner=_plugin(learner), seats=seats, away=way
        )
        return self._ours(
            _worker_name(host, actor),
            "worker",
            config,
            host,
            f"policy {entry.learner}" + (", at the head" if way else ""),
            robots=tuple(seat.robot for seat in seats),
            nice=entry.nice,
        )

    # --- people --------------------------------------------------------------------------------

    def _operator(self, name: str, entry: OperatorEntry) -> Process:
        robots = entry.robots or tuple(self.manifest.robots)
        host = self.manifest.page_host
        task = self.manifest.tasks[self.manifest.robots[robots[0]].task]
        config = configs.OperatorHostConfig(
            name=name,
            url=self._page_at("localhost" if is_wildcard(host) else host),
            secret=self.secrets.get(name, ""),
            robots=robots,
            task=task.kind,
            help=entry.help,
            release_after_s=entry.release_after_s,
            authority=self.run.pki / "ca.crt" if self.manifest.page_secure else None,
        )
        return self._ours(
            f"operator-{name}",
            "operator",
            config,
            HEAD,
            "scripted operator",
            robots=robots,
            after=("teleop",),
            stage=_PEOPLE,
        )

    # --- inside --------------------------------------------------------------------------------

    def _ours(
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
        stage: int = _LAST,
        nice: int = 0,
        env: Mapping[str, str] | None = None,
        cores: tuple[int, ...] | None = None,
        children: tuple[Process, ...] = (),
    ) -> Process:
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

    def _ray_process(
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
        spec = ProcessSpec(
            name,
            tuple(argv),
            after=after,
            stage=_LAST,
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

    def _world_socket(self, robot: str) -> Path:
        return self.run.sockets / f"w-{robot}"

    def _driver_socket(self, robot: str) -> Path:
        return self.run.sockets / f"d-{robot}"

    def _seat_socket(self, robot: str) -> Path:
        return self.run.sockets / f"p-{robot}"


def _simulated(robot: RobotEntry) -> bool:
    """Whether a robot has a world of its own."""
    return robot.kind.startswith("sim.")


def _plugin(entry: Any) -> PluginConfig:
    return PluginConfig(entry.kind, dump(entry.config))


def _worker_name(host: str, actor: str) -> str:
    return f"worker-{host}-{actor}"
