"""What a run looks like now, as the hub tells it; for terminals, reports and benchmarks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comms.hub_client import HubClient
from comms.pb import hub_pb2
from user_system.cluster import dial
from user_system.cluster.configs import LinkConfig
from user_system.cluster.parse import read_json
from user_system.core.modes import Mode

LANES = "experience", "behind", "video", "weights"
"""Bulk of a link, in order of importance; see ``comms.link``."""

STALE_S = 10.0
"""A robot that has heard of no newer weights for so long is shown: the head says every second which
are the newest."""

FILE = "cli.json"
"""In the run's ``config``: how the command line reaches the hub."""


@dataclass(frozen=True)
class RobotView:
    """One robot."""

    name: str
    mode: str
    online: bool
    holder: str = ""
    help: str = ""
    version: int = 0
    figures: dict[str, float] = field(default_factory=dict)
    host: str = ""
    """The edge host it is wired to."""
    seen_s: float = 0.0
    """Time since it was last heard of, s."""


def invite(host: str) -> str:
    """Return what a person does to have a robot host join."""
    return f"`user-system enrol create {host}` here, and there what it prints"


@dataclass(frozen=True)
class HostView:
    """One robot host."""

    name: str
    remote: bool
    """Whether it is a machine of its own."""
    link: str
    """awaited, starting, online or away."""
    last_seen_s: float
    boot: str = ""
    version: str = ""
    current: bool = True
    """Whether it runs the newest setup."""
    trouble: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def needs(self) -> str:
        """What a person could do for it; "" where nothing."""
        if self.trouble:
            return self.trouble
        if self.link == "awaited":
            return invite(self.name)
        return "" if self.current else "takes the new setup at the end of an episode"


@dataclass(frozen=True)
class View:
    """One look at a run."""

    run: str
    phase: str
    version: int
    """Newest weights."""
    figures: dict[str, float]
    robots: tuple[RobotView, ...]
    evaluations: tuple[dict[str, float], ...]
    processes: dict[str, dict[str, float]]
    hosts: tuple[HostView, ...] = ()
    audit_records: int = 0
    audit_head: str = ""
    """Hash of the newest record of the audit log."""

    @property
    def awaited(self) -> list[str]:
        """Robot hosts that are not there, or not any more."""
        return [host.name for host in self.hosts if host.remote and host.link != "online"]

    @property
    def spooled(self) -> float:
        """Fragments that the head has not acknowledged yet, all robots together."""
        return max((r.figures.get("spool_fragments", 0.0) for r in self.robots), default=0.0)

    @property
    def acting(self) -> int:
        """Oldest version that acts on any robot."""
        return min((r.version for r in self.robots if r.online), default=0)


def link_of(figures: Mapping[str, float]) -> str:
    """Return in words what a robot's host knows of its link; empty: nothing."""
    said = []
    if (base := figures.get("base_rtt_ms")) is not None:
        now = figures.get("rtt_ms")
        queue = f" (now {now:.0f})" if now is not None else ""
        said.append(f"{base:.0f} ms{queue}")
    for name, arrow in (("rate_mbit_s", "up"), ("down_mbit_s", "down")):
        if name in figures:
            said.append(f"{figures[name]:.3g} Mbit/s {arrow}")
    if "loss" in figures:
        said.append(f"{100 * figures['loss']:.1f} % lost")
    held = [name for name in LANES if figures.get(f"held_{name}")]
    if held:
        said.append(f"held back: {', '.join(held)}")
    return ", ".join(said)


def version_of(robot: RobotView) -> str:
    """Return the version with which a robot acts, and for how long no newer one has come."""
    stale_s = robot.figures.get("weights_stale_s", 0.0)
    if stale_s < STALE_S or robot.mode == Mode.EVAL:  # it judges one version, however old
        return str(robot.version)
    return f"{robot.version} ({stale_s:.0f} s stale)"


def link(run: Path) -> LinkConfig:
    """Return how the command line reaches the hub of a run."""
    return read_json(run / "config" / FILE, LinkConfig)


class Looker:
    """Asks the hub of a run; a ``with`` block closes the connection.

    Args:
        run: the run's directory.
    """

    def __init__(self, run: Path):
        self._way = dial.tunnel(link(run))
        self._hub: HubClient

    def __enter__(self) -> "Looker":
        self._hub = HubClient(self._way.__enter__())
        return self

    def __exit__(self, *error: Any) -> None:
        self._way.__exit__(*error)

    def look(self) -> View:
        """Return what the hub says.

        Raises:
            LinkError: it cannot be reached.
        """
        return view_of(self._hub.status())


def view_of(status: hub_pb2.SystemStatus) -> View:
    """Return a status message as plain values."""
    return View(
        run=status.run,
        phase=status.phase,
        version=status.policy_version,
        figures=dict(status.figures),
        robots=tuple(
            RobotView(
                name=r.name,
                mode=r.mode,
                online=r.online,
                holder=r.holder,
                help=r.help,
                version=r.version,
                figures=dict(r.figures),
                host=r.host,
                seen_s=r.last_seen_s,
            )
            for r in status.robots
        ),
        evaluations=tuple(
            {
                "version": e.version,
                "episodes": e.episodes,
                "successes": e.successes,
                "env_steps": e.env_steps,
                "wall_s": e.wall_s,
            }
            for e in status.evaluations
        ),
        processes={p.name: dict(p.figures) for p in status.processes},
        hosts=tuple(
            HostView(
                name=h.name,
                remote=h.remote,
                link=h.link,
                last_seen_s=h.last_seen_s,
                boot=h.boot,
                version=h.version,
                current=h.current,
                trouble=h.trouble,
                figures=dict(h.figures),
            )
            for h in status.hosts
        ),
        audit_records=status.audit_records,
        audit_head=status.audit_head,
    )
