"""Which versions of head and robot host work together."""

import re

from user_system.core.errors import ConfigError

PROTOCOL = 2
"""Of what crosses between a head and robot hosts of other machines; both must speak the same. One
more whenever messages or their order change; ``tests/comms/test_wire.py`` notices their fields."""


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
    behind = protocol > PROTOCOL if version == ours else newer == version
    older, other = ("this robot host", "the head") if behind else ("the head", "this robot host")
    how = f"pip install 'user-system=={newer}'"
    if version == ours:  # two builds of one version: only the protocol tells them apart
        how = f"install the very build that {other} has"
    raise ConfigError(
        "head and robot host are of versions that do not work together",
        got=f"head {version} (protocol {protocol}), this host {ours} (protocol {PROTOCOL})",
        todo=f"On {older}: {how}.",
    )


def _series(version: str) -> list[str]:
    """Return the part of a version that must be the same: before 1.0 the minor one counts, too."""
    parts = version.split(".")
    return parts[:2] if parts[0] == "0" else parts[:1]
