"""What the process of a lab is told to make."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What to make."""

    owner: int
    """Pid of the process with which all this ends."""
    hosts: tuple[str, ...]
    """Names of the namespaces."""
    up: dict[str, Any]
    """``Line.plain`` from the first end to the second."""
    down: dict[str, Any]
    ends: tuple[str, str]
    """Between which hosts the link is: its devices are called ``wan0`` in each."""
    seed: int
