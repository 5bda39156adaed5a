"""What a remote robot host is to run: one plain document, made at the head, served by the hub.

The head composes for such a host what ``up`` would have started there, and says it in names and
values: kinds of processes, their configs, paths relative to the directory of the robot host. The
host makes command lines and absolute paths of it itself, so that a document can neither name a
program nor a file outside that directory; nor do the settings of plugins in it (``permits``).
"""

import hashlib
import json
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import user_system
from user_system.cluster import configs, permits
from user_system.cluster.launch import ProcessSpec
from user_system.cluster.layout import RunDir
from user_system.cluster.parse import dump, load
from user_system.cluster.plan import Process, everything
from user_system.core.errors import ConfigError
from user_system.core.versions import PROTOCOL, check_version

MAX_BYTES = 4 << 20
"""Largest setup; one robot takes about 2 KiB."""

_T = TypeVar("_T")

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,127}")

_CONFIGS: Mapping[str, type] = {
    "world": configs.WorldHostConfig,
    "edge": configs.EdgeHostConfig,
    "driver": configs.DriverHostConfig,
    "worker": configs.WorkerHostConfig,
    "shard": configs.ShardHostConfig,
    "offer": configs.OfferHostConfig,
}
"""Kinds of processes that a robot host runs."""

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PARTS = frozenset({"name", "host", "robot", "policy", "actor", "worker"})
"""Names in configs of which processes make names of files: the spool, weights, tokens, keys."""


@dataclass(frozen=True)
class SetupProcess:
    """One process of a robot host."""

    name: str
    kind: str
    after: tuple[str, ...] = ()
    """Processes of the same host that must serve first."""
    stage: int = 0
    """Higher stages are ended first."""
    nice: int = 0
    parent: str = ""
    """The process that starts it; "": the one that runs the setup."""


@dataclass(frozen=True)
class HostSetup:
    """Everything that a remote robot host is told."""

    protocol: int
    version: str
    """Of the package at the head."""
    run: str
    host: str
    processes: tuple[SetupProcess, ...]
    configs: Mapping[str, Any]
    """Process -> its config as plain values; paths are relative."""


@dataclass(frozen=True)
class Placed:
    """A setup in the directory of its host: ready to be written down and started."""

    specs: tuple[ProcessSpec, ...]
    configs: Mapping[Path, str]
    """File -> what it holds."""
    told: Mapping[str, str]
    """Process -> all that it and its children are told."""
    agents: tuple[str, ...] = ()
    """Processes that are let finish before they end."""
    robots: tuple[str, ...] = ()

    def changed(self, before: "Placed") -> set[str]:
        """Return the processes that are new, gone, or told something else than before."""
        names = self.told.keys() | before.told.keys()
        return {name for name in names if self.told.get(name) != before.told.get(name)}


# --- at the head ----------------------------------------------------------------------------------


def make(run: str, host: str, processes: Sequence[Process]) -> HostSetup:
    """Return the setup of a host from its composed processes, whose paths are relative."""
    listed = []
    for process in processes:
        listed.append(_listed(process))
        listed += [_listed(child, process.spec.name) for child in process.children]
    told = {process.spec.name: dump(process.config) for process in everything(processes)}
    return HostSetup(PROTOCOL, user_system.__version__, run, host, tuple(listed), told)


def _listed(process: Process, parent: str = "") -> SetupProcess:
    spec = process.spec
    kind = spec.argv[2].removeprefix(f"{_PACKAGE}.").removesuffix("_host")
    return SetupProcess(spec.name, kind, spec.after, spec.stage, spec.nice, parent)


_PACKAGE = "user_system.cluster"


def encode(setup: HostSetup) -> bytes:
    """Return a setup as it travels and is kept."""
    return json.dumps(dump(setup), sort_keys=True, separators=(",", ":")).encode()


def hash_of(document: bytes) -> str:
    """Return what names the contents of a document."""
    return hashlib.sha256(document).hexdigest()


# --- at the robot host ----------------------------------------------------------------------------


def decode(document: bytes) -> HostSetup:
    """Return the setup in a document of a head.

    Raises:
        ConfigError: it is none, or of a version that cannot be followed.
    """
    if len(document) > MAX_BYTES:
        raise ConfigError("setup is too large", got=f"{len(document)} bytes", allowed=MAX_BYTES)
    try:
        plain = json.loads(document)
    except (ValueError, RecursionError) as error:
        raise ConfigError("setup is not JSON", got=error) from error
    permits.check_depth(plain)
    if not isinstance(plain, dict):
        raise ConfigError("setup is no object", got=type(plain).__name__)
    # Before anything else is looked at: another version may well have other fields.
    protocol, version = plain.get("protocol"), plain.get("version")
    if not isinstance(protocol, int) or not isinstance(version, str):
        raise ConfigError("setup names no version", got=(protocol, version))
    check_version(protocol, version, user_system.__version__)
    return load(HostSetup, plain, "setup")


def place(setup: HostSetup, run: RunDir, permitted: Collection[str] = ()) -> Placed:
    """Return what a setup means in a directory.

    Args:
        setup: of a head.
        run: the directory.
        permitted: what of this host settings may name.

    Raises:
        ConfigError: it asks for what no setup may: a program, or a file outside the directory.
    """
    specs, robots = [], []
    written: dict[Path, str] = {}
    told: dict[str, str] = {}
    for process in setup.processes:
        config_type = _CONFIGS.get(process.kind)
        if config_type is None or not _NAME.fullmatch(process.name):
            raise ConfigError(
                "setup names a process that no robot host runs",
                got=f"{process.name!r} of kind {process.kind!r}",
                allowed=", ".join(_CONFIGS),
            )
        config: Any = load(config_type, setup.configs.get(process.name), process.name)
        if isinstance(config, configs.EdgeHostConfig):
            config = _with_modules(config, setup)
            robots += [robot.name for robot in config.robots]
        _check_settings(config, process.name, permitted)
        path = run.config / f"{process.name}.json"
        written[path] = json.dumps(dump(_absolute(config, run)), indent=1)
        top = process.parent or process.name
        told[top] = f"{told.get(top, '')}{process}\n{written[path]}\n"
        if not process.parent:
            specs.append(_spec(process, path))
    _check_order(specs)
    agents = tuple(p.name for p in setup.processes if p.kind == "edge" and not p.parent)
    return Placed(tuple(specs), written, told, agents, tuple(robots))


def _check_order(specs: Sequence[ProcessSpec]) -> None:
    """Check that everything can be started: else the host would wait for it forever.

    Raises:
        ConfigError: a process comes after one that is not there, or after itself.
    """
    if len({spec.name for spec in specs}) < len(specs):
        raise ConfigError("setup names a process twice", got=[spec.name for spec in specs])
    waiting, serving = list(specs), set[str]()
    while ready := [spec for spec in waiting if serving.issuperset(spec.after)]:
        serving |= {spec.name for spec in ready}
        waiting = [spec for spec in waiting if spec.name not in serving]
    if waiting:
        raise ConfigError(
            "setup names processes that can never start",
            got="; ".join(f"{spec.name} after {', '.join(spec.after)}" for spec in waiting),
            allowed="after others of the same host, and not in a circle",
        )


def _spec(process: SetupProcess, path: Path) -> ProcessSpec:
    argv = (sys.executable, "-m", _module(process.kind), str(path))
    return ProcessSpec(
        process.name, argv, after=process.after, stage=process.stage, nice=process.nice
    )


def _module(kind: str) -> str:
    return f"{_PACKAGE}.{kind}_host"


def _with_modules(config: configs.EdgeHostConfig, setup: HostSetup) -> configs.EdgeHostConfig:
    """Return the agent's config with the modules and files of its children as this host has them.

    Raises:
        ConfigError: a child is none that the setup lists.
    """
    kinds = {p.name: p.kind for p in setup.processes if p.parent}
    for child in config.children:
        if kinds.get(child.name) not in ("driver", "worker"):
            raise ConfigError("setup names a child that it does not list", got=child.name)
    children = tuple(
        replace(
            child, module=_module(kinds[child.name]), config=Path("config", f"{child.name}.json")
        )
        for child in config.children
    )
    return replace(config, children=children)


def _absolute(value: _T, run: RunDir) -> _T:
    """Return ``value`` with every path below the directories of ``run``.

    Raises:
        ConfigError: a path, or a name that becomes part of one, would lead out of them.
    """
    if isinstance(value, Path):
        return cast(_T, _below(value, run))
    if is_dataclass(value) and not isinstance(value, type):
        for name in _PARTS & {f.name for f in fields(value)}:
            _check_part(name, getattr(value, name))
        changes = {f.name: _absolute(getattr(value, f.name), run) for f in fields(value)}
        return replace(value, **changes)
    if isinstance(value, tuple):
        return cast(_T, tuple(_absolute(item, run) for item in value))
    return value


def _check_settings(value: Any, whose: str, permitted: Collection[str]) -> None:
    """Check the settings of all plugins within a config.

    Raises:
        ConfigError: they name something of this host.
    """
    if isinstance(value, configs.PluginConfig):
        permits.check(value.config, f"{value.kind!r} of {whose}", permitted)
    elif is_dataclass(value) and not isinstance(value, type):
        for one in fields(value):
            _check_settings(getattr(value, one.name), whose, permitted)
    elif isinstance(value, tuple):
        for item in value:
            _check_settings(item, whose, permitted)


def _check_part(field: str, value: object) -> None:
    if not isinstance(value, str) or not _PART.fullmatch(value):
        raise ConfigError(
            f"setup gives a {field} that cannot name a file of this host",
            got=repr(value)[:200],
            allowed="letters, digits and . _ -, a letter or digit first",
            todo="The document was not made by user-system: look at the head.",
        )


def _below(path: Path, run: RunDir) -> Path:
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ConfigError(
            "setup names a path that is not the robot host's to give",
            got=repr(str(path)),
            allowed="below its directory",
        )
    if path.parts[0] == run.sockets.name:
        return run.sockets.joinpath(*path.parts[1:])
    return run.root / path
