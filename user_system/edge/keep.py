"""Small facts that must survive the process: tokens, epochs, latched faults. One JSON file each."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from user_system.core.errors import StoreError

log = logging.getLogger(__name__)


def write(path: Path, facts: Mapping[str, Any], *, sync: bool = True) -> None:
    """Write ``facts`` so that after any crash the file holds the old ones or the new ones, whole.

    Without ``sync`` that is true of crashes of this process, not of the machine.

    Raises:
        StoreError: the disk failed; the old file is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w") as file:
            json.dump(facts, file)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if not sync:
            return
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StoreError(
            f"cannot keep {path}", got=error, todo="Check space and rights."
        ) from error


def read(path: Path) -> dict[str, Any]:
    """Return what was written last; nothing was ever written: an empty dict.

    Raises:
        StoreError: the file is there and is not one of ours.
    """
    try:
        facts = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise StoreError(
            f"cannot read {path}", got=error, todo="Restore or delete it, knowing what it guards."
        ) from error
    if not isinstance(facts, dict):
        raise StoreError(f"{path} does not hold facts", got=type(facts).__name__)
    return facts


class Memory:
    """The facts of one robot, written down as they change. One thread's business.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self._path = path
        self._facts: dict[str, Any] = {}

    def open(self) -> Mapping[str, Any]:
        """Read what an earlier life noted and return it.

        Raises:
            StoreError: the file is there and is not one of ours.
        """
        self._facts = read(self._path)
        return dict(self._facts)

    def note(self, facts: Mapping[str, Any]) -> None:
        """Note facts beside those that are known.

        A disk that refuses must not keep a person from taking a robot over. What a later life does
        not know then makes it ask for more, not for less: an old token is refused by the driver.
        """
        self._facts |= facts
        try:
            write(self._path, self._facts)
        except StoreError as error:
            log.error("%s", error)
