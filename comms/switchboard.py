"""Who may say and hear what on the fresh lane, apart from any socket.

Each message is judged by the name and role behind the key that its connection was made with, never
by what the message claims:

- a command goes to the host of its robot, from an operator (in their own name), engineer or service
- a stop likewise, also from a viewer: anybody who is somebody may stop a robot; a stop for a host
  that is away waits for it
- states and previews go to the viewers that asked, and only from the robot's own host
- announcements come from the hub itself, to everybody

Nothing waits for a slow peer: each has a mailbox in which the newest message of a stream wins.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from comms.credentials import Peer, Role
from comms.mailbox import Mailbox, Message, Parcel
from comms.pb import fresh_pb2 as pb
from comms.security import PEOPLE
from user_system.core.errors import SecurityError

MAX_PEERS = 256
MAX_ROBOTS = 4096
GONE_S = 5.0
"""A peer that has not said hello for so long is forgotten."""

_ROBOT = frozenset({Role.ROBOT})
_WATCHERS = PEOPLE | {Role.VIEWER}


@dataclass
class Session:
    """One connection of a peer that has said hello."""

    identity: bytes
    peer: Peer
    hears: frozenset[str] = frozenset()
    sees: frozenset[str] = frozenset()
    seen: float = 0.0
    mailbox: Mailbox = field(default_factory=Mailbox)


@dataclass(frozen=True)
class _Version:
    """What is announced of one policy."""

    version: int
    hash: str
    age_s: float
    since: float
    """Monotonic time at which it had that age, s."""


class Switchboard:
    """Sessions of peers, and the way of each message into their mailboxes. For one thread.

    Args:
        owner: robot -> name of its host, None where unknown; without it the first host that
            names a robot keeps it.
        on_message: is told of each accepted state, command and stop.
    """

    def __init__(
        self,
        owner: Callable[[str], str | None] | None,
        on_message: Callable[[Peer, Message], None] | None,
    ):
        self._first_come: dict[str, str] = {}
        self._owner = owner
        self._on_message = on_message or (lambda peer, message: None)
        self._versions: dict[str, _Version] = {}
        self._hosts: dict[str, Session] = {}
        self._held: OrderedDict[str, pb.Stop] = OrderedDict()
        self._undeliverable = 0
        self.sessions: dict[bytes, Session] = {}

    def stats(self) -> dict[str, float]:
        """Return peers and robots there are, and what happened in the mailboxes."""
        waiting = [session.mailbox.stats() for session in list(self.sessions.values())]
        names = ("waiting", "replaced", "expired", "pushed_out")
        return {
            **{name: sum(one[name] for one in waiting) for name in names},
            "peers": float(len(self.sessions)),
            "robots": float(len(self._hosts)),
            "held_stops": float(len(self._held)),
            "undeliverable": float(self._undeliverable),
        }

    def receive(self, identity: bytes, peer: Peer, message: Parcel) -> None:
        """Act on a message as far as its sender may send it.

        Args:
            identity: of the connection it came by.
            peer: who is behind that.
            message: what it says.

        Raises:
            SecurityError: the sender may not say that.
        """
        session = self.sessions.get(identity)
        if session is not None and session.peer != peer:
            # Peers may choose the identity of their connection: this one is somebody else's by now.
            self.forget(session)
        match message:
            case pb.FreshHello():
                self._hello(identity, peer, message)
                return
            case pb.OperatorCommand():
                _require(peer, PEOPLE, "send commands")
                if peer.role is Role.OPERATOR and message.operator != peer.name:
                    raise SecurityError(
                        f"{peer.name!r} commands in another name", got=repr(message.operator)
                    )
                self._to_host(message.robot, message)
            case pb.Stop():
                _require(peer, _WATCHERS, "stop robots")
                self._to_host(message.robot, message)
            case pb.RobotState() | pb.Preview():
                _require(peer, _ROBOT, "send states")
                if not self._owns(peer, message.robot):
                    raise SecurityError(f"{peer.name!r} is not the host of {message.robot!r}")
                self._to_viewers(message)
            case pb.Announcement():
                raise SecurityError(f"{peer.name!r} may not announce; only the hub does")
        if not isinstance(message, pb.Preview):
            self._on_message(peer, message)

    def own(self, message: Message) -> None:
        """Act on a message of the hub itself: a command, a stop, an announcement."""
        match message:
            case pb.OperatorCommand() | pb.Stop():
                self._to_host(message.robot, message)
            case pb.Announcement():
                age = message.age_s
                self._versions[message.policy] = _Version(
                    message.version, message.hash, age, time.monotonic()
                )
                for session in self.sessions.values():
                    self._tell(session)

    def tick(self) -> None:
        """Once a second: forget who is gone, repeat what is announced."""
        now = time.monotonic()
        for session in list(self.sessions.values()):
            if now - session.seen > GONE_S:
                self.forget(session)
            else:
                self._tell(session)

    def forget(self, session: Session) -> None:
        """Forget a connection; stops that it did not take wait for the next one of its robots."""
        self.sessions.pop(session.identity, None)
        for robot in [r for r, host in self._hosts.items() if host is session]:
            del self._hosts[robot]
        for message in session.mailbox.take_all(0.0):
            if isinstance(message, pb.Stop):
                self._to_host(message.robot, message)

    def _hello(self, identity: bytes, peer: Peer, hello: pb.FreshHello) -> None:
        if hello.role == "robot":
            _require(peer, _ROBOT, "speak for robots")
        else:
            _require(peer, _WATCHERS, "watch robots")
        if len(hello.robots) > MAX_ROBOTS or len(hello.previews) > MAX_ROBOTS:
            raise SecurityError(f"{peer.name!r} names too many robots", allowed=MAX_ROBOTS)
        session = self.sessions.get(identity)
        if session is None:
            if len(self.sessions) >= MAX_PEERS:
                raise SecurityError(f"no room for {peer.name!r}", allowed=f"{MAX_PEERS} peers")
            session = self.sessions[identity] = Session(identity, peer)
            self._tell(session)
        session.seen = time.monotonic()
        robots = frozenset(hello.robots)
        if hello.role == "robot":
            self._speak_for(session, robots)
        else:
            session.hears, session.sees = robots, frozenset(hello.previews)

    def _speak_for(self, session: Session, robots: frozenset[str]) -> None:
        own = {robot for robot in robots if self._owns(session.peer, robot)}
        for robot in [r for r, host in self._hosts.items() if host is session and r not in own]:
            del self._hosts[robot]
        for robot in own:
            self._hosts[robot] = session
            if robot in self._held:
                session.mailbox.put(self._held.pop(robot))
        if own != robots:
            name, others = session.peer.name, sorted(robots - own)[:4]
            raise SecurityError(f"{name!r} is not the host of all it speaks for", got=others)

    def _owns(self, peer: Peer, robot: str) -> bool:
        if self._owner is not None:
            return self._owner(robot) == peer.name
        if len(self._first_come) >= MAX_ROBOTS and robot not in self._first_come:
            return False
        return self._first_come.setdefault(robot, peer.name) == peer.name

    def _to_host(self, robot: str, message: Message) -> None:
        session = self._hosts.get(robot)
        if session is not None:
            session.mailbox.put(message)
        elif isinstance(message, pb.Stop):
            self._held[robot] = message
            while len(self._held) > MAX_ROBOTS:
                self._held.popitem(last=False)
        else:
            self._undeliverable += 1

    def _to_viewers(self, message: pb.RobotState | pb.Preview) -> None:
        for session in self.sessions.values():
            wanted = session.sees if isinstance(message, pb.Preview) else session.hears
            if message.robot in wanted or "*" in wanted:
                session.mailbox.put(message)

    def _tell(self, session: Session) -> None:
        """Put the current version of each policy into a mailbox."""
        now = time.monotonic()
        for policy, version in self._versions.items():
            age_s = version.age_s + now - version.since
            announcement = pb.Announcement(
                policy=policy, version=version.version, hash=version.hash, age_s=age_s
            )
            session.mailbox.put(announcement)


def _require(peer: Peer, roles: frozenset[Role], what: str) -> None:
    if peer.role not in roles:
        raise SecurityError(
            f"{peer.name!r} may not {what}",
            got=f"role {peer.role.value}",
            allowed=", ".join(sorted(roles)),
        )
