"""Who may command a robot: the person's lease and the agent's own right, by fencing token.

Tokens only rise and are remembered across restarts, so an agent that lost its hub goes on under the
last one it had, and a person whose lease was taken over is refused here before the driver has to.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from user_system.core.clock import MS, Clock
from user_system.core.errors import LeaseError
from user_system.edge.messages import Grant


@dataclass(frozen=True, slots=True)
class Lease:
    """A person's exclusive right to command."""

    holder: str
    token: int
    expires_ns: int
    """On this host's clock."""
    realtime: bool


class Leases:
    """The present lease of one robot and the highest token ever granted for it.

    Args:
        wall: this host's clock; leases expire by it, whatever happens to the link.
        facts: what ``remember`` was given in an earlier life.
        remember: called with every raised token, before it is used.
    """

    def __init__(
        self,
        wall: Clock,
        facts: Mapping[str, Any] | None = None,
        remember: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ):
        self._wall, self._remember = wall, remember
        self.token = int((facts or {}).get("token", 0))
        """The token under which this agent commands: the highest it was ever granted."""
        self.lease: Lease | None = None
        self.stale = 0
        """Grants that came too late to count."""

    @property
    def holder(self) -> str:
        """The person who holds the lease; empty where nobody does."""
        return self.lease.holder if self.lease else ""

    def grant(self, grant: Grant) -> bool:
        """Take over a grant; False where a newer one is known."""
        if grant.token < self.token:
            self.stale += 1
            return False
        if grant.token > self.token:
            self.token = grant.token
            self._remember({"token": self.token})
        expires = self._wall.now_ns() + grant.ttl_ms * MS
        self.lease = (
            Lease(grant.holder, grant.token, expires, grant.realtime) if grant.holder else None
        )
        return True

    def expire(self) -> bool:
        """Drop a lease whose time is over; True when that happened now."""
        if self.lease is None or self._wall.now_ns() < self.lease.expires_ns:
            return False
        self.lease = None
        return True

    def check(self, operator: str, token: int) -> None:
        """Make sure that ``operator`` holds the lease.

        Raises:
            LeaseError: says who does.
        """
        self.expire()
        lease = self.lease
        if lease is None or (operator, token) != (lease.holder, lease.token):
            raise LeaseError(
                "only the holder of the lease may do that",
                got=f"{operator or 'nobody'} with token {token}",
                allowed=f"{lease.holder} with token {lease.token}" if lease else "nobody holds it",
                todo="Claim the robot first.",
            )
