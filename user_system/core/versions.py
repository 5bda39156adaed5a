"""Which versions of head and robot host work together."""

import re

from user_system.core.errors import ConfigError

PROTOCOL = 1
"""Of what crosses between a head and robot hosts of other machines; both must speak the same."""


def check_version(protocol: int, version: str, ours: str) -> None:
    """Check that a robot host of version ``ours`` can follow a head.

    Args:
        protocol: that the head speaks.
        version: of the head's package.
        ours: version of the package here.

    Raises:
        ConfigError: it cannot; the text names both versions.
    """
    if protocol == PROTOCOL and _series(version) == _series(ours):
        return
    newer = max(version, ours, key=lambda v: [int(part) for part in re.findall(r"\d+", v)])
    older = "this robot host" if newer == version else "the head"
    raise ConfigError(
        "head and robot host are of versions that do not work together",
        got=f"head {version} (protocol {protocol}), this host {ours} (protocol {PROTOCOL})",
        todo=f"On {older}: pip install 'user-system=={newer}'.",
    )


def _series(version: str) -> list[str]:
    """Return the part of a version that must be the same: before 1.0 the minor one counts, too."""
    parts = version.split(".")
    return parts[:2] if parts[0] == "0" else parts[:1]
