"""The directory of a robot host that is a machine of its own: who it is, and what it keeps.

::

    edge.json          who it is and how it reaches the head, written by `user-system edge join`
    pki/               its keys, made here, and its certificate
    setup.json         what it last ran, so that it starts without the head
    permitted          files, modules and addresses that its head's settings may name, by its owner
    config/ logs/ …    as in a run's directory, see ``layout``
    edge/<name>/       the spool, tokens and weights
"""

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path

from user_system.cluster.configs import JoinFacts, LinkConfig
from user_system.cluster.parse import dump, read_json
from user_system.cluster.process import write_private
from user_system.core.errors import ConfigError

_LINK = {f.name for f in fields(LinkConfig)}


@dataclass(frozen=True)
class EdgeFile:
    """Who a robot host is."""

    name: str
    facts: JoinFacts


@dataclass(frozen=True)
class EdgeHome:
    """The directory; ``root`` is absolute."""

    root: Path

    @property
    def pki(self) -> Path:
        """Keys and certificates."""
        return self.root / "pki"

    @property
    def file(self) -> Path:
        """Who it is."""
        return self.root / "edge.json"

    @property
    def setup(self) -> Path:
        """What it last ran."""
        return self.root / "setup.json"

    def read(self) -> EdgeFile:
        """Return who this host is.

        Raises:
            ConfigError: nobody joined here, or the file is damaged.
        """
        if not self.file.exists():
            raise ConfigError(
                f"{self.root} is no directory of a robot host",
                todo="Make one: user-system edge join LINE, with the line that "
                "`user-system enrol create` prints at the head.",
            )
        try:
            return read_json(self.file, EdgeFile)
        except ValueError as error:
            raise ConfigError(
                f"{self.file} is damaged", got=error, todo="Join again, with a new line."
            ) from error

    def write(self, file: EdgeFile) -> None:
        """Write down who this host is."""
        write_private(self.file, json.dumps(dump(file), indent=1))

    def link(self, file: EdgeFile) -> LinkConfig:
        """Return how a process of this host reaches the head."""
        facts = {name: value for name, value in vars(file.facts).items() if name in _LINK}
        return LinkConfig(name=file.name, pki=self.pki, **facts)


def default_root(name: str) -> Path:
    """Return where a robot host keeps everything unless a person says otherwise."""
    if os.geteuid() == 0:
        return Path("/var/lib/user-system") / name
    base = os.environ.get("XDG_DATA_HOME") or str(Path.home() / ".local" / "share")
    return Path(base) / "user-system" / name
