"""Where a run keeps what: one directory, and a short one for what cannot live in a deep one."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from user_system.core.errors import ConfigError

SOCKET_PATH_MAX = 80
"""A unix socket's address holds 107 bytes; the rest is left for names below the directory."""

QUEUE, JOURNALS = "spool", "tokens"
"""Where an edge host keeps its spool's queue and its journals, within its own directory."""


@dataclass(frozen=True)
class RunDir:
    """The run directory; every path in it is absolute."""

    root: Path
    short: Path
    """Temporary directory of this start: sockets and Ray's files. Removed when it ends."""

    @property
    def config(self) -> Path:
        """Per-process configuration, readable by its owner only."""
        return self.root / "config"

    @property
    def setups(self) -> Path:
        """What remote robot hosts are to run, one file each."""
        return self.config / "setups"

    @property
    def pki(self) -> Path:
        """Certificates and keys."""
        return self.root / "pki"

    @property
    def accounts(self) -> Path:
        """Who may log in to the page, and their secrets."""
        return self.pki / "accounts.json"

    @property
    def replay(self) -> Path:
        """The replay buffer."""
        return self.root / "replay"

    @property
    def hub(self) -> Path:
        """Tokens, schedule, weights, audit."""
        return self.root / "hub"

    @property
    def weights(self) -> Path:
        """The weight store, in the hub's directory."""
        return self.hub / "weights"

    @property
    def sockets(self) -> Path:
        """Unix sockets and rings."""
        deep = self.root / "sock"
        return deep if len(str(deep)) <= SOCKET_PATH_MAX else self.short / "sock"

    def log(self, process: str) -> Path:
        """Return where a process logs to."""
        return self.root / "logs" / f"{process}.log"

    def edge(self, host: str) -> Path:
        """Return where an edge host keeps its spool, tokens and fetched weights."""
        return self.root / "edge" / host

    def shard(self, host: str) -> Path:
        """Return where an edge host keeps its replay shard, if it has one."""
        return self.edge(host) / "replay"

    def judged(self, host: str) -> Path:
        """Return where a remote edge host keeps what evaluations recorded: it is not the run's."""
        return self.edge(host) / "eval"

    def policy(self, actor: str) -> Path:
        """Return where an actor at the head keeps fetched weights."""
        return self.root / "policy" / actor

    def learner(self, name: str) -> Path:
        """Return where a learner's checkpoints are."""
        return self.root / "learner" / name

    def make(self) -> None:
        """Create what processes expect to find, for the owner's eyes only.

        Raises:
            ConfigError: it cannot be created.
        """
        try:
            for path in (self.root, self.config, self.pki, self.sockets):
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise ConfigError(
                f"the run directory {self.root} cannot be made",
                got=error.strerror,
                todo="Choose another with --set run_dir=PATH.",
            ) from error


def open_run(root: Path) -> RunDir:
    """Return the run directory at ``root`` with a fresh temporary directory."""
    return RunDir(root.resolve(), Path(tempfile.mkdtemp(prefix="us-")))


def set_aside(root: Path) -> Path | None:
    """Rename an earlier run out of the way; return its new place, None where there was none.

    Nothing recorded is ever overwritten: a robot's time is worth more than disk.
    """
    if not root.exists() or not any(root.iterdir()):
        return None
    number = 1
    while (target := root.with_name(f"{root.name}.{number}")).exists():
        number += 1
    root.rename(target)
    return target
