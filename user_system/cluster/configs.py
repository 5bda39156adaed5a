"""What each process is told: one small dataclass per process kind, nothing about anybody else.

The launcher writes them as JSON that only the owner reads; ``process.run`` reads them back. What a
plugin is configured with travels as its registry name and plain values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from user_system.cluster.parse import Parser
from user_system.cluster.tree import Problems, from_plain
from user_system.core.errors import ConfigError
from user_system.core.helping import HelpConfig
from user_system.core.interfaces import Encoder, LearnerPlugin, Robot, Task
from user_system.core.registry import Registry
from user_system.core.schedule import ScheduleConfig
from user_system.core.specs import RobotSpec

T = TypeVar("T")
Control = Literal["cartesian", "joint"]
Access = Literal["mmap", "remote"]
WeightsDtype = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class PluginConfig:
    """A plugin by name, and its configuration as plain values."""

    kind: str
    config: Any = None


@dataclass(frozen=True)
class LinkConfig:
    """How a process reaches the head, and who it is there."""

    name: str
    """Peer name: the credentials of this name are in ``pki``."""
    pki: Path
    hub: str
    """``host:port`` of the gRPC services of the hub."""
    replay: str
    fresh: str
    kind: str = "direct"
    reader: str = "127.0.0.1:7403"
    """Where the replay reader listens, if there is one."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the tunnel of this kind, as ``comms.admission.settle`` returns them."""
    policies: Mapping[str, str] = field(default_factory=dict)
    """Actor -> ``host:port`` of its policy, of actors that run at the head."""


@dataclass(frozen=True)
class JoinFacts:
    """What a robot host that joins is told: how it reaches the head."""

    run: str
    hub: str
    """``host:port``, as seen from the robot host."""
    replay: str
    fresh: str
    reader: str
    kind: str = "direct"
    """Of the tunnel."""
    page: str = ""
    """Address of the page."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Of the tunnel; each robot host's own."""


@dataclass(frozen=True)
class HubHostConfig:
    """The hub."""

    link: LinkConfig
    run: str
    directory: Path
    schedule: ScheduleConfig
    lifetime_s: float = 90 * 86400.0
    """Of the certificates that it signs."""
    listen: str = "127.0.0.1"
    """Address that it listens on, at the ports of ``link``."""
    owners: Mapping[str, str] | None = None
    """Robot -> the only host that may speak for it; None: whoever comes first."""
    publishers: Mapping[str, str] | None = None
    """Policy -> the only learner that may publish it; None: any learner may publish any."""
    setups: Path | None = None
    """Directory with what each remote host is to run: ``<host>.json``."""
    join_facts: JoinFacts | None = None
    """What a robot host that joins is told."""


@dataclass(frozen=True)
class ReplayHostConfig:
    """The replay buffer's writer."""

    link: LinkConfig
    run: str
    directory: Path
    size_bytes: int
    reserve_bytes: int
    codecs: Mapping[str, Literal["raw", "zstd", "jpeg"]]
    owners: Mapping[str, str]
    """Robot -> the only host that may send what it recorded; of others anybody's is taken."""
    listen: str = "127.0.0.1"
    """Address that it listens on, at the port of ``link``."""


@dataclass(frozen=True)
class ShardConfig:
    """A replay shard as the agent of the same host finds it."""

    host: str
    """Peer name of the agent there."""
    socket: Path
    """On which the shard listens; nothing else of this host reaches it."""
    pki: Path
    """Credentials that are valid between the two, made at the first start."""


@dataclass(frozen=True)
class ShardHostConfig:
    """The writer of a robot host's own replay shard."""

    link: LinkConfig
    shard: ShardConfig
    directory: Path
    size_bytes: int
    reserve_bytes: int
    codecs: Mapping[str, Literal["raw", "zstd", "jpeg"]]


@dataclass(frozen=True)
class OfferHostConfig:
    """Who draws from a robot host's own shard, for learners that come over the head."""

    link: LinkConfig
    directory: Path


@dataclass(frozen=True)
class ReaderHostConfig:
    """Who draws from the replay buffer for learners of other hosts, and passes them to shards."""

    link: LinkConfig
    directory: Path
    listen: str = "127.0.0.1"
    """Address that it listens on, at the port of ``link``."""


@dataclass(frozen=True)
class SshdHostConfig:
    """The sshd that lets robot hosts in, where it is one for this run alone."""

    file: Path
    """Its configuration."""
    pid_file: Path
    """Which it writes as soon as it listens."""


@dataclass(frozen=True)
class WorldHostConfig:
    """The physics and control box of one simulated robot."""

    socket: Path
    """Where its driver finds it."""
    space: Control
    rate: float
    """Robot seconds per wall second."""
    image_size: tuple[int, int]
    """Height and width of images, pixels."""
    cube_half: float
    """Half an edge of the cube, m."""


@dataclass(frozen=True)
class DriverHostConfig:
    """One robot's driver."""

    robot: str
    socket: Path
    memory: Path
    plugin: PluginConfig
    previews: tuple[str, ...] = ()
    world: Path | None = None
    """Socket of its world; simulated robots only."""


@dataclass(frozen=True)
class SeatEntry:
    """One robot served by a policy worker."""

    robot: str
    socket: Path
    plugin: PluginConfig
    """The robot's driver: only its specification is used."""
    task: PluginConfig


@dataclass(frozen=True)
class AwayConfig:
    """The way to an actor's policy at the head."""

    link: LinkConfig
    actor: str
    images: Literal["zstd", "jpeg"]
    """How images travel; zstd loses nothing."""


@dataclass(frozen=True)
class WorkerHostConfig:
    """One policy at work for some robots of a host."""

    policy: str
    learner: PluginConfig
    seats: tuple[SeatEntry, ...]
    away: AwayConfig | None = None
    """Where the policy acts, if not here."""


@dataclass(frozen=True)
class PolicyRobot:
    """One robot whose policy acts at the head."""

    name: str
    host: str
    """Who may ask for its plans."""
    plugin: PluginConfig
    """The robot's driver: only its specification is used."""


@dataclass(frozen=True)
class PolicyHostConfig:
    """One actor whose policy acts at the head."""

    link: LinkConfig
    actor: str
    policy: str
    """Whose weights it acts with."""
    learner: PluginConfig
    robots: tuple[PolicyRobot, ...]
    directory: Path
    """Fetched weights."""
    hang_s: float
    """Silence of the plugin after which it counts as hung and this process is restarted."""
    listen: str = "127.0.0.1"
    """Address that it listens on, at the port of ``link``."""
    shelf: Path | None = None
    """The weight store's directory, where it shares its disk."""


@dataclass(frozen=True)
class EdgeRobot:
    """One robot of an edge host, as its agent needs to know it."""

    name: str
    task: str
    policy: str
    """Whose weights it acts with."""
    rate: float
    """Robot seconds per wall second while no person drives it in real time."""
    worker: str
    """Name of its policy worker."""
    driver: Path
    """Socket of its driver."""
    seat: Path
    """Socket of its place in the policy worker."""
    remote: bool = False
    """Whether its policy acts at the head, and its weights are not fetched here."""
    help_after_s: float = 5.0
    """Rest for want of a plan after which a person is asked."""
    max_weights_age_s: float | None = None
    """For how long it may act with weights that are not known to be the newest; None: no limit."""


@dataclass(frozen=True)
class EdgeChild:
    """A process that the agent keeps running."""

    name: str
    module: str
    config: Path
    log: Path
    socket: Path | None = None
    """Where one that outlived an earlier agent is found (drivers)."""
    nice: int = 0


@dataclass(frozen=True)
class EdgeHostConfig:
    """The agent of one robot host."""

    link: LinkConfig
    host: str
    run: str
    directory: Path
    """Spool, tokens, whom robots wait for, fetched weights."""
    spool_bytes: int
    """Most that may wait for the head before no episode is begun any more."""
    robots: tuple[EdgeRobot, ...]
    children: tuple[EdgeChild, ...]
    shard: ShardConfig | None = None
    """Where experience goes, if not to the head."""
    lossy: tuple[str, ...] = ()
    """Cameras whose images the replay buffer keeps as JPEG: over a slow link they go as that."""
    shelf: Path | None = None
    """The weight store's directory, where this host shares its disk."""
    apart: Path | None = None
    """Where the spool is, if not in ``directory``: what an evaluation records is not the run's."""


@dataclass(frozen=True)
class LearnerHostConfig:
    """One learner, and where it may live."""

    link: LinkConfig
    name: str
    """Also the id of the policy it publishes."""
    run: str
    plugin: PluginConfig
    robot: PluginConfig
    """A robot it learns for: its specification shapes the networks."""
    robots: tuple[str, ...]
    """Robots that are reserved together with its CPUs."""
    seed: int
    cpus: float
    gpus: float
    threads: int
    nice: int
    publish_every_s: float
    checkpoint_every_s: float
    max_restarts: int
    replay: Path
    """The store, where it is read by mmap."""
    shards: tuple[str, ...]
    """Stores to draw from: "" is the head's, others are hosts that keep one of their own."""
    access: Access
    ahead: int
    """Batches that come before they are asked for, where they come over the network."""
    ahead_bytes: int
    views: Mapping[str, Any]
    """Views of its own: name -> clauses."""
    encoders: Mapping[str, PluginConfig]
    """Camera -> encoder."""
    cache_bytes: int
    """Memory for decoded images and features."""
    directory: Path
    """Checkpoints."""
    log: Path
    """Where the actor logs to; Ray would keep it elsewhere."""
    ray: str
    """``host:port`` of the Ray head."""
    weights_dtype: WeightsDtype = "float32"
    """To what weights are rounded before they are published."""
    shelf: Path | None = None
    """The weight store's directory, where the learner shares its disk."""


@dataclass(frozen=True)
class TeleopHostConfig:
    """The page."""

    link: LinkConfig
    run: str
    host: str
    port: int
    accounts: Path
    """Who may log in."""
    names: tuple[str, ...] = ("127.0.0.1", "localhost")
    """Names by which people and robot hosts may call it."""
    tls: bool = False
    """Whether it is served over TLS, with the certificate of its own peer name."""


@dataclass(frozen=True)
class OperatorHostConfig:
    """A scripted person."""

    name: str
    url: str
    """Address of the page."""
    secret: str
    robots: tuple[str, ...]
    task: str
    """Registry name of the task that it knows how to do."""
    help: HelpConfig
    """When it steps in."""
    release_after_s: float | None
    """Rest in FAULT before it releases a robot; None: it leaves that to others."""
    authority: Path | None = None
    """Certificate of who vouches for the page; None: it is served without TLS, on loopback."""


# --- plugins from their names ------------------------------------------------------------------


def typed(config_type: type[T], value: Any, name: str) -> T:
    """Return plain values as a plugin's config.

    Raises:
        ConfigError: they do not fit.
    """
    problems = Problems()
    result = Parser(problems, units=False).dataclass(from_plain(value, name), config_type, "")
    problems.check()
    return cast(T, result)


def make_robot(plugin: PluginConfig, **more: Any) -> Robot:
    """Build a driver's robot, not connected; ``more`` overrides its configuration."""
    cls: Any = Registry[Any]("robots").get(plugin.kind)
    return cast(Robot, cls(_config(cls, plugin, more)))


def make_task(plugin: PluginConfig) -> Task:
    """Build a task."""
    cls: Any = Registry[Any]("tasks").get(plugin.kind)
    return cast(Task, cls(_config(cls, plugin, {})))


def make_encoder(plugin: PluginConfig) -> Encoder:
    """Build a frozen encoder."""
    cls: Any = Registry[Any]("encoders").get(plugin.kind)
    return cast(Encoder, cls(_config(cls, plugin, {})))


def learner_plugin(plugin: PluginConfig) -> tuple[LearnerPlugin, Any]:
    """Return a learner plugin and its typed configuration."""
    found = Registry[LearnerPlugin]("learners").get(plugin.kind)
    return found, _config(found, plugin, {})


def robot_spec(plugin: PluginConfig) -> RobotSpec:
    """Return the specification of a robot without touching it."""
    return make_robot(plugin).spec


def _config(owner: Any, plugin: PluginConfig, more: Mapping[str, Any]) -> Any:
    config_type = getattr(owner, "config_type", None)
    if config_type is None:
        if more or plugin.config:
            raise ConfigError(f"plugin {plugin.kind!r} takes no configuration")
        return None
    return typed(config_type, {**(plugin.config or {}), **more}, plugin.kind)
