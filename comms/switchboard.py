"""Who may say and hear what on the fresh lane, apart from any socket.

Each message is judged by the name and role behind the key that its connection was made with, never
by what the message claims:

- a command goes to the host of its robot, from an operator (in their own name), engineer or service
- a stop likewise, also from a viewer: anybody who is somebody may stop a robot; a stop for a host
  that is away waits for it
- states and previews go to the viewers that asked, and only from the robot's own host
- announcements come from the hub itself, to everybody
- a ping is answered to whoever sent it, once it has said hello

Nothing waits for a slow peer: each has a mailbox in which the newest message of a stream wins.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from comms.credentials import Peer, Role
from comms.fresh_flow import Joiner
from comms.mailbox import KIND_OF, MAX_NAME, Mailbox, Message, Parcel
from comms.pb import fresh_pb2 as pb
from comms.security import PEOPLE
from user_system.core.errors import SecurityError

MAX_PEERS = 256
MAX_SESSIONS = 8
"""Connections of one peer; another one takes the place of the one not heard of for longest."""
MAX_ROBOTS = 4096
MAX_HELD = 64
"""Stops of one peer that wait for hosts that are away; a person's are for a few robots."""
MAX_CAMERAS = 16
"""Cameras of one robot that people look at: whoever looks keeps the newest picture of each."""
MAX_PICTURE = 512 << 10
"""Bytes of a picture."""
MAX_STATE = 128 << 10
"""Bytes of anything but a picture; the largest real state has a few thousand."""
MAX_DIMENSIONS = 256
"""Numbers in one action."""
GONE_S = 5.0
"""A peer that has not said hello for so long is forgotten."""

_ROBOT = frozenset({Role.ROBOT})
_WATCHERS = PEOPLE | {Role.VIEWER}

RULES: Mapping[str, frozenset[Role]] = {
    # Whose states it hears, or which robots it speaks for; see ``_hello`` for the latter.
    "hello": _ROBOT | _WATCHERS,
    "command": PEOPLE,
    # Anybody who is somebody and looks at robots may stop one.
    "stop": _WATCHERS,
    "state": _ROBOT,
    "preview": _ROBOT,
    # The hub's own; it does not come in by a socket.
    "announcement": frozenset(),
    "ping": _ROBOT,
    # The hub's own as well: it is the one who answers.
    "pong": frozenset(),
}
"""What a ``Fresh`` carries -> roles that may send it to the hub. Everything else is refused."""


@dataclass
class Session:
    """One connection of a peer that has said hello."""

    identity: bytes
    peer: Peer
    key: bytes = b""
    """Public CURVE key (Z85) of the connection."""
    hears: frozenset[str] = frozenset()
    sees: frozenset[str] = frozenset()
    seen: float = 0.0
    mailbox: Mailbox = field(default_factory=Mailbox)
    joiner: Joiner = field(default_factory=Joiner)
    """Of the pictures that it sends in parts."""


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
        self._cameras: dict[str, set[str]] = {}
        self._owner = owner
        self._on_message = on_message or (lambda peer, message: None)
        self._versions: dict[str, _Version] = {}
        self._hosts: dict[str, Session] = {}
        self._held: OrderedDict[tuple[str, str], pb.Stop] = OrderedDict()
        """(robot, who asked) -> the stop that waits for its host."""
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

    def receive(self, identity: bytes, peer: Peer, message: Parcel, key: bytes = b"") -> None:
        """Act on a message as far as its sender may send it.

        Args:
            identity: of the connection it came by.
            peer: who is behind that.
            message: what it says.
            key: public CURVE key (Z85) of the connection.

        Raises:
            SecurityError: the sender may not say that.
            SpecError: it is no part of a picture.
        """
        session = self.sessions.get(identity)
        if session is not None and session.peer != peer:
            # Peers may choose the identity of their connection: this one is somebody else's by now.
            self.forget(session)
        _check_sizes(peer, message)
        kind = KIND_OF[type(message)]
        _require(peer, RULES.get(kind, frozenset()), f"send a {kind}")
        match message:
            case pb.FreshHello():
                self._hello(identity, peer, message, key)
                return
            case pb.OperatorCommand():
                if peer.role is Role.OPERATOR and message.operator != peer.name:
                    raise SecurityError(
                        f"{peer.name!r} commands in another name", got=repr(message.operator)
                    )
                self._to_host(message.robot, message)
            case pb.Stop():
                if peer.role in (Role.OPERATOR, Role.VIEWER):
                    # Whatever name it bears: a stop is not refused for that, and nobody is blamed.
                    message.operator = peer.name
                self._to_host(message.robot, message, peer.name)
            case pb.RobotState() | pb.Preview():
                if not self._owns(peer, message.robot):
                    raise SecurityError(f"{peer.name!r} is not the host of {message.robot!r}")
                if isinstance(message, pb.Preview):
                    self._check_picture(peer, message)
                self._from_host(identity, peer, message)
            case pb.Ping():
                self._answer(identity, message)
                return
        if not isinstance(message, pb.Preview | pb.Pong):
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

    def expel(self, stays: Callable[[Session], bool]) -> int:
        """Forget the sessions of those who may not stay; return how many they were."""
        gone = [session for session in self.sessions.values() if not stays(session)]
        for session in gone:
            self.forget(session)
        return len(gone)

    def forget(self, session: Session) -> None:
        """Forget a connection; stops that it did not take wait for the next one of its robots."""
        self.sessions.pop(session.identity, None)
        for robot in [r for r, host in self._hosts.items() if host is session]:
            del self._hosts[robot]
        for message in session.mailbox.take_all(0.0):
            if isinstance(message, pb.Stop):
                self._to_host(message.robot, message, "")

    def _hello(self, identity: bytes, peer: Peer, hello: pb.FreshHello, key: bytes) -> None:
        if hello.role == "robot":
            _require(peer, _ROBOT, "speak for robots")
        else:
            _require(peer, _WATCHERS, "watch robots")
        if len(hello.robots) > MAX_ROBOTS or len(hello.previews) > MAX_ROBOTS:
            raise SecurityError(f"{peer.name!r} names too many robots", allowed=MAX_ROBOTS)
        session = self.sessions.get(identity)
        if session is None:
            self._make_room(peer)
            session = self.sessions[identity] = Session(identity, peer, key)
            self._tell(session)
        session.seen = time.monotonic()
        robots = frozenset(hello.robots)
        if hello.role == "robot":
            self._speak_for(session, robots)
        else:
            session.hears, session.sees = robots, frozenset(hello.previews)

    def _make_room(self, peer: Peer) -> None:
        """Have one more connection of a peer find a place; none of another peer pays for it."""
        own = [session for session in self.sessions.values() if session.peer == peer]
        if len(own) >= MAX_SESSIONS:
            self.forget(min(own, key=lambda session: session.seen))
        if len(self.sessions) >= MAX_PEERS:
            raise SecurityError(f"no room for {peer.name!r}", allowed=f"{MAX_PEERS} peers")

    def _answer(self, identity: bytes, message: pb.Ping) -> None:
        session = self.sessions.get(identity)
        if session is None:
            self._undeliverable += 1  # its hello is on the way, and so is the next ping
            return
        now_s = time.monotonic()
        pong = pb.Pong(sent_s=message.sent_s, bytes=message.bytes, there_s=now_s)
        session.mailbox.put(pong)

    def _speak_for(self, session: Session, robots: frozenset[str]) -> None:
        own = {robot for robot in robots if self._owns(session.peer, robot)}
        for robot in [r for r, host in self._hosts.items() if host is session and r not in own]:
            del self._hosts[robot]
        for robot in own:
            self._hosts[robot] = session
            for key in [held for held in self._held if held[0] == robot]:
                session.mailbox.put(self._held.pop(key))
        if own != robots:
            name, others = session.peer.name, sorted(robots - own)[:4]
            raise SecurityError(f"{name!r} is not the host of all it speaks for", got=others)

    def _check_picture(self, peer: Peer, preview: pb.Preview) -> None:
        cameras = self._cameras.setdefault(preview.robot, set())
        if len(cameras) >= MAX_CAMERAS and preview.camera not in cameras:
            raise SecurityError(f"{peer.name!r} shows too many cameras", allowed=MAX_CAMERAS)
        if len(preview.jpeg) > MAX_PICTURE:
            got = len(preview.jpeg)
            raise SecurityError(f"{peer.name!r} shows no picture", got=got, allowed=MAX_PICTURE)
        cameras.add(preview.camera)

    def _owns(self, peer: Peer, robot: str) -> bool:
        if self._owner is not None:
            return self._owner(robot) == peer.name
        if len(self._first_come) >= MAX_ROBOTS and robot not in self._first_come:
            return False
        return self._first_come.setdefault(robot, peer.name) == peer.name

    def _to_host(self, robot: str, message: Message, by: str = "") -> None:
        """Put a message into the mailbox of a robot's host; a stop waits for one that is away."""
        session = self._hosts.get(robot)
        if session is not None:
            session.mailbox.put(message)
        elif isinstance(message, pb.Stop):
            self._hold((robot, by), message)
        else:
            self._undeliverable += 1

    def _hold(self, key: tuple[str, str], stop: pb.Stop) -> None:
        """Keep a stop; whoever stops more robots than there can be loses its own first ones."""
        self._held[key] = stop
        own = [held for held in self._held if held[1] == key[1]]
        for held in own[: -MAX_HELD if key[1] else -MAX_ROBOTS]:
            del self._held[held]

    def _from_host(self, identity: bytes, peer: Peer, message: pb.RobotState | pb.Preview) -> None:
        whole: pb.RobotState | pb.Preview | None = message
        if isinstance(message, pb.Preview) and message.parts:
            session = self.sessions.get(identity)
            whole = session.joiner.add(message) if session is not None else None
            if isinstance(whole, pb.Preview):
                self._check_picture(peer, whole)
        if whole is not None:
            self._to_viewers(whole)

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


def _check_sizes(peer: Peer, message: Parcel) -> None:
    """Refuse what is kept and grows without need: names without end, actions that nobody has."""
    match message:
        case pb.FreshHello():
            names: Iterable[str] = (*message.robots, *message.previews)
        case pb.Preview():
            names = (message.robot, message.camera)
        case pb.OperatorCommand() | pb.Stop():
            names = (message.robot, message.operator)
        case pb.RobotState():
            names = (message.robot,)
        case pb.Announcement() | pb.Ping() | pb.Pong():
            names = ()
    if not isinstance(message, pb.Preview) and (size := message.ByteSize()) > MAX_STATE:
        raise SecurityError(f"{peer.name!r} says too much", got=size, allowed=MAX_STATE)
    longest = max(map(len, names), default=0)
    if longest > MAX_NAME:
        raise SecurityError(f"{peer.name!r} names too long", got=longest, allowed=MAX_NAME)
    if isinstance(message, pb.OperatorCommand) and len(message.action) > MAX_DIMENSIONS:
        got = len(message.action)
        raise SecurityError(f"{peer.name!r} sends no action", got=got, allowed=MAX_DIMENSIONS)


def _require(peer: Peer, roles: frozenset[Role], what: str) -> None:
    if peer.role not in roles:
        raise SecurityError(
            f"{peer.name!r} may not {what}",
            got=f"role {peer.role.value}",
            allowed=", ".join(sorted(roles)) or "nobody",
        )
