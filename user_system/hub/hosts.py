"""The robot hosts that are attached, and what is sent to each: grants, work, people's wishes.

Order per robot: a grant never follows one with a greater token, and a robot at rest gets its
assignment as soon as the schedule has one.
"""

import math
import threading
from collections.abc import Callable

from comms.pb import hub_pb2, types_pb2
from comms.wire_specs import spec_from_proto
from user_system.core.clock import SECOND, Clock
from user_system.core.errors import LinkError, SpecError
from user_system.core.schedule import EpisodeResult
from user_system.core.types import End, Purpose
from user_system.hub.leases import Holding, Leases
from user_system.hub.registry import Registry, RobotRecord
from user_system.hub.schedule import Book
from user_system.hub.weight_store import WeightStore

Send = Callable[[hub_pb2.HubEvent], None]

MAX_EVENT = 64 << 10
"""Bytes of an event after the hello; the largest real one has a few hundred."""
MAX_ENTRY = 128 << 10
"""Bytes of what a host says of one robot: everybody's status repeats it twice a second."""
MAX_STEPS = 10_000_000
"""Steps of one episode."""


class Hosts:
    """Links to the attached hosts. Thread-safe.

    Args:
        registry: of robots.
        leases: who commands them.
        book: the run's schedule.
        weights: the versions there are.
        clock: wall clock.
        progress: returns (episode, steps) as a robot last said.
    """

    def __init__(
        self,
        registry: Registry,
        leases: Leases,
        book: Book,
        weights: WeightStore,
        clock: Clock,
        progress: Callable[[str], tuple[str, int]] = lambda _robot: ("", 0),
    ):
        self._registry, self._leases, self._book = registry, leases, book
        self._weights, self._clock, self._progress = weights, clock, progress
        self._lock = threading.Lock()
        self._sends: dict[str, Send] = {}
        self._granted: dict[str, int] = {}
        self._waiting: set[str] = set()
        self._opened_ns = clock.now_ns()

    def attach(
        self,
        hello: hub_pb2.HostHello,
        send: Send,
        answered: Callable[[hub_pb2.Answer], None],
    ) -> "HostLink":
        """Enter a host; its robots get their grants before this returns.

        Raises:
            ConfigError: a robot's name is used by another host.
            SecurityError: a robot is another host's, or there are too many.
            SpecError: a robot's specification is none.
        """
        robots = []
        self._registry.check(hello.host, [entry.name for entry in hello.robots])
        for entry in hello.robots:
            if (size := entry.ByteSize()) > MAX_ENTRY:
                raise SpecError(f"{entry.name} says too much", got=size, allowed=MAX_ENTRY)
            spec_from_proto(entry.spec)  # a trust boundary: what is kept from here on is sound
            robots.append(RobotRecord(entry.name, entry.spec, entry.task, entry.policy))
        session = self._registry.attach(hello.host, hello.boot, robots)
        names = [robot.name for robot in robots]
        with self._lock:
            for name in names:
                self._sends[name] = send
                self._granted.pop(name, None)
                self._waiting.discard(name)
        for name in names:
            reborn = self._book.born(name, hello.boot, self._progress(name))
            self.grant(self._leases.fence(name) if reborn else self._leases.current(name))
        return HostLink(self, hello.host, session, names, answered)

    def detach(self, host: str, session: int, names: list[str]) -> None:
        """Note that a host's stream ended."""
        if self._registry.detach(host, session):
            with self._lock:
                for name in names:
                    self._sends.pop(name, None)
                    self._waiting.discard(name)

    def grant(self, holding: Holding) -> None:
        """Tell a robot's agent who commands it now; a holding that is out of date is not sent."""
        event = hub_pb2.HubEvent(
            grant=hub_pb2.Grant(
                robot=holding.robot,
                token=holding.token,
                holder=holding.holder,
                ttl_ms=holding.ttl_ms(self._clock.now_ns()),
                realtime=holding.realtime,
            )
        )
        with self._lock:  # sending never blocks, and the order of grants must hold
            send = self._sends.get(holding.robot)
            if send is None or holding.token < self._granted.get(holding.robot, 0):
                return
            self._granted[holding.robot] = holding.token
            self._try(send, event)

    def request(self, request: hub_pb2.Request) -> None:
        """Send a person's wish.

        Raises:
            LinkError: the robot's host is away.
        """
        with self._lock:
            send = self._sends.get(request.robot)
        if send is None:
            raise LinkError(f"the host of {request.robot} is away")
        send(hub_pb2.HubEvent(request=request))

    def want(self, robot: str) -> None:
        """Note that ``robot`` is at rest and free; give it work if there is some."""
        with self._lock:
            self._waiting.add(robot)
        self._assign(robot)

    def assign_waiting(self) -> None:
        """Give work to the robots that wait for it."""
        with self._lock:
            waiting = sorted(self._waiting)
        for robot in waiting:
            self._assign(robot)

    def reported(self, report: hub_pb2.EpisodeReport) -> None:
        """Note an episode and tell its host so; what was noted before is only confirmed again."""
        self._book.report(_result(report))
        with self._lock:
            send = self._sends.get(report.robot)
        if send is not None:
            noted = hub_pb2.EpisodeNoted(episode=report.episode)
            self._try(send, hub_pb2.HubEvent(noted=noted))
        self.assign_waiting()

    def give_lost_work_away(self, after_s: float) -> None:
        """Take back the work of robots that have been away for ``after_s`` seconds."""
        now = self._clock.now_ns()
        records = {record.name: record for record in self._registry.all()}
        for robot in self._book.busy:
            record = records.get(robot)
            seen_ns = self._opened_ns if record is None else record.last_seen_ns
            away = record is None or not record.online
            if away and now - seen_ns > after_s * SECOND:
                self._book.lost(robot)

    def seen(self, robot: str) -> None:
        """Note a sign of life."""
        self._registry.seen(robot)

    def _assign(self, robot: str) -> None:
        policy = self._registry.get(robot).policy
        assignment = self._book.next(robot, self._weights.newest(policy))
        with self._lock:
            send = self._sends.get(robot)
            if assignment is None or send is None or robot not in self._waiting:
                return
            self._waiting.discard(robot)
            event = hub_pb2.Assignment(
                robot=robot,
                purpose=types_pb2.Purpose.Name(int(assignment.purpose)),
                task=assignment.task,
                seed=assignment.seed,
                version=assignment.version,
                max_steps=assignment.max_steps,
                episode=assignment.episode,
            )
            self._try(send, hub_pb2.HubEvent(assignment=event))

    @staticmethod
    def _try(send: Send, event: hub_pb2.HubEvent) -> None:
        try:
            send(event)
        except LinkError:
            return  # the host dials again, is granted anew, and asks for its work again


class HostLink:
    """One attached host; implements ``comms.hub_service.HostLink``."""

    def __init__(
        self,
        hosts: Hosts,
        host: str,
        session: int,
        robots: list[str],
        answered: Callable[[hub_pb2.Answer], None],
    ):
        self._hosts, self._host, self._session = hosts, host, session
        self._robots, self._answered = robots, answered

    def receive(self, event: hub_pb2.HostEvent) -> None:
        """Take one event of the host.

        Raises:
            LinkError: it speaks for a robot that it did not announce.
            SpecError: it is larger than any event, or a report that is none.
        """
        kind = event.WhichOneof("event")
        if (size := event.ByteSize()) > MAX_EVENT:
            raise SpecError(f"event of {self._host} is too large", got=size, allowed=MAX_EVENT)
        if kind == "answer":
            self._check(event.answer.robot)
            self._answered(event.answer)
        elif kind == "want":
            self._check(event.want.robot)
            self._hosts.want(event.want.robot)
        elif kind == "episode":
            self._check(event.episode.robot)
            self._hosts.reported(event.episode)
        else:
            raise LinkError("an event that the hub does not know", got=kind)

    def closed(self) -> None:
        """Mark the host's robots offline, unless it has dialled again already."""
        self._hosts.detach(self._host, self._session, self._robots)

    def _check(self, robot: str) -> None:
        if robot not in self._robots:
            raise LinkError(
                f"host {self._host} speaks for a robot that is not its own",
                got=robot,
                allowed=", ".join(self._robots),
            )
        self._hosts.seen(robot)


def _result(report: hub_pb2.EpisodeReport) -> EpisodeResult:
    known = {int(end) for end in End}
    if report.end not in known or report.purpose not in {int(purpose) for purpose in Purpose}:
        raise SpecError(
            f"report of episode {report.episode} is none",
            got=f"end {report.end}, purpose {report.purpose}",
            allowed=f"ends {sorted(known)}",
        )
    steps = (report.steps, report.human_steps, *report.segments.values())
    if max(steps) > MAX_STEPS or not math.isfinite(report.reward):
        got = f"{max(steps)} steps, reward {report.reward}"
        raise SpecError(f"report of episode {report.episode} is none", got=got, allowed=MAX_STEPS)
    return EpisodeResult(
        robot=report.robot,
        episode=report.episode,
        purpose=Purpose(report.purpose),
        success=report.success if report.HasField("success") else None,
        end=End(report.end),
        steps=report.steps,
        segments=dict(report.segments),
        human_steps=report.human_steps,
        takeovers=report.takeovers,
        reward=report.reward,
        version=report.version,
        seed=report.seed,
    )
