"""Weights are read aside: no plan waits for a disk."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from user_system.core.errors import StoreError
from user_system.core.types import Weights
from user_system.edge import weight_files


@dataclass(frozen=True, slots=True)
class Read:
    """Weights from a file, or why there are none."""

    version: int
    weights: Weights | None
    error: str


def read(version: int, path: str) -> Read:
    """Return the version that lies at ``path``."""
    try:
        return Read(version, weight_files.load(Path(path)), "")
    except StoreError as error:
        return Read(version, None, str(error))


def read_aside(version: int, path: str, then: Callable[[Read], None]) -> None:
    """Read in a thread, which calls ``then`` with what it found."""
    threading.Thread(target=lambda: then(read(version, path)), name="read", daemon=True).start()
