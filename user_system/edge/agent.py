"""The agent: one per robot host. Starts drivers and workers, runs one loop per robot.

It holds no plugin code, no Ray and no web server: whatever goes wrong elsewhere, a person can still
take over and stop the robots from here. A robot whose driver cannot be reached stops no other; a
loop that fails is logged, and its robot begins anew in HOLD and waits for a person.
"""

import logging
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from user_system.core.clock import WallClock
from user_system.core.modes import Event
from user_system.core.priority import prefer
from user_system.core.specs import RobotSpec
from user_system.edge import keep, loop
from user_system.edge.adder import Adder, Producer, largest_fragment
from user_system.edge.arbiter import Arbiter, ArbiterConfig
from user_system.edge.driver_link import DriverLink
from user_system.edge.inbox import Heard
from user_system.edge.leases import Leases
from user_system.edge.messages import OperatorCommand, Request, Trouble
from user_system.edge.outside import Outside
from user_system.edge.patience import SessionConfig, StationConfig
from user_system.edge.recorder import Recorder
from user_system.edge.rings import Duplex
from user_system.edge.session import Session
from user_system.edge.spool import Spool
from user_system.edge.station import Station
from user_system.edge.supervisor import ChildConfig, Supervisor
from user_system.edge.uplink import Entry, Post
from user_system.edge.worker_client import WorkerClient

log = logging.getLogger(__name__)

_EARLY = 1024
"""What may wait for a robot's loop to begin: the newest."""


class Head(Outside, Protocol):
    """The way to the head; ``uplink.Uplink`` is one."""

    def start(self, post: Post) -> None:
        """Go into service."""

    def enlist(self, entries: Sequence[Entry]) -> None:
        """Tell the hub about these robots beside those it knows."""

    def close(self) -> None:
        """Leave service."""

    def stats(self) -> Mapping[str, float]:
        """Return counters and gauges."""


@dataclass(frozen=True)
class RobotConfig:
    """One robot of this host."""

    name: str
    driver: Path
    """Socket of its driver."""
    seat: Path
    """Socket of its seat in the policy worker."""
    worker: str
    """Name of that worker among the children."""
    task: str
    policy: str
    """Id of its policy, as the weight store knows it."""
    session: SessionConfig = field(default_factory=SessionConfig)
    arbiter: ArbiterConfig = field(default_factory=ArbiterConfig)
    station: StationConfig = field(default_factory=StationConfig)


@dataclass(frozen=True)
class AgentConfig:
    """One robot host."""

    host: str
    run: str
    directory: Path
    """The spool's journals, one file per robot."""
    robots: tuple[RobotConfig, ...]
    children: tuple[ChildConfig, ...] = ()
    """Drivers and workers that it keeps running."""
    boot: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    """Id of this life of the agent."""
    priority: int = 10
    """SCHED_FIFO priority of the robots' loops where the machine permits it; 0: never ask."""
    meet_s: float = 15.0
    """Time to wait for all drivers before the hub hears of those that are there."""
    memory: Path | None = None
    """Tokens and whom robots wait for, one file per robot; None: beside the journals."""


class Agent:
    """Runs a robot host until closed.

    Args:
        config: robots and children.
        spool: not yet started; its queue opened.
        head: the way to the head, not yet started.
    """

    def __init__(self, config: AgentConfig, spool: Spool, head: Head):
        self.config, self.spool, self.head = config, spool, head
        self.supervisor = Supervisor([self._findable(c) for c in config.children], self._died)
        self.stations: dict[str, Station] = {}
        self._robots = {robot.name: robot for robot in config.robots}
        self._killed: dict[str, int] = {}
        self._early: dict[str, deque[Heard]] = {}
        self._specs: dict[str, RobotSpec] = {}
        self._lock = threading.Lock()
        self._met = threading.Condition()
        self._open = threading.Event()
        self._finishing = threading.Event()
        self._threads = [
            threading.Thread(target=self._host, args=(robot,), name=robot.name, daemon=True)
            for robot in config.robots
        ]

    def _findable(self, child: ChildConfig) -> ChildConfig:
        """Let a worker that outlived an earlier agent be found at one of its seats."""
        seats = [robot.seat for robot in self.config.robots if robot.worker == child.name]
        return replace(child, socket=seats[0]) if seats and child.socket is None else child

    def run(self) -> None:
        """Serve until ``close``; to be called from the main thread."""
        # Loops are short and many threads wait for the interpreter: 5 ms would be half a period.
        sys.setswitchinterval(0.0005)
        self._open.set()
        self.spool.start(self.config.directory)
        self.supervisor.start()
        self.head.start(self.post)
        for thread in self._threads:
            thread.start()
        enlisted: set[str] = set()
        until = time.monotonic() + self.config.meet_s
        while self._open.is_set():
            with self._met:
                known = dict(self._specs)
            if known.keys() - enlisted and (
                len(known) == len(self._robots) or time.monotonic() > until
            ):
                self._enlist({name: known[name] for name in known.keys() - enlisted})
                enlisted |= known.keys()
            self._end_hung_workers()
            if self._finishing.is_set() and self._finished():
                self.close()
            time.sleep(0.02)
        self._end()

    def _enlist(self, specs: Mapping[str, RobotSpec]) -> None:
        robots = [(self._robots[name], spec) for name, spec in sorted(specs.items())]
        self.head.enlist([Entry(r.name, spec, r.task, r.policy) for r, spec in robots])

    def _end_hung_workers(self) -> None:
        for name, station in list(self.stations.items()):
            worker = self._robots[name].worker
            pid = self.supervisor.pid(worker)
            # Once per life: the station takes a moment to notice that the link is gone.
            if station.hung and self._killed.get(worker) != pid:
                self._killed[worker] = pid
                self.supervisor.kill(worker)

    def post(self, robot: str, heard: Heard) -> None:
        """Hand something to a robot's loop, or keep it until that has begun; thread-safe.

        A command is for now: where there is no loop, there is nobody to steer.
        """
        with self._lock:
            station = self.stations.get(robot)
            if station is not None:
                station.post(heard)
            elif robot in self._robots and not isinstance(heard, OperatorCommand):
                self._early.setdefault(robot, deque(maxlen=_EARLY)).append(heard)

    def _died(self, child: str, last: str) -> None:
        for robot in self.config.robots:
            if robot.worker == child:
                self.post(robot.name, Trouble(f"the worker of {robot.policy!r} died: {last}"))

    def _host(self, robot: RobotConfig) -> None:
        """One robot's thread: meet its driver, then loop; after a failure begin anew, held."""
        driver = DriverLink(Duplex(robot.driver, "connect"))
        worker = WorkerClient(Duplex(robot.seat, "connect"))
        prefer(self.config.priority)
        failed = ""
        while self._open.is_set() and (spec := self._meet(driver, robot)) is not None:
            try:
                self._live(robot, self._station(robot, spec, driver, worker), failed)
            except Exception as error:
                log.exception("the loop of %s failed; it begins anew", robot.name)
                failed = f"The loop of {robot.name} failed: {type(error).__name__}: {error}"
                time.sleep(1.0)
        driver.close()
        worker.close()

    def _live(self, robot: RobotConfig, station: Station, failed: str) -> None:
        if failed:
            station.session.wait_for_person(failed)
        with self._lock:
            self.stations[robot.name] = station
            for heard in self._early.pop(robot.name, deque()):
                station.post(heard)
        try:
            loop.run(station)
        except Exception:
            station.abandon()
            raise
        finally:
            with self._lock:
                del self.stations[robot.name]
                station.let_go()

    def _meet(self, driver: DriverLink, robot: RobotConfig) -> RobotSpec | None:
        """Wait until the driver says what robot it drives."""
        while self._open.is_set():
            driver.poll()
            if driver.alive and driver.spec is not None:
                with self._met:
                    self._specs[robot.name] = driver.spec
                return driver.spec
            time.sleep(0.02)
        return None

    def _station(
        self, robot: RobotConfig, spec: RobotSpec, driver: DriverLink, worker: WorkerClient
    ) -> Station:
        wall = WallClock()
        memory = keep.Memory((self.config.memory or self.config.directory) / f"{robot.name}.json")
        facts = memory.open()
        leases = Leases(wall, facts, memory.note)
        producer = Producer(
            name=robot.name,
            epoch=self.spool.begin_epoch(robot.name, largest_fragment(spec)),
            boot=self.config.boot,
            run=self.config.run,
            spec=spec,
            policy=robot.policy,
        )
        return Station(
            session=Session(
                robot.name, robot.session, leases, wall, self.config.boot, facts, memory.note
            ),
            spec=spec,
            driver=driver,
            worker=worker,
            arbiter=Arbiter(spec, robot.arbiter),
            recorder=Recorder(Adder(producer, time.time_ns() - time.monotonic_ns()), self.spool),
            outside=self.head,
            policy=robot.policy,
            task=robot.task,
            config=robot.station,
        )

    def close(self) -> None:
        """Let ``run`` end; thread-safe, also from a signal handler."""
        self._open.clear()

    def stop(self, by: str) -> None:
        """Stop all robots at once, without the head; thread-safe."""
        for robot in self._robots:
            self.post(robot, Request(robot, Event.ESTOP.value, by))

    def finish(self) -> None:
        """Let ``run`` end once every robot is at rest or at the end of its episode; thread-safe."""
        self._finishing.set()

    def _finished(self) -> bool:
        """Have no robot begin anything more; True: all are at rest and know it."""
        stations = list(self.stations.values())
        told = all(station.session.finishing for station in stations)
        for station in stations:
            station.session.finishing = True
        return told and all(station.session.at_rest for station in stations)

    def _end(self) -> None:
        with self._lock:  # a loop that ends by itself lets go of what its station is woken by
            for station in self.stations.values():
                station.close()
        for thread in self._threads:
            thread.join(5.0)
        self.supervisor.close()
        self.spool.close()
        self.head.close()

    def stats(self) -> dict[str, float]:
        """Return counters and gauges of robots, spool, connections and children."""
        robots = {
            f"{name}_{key}": value
            for name, station in list(self.stations.items())
            for key, value in station.stats().items()
        }
        return {**robots, **self.spool.stats(), **self.head.stats(), **self.supervisor.stats()}
