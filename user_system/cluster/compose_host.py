"""What runs on one robot host: its worlds, its store if it keeps one, its agent and children."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from user_system.cluster import away, configs
from user_system.cluster.layout import RunDir
from user_system.cluster.manifest import Manifest, RobotEntry
from user_system.cluster.plan import Process
from user_system.cluster.wiring import ROBOTS, WORLDS, Wiring, plugin

CUBE_HALF = 0.02
"""Half an edge of the cube where the task does not say, m."""


@dataclass(frozen=True)
class RobotHost:
    """Derives the processes of one robot host, this machine or another one."""

    wiring: Wiring
    host: str

    def processes(self) -> list[Process]:
        """Return them in the order of starting."""
        shard = [self._shard()] if self.host in self._manifest.shards else []
        shard += [self._offer()] if shard and self.wiring.learning else []
        return [*self._worlds(), *shard, self._edge()]

    @property
    def _manifest(self) -> Manifest:
        return self.wiring.manifest

    @property
    def _run(self) -> RunDir:
        return self.wiring.run

    @property
    def _apart(self) -> Path | None:
        """Where a host keeps what it records, if not where it always does.

        What an evaluation records on another machine must not reach the run's store, nor what the
        run left there the evaluation's. On this machine an evaluation has a directory of its own.
        """
        judged = self.wiring.far and not self.wiring.learning
        return self._run.judged(self.host) if judged else None

    @property
    def _shard_place(self) -> Path:
        return self._run.shard(self.host) if self._apart is None else self._apart / "replay"

    def _worlds(self) -> list[Process]:
        return [
            self._world(name, robot)
            for name, robot in self._manifest.robots_of(self.host).items()
            if _simulated(robot)
        ]

    def _world(self, name: str, robot: RobotEntry) -> Process:
        config = configs.WorldHostConfig(
            socket=self.wiring.world_socket(name),
            space=robot.config.space,
            rate=robot.rate,
            image_size=robot.config.image_size,
            cube_half=getattr(self._manifest.tasks[robot.task].config, "cube_half", CUBE_HALF),
        )
        return self.wiring.ours(
            f"world-{name}",
            "world",
            config,
            self.host,
            "physics and control box",
            robots=(name,),
            stage=WORLDS,
        )

    def _edge(self) -> Process:
        robots = self._manifest.robots_of(self.host)
        children = [self._driver(name, robot) for name, robot in robots.items()]
        actors = dict.fromkeys(robot.actor for robot in robots.values())
        children += [self._worker(actor, robots) for actor in actors]
        config = configs.EdgeHostConfig(
            link=self.wiring.link(self.host),
            host=self.host,
            run=self._manifest.name,
            directory=self._run.edge(self.host),
            spool_bytes=self._manifest.replay.spool_bytes,
            robots=tuple(self._edge_robot(name, robot) for name, robot in robots.items()),
            children=tuple(self._edge_child(child) for child in children),
            shard=self._shard_of() if self.host in self._manifest.shards else None,
            lossy=tuple(n for n, codec in self._manifest.replay.codecs.items() if codec == "jpeg"),
            apart=self._apart,
            shelf=None if self._manifest.is_remote(self.host) else self._run.weights,
        )
        # No robot moves before everything serves that watches over it and learns from it.
        learners = [f"learner-{name}" for name in self._manifest.learners if self.wiring.learning]
        policies = [f"{away.PEER}{actor}" for actor in actors if actor in self._manifest.away]
        head = () if self.wiring.far else ("hub", "replay", "teleop", *learners, *policies)
        worlds = [process.spec.name for process in self._worlds()]
        worlds += [f"shard-{self.host}"] if self.host in self._manifest.shards else []
        return self.wiring.ours(
            f"edge-{self.host}",
            "edge",
            config,
            self.host,
            "agent",
            robots=tuple(robots),
            after=(*head, *worlds),
            stage=ROBOTS,
            children=tuple(children),
        )

    def _shard(self) -> Process:
        entry = self._manifest.replay
        config = configs.ShardHostConfig(
            link=self.wiring.link(self.host),
            shard=self._shard_of(),
            directory=self._shard_place,
            size_bytes=entry.size_bytes,
            reserve_bytes=entry.reserve_bytes,
            codecs=entry.codecs,
        )
        what = "experience on the host's disk"
        return self.wiring.ours(f"shard-{self.host}", "shard", config, self.host, what)

    def _offer(self) -> Process:
        config = configs.OfferHostConfig(
            link=self.wiring.link(self.host), directory=self._shard_place
        )
        return self.wiring.ours(
            f"offer-{self.host}",
            "offer",
            config,
            self.host,
            "draws for learners",
            after=(f"shard-{self.host}",),
            # It works for learners, so it has their place behind the robots.
            nice=max(entry.nice for entry in self._manifest.learners.values()),
        )

    def _shard_of(self) -> configs.ShardConfig:
        return configs.ShardConfig(
            host=self.host,
            socket=self._run.sockets / f"r-{self.host}",
            pki=self._run.edge(self.host) / "pki",
        )

    def _edge_robot(self, name: str, robot: RobotEntry) -> configs.EdgeRobot:
        actor = self._manifest.actors[robot.actor]
        weights = self._manifest.learners[actor.learner].weights
        return configs.EdgeRobot(
            name=name,
            task=robot.task,
            policy=actor.learner,
            max_weights_age_s=weights.max_age_s if weights.on_stale == "hold" else None,
            rate=robot.rate,
            worker=_worker_name(self.host, robot.actor),
            driver=self.wiring.driver_socket(name),
            seat=self.wiring.seat_socket(name),
            remote=actor.where == "head",
            help_after_s=actor.help_after_s,
        )

    def _edge_child(self, child: Process) -> configs.EdgeChild:
        return configs.EdgeChild(
            name=child.spec.name,
            module=child.spec.argv[2],
            config=Path(child.spec.argv[3]),
            log=self._run.log(child.spec.name),
            socket=getattr(child.config, "socket", None),
            nice=child.spec.nice,
        )

    def _driver(self, name: str, robot: RobotEntry) -> Process:
        config = configs.DriverHostConfig(
            robot=name,
            socket=self.wiring.driver_socket(name),
            memory=self._run.edge(self.host) / f"driver-{name}.json",
            plugin=plugin(robot),
            previews=robot.previews,
            world=self.wiring.world_socket(name) if _simulated(robot) else None,
        )
        return self.wiring.ours(
            f"driver-{name}", "driver", config, self.host, f"driver {robot.kind}", robots=(name,)
        )

    def _worker(self, actor: str, robots: Mapping[str, RobotEntry]) -> Process:
        entry = self._manifest.actors[actor]
        seats = tuple(
            configs.SeatEntry(
                robot=name,
                socket=self.wiring.seat_socket(name),
                plugin=plugin(robot),
                task=plugin(self._manifest.tasks[robot.task]),
            )
            for name, robot in robots.items()
            if robot.actor == actor
        )
        learner = self._manifest.learners[entry.learner]
        way = away.way(actor, entry, self.wiring.link(self.host))
        config = configs.WorkerHostConfig(
            policy=entry.learner, learner=plugin(learner), seats=seats, away=way
        )
        return self.wiring.ours(
            _worker_name(self.host, actor),
            "worker",
            config,
            self.host,
            f"policy {entry.learner}" + (", at the head" if way else ""),
            robots=tuple(seat.robot for seat in seats),
            nice=entry.nice,
        )


def _simulated(robot: RobotEntry) -> bool:
    """Whether a robot has a world of its own."""
    return robot.kind.startswith("sim.")


def _worker_name(host: str, actor: str) -> str:
    return f"worker-{host}-{actor}"
