"""The hub: what every process may ask it, and what it tells the robot hosts.

It decides nothing by itself that must be remembered: tokens live in ``leases``, the run in
``schedule``, versions in ``weight_store``, deeds in ``audit``, each durable before it leaves. What
is here may die at any moment and is learned anew from the hosts, which dial again.
"""

import logging
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import user_system
from comms.credentials import Peer, Role
from comms.pb import fresh_pb2, hub_pb2
from user_system.core.clock import Clock
from user_system.core.deeds import OF_THE_PAGE, Deed
from user_system.core.errors import LinkError, SecurityError, StoreError
from user_system.core.modes import Event
from user_system.core.schedule import ScheduleConfig
from user_system.core.throttle import Throttle
from user_system.core.versions import PROTOCOL
from user_system.hub import status
from user_system.hub.audit import Audit
from user_system.hub.commands import Wishes
from user_system.hub.hosts import HostLink, Hosts
from user_system.hub.leases import Holding, Leases
from user_system.hub.registry import Registry
from user_system.hub.schedule import Book
from user_system.hub.setups import Setups
from user_system.hub.weight_store import Current, WeightStore, WeightStoreConfig

log = logging.getLogger(__name__)

_CLAIMERS = frozenset({Role.OPERATOR, Role.ENGINEER, Role.SERVICE})
LEARNER = "learner"
"""Kind of the process that says how far learning is behind."""
_FORCERS = frozenset({Role.ENGINEER, Role.SERVICE})
"""The page is a service; it checks the roles of the people who use it itself."""


@dataclass(frozen=True)
class HubConfig:
    """What a hub needs to know."""

    run: str
    ttl_s: float = 2.0
    """Life of a person's lease without renewal, in wall s."""
    repeat_s: float = 0.5
    """Time without an answer after which a request is sent again, in wall s."""
    lost_after_s: float = 20.0
    """Time offline after which a robot's episode is given to others, in wall s."""
    owners: Mapping[str, str] | None = None
    """Robot -> the only host that may speak for it; None: whoever comes first."""
    publishers: Mapping[str, str] | None = None
    """Policy -> the only learner that may publish it; None: any learner may publish any."""
    token_floor: int = 0
    """No fencing token is below it; see ``Leases``."""
    setups: Path | None = None
    """Directory with what remote hosts are to run."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    weights: WeightStoreConfig = field(default_factory=WeightStoreConfig)


class Hub:
    """Implements ``comms.hub_service.HubHandler``; ``weights`` implements ``core.ports.Shelf``.

    Thread-safe. ``open`` before use; ``tick`` ten times a second. Example::

        hub = Hub(directory, HubConfig(run="demo"), WallClock(), stop=fresh.send, announce=...)
        hub.open()
        weights = WeightService(hub.weights, hub.roll_back, hub.check_publisher)
        server = serve([HubService(hub), weights], ...)

    Args:
        directory: holds everything that must survive.
        config: see ``HubConfig``.
        clock: wall clock.
        stop: sends an emergency stop on the fresh lane.
        announce: tells the robots of a version, on the fresh lane.
    """

    def __init__(
        self,
        directory: Path,
        config: HubConfig,
        clock: Clock,
        *,
        stop: Callable[[fresh_pb2.Stop], None] = lambda stop: None,
        announce: Callable[[Current], None] = lambda current: None,
    ):
        self._config, self._clock = config, clock
        self._stop, self._announce = stop, announce
        self.registry = Registry(clock, config.owners)
        self.audit = Audit(directory / "audit.jsonl", time.time_ns)
        self.leases = Leases(
            directory / "tokens.json",
            clock,
            ttl_s=config.ttl_s,
            floor=config.token_floor,
            changed=self._holder_changed,
        )
        self.book = Book(directory, config.schedule, clock)
        self.weights = WeightStore(
            directory / "weights",
            clock,
            config.weights,
            published=self._published,
            pinned=lambda policy: self.book.pinned,
        )
        self.board = status.Board(clock)
        self.setups = Setups(config.setups, clock)
        self.hosts = Hosts(
            self.registry, self.leases, self.book, self.weights, clock, self.board.progress
        )
        self.wishes = Wishes(self.hosts.request, repeat_s=config.repeat_s)
        self._deeds: deque[tuple[str, str, dict[str, str]]] = deque()
        self._chores: list[Callable[[], None]] = []
        self._more: list[Callable[[], dict[str, float]]] = []
        self._complaints, self._stops = Throttle(clock, 1.0, 1.0), Throttle(clock, 1.0, 1.0)
        self._refusals = Throttle(clock, 0.1, 10.0)

    def open(self) -> None:
        """Go on from what the directory holds.

        Raises:
            DamageError: a file is not what was written; the message says which and what to do.
        """
        self.audit.open()
        self.leases.open()
        self.book.open()
        self.weights.open()
        for current in self.weights.current():
            self._announce(current)

    def also(
        self, figures: Callable[[], dict[str, float]], chore: Callable[[], None] | None = None
    ) -> None:
        """Have ``figures`` shown in the status, and ``chore`` run at every tick."""
        self._more.append(figures)
        if chore is not None:
            self._chores.append(chore)

    def close(self) -> None:
        """Let go of the files."""
        self.audit.close()
        self.weights.close()

    def tick(self) -> None:
        """Expire leases, hand out work that became available, write down what cannot wait.

        A disk that refuses is named once a second; what needs no disk goes on.
        """
        chores = (self.leases.expire, self._hand_out_work, self._write_deeds, *self._chores)
        for part in chores:
            try:
                part()
            except StoreError as error:
                if self._complaints.take():
                    log.error("%s", error)

    def _hand_out_work(self) -> None:
        self.hosts.give_lost_work_away(self._config.lost_after_s)
        self.hosts.assign_waiting()

    def _write_deeds(self) -> None:
        while self._deeds:
            action, who, details = self._deeds[0]
            self.audit.write(action, who, **details)
            self._deeds.popleft()

    # --- HubHandler --------------------------------------------------------------------------

    def attach(
        self,
        peer: Peer,
        hello: hub_pb2.HostHello,
        send: Callable[[hub_pb2.HubEvent], None],
    ) -> HostLink:
        """Enter a host with its robots and grant each its token.

        Raises:
            LinkError: it follows the setup of another run, and has not heard of this one's yet.
        """
        if hello.run not in ("", self._config.run):
            raise LinkError(
                f"{peer.name} follows another run",
                got=repr(hello.run[:64]),
                allowed=repr(self._config.run),
            )
        robots = ", ".join(robot.name for robot in hello.robots)
        self._deeds.append((Deed.ATTACH, peer.name, {"boot": hello.boot, "robots": robots}))
        return self.hosts.attach(hello, send, self.wishes.answer)

    def claim(self, peer: Peer, request: hub_pb2.ClaimRequest) -> hub_pb2.Lease:
        """Give a robot to a person; see ``Leases.claim``."""
        self._check_claim(peer, request)
        record = self.registry.get(request.robot)
        if not record.online:
            age = record.last_seen_s(self._clock.now_ns())
            raise LinkError(
                f"{request.robot} is offline", got=f"last seen {age:.0f} s ago on {record.host}"
            )
        force = bool(request.force_reason)
        lease, displaced = self.leases.claim(
            request.robot, request.operator, realtime=request.realtime, force=force
        )
        try:
            self.audit.write(
                Deed.FORCE if displaced else Deed.CLAIM,
                request.operator,
                robot=request.robot,
                token=lease.token,
                through=peer.name,
                reason=request.force_reason,
                displaced=displaced,
            )
        except StoreError:
            self.leases.release(lease.robot, lease.holder, lease.token)
            raise
        return self._lease(lease)

    def renew(self, peer: Peer, request: hub_pb2.LeaseRef) -> hub_pb2.Lease:
        """Prolong a lease, here and at the robot."""
        del peer  # its name was checked against the operator's
        holding = self.leases.renew(request.robot, request.operator, request.token)
        self.hosts.grant(holding)
        return self._lease(holding)

    def yield_(self, peer: Peer, request: hub_pb2.LeaseRef) -> None:
        """End a lease; the robot's agent gets a fresh, higher token."""
        self.leases.release(request.robot, request.operator, request.token)
        self.audit.write(Deed.YIELD, request.operator, robot=request.robot, through=peer.name)

    def ask(self, peer: Peer, request: hub_pb2.Request, timeout_s: float) -> hub_pb2.Answer:
        """Ask a robot's session for a mode event and wait for what it says.

        An emergency stop needs no lease and goes out before anything else is done, on both lanes.
        """
        request.id = request.id or uuid.uuid4().hex
        if request.event == Event.ESTOP:
            self._stop(fresh_pb2.Stop(robot=request.robot, operator=request.operator))
            self._note_stop(request.robot, request.operator, peer.name, "grpc")
            return self.wishes.ask(request, timeout_s)
        if peer.role not in _CLAIMERS:
            raise SecurityError(
                f"{peer.name} may not ask for {request.event!r}", got=peer.role, allowed="estop"
            )
        self.leases.check(request.robot, request.operator, request.token)
        if request.event == Event.RELEASE:
            self.audit.write(Deed.RELEASE, request.operator, robot=request.robot, through=peer.name)
        return self.wishes.ask(request, timeout_s)

    def setup(self, peer: Peer, query: hub_pb2.SetupQuery) -> hub_pb2.SetupReply:
        """Return what a remote host is to run; nobody gets another's."""
        return self.setups.answer(peer.name, query)

    def probe(self, peer: Peer, query: hub_pb2.ProbeQuery) -> hub_pb2.ProbeReply:
        """Answer with as many bytes as are wanted, which no device on the way can shrink."""
        del peer  # who may connect may measure
        return hub_pb2.ProbeReply(
            payload=os.urandom(query.want),
            wall_s=time.time(),
            protocol=PROTOCOL,
            version=user_system.__version__,
        )

    def status(self, peer: Peer) -> hub_pb2.SystemStatus:
        """Return what the system looks like now."""
        del peer  # everybody who may connect may look
        newest = max((c.version for c in self.weights.current()), default=0)
        return hub_pb2.SystemStatus(
            run=self._config.run,
            phase=self.book.phase.value,
            policy_version=newest,
            audit_records=self.audit.count,
            audit_head=self.audit.head,
            robots=self.board.robots(self.registry.all(), self.leases),
            processes=self.board.processes(),
            figures=self._figures(),
            evaluations=status.evaluations(self.book.evaluations),
            curve=status.curve(self.book.curve()),
            hosts=self.setups.hosts(self.registry.all()),
        )

    def report(self, peer: Peer, report: hub_pb2.ProcessReport) -> hub_pb2.ReportReply:
        """Note how a process does; tell it where the run stands.

        Raises:
            SecurityError: a robot host or learner speaks of a process that is not its own.
        """
        if peer.role is Role.LEARNER and report.name != peer.name:
            raise SecurityError(
                "a learner reports itself only", got=report.name[:64], allowed=peer.name
            )
        if peer.role is Role.ROBOT and report.name != f"{report.kind}-{peer.name}":
            allowed = f"<kind>-{peer.name}"
            raise SecurityError(
                "a host reports its own processes", got=report.name, allowed=allowed
            )
        if peer.role is Role.ROBOT and report.kind == LEARNER:
            raise SecurityError("a robot host has no learner", got=report.name)
        self.board.reported(report)
        if report.kind == LEARNER:
            self.book.behind_steps = report.figures.get("behind_steps", 0.0)
        return hub_pb2.ReportReply(phase=self.book.phase.value, env_steps=self.book.env_steps)

    def check_publisher(self, peer: Peer, policy: str) -> None:
        """Make sure that a policy is a learner's to publish.

        Raises:
            SecurityError: it is another's, or nobody's in this run.
        """
        owners = self._config.publishers
        if owners is None or owners.get(policy) == peer.name:
            return
        self.refused(peer, f"to publish {policy[:64]!r}")
        raise SecurityError(
            f"{peer.name!r} may not publish weights of policy {policy[:64]!r}",
            got=peer.name,
            allowed=owners.get(policy, "nobody: the manifest names no learner for it"),
        )

    def roll_back(self, peer: Peer, policy: str, version: int) -> int:
        """Make the content of an older version current again, as a new one; return that.

        Raises:
            ConfigError: no such version is kept.
            StoreError: the disk refused; nothing was changed that is not in the audit.
        """
        self.weights.check_kept(policy, version)
        self.audit.write(Deed.ROLLBACK, peer.name, policy=policy, back_to=str(version))
        return self.weights.rollback(policy, version)

    # --- the audit log -------------------------------------------------------------------------

    def noted(self, peer: Peer, action: str, who: str, details: Mapping[str, str]) -> str:
        """Write down what people did on the page; return the hash of the record.

        Raises:
            SecurityError: something that the hub sees for itself.
            StoreError: the disk refused it.
        """
        if action not in OF_THE_PAGE:
            raise SecurityError(
                f"{peer.name!r} may not note {action!r}", allowed=", ".join(sorted(OF_THE_PAGE))
            )
        return self.audit.write(Deed(action), who, **{"through": peer.name, **details})

    def refused(self, peer: Peer, what: str) -> None:
        """Have a refusal audited by the next tick: ten at once of a caller, then one in ten s."""
        if self._refusals.take(peer.name):
            self._deeds.append((Deed.REFUSED, peer.name, {"role": peer.role.value, "what": what}))

    # --- the fresh lane ------------------------------------------------------------------------

    def heard(self, peer: Peer, message: object) -> None:
        """Note what passes the fresh lane; ``on_message`` of ``FreshHub``. Quick, no disk."""
        if isinstance(message, fresh_pb2.RobotState):
            self.registry.seen(message.robot)
            self.board.mirrored(message)
        elif isinstance(message, fresh_pb2.Stop):
            self._note_stop(message.robot, message.operator, peer.name, "fresh")

    def owner(self, robot: str) -> str | None:
        """Return the host that speaks for ``robot`` (``FreshHub``'s ``owner``); None: unknown."""
        try:
            return self.registry.get(robot).host
        except LinkError:
            return None

    def stats(self) -> dict[str, float]:
        """Return the counters of all parts."""
        return {
            **self.registry.stats(),
            **{f"leases_{name}": value for name, value in self.leases.stats().items()},
            **{f"weights_{name}": value for name, value in self.weights.stats().items()},
            **self.wishes.stats(),
            **self.audit.stats(),
            **self.book.stats(),
        }

    # --- inside ----------------------------------------------------------------------------------

    def _note_stop(self, robot: str, operator: str, through: str, lane: str) -> None:
        """Have a stop audited by the next tick: neither a slow disk nor a flood may hold one up."""
        if self._stops.take(f"{robot}/{operator}/{lane}"):
            details = {"robot": robot, "through": through, "lane": lane}
            self._deeds.append((Deed.ESTOP, operator, details))

    def _check_claim(self, peer: Peer, request: hub_pb2.ClaimRequest) -> None:
        allowed = _FORCERS if request.force_reason else _CLAIMERS
        if peer.role not in allowed:
            raise SecurityError(
                f"{peer.name} may not {'force a ' if request.force_reason else ''}claim",
                got=f"role {peer.role}",
                allowed=", ".join(sorted(allowed)),
            )

    def _lease(self, holding: Holding) -> hub_pb2.Lease:
        return hub_pb2.Lease(
            robot=holding.robot,
            operator=holding.holder,
            token=holding.token,
            ttl_ms=holding.ttl_ms(self._clock.now_ns()),
            boot=self.registry.get(holding.robot).boot,
        )

    def _holder_changed(self, holding: Holding) -> None:
        self.hosts.grant(holding)

    def _published(self, current: Current) -> None:
        self._announce(current)
        who = (self._config.publishers or {}).get(current.policy, LEARNER)
        self._deeds.append(
            (Deed.WEIGHTS, who, {"policy": current.policy, "version": str(current.version)})
        )

    def _figures(self) -> dict[str, float]:
        more = {name: value for figures in self._more for name, value in figures().items()}
        return self.board.figures({**more, **self.book.stats()}, self._staleness_s())

    def _staleness_s(self) -> float:
        newest = self.weights.current()
        return max((current.age_s for current in newest), default=0.0)
