"""Small files that must be whole: written beside, forced to disk, renamed, directory forced too.

A reader sees the old value or the new one, whenever the power goes. Numbers that must never be
handed out twice (tokens, versions) are written here before anybody hears of them.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from user_system.core.errors import DamageError, StoreError


def write_bytes(path: Path, data: bytes) -> None:
    """Replace the content of ``path`` in one step that survives a power cut.

    The caller serialises writers of one path; readers need no lock.

    Raises:
        StoreError: the disk refused; the old content is still there.
    """
    beside = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync(path.parent)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written", got=str(error), todo="Free space on its disk."
        ) from error


def sync(path: Path) -> None:
    """Force a file, or a directory's entries, to disk; without it a rename may be forgotten."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace ``path`` by ``value`` as JSON; see ``write_bytes``."""
    write_bytes(path, json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what ``write_json`` wrote last; None when nothing was ever written.

    Raises:
        DamageError: the file is not JSON or not a mapping; going on would hand out numbers twice.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise DamageError(
            f"{path} is damaged",
            got=str(error),
            todo="Restore it from a backup; deleting it would hand out old tokens again.",
        ) from error
    if not isinstance(value, dict):
        raise DamageError(f"{path} is damaged", got=type(value).__name__, allowed="an object")
    return value
