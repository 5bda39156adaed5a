"""What a link does to packets, per direction, and the links that tests and benchmarks name."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from user_system.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Line:
    """One direction of a link.

    Raises:
        ConfigError: a number is out of range.
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    """Added to each delay: uniform between nothing and this. It alone overtakes nobody."""
    loss: float = 0.0
    """Probability that a packet is lost, each by itself, after it took its time on the line."""
    rate_bps: float = 0.0
    """Bits per second, IP headers included; 0: as fast as the machine."""
    queue_bytes: int = 256 << 10
    """What may wait for the line; a packet that finds it full is lost (tail drop)."""
    duplicate: float = 0.0
    """Probability that a packet arrives twice."""
    reorder: float = 0.0
    """Probability that a packet is held back by ``reorder_ms``, so that later ones overtake it."""
    reorder_ms: float = 10.0

    def __post_init__(self) -> None:
        for name in ("loss", "duplicate", "reorder"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name} is a probability", got=getattr(self, name))
        for name in ("delay_ms", "jitter_ms", "rate_bps", "reorder_ms"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is not negative and finite", got=getattr(self, name))
        if self.queue_bytes < 1500:
            raise ConfigError("queue_bytes must hold a packet", got=self.queue_bytes, allowed=1500)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Line":
        """Return the line that ``plain`` said.

        Raises:
            ConfigError: a name or number that no line has.
        """
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known:
            raise ConfigError("a line has no such property", got=unknown, allowed=sorted(known))
        return cls(**values)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Profile:
    """Both directions of a link."""

    up: Line = Line()
    """From the edge to the head."""
    down: Line = Line()

    @classmethod
    def both(cls, line: Line) -> "Profile":
        """Return a link that does the same in both directions."""
        return cls(line, line)

    def but(self, **values: Any) -> "Profile":
        """Return it with some numbers of both directions replaced."""
        return Profile(replace(self.up, **values), replace(self.down, **values))

    @property
    def round_trip_ms(self) -> float:
        """The round trip of a small packet on an idle link, without jitter, ms."""
        return self.up.delay_ms + self.down.delay_ms


PROFILES: Mapping[str, Profile] = {
    "lan": Profile.both(Line(delay_ms=0.1)),
    "wan": Profile.both(Line(delay_ms=100.0, loss=0.05)),
    "remote": Profile.both(Line(delay_ms=60.0)),
    "slow": Profile.both(Line(delay_ms=20.0, rate_bps=1e6, queue_bytes=64 << 10)),
    "line20": Profile.both(Line(delay_ms=20.0, rate_bps=20e6, queue_bytes=256 << 10)),
}
"""Round trips of 0.2 ms; 200 ms with 5 % loss each way; 120 ms; 40 ms at 1 Mbit/s; at 20 Mbit/s."""


def profile(name: str) -> Profile:
    """Return a profile by name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PROFILES:
        raise ConfigError("no such link profile", got=repr(name), allowed=", ".join(PROFILES))
    return PROFILES[name]
