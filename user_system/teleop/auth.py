"""Who a person is: accounts, sessions after a login, single-use tickets for a websocket.

An account's secret stands in a file that only its owner may read. It is asked for once; after that
a browser shows a random session cookie that scripts cannot read and other sites cannot send.
"""

import hmac
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from user_system.core.clock import SECOND, Clock
from user_system.core.errors import ConfigError, SecurityError

_MAX_SESSIONS = 1000
_MAX_LOGINS = 16
"""Sessions of one person; another one ends that person's oldest, never somebody else's."""
_MAX_TICKETS = 16
"""Tickets of one session that were not used yet."""


class Role(StrEnum):
    """What a person may do; each includes those before it."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ENGINEER = "engineer"

    def includes(self, other: "Role") -> bool:
        """Return whether this role may do what ``other`` may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who logged in."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Session:
    """One login of a person, as the cookie names it."""

    id: str
    person: Person
    expires_ns: int


def make_accounts(path: Path, roles: Mapping[str, str]) -> dict[str, str]:
    """Write the accounts file; return name -> secret. Secrets that exist are kept.

    Args:
        path: the file; mode 0600.
        roles: name -> role of every account there shall be.

    Raises:
        ConfigError: a name or role that is none.
    """
    known = _read(path) if path.exists() else {}
    table: dict[str, dict[str, str]] = {}
    for name, role in roles.items():
        if not name.isprintable() or not 0 < len(name) <= 64 or ":" in name:
            raise ConfigError("not an account's name", got=repr(name), allowed="1..64, no colon")
        secret = known.get(name, {}).get("secret") or secrets.token_urlsafe(24)
        table[name] = {"role": _role(role).value, "secret": secret}
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        json.dump(table, file, indent=2)
    beside.replace(path)
    return {name: entry["secret"] for name, entry in table.items()}


class Accounts:
    """The people who may log in.

    Args:
        people: name -> (role, secret).
    """

    def __init__(self, people: Mapping[str, tuple[Role, str]]):
        self._people = dict(people)

    @classmethod
    def load(cls, path: Path) -> "Accounts":
        """Read the accounts file.

        Raises:
            SecurityError: it is missing, no accounts file, or others may read it.
        """
        if not path.exists():
            raise SecurityError(f"no accounts file {path}", todo="Make one with make_accounts.")
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            raise SecurityError(
                f"{path} can be read by others",
                got=oct(mode),
                allowed="0600",
                todo=f"chmod 600 {path}",
            )
        table = _read(path)
        return cls({name: (_role(e["role"]), e["secret"]) for name, e in table.items()})

    def login(self, name: str, secret: str) -> Person:
        """Return who this is.

        Raises:
            SecurityError: no such name or not its secret; which of them is not said.
        """
        role, expected = self._people.get(name, (Role.VIEWER, ""))
        right = hmac.compare_digest(expected.encode(), secret.encode())
        if not right or not expected:
            raise SecurityError("name or token is wrong", todo="Use the line that was printed.")
        return Person(name, role)


class Sessions:
    """Logins that are valid now, and websocket tickets. Used from one event loop.

    Args:
        clock: wall clock.
        session_s: life of a login, in wall s.
        ticket_s: life of a ticket; it is redeemed right after it was asked for.
    """

    def __init__(self, clock: Clock, *, session_s: float = 12 * 3600.0, ticket_s: float = 10.0):
        self._clock = clock
        self._session_ns, self._ticket_ns = int(session_s * SECOND), int(ticket_s * SECOND)
        self._sessions: dict[str, Session] = {}
        self._tickets: dict[str, tuple[str, int]] = {}

    def open(self, person: Person) -> Session:
        """Begin a session; the person's own oldest goes when there are too many of it."""
        self._sweep()
        own = [i for i, session in self._sessions.items() if session.person == person]
        for ident in own[: max(0, len(own) + 1 - _MAX_LOGINS)]:
            del self._sessions[ident]
        while len(self._sessions) >= _MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        ident = secrets.token_urlsafe(32)
        session = Session(ident, person, self._clock.now_ns() + self._session_ns)
        self._sessions[ident] = session
        return session

    def get(self, ident: str) -> Session | None:
        """Return the session of a cookie while it is valid."""
        session = self._sessions.get(ident)
        if session is not None and session.expires_ns < self._clock.now_ns():
            del self._sessions[ident]
            return None
        return session

    def close(self, ident: str) -> None:
        """End a session."""
        self._sessions.pop(ident, None)

    def ticket(self, session: Session) -> str:
        """Return a ticket that opens one websocket of this session, once, soon."""
        self._sweep()
        own = [t for t, (ident, _) in self._tickets.items() if ident == session.id]
        for ticket in own[: max(0, len(own) + 1 - _MAX_TICKETS)]:
            del self._tickets[ticket]
        ticket = secrets.token_urlsafe(32)
        self._tickets[ticket] = (session.id, self._clock.now_ns() + self._ticket_ns)
        return ticket

    def redeem(self, ticket: str, session: Session | None) -> Session:
        """Return the session of a ticket, which is spent by that.

        Raises:
            SecurityError: spent, expired, invented, or somebody else's.
        """
        ident, expires_ns = self._tickets.pop(ticket, ("", 0))
        if session is None or ident != session.id or expires_ns < self._clock.now_ns():
            raise SecurityError("the websocket ticket is not valid", todo="Ask for a new one.")
        return session

    def stats(self) -> dict[str, float]:
        """Return how many sessions there are."""
        return {"sessions": float(len(self._sessions))}

    def _sweep(self) -> None:
        now = self._clock.now_ns()
        self._tickets = {t: v for t, v in self._tickets.items() if v[1] >= now}
        self._sessions = {i: s for i, s in self._sessions.items() if s.expires_ns >= now}


def _role(text: str) -> Role:
    try:
        return Role(text)
    except ValueError as error:
        raise ConfigError(
            "not a role", got=repr(text), allowed=", ".join(r.value for r in Role)
        ) from error


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        table = json.loads(path.read_text())
        return {
            str(n): {"role": str(e["role"]), "secret": str(e["secret"])} for n, e in table.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SecurityError(f"{path} is no accounts file", got=str(error)) from error
