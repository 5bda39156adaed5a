"""Which hosts and robots there are, and when they were last heard of.

Memory only: a hub that restarts learns it anew, because every host dials again and says hello.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from comms.pb.types_pb2 import RobotSpec
from user_system.core.clock import SECOND, Clock
from user_system.core.errors import ConfigError, LinkError, SecurityError

MAX_ROBOTS = 256
"""Robots of one host; the hub remembers sixteen times as many."""
MAX_NAME = 255
"""Characters of a name."""


@dataclass(frozen=True, slots=True)
class RobotRecord:
    """A robot as its host announced it."""

    name: str
    spec: RobotSpec
    task: str
    policy: str
    host: str = ""
    boot: str = ""
    """Boot id of the agent that speaks for it; a new life has a new one."""
    online: bool = False
    last_seen_ns: int = 0

    def last_seen_s(self, now_ns: int) -> float:
        """Return the age of the last sign of life in s."""
        return (now_ns - self.last_seen_ns) / SECOND


class Registry:
    """Hosts and their robots. Thread-safe.

    Args:
        clock: wall clock.
        owners: robot -> the only host that may announce it; None: whoever comes first.
    """

    def __init__(self, clock: Clock, owners: Mapping[str, str] | None = None):
        self._clock, self._owners = clock, owners
        self._lock = threading.Lock()
        self._robots: dict[str, RobotRecord] = {}
        self._sessions: dict[str, int] = {}
        self._next_session = 1

    def attach(self, host: str, boot: str, robots: Sequence[RobotRecord]) -> int:
        """Enter a host and its robots; return the number of this attachment.

        An earlier attachment of the same host ends by it.

        Raises:
            ConfigError: a robot's name is empty, doubled, or in use by another host that is online.
            SecurityError: a robot is another host's, or there are more than anybody has.
        """
        now = self._clock.now_ns()
        names = [robot.name for robot in robots]
        with self._lock:
            self._check_names(host, names)
            for name, record in list(self._robots.items()):
                if record.host == host and name not in names:
                    del self._robots[name]
            for robot in robots:
                self._robots[robot.name] = replace(
                    robot, host=host, boot=boot, online=True, last_seen_ns=now
                )
            session, self._next_session = self._next_session, self._next_session + 1
            self._sessions[host] = session
        return session

    def check(self, host: str, names: list[str]) -> None:
        """Make sure that a host may announce these robots, before more is read of them.

        Raises:
            ConfigError, SecurityError: as ``attach``.
        """
        with self._lock:
            self._check_names(host, names)

    def detach(self, host: str, session: int) -> bool:
        """Mark a host's robots offline; False: another attachment has replaced this one."""
        with self._lock:
            if self._sessions.get(host) != session:
                return False
            del self._sessions[host]
            for name, record in self._robots.items():
                if record.host == host:
                    self._robots[name] = replace(record, online=False)
            return True

    def seen(self, robot: str) -> None:
        """Note a sign of life; of an unknown robot it is ignored: it has not said hello yet."""
        with self._lock:
            record = self._robots.get(robot)
            if record is not None:
                self._robots[robot] = replace(record, last_seen_ns=self._clock.now_ns())

    def get(self, robot: str) -> RobotRecord:
        """Return what is known of ``robot``.

        Raises:
            LinkError: no host has announced it; the message lists those that are known.
        """
        with self._lock:
            record = self._robots.get(robot)
            if record is None:
                raise LinkError(
                    f"no robot is called {robot!r}",
                    allowed=", ".join(sorted(self._robots)) or "none attached yet",
                )
            return record

    def all(self) -> list[RobotRecord]:
        """Return every robot that was ever announced since the start, by name."""
        with self._lock:
            return [self._robots[name] for name in sorted(self._robots)]

    def stats(self) -> dict[str, float]:
        """Return how many hosts and robots there are."""
        with self._lock:
            online = sum(record.online for record in self._robots.values())
            return {
                "hosts": float(len(self._sessions)),
                "robots": float(len(self._robots)),
                "robots_online": float(online),
            }

    def _check_names(self, host: str, names: list[str]) -> None:
        if len(names) > MAX_ROBOTS or len(self._robots.keys() | names) > 16 * MAX_ROBOTS:
            raise SecurityError(
                f"host {host!r} announces too many robots", got=len(names), allowed=MAX_ROBOTS
            )
        for name in names:
            if len(name) > MAX_NAME:
                raise SecurityError("name of a robot", got=len(name), allowed=MAX_NAME)
            if self._owners is not None and self._owners.get(name) != host:
                raise SecurityError(
                    f"host {host!r} announces a robot that is not its own",
                    got=name,
                    allowed=", ".join(r for r, of in self._owners.items() if of == host),
                    todo="Was the manifest changed? Start the run again with it.",
                )
            if not name or names.count(name) > 1:
                raise ConfigError(
                    f"host {host!r} announces a robot twice or without a name",
                    got=names,
                    allowed="distinct names",
                )
            owner = self._robots.get(name)
            if owner is not None and owner.online and owner.host != host:
                raise ConfigError(
                    f"robot {name!r} is announced by host {host!r}",
                    got=f"it belongs to host {owner.host!r}, which is online",
                    todo="Rename one of the two robots.",
                )
