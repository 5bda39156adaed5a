"""What settings that a head sends may name of a robot host: nothing that its owner did not permit.

A setup brings settings of plugins, and what those mean is the plugins' business: one opens a
device, another reads a file, a third imports a module (``gymnasium`` does, for ``module:Id-v0``).
So a head that was taken over could have this host read and run what lies on it. Texts that look
like a file, a module or an address of something elsewhere are refused, unless the owner of the host
wrote them into a file there: one text a line, exactly as the settings say it.
"""

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from user_system.core.errors import ConfigError

FILE = "permitted"
"""In the directory of a robot host."""

MAX_DEPTH = 64
"""Levels of lists and objects in a setup; ours have about ten."""

_PATH = re.compile(r"[/\\\0]|^[~$.]")
"""Any separator, and what begins a home, a variable or a hidden name."""
_MODULE = re.compile(r"^[^\W\d][\w.]*:[^\W\d]")
"""``module:name``; a host's ``name:port`` is none, for a port begins with a digit."""


def read(directory: Path) -> frozenset[str]:
    """Return what the owner of a robot host permits; lines that begin with # are comments.

    Raises:
        ConfigError: the file cannot be read.
    """
    path = directory / FILE
    try:
        lines = path.read_text().splitlines() if path.exists() else []
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read", got=error) from error
    return frozenset(line.strip() for line in lines if line.strip() and line[0] != "#")


def check(settings: Any, whose: str, permitted: Collection[str]) -> None:
    """Refuse settings that name something of this host.

    Args:
        settings: plain values.
        whose: for people.
        permitted: texts that may be there nevertheless.

    Raises:
        ConfigError: says which text, and how it is permitted.
    """
    for text in _texts(settings):
        if (_PATH.search(text) or _MODULE.match(text)) and text not in permitted:
            raise ConfigError(
                f"setup has {whose} name a file, module or address of this host's",
                got=repr(text)[:200],
                allowed="names and numbers",
                todo=f"If the head may name it, its line goes into the file {FILE!r} in the "
                "directory of this robot host, here; then run the host again.",
            )


def check_depth(plain: Any) -> None:
    """Refuse what is nested without end: to read it would end this process.

    Raises:
        ConfigError: it is.
    """
    level = [plain]
    for _ in range(MAX_DEPTH):
        level = [item for value in level for item in _inside(value)]
        if not level:
            return
    raise ConfigError("setup is nested too deeply", allowed=f"{MAX_DEPTH} levels")


def _inside(value: Any) -> Collection[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    if isinstance(value, dict):
        yield from (key for key in value if isinstance(key, str))
    for item in _inside(value):
        yield from _texts(item)
