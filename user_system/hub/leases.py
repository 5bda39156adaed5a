"""Who may command which robot: leases with fencing tokens.

A robot always has exactly one holder: its own agent (holder "") or one person. Every change of
holder makes a token greater than all earlier ones of that robot, and the number is on disk before
anybody hears of it; so a holder that slept through its own expiry is refused by the driver, however
late its commands arrive.

A person's lease runs out by itself unless renewed; the agent's does not. After a restart of the hub
a person's lease is given one fresh time to live: nobody else was granted anything meanwhile, and a
takeover need not end because the hub died.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from user_system.core.clock import SECOND, Clock
from user_system.core.durable import read_json, write_json
from user_system.core.errors import LeaseError

AGENT = ""
"""Holder's name when the robot's own agent commands."""


@dataclass(frozen=True, slots=True)
class Holding:
    """The current right to command one robot."""

    robot: str
    token: int
    holder: str = AGENT
    realtime: bool = False
    """A simulated robot's clock drops to rate 1 while this holder acts."""
    deadline_ns: int = 0
    """When it runs out, on the hub's clock; 0 means never (the agent's own)."""

    def ttl_ms(self, now_ns: int) -> int:
        """Return the time left in ms, at least 1 while it lives; 0 for one that does not end."""
        if not self.deadline_ns:
            return 0
        return max(1, (self.deadline_ns - now_ns) // 1_000_000)


class Leases:
    """The holders of all robots. Thread-safe; restart-safe.

    Args:
        path: file of the last tokens and holders.
        clock: wall clock; injected, so that tests own expiry.
        ttl_s: life of a person's lease without renewal, in wall seconds.
        floor: no token is below it. A hub that lost its directory starts above every token that
            drivers still remember when this is the wall time in seconds.
        changed: called after each change of holder, outside the lock, with the new holding.
    """

    def __init__(
        self,
        path: Path,
        clock: Clock,
        *,
        ttl_s: float = 2.0,
        floor: int = 0,
        changed: Callable[[Holding], None] = lambda holding: None,
    ):
        self._path, self._clock, self._floor = path, clock, floor
        self._ttl_ns = int(ttl_s * SECOND)
        self._changed = changed
        self._lock = threading.Lock()
        self._holdings: dict[str, Holding] = {}
        self._figures = {"claims": 0.0, "refused": 0.0, "forced": 0.0, "expired": 0.0}

    def open(self) -> None:
        """Read the last tokens and holders back."""
        stored = read_json(self._path) or {}
        deadline = self._clock.now_ns() + self._ttl_ns
        with self._lock:
            for robot, (token, holder, realtime) in stored.items():
                self._holdings[robot] = Holding(
                    robot, token, holder, realtime, 0 if holder == AGENT else deadline
                )

    def holder(self, robot: str) -> str:
        """Return which person holds ``robot`` now; "" for nobody. Never writes."""
        with self._lock:
            held = self._alive(robot)
            return held.holder if held else AGENT

    def current(self, robot: str) -> Holding:
        """Return who commands ``robot`` now; a robot without a holder becomes its agent's."""
        with self._lock:
            return self._alive(robot) or self._pass(robot, AGENT)

    def fence(self, robot: str) -> Holding:
        """Give a newly started agent a token of its own, unless a person holds the robot.

        A predecessor of that agent that is still running somewhere is fenced off by it.
        """
        with self._lock:
            held = self._alive(robot)
            if held is not None and held.holder != AGENT:
                return held
            return self._pass(robot, AGENT)

    def claim(
        self, robot: str, operator: str, *, realtime: bool, force: bool = False
    ) -> tuple[Holding, str]:
        """Give ``robot`` to ``operator``.

        Claiming what one already holds makes a new token too: the second tab of an operator takes
        over from the first instead of commanding beside it.

        Returns:
            The lease, and whose lease it ended; "" where nobody else held the robot.

        Raises:
            LeaseError: somebody else holds it (the message says who) and ``force`` is not set.
        """
        if not operator:
            raise LeaseError(f"a claim of {robot} needs an operator's name")
        with self._lock:
            held = self._alive(robot)
            other = held.holder if held and held.holder != operator else AGENT
            if held is not None and other and not force:
                self._figures["refused"] += 1
                raise _refusal(held, operator, self._clock.now_ns())
            lease = self._pass(robot, operator, realtime)
            self._figures["claims"] += 1
            self._figures["forced"] += bool(other)
        self._changed(lease)
        return lease, other

    def renew(self, robot: str, operator: str, token: int) -> Holding:
        """Give the holder another time to live. Writes nothing: a full disk ends no takeover.

        Raises:
            LeaseError: it ran out or was taken; the message says who holds the robot now.
        """
        with self._lock:
            held = self._check(robot, operator, token)
            renewed = replace(held, deadline_ns=self._clock.now_ns() + self._ttl_ns)
            self._holdings[robot] = renewed
            return renewed

    def release(self, robot: str, operator: str, token: int) -> Holding:
        """End a person's lease; return the agent's fresh holding.

        Raises:
            LeaseError: it ran out or was taken before.
        """
        with self._lock:
            self._check(robot, operator, token)
            holding = self._pass(robot, AGENT)
        self._changed(holding)
        return holding

    def check(self, robot: str, operator: str, token: int) -> Holding:
        """Return the lease if ``operator`` holds ``robot`` by ``token``; LeaseError otherwise."""
        with self._lock:
            return self._check(robot, operator, token)

    def expire(self) -> list[Holding]:
        """Pass every robot whose lease ran out back to its agent; return the new holdings.

        An expired lease is worth nothing from the moment it expires; this is how the agent, which
        counts for itself, hears of its fresh token.

        Raises:
            StoreError: the disk refused; those robots stay without a holder until it does not.
        """
        with self._lock:
            over = [robot for robot in self._holdings if self._alive(robot) is None]
            passed = [self._pass(robot, AGENT) for robot in over]
            self._figures["expired"] += len(passed)
        for holding in passed:
            self._changed(holding)
        return passed

    def stats(self) -> dict[str, float]:
        """Return counters since the start and the number of robots that people hold."""
        with self._lock:
            held = sum(h.holder != AGENT for h in self._holdings.values())
            return {**self._figures, "held": float(held)}

    def _alive(self, robot: str) -> Holding | None:
        held = self._holdings.get(robot)
        if held is not None and held.deadline_ns and held.deadline_ns < self._clock.now_ns():
            return None
        return held

    def _check(self, robot: str, operator: str, token: int) -> Holding:
        held = self._alive(robot)
        if held is None or held.holder == AGENT or (held.holder, held.token) != (operator, token):
            holder = held.holder if held and held.holder else "nobody"
            raise LeaseError(
                f"{operator} does not hold {robot} by token {token}",
                got=f"held by {holder}",
                todo="Claim it again.",
            )
        return held

    def _pass(self, robot: str, holder: str, realtime: bool = False) -> Holding:
        """Make the next holding of ``robot`` durable, then true. Needs the lock."""
        held = self._holdings.get(robot)
        token = max(held.token if held else 0, self._floor) + 1
        deadline = 0 if holder == AGENT else self._clock.now_ns() + self._ttl_ns
        holding = Holding(robot, token, holder, realtime, deadline)
        holdings = {**self._holdings, robot: holding}
        write_json(
            self._path, {name: [h.token, h.holder, h.realtime] for name, h in holdings.items()}
        )
        self._holdings = holdings
        return holding


def _refusal(held: Holding, operator: str, now_ns: int) -> LeaseError:
    left = held.ttl_ms(now_ns) / 1000
    return LeaseError(
        f"{held.robot} is held by {held.holder}",
        got=f"a claim by {operator}",
        todo=f"Ask {held.holder} to yield, or wait: it runs out in {left:.1f} s unless it is "
        "renewed. An engineer may force it with a reason.",
    )
