"""The manifest: names and edges of one system, written by a person, checked as a whole.

::

    robots: {arm-1: {kind: sim.franka, task: pick, actor: pick}}
    tasks: {pick: {kind: sim.pick_cube}}
    learners: {rlpd: {kind: rlpd}}
    actors: {pick: {learner: rlpd}}

Everything else has a default. The classes below are the schema: a field ``x_s`` is the key ``x``
with a unit of time, ``kind`` is a plugin's name, ``config`` is parsed into that plugin's own
dataclass. No component receives a ``Manifest``; ``cluster.plan`` derives what each process needs.
"""

import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from comms.ssh_client import Destination
from comms.ssh_keys import checked_host_key
from comms.wireguard import Network
from user_system.cluster.edges import check_edges
from user_system.cluster.parse import Parser
from user_system.cluster.tree import Problems, from_yaml, override
from user_system.core.addresses import is_loopback, is_wildcard
from user_system.core.errors import ConfigError
from user_system.core.helping import HelpConfig
from user_system.core.registry import Registry
from user_system.core.schedule import ScheduleConfig
from user_system.replay.views import BUILT_IN, parse_views

LOOPBACK, EVERYWHERE = "127.0.0.1", "0.0.0.0"
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
"""A host name or an IPv4 address."""


@dataclass(frozen=True)
class RobotEntry:
    """One robot."""

    kind: str
    task: str
    actor: str
    host: str = "local"
    """The edge host it is wired to."""
    cameras: tuple[str, ...] = ()
    previews: tuple[str, ...] = ()
    """Views of the robot's own driver that people see on the page; they are not recorded."""
    rate: float = field(default=1.0, metadata={"above": 0.0, "max": 1000.0})
    """Robot seconds per wall second; anything but 1 needs a simulated robot. A
    person drives in real time; a script does not, and a fast clock stands until it has acted."""
    config: Any = field(default=None, metadata={"plugin": "robots"})


@dataclass(frozen=True)
class HostEntry:
    """One robot host."""

    remote: bool = False
    """It is a machine of its own: ``up`` starts nothing there, ``user-system edge join`` does."""
    replay: bool = False
    """It keeps what its robots record in a replay shard of its own; only drawn batches leave it."""


@dataclass(frozen=True)
class CameraEntry:
    """One camera that is a device of its own."""

    kind: str
    config: Any = field(default=None, metadata={"plugin": "cameras"})


@dataclass(frozen=True)
class TaskEntry:
    """One thing to be done."""

    kind: str
    config: Any = field(default=None, metadata={"plugin": "tasks"})


@dataclass(frozen=True)
class EncoderEntry:
    """A frozen network whose features a learner draws in place of a camera's images."""

    kind: str
    config: Any = field(default=None, metadata={"plugin": "encoders"})


def check_view(name: str, clauses: Any) -> None:
    """Refuse a view that is none, or that would hide a built-in one.

    Raises:
        ConfigError: what is wrong, and what is allowed.
    """
    parse_views({name: clauses})


@dataclass(frozen=True)
class WeightsEntry:
    """How a learner's weights reach its robots, and how old they may get there."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: rounded once, before they are published, and two bytes a number on the way; all
    robots and every evaluation act with the rounded ones."""
    max_age_s: float | None = field(default=None, metadata={"above": 0.0})
    """For how long a robot may act with weights that are not known to be the newest: because it
    could not get newer ones, or because it hears nothing of the head. null: no limit."""
    on_stale: Literal["continue", "hold"] = "continue"
    """What it does then; hold: it rests, and goes on by itself once it has newer ones."""


@dataclass(frozen=True)
class LearnerEntry:
    """One learner: a Ray actor that draws from the replay buffer and publishes weights."""

    kind: str
    seed: int = field(default=0, metadata={"min": 0})
    cpus: float = field(default=1.0, metadata={"above": 0.0})
    gpus: float = field(default=0.0, metadata={"min": 0.0})
    threads: int = field(default=1, metadata={"min": 1})
    nice: int = field(default=10, metadata={"min": 0, "max": 19})
    """Scheduling priority: robots come first, so a learner is never below 0."""
    publish_every_s: float = field(default=2.0, metadata={"above": 0.0})
    checkpoint_every_s: float = field(default=30.0, metadata={"above": 0.0})
    max_restarts: int = field(default=20, metadata={"min": 0})
    weights: WeightsEntry = WeightsEntry()
    replay: Literal["mmap", "remote"] = "mmap"
    """How it reads the replay buffer: its file, or over the network where that is out of reach."""
    ahead: int = field(default=1, metadata={"min": 0, "max": 8})
    """Batches that come over the network before they are asked for."""
    ahead_memory_bytes: int = field(default=256 * 2**20, metadata={"min": 0})
    """Most that they may take of the learner's memory."""
    views: Mapping[str, Any] = field(default_factory=dict, metadata={"each": check_view})
    """Views of its own: name -> clauses, see docs/draws.md. Its mix may name them."""
    encoders: Mapping[str, EncoderEntry] = field(default_factory=dict)
    """Camera -> the frozen encoder whose features come in place of its images."""
    cache_bytes: int = field(default=256 * 2**20, metadata={"min": 0})
    """Memory for decoded images and features, shared by the cameras; over the network for features
    only, for images come ready."""
    config: Any = field(default=None, metadata={"plugin": "learners"})

    def __post_init__(self) -> None:
        known = {**BUILT_IN, **self.views}
        # What a configuration says that it draws from is looked up before anything runs.
        for name in getattr(self.config, "views", ()):
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise ConfigError(
                    "config draws from an unknown view",
                    got=repr(name),
                    allowed=", ".join(known),
                    todo=f"Did you mean {near[0]!r}?" if near else "Describe it under `views`.",
                )


@dataclass(frozen=True)
class ActorEntry:
    """A policy worker on each edge host whose robots name it; at the head where it acts there."""

    learner: str
    """Whose weights it acts with."""
    nice: int = field(default=0, metadata={"min": -20, "max": 19})
    where: Literal["edge", "head"] = "edge"
    """Where the policy runs: beside its robots, or at the head where it is too large for them."""
    cpus: float = field(default=1.0, metadata={"above": 0.0})
    """Threads that it computes with at the head."""
    gpus: int = field(default=0, metadata={"min": 0})
    """GPUs that it has to itself at the head; learners have the others."""
    images: Literal["lossless", "jpeg"] = "lossless"
    """How images travel to the head for acting; what is recorded is not touched by it."""
    hang_s: float = field(default=10.0, metadata={"above": 0.0})
    """Silence at the head after which the policy counts as hung and is restarted."""
    help_after_s: float = field(default=5.0, metadata={"above": 0.0})
    """Rest for want of a plan after which the episode is given up and a person is asked."""
    port: int | None = field(default=None, metadata={"min": 0, "max": 65535})
    """Where its policy listens at the head; 0: any free port. None given: that too, or 7410 and up
    where robot hosts are machines of their own."""


@dataclass(frozen=True)
class ReplayEntry:
    """The replay buffer."""

    size_bytes: int = field(default=8 * 2**30, metadata={"min": 2**24})
    """Most that it may take on disk; then the oldest that robots did by themselves goes first."""
    reserve_bytes: int = field(default=2**30, metadata={"min": 0})
    """Disk space that stays free whatever happens."""
    codecs: Mapping[str, Literal["raw", "zstd", "jpeg"]] = field(default_factory=dict)
    """How images are kept, by observation field; raw where not named. jpeg loses detail."""
    spool_bytes: int = field(default=2**30, metadata={"min": 2**20})
    """Most that an edge host keeps while the head is away."""
    serve: bool = False
    """Draw for learners and engineers on other hosts, even where no learner above asks for it."""


@dataclass(frozen=True)
class TeleopEntry:
    """The page."""

    enabled: bool = True
    host: str | None = None
    """Address on which it listens; none given: ``tunnel.listen``, since robot hosts join here, and
    all addresses where they come by ssh or WireGuard, since joining comes before the tunnel."""
    port: int = field(default=8765, metadata={"min": 0, "max": 65535})
    """0: any free port."""
    tls: Literal["auto", "always"] = "auto"
    """auto: TLS whenever it listens off loopback, or robot hosts of other machines join here."""
    names: tuple[str, ...] = ()
    """Further names and addresses by which it is called, such as the router's in front of it."""


OWN = "own"
"""Instead of a host key: the one in the run's ``pki``, made at its first start."""


@dataclass(frozen=True)
class SshEntry:
    """How robot hosts reach the head's sshd, where the tunnel is of kind ssh."""

    user: str | None = None
    """Account that sshd lets in; none given: who starts the run."""
    host: str | None = None
    """Name or address as robot hosts see it; none given: ``tunnel.host``."""
    port: int = 22
    host_key: str | None = None
    """The sshd's public host key, as in ``/etc/ssh/ssh_host_ed25519_key.pub``, which is read where
    none is given; ``own``: ``up`` runs an sshd for this alone, at ``port``."""

    def __post_init__(self) -> None:
        Destination(self.user or "none", self.host or "none", self.port)
        if self.host_key not in (None, OWN):
            checked_host_key(self.host_key)


@dataclass(frozen=True)
class WireguardEntry(Network):
    """The head's end of the network, where the tunnel is of kind wireguard."""


@dataclass(frozen=True)
class TunnelEntry:
    """How edge hosts reach the head.

    A port of 0 is any free one. None given: 7400 to 7403 where robot hosts are to find the head
    again after its restart, any free one where everybody is on this machine.
    """

    kind: Literal["direct", "ssh", "wireguard"] = "direct"
    ssh: SshEntry = SshEntry()
    wireguard: WireguardEntry = WireguardEntry()
    host: str = LOOPBACK
    """Name or address by which robot hosts reach the head."""
    listen: str = LOOPBACK
    """IPv4 address on which the head's services listen; 0.0.0.0: on all that it has."""
    hub_port: int | None = field(default=None, metadata={"min": 0, "max": 65535})
    fresh_port: int | None = field(default=None, metadata={"min": 0, "max": 65535})
    replay_port: int | None = field(default=None, metadata={"min": 0, "max": 65535})
    reader_port: int | None = field(default=None, metadata={"min": 0, "max": 65535})

    def __post_init__(self) -> None:
        try:
            ipaddress.IPv4Address(self.listen)
        except ValueError:
            raise ConfigError(
                "listen: not an IPv4 address",
                got=repr(self.listen),
                allowed="127.0.0.1, 0.0.0.0 or an address of this machine",
                todo="The name that robot hosts use belongs into tunnel.host.",
            ) from None
        if not HOST.fullmatch(self.host):
            raise ConfigError(
                "host: not a name or address", got=repr(self.host), allowed="without a port"
            )

    @property
    def exposed(self) -> bool:
        """Whether the head's services can be reached from other machines."""
        return not is_loopback(self.listen)

    @property
    def inside(self) -> bool:
        """Whether the head's services listen on an address that WireGuard's interface has."""
        return self.kind == "wireguard" and self.listen == str(self.wireguard.head)

    @property
    def near(self) -> str:
        """Where processes of the head reach its services."""
        return LOOPBACK if is_wildcard(self.listen) else self.listen


@dataclass(frozen=True)
class SecurityEntry:
    """Certificates and keys, made at the first start in ``<run>/pki``."""

    lifetime_s: float = field(default=90 * 86400.0, metadata={"min": 3600.0})
    """Of a certificate; it is renewed when a third of that is left."""


@dataclass(frozen=True)
class ScheduleEntry(ScheduleConfig):
    """When to collect, train, evaluate and stop; see ``core.schedule``."""

    derived: ClassVar[frozenset[str]] = frozenset({"run", "task", "judge_version"})
    stop_when_done: bool = False
    """End the run when its last evaluation is in."""

    def rule(self, run: str, task: str) -> ScheduleConfig:
        """Return what the hub needs: the rule, bound to a run and its task."""
        values = {f.name: getattr(self, f.name) for f in fields(ScheduleConfig)}
        return ScheduleConfig(**{**values, "run": run, "task": task})


@dataclass(frozen=True)
class OperatorEntry:
    """A scripted person, who uses the same service as a real one."""

    kind: Literal["scripted"] = "scripted"
    robots: tuple[str, ...] = ()
    """Robots it looks after; none named: all."""
    help: HelpConfig = field(default_factory=HelpConfig)
    """When it steps in; less and less."""
    release_after_s: float | None = None
    """Rest in FAULT before it releases a robot; null: it leaves that to others."""


@dataclass(frozen=True)
class RayEntry:
    """The Ray head on this machine."""

    port: int = field(default=0, metadata={"min": 0, "max": 65535})
    cpus: float | None = None
    """CPUs that learners may reserve; none given: as many as the machine has."""
    apart: bool = True
    """Learners have the CPUs that they reserve to themselves, where that leaves some for robots."""
    object_store_bytes: int = field(default=80 * 2**20, metadata={"min": 78643200})
    """Nothing of ours travels through it; Ray wants at least 75 MiB."""


@dataclass(frozen=True)
class Manifest:
    """One system."""

    name: str
    robots: Mapping[str, RobotEntry]
    tasks: Mapping[str, TaskEntry]
    learners: Mapping[str, LearnerEntry]
    actors: Mapping[str, ActorEntry]
    run_dir: Path | None = None
    """Where everything of the run is kept; none given: ``runs/<name>``."""
    hosts: Mapping[str, HostEntry] = field(default_factory=dict)
    """Robot hosts of which there is more to say than the robots say."""
    cameras: Mapping[str, CameraEntry] = field(default_factory=dict)
    replay: ReplayEntry = ReplayEntry()
    teleop: TeleopEntry = TeleopEntry()
    tunnel: TunnelEntry = TunnelEntry()
    security: SecurityEntry = SecurityEntry()
    schedule: ScheduleEntry = ScheduleEntry()
    operators: Mapping[str, OperatorEntry] = field(default_factory=dict)
    ray: RayEntry = RayEntry()

    def __post_init__(self) -> None:
        self._check_reach()

    def _check_reach(self) -> None:
        """Refuse what a robot host elsewhere could never reach."""
        way = self.tunnel
        inner = str(way.wireguard.head)
        if self.remote_hosts and way.kind == "wireguard" and way.listen not in (EVERYWHERE, inner):
            raise ConfigError(
                "tunnel.listen: nobody comes out of the WireGuard tunnel there",
                got=way.listen,
                allowed=f"{inner}, the head's address inside, or {EVERYWHERE}",
            )
        if not self.remote_hosts or way.kind != "direct":
            return
        if way.exposed and way.host in ("localhost", LOOPBACK):
            raise ConfigError(
                "tunnel.host: robot hosts elsewhere cannot reach the head by it",
                got=way.host,
                todo="Give the name or address by which they do.",
            )
        if not way.exposed and way.host not in ("localhost", way.listen):
            raise ConfigError(
                f"tunnel.listen: nobody reaches {way.host} while the head listens on loopback only",
                got=way.listen,
                todo=f"Set tunnel.listen to {EVERYWHERE}, or to the address behind {way.host}.",
            )

    @property
    def run(self) -> Path:
        """Directory of the run."""
        return self.run_dir or Path("runs") / self.name

    @property
    def draws_remotely(self) -> bool:
        """Whether anybody draws from the replay buffer over the network."""
        remote = any(entry.replay == "remote" for entry in self.learners.values())
        return self.replay.serve or remote or bool(self.shards)

    @property
    def own_sshd(self) -> bool:
        """Whether robot hosts come in through an sshd of the run's own."""
        way = self.tunnel
        return bool(self.remote_hosts) and way.kind == "ssh" and way.ssh.host_key == OWN

    @property
    def page_host(self) -> str:
        """Address on which the page listens.

        Who joins is not in the tunnel yet: the page is outside of it, where services need not be.
        """
        way = self.tunnel
        outside = bool(self.remote_hosts) and way.kind != "direct" and not is_loopback(way.host)
        return self.teleop.host or (EVERYWHERE if outside else way.listen)

    @property
    def page_secure(self) -> bool:
        """Whether the page is served over TLS."""
        wanted = self.teleop.tls == "always" or bool(self.remote_hosts)
        return wanted or not is_loopback(self.page_host)

    @property
    def page_names(self) -> tuple[str, ...]:
        """Names and addresses by which the page may be called, the best one first."""
        own = (self.page_host, *self.teleop.names, self.tunnel.host, "localhost", "127.0.0.1")
        return tuple(dict.fromkeys(name for name in own if not is_wildcard(name)))

    @property
    def away(self) -> dict[str, ActorEntry]:
        """Actors whose policies run at the head."""
        return {name: entry for name, entry in self.actors.items() if entry.where == "head"}

    @property
    def edge_hosts(self) -> list[str]:
        """Edge hosts, in order of first mention."""
        return list(dict.fromkeys(robot.host for robot in self.robots.values()))

    @property
    def remote_hosts(self) -> list[str]:
        """Edge hosts that are machines of their own."""
        return [host for host in self.edge_hosts if self.is_remote(host)]

    @property
    def shards(self) -> list[str]:
        """Edge hosts that keep a replay shard of their own."""
        return [host for host in self.edge_hosts if host in self.hosts and self.hosts[host].replay]

    def is_remote(self, host: str) -> bool:
        """Whether an edge host is a machine of its own."""
        return host in self.hosts and self.hosts[host].remote

    def robots_of(self, host: str) -> dict[str, RobotEntry]:
        """Return the robots wired to an edge host."""
        return {name: r for name, r in self.robots.items() if r.host == host}


PluginTypes = Callable[[str, str], type | None]
"""(registry group, name) -> the plugin's config dataclass, None where it has none."""


def plugin_config(group: str, kind: str) -> type | None:
    """Return the config dataclass of an installed plugin.

    Raises:
        ConfigError: no such plugin; it lists what exists.
        PluginError: it cannot be imported.
    """
    plugin: object = Registry[object](group).get(kind)
    config_type = getattr(plugin, "config_type", None)
    return config_type if isinstance(config_type, type) else None


def load_manifest(
    path: Path, settings: Sequence[str] = (), plugins: PluginTypes = plugin_config
) -> Manifest:
    """Read, override and check a manifest.

    Args:
        path: the YAML file.
        settings: ``a.b.c=value`` overrides of the command line, in order.
        plugins: where plugin configs come from; injected by tests.

    Raises:
        ConfigError: with one line per problem, all of them at once.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(
            f"manifest {path} cannot be read",
            got=error.strerror,
            todo="Name a YAML file, e.g. deploy/demo.yaml.",
        ) from error
    problems = Problems()
    root = from_yaml(text, str(path), problems)
    for setting in settings:
        root = override(root, setting, problems)
    manifest = Parser(problems, plugin_config=plugins).dataclass(root, Manifest, "")
    check_edges(root, problems)
    problems.check()
    if manifest is None:  # pragma: no cover - a parser that returns nothing names a problem
        raise ConfigError(f"manifest {path} is empty")
    return manifest
