"""What hosts of other machines are to run, served to each its own; and how all hosts do.

A setup is a file that the launcher wrote; the hub hands it on as it is and does not know what it
says. Asking for it is also how a host whose agent is not attached shows that it is alive.
"""

import hashlib
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import user_system
from comms.pb import hub_pb2
from user_system.core.clock import SECOND, Clock
from user_system.core.errors import ConfigError, StoreError
from user_system.core.versions import PROTOCOL
from user_system.hub.registry import RobotRecord

AWAY_S = 10.0
"""Silence after which a host is away; it asks every two seconds."""

_TEXT = 500
"""Characters of a host's trouble that are kept, and of its version and boot id together."""

AWAITED, STARTING, ONLINE, AWAY = "awaited", "starting", "online", "away"


@dataclass(frozen=True, slots=True)
class _Heard:
    at_ns: int
    boot: str
    version: str
    hash: str
    trouble: str


class Setups:
    """Setups of remote hosts, and what was last heard of them. Thread-safe; memory only.

    Args:
        directory: with ``<host>.json`` for each remote host; None: there are none.
        clock: wall clock.
    """

    def __init__(self, directory: Path | None, clock: Clock):
        self._directory, self._clock = directory, clock
        self._lock = threading.Lock()
        self._heard: dict[str, _Heard] = {}

    def answer(self, host: str, query: hub_pb2.SetupQuery) -> hub_pb2.SetupReply:
        """Return the setup of a host, without the document where the host has it.

        Args:
            host: as its certificate says.
            query: what it has.

        Raises:
            ConfigError: it is not one of the remote hosts of this run.
        """
        document = self._document(host)
        heard = _Heard(
            self._clock.now_ns(),
            query.boot[:_TEXT],
            query.version[:_TEXT],
            query.hash[:_TEXT],
            query.trouble[:_TEXT],
        )
        with self._lock:
            self._heard[host] = heard
        name = hashlib.sha256(document).hexdigest()
        return hub_pb2.SetupReply(
            protocol=PROTOCOL,
            version=user_system.__version__,
            hash=name,
            document=b"" if query.hash == name else document,
        )

    def _document(self, host: str) -> bytes:
        known = self.awaited()
        if self._directory is None or host not in known:
            raise ConfigError(
                f"this run has nothing to do for robot host {host!r}",
                allowed=", ".join(known) or "no remote hosts at all",
                todo=f"Write `hosts: {{{host}: {{remote: true}}}}` into the manifest.",
            )
        try:
            return (self._directory / f"{host}.json").read_bytes()
        except OSError as error:
            raise StoreError(f"the setup of {host} cannot be read", got=error) from error

    def awaited(self) -> list[str]:
        """Return the remote hosts of this run."""
        paths = self._directory.glob("*.json") if self._directory is not None else ()
        return sorted(path.stem for path in paths)

    def hosts(self, robots: Iterable[RobotRecord]) -> list[hub_pb2.HostStatus]:
        """Return how every host does, by name.

        Args:
            robots: what the registry knows.
        """
        now = self._clock.now_ns()
        by_host: dict[str, list[RobotRecord]] = {}
        for record in robots:
            by_host.setdefault(record.host, []).append(record)
        remote = self.awaited()
        with self._lock:
            heard = dict(self._heard)
        return [
            self._status(name, name in remote, heard.get(name), by_host.get(name, []), now)
            for name in sorted({*by_host, *remote})
        ]

    def _status(
        self, name: str, remote: bool, heard: _Heard | None, robots: list[RobotRecord], now: int
    ) -> hub_pb2.HostStatus:
        seen = [record.last_seen_ns for record in robots] + ([heard.at_ns] if heard else [])
        age = (now - max(seen)) / SECOND if seen else 0.0
        online = any(record.online for record in robots)
        if online:
            link = ONLINE
        elif heard is not None and (now - heard.at_ns) / SECOND < AWAY_S:
            link = STARTING
        else:
            link = AWAY if seen else AWAITED
        boot = heard.boot if heard else robots[0].boot if robots else ""
        return hub_pb2.HostStatus(
            name=name,
            remote=remote,
            link=link,
            last_seen_s=age,
            boot=boot,
            version=heard.version if heard else "" if remote else user_system.__version__,
            current=not remote or (heard is not None and heard.hash == self._hash(name)),
            trouble=heard.trouble if heard else "",
        )

    def _hash(self, host: str) -> str:
        return hashlib.sha256(self._document(host)).hexdigest()
