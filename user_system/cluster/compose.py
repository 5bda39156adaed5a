"""From a manifest to processes: the picture of the system, read from top to bottom.

The head first, then each robot host, then who uses them. Nothing here starts or opens anything, so
``user-system plan`` prints exactly what ``user-system up`` would start.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from comms.ssh_keys import SSHD_CONFIG
from user_system.cluster import away, configs, resources
from user_system.cluster.compose_host import RobotHost
from user_system.cluster.edges import LEARNER
from user_system.cluster.enrol import PAGE, READER
from user_system.cluster.layout import RunDir
from user_system.cluster.manifest import ActorEntry, LearnerEntry, OperatorEntry
from user_system.cluster.parse import dump
from user_system.cluster.plan import Process
from user_system.cluster.wiring import HEAD, PEOPLE, Wiring, plugin
from user_system.core.addresses import is_wildcard


@dataclass(frozen=True)
class Composer(Wiring):
    """Derives processes; one instance per start."""

    def processes(self) -> list[Process]:
        """Return every process that the launcher starts, in the order of starting."""
        learners = self.manifest.learners if self.learning else {}
        parts = [self._ray()] if learners else []
        parts += [self._hub(), self._replay()]
        parts += [self._reader()] if self._draws_remotely else []
        parts += [self._policy(name, entry) for name, entry in self.manifest.away.items()]
        parts += [self._sshd()] if self.manifest.own_sshd else []
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
        return RobotHost(self, host).processes()

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
            # A learner's name is also that of the policy that it learns.
            publishers={name: f"{LEARNER}{name}" for name in self.manifest.learners},
            setups=self.run.setups,
            join_facts=self.join_facts,
        )
        ports = (self.ports.hub, self.ports.fresh)
        return self.ours("hub", "hub", config, HEAD, "registry, leases, weights", ports=ports)

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
        return self.ours("replay", "replay", config, HEAD, "experience on disk", ports=ports)

    def _reader(self) -> Process:
        config = configs.ReaderHostConfig(
            link=self.link(READER),
            directory=self.run.replay,
            listen=self.manifest.tunnel.listen,
        )
        return self.ours(
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

    def _sshd(self) -> Process:
        config = configs.SshdHostConfig(
            file=self.run.pki / SSHD_CONFIG, pid_file=self.run.sockets / "sshd.pid"
        )
        ports = (self.ports.sshd,)
        return self.ours("sshd", "sshd", config, HEAD, "lets robot hosts in", ports=ports)

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
        return self.ray_process("ray", argv, HEAD, "places learners", ports=ports, cpus=cpus)

    def _policy(self, actor: str, entry: ActorEntry) -> Process:
        name = f"{away.PEER}{actor}"
        config = away.config(self.manifest, actor, self.link(name), self.run)
        return self.ours(
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
        return self.ours(
            PAGE,
            "teleop",
            config,
            HEAD,
            "page",
            ports=(self.ports.page,),
            after=("hub",),
            stage=PEOPLE,
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
            link=self.link(f"{LEARNER}{name}"),
            name=name,
            run=self.manifest.name,
            plugin=plugin(entry),
            robot=plugin(next(iter(robots.values()))),
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
            encoders={camera: plugin(e) for camera, e in entry.encoders.items()},
            cache_bytes=entry.cache_bytes,
            directory=self.run.learner(name),
            log=self.run.log(f"learner-{name}.actor"),
            ray=f"{resources.LOOPBACK}:{self.ports.ray}",
            weights_dtype=entry.weights.dtype,
            shelf=self.run.weights,
        )
        return self.ours(
            f"{LEARNER}{name}",
            "learner",
            config,
            HEAD,
            f"learner {entry.kind}" + (", remote draws" if remote else ""),
            robots=config.robots,
            cpus=entry.cpus,
            after=("hub", READER if remote else "replay", "ray"),
            stage=PEOPLE,
            env=self.ray_env,
            cores=self.places.learners,
        )

    def _shards(self, hosts: Collection[str]) -> tuple[str, ...]:
        """Return the stores in which the experience of some hosts is, the head's first."""
        own = [host for host in hosts if host in self.manifest.shards]
        return (*([""] if len(own) < len(hosts) else []), *own)

    def _resource_node(self, host: str) -> Process:
        argv = resources.node_argv(
            f"{resources.LOOPBACK}:{self.ports.ray}",
            self.manifest.robots_of(host),
            self.manifest.ray.object_store_bytes,
            self.run.short / f"ray-{host}",
        )
        return self.ray_process(
            f"resources-{host}",
            argv,
            HEAD,
            f"robots of {host} as Ray resources",
            after=("ray",),
            robots=tuple(self.manifest.robots_of(host)),
        )

    # --- people --------------------------------------------------------------------------------

    def _operator(self, name: str, entry: OperatorEntry) -> Process:
        robots = entry.robots or tuple(self.manifest.robots)
        host = self.manifest.page_host
        task = self.manifest.tasks[self.manifest.robots[robots[0]].task]
        config = configs.OperatorHostConfig(
            name=name,
            url=self.page_at("localhost" if is_wildcard(host) else host),
            secret=self.secrets.get(name, ""),
            robots=robots,
            task=task.kind,
            help=entry.help,
            release_after_s=entry.release_after_s,
            authority=self.run.pki / "ca.crt" if self.manifest.page_secure else None,
        )
        return self.ours(
            f"operator-{name}",
            "operator",
            config,
            HEAD,
            "scripted operator",
            robots=robots,
            after=("teleop",),
            stage=PEOPLE,
        )
