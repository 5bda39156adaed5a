"""Deeds that await the audit log: what was done to an authority while its hub may not have run.

The audit log has one writer, the hub. Whoever changes who is let in notes it in ``deeds.jsonl``, in
the same locked step, and the hub moves it to its log at its next tick. A hub that is killed right
in between moves a deed twice; it never loses one.
"""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from user_system.core.durable import sync
from user_system.core.errors import DamageError

FILE = "deeds.jsonl"


def note(directory: Path, action: str, who: str, **details: Any) -> None:
    """Note a deed, on disk when this returns. The authority's lock is held.

    Args:
        directory: the authority's.
        action: what was done.
        who: who did it.
        details: JSON values.
    """
    record = {"action": action, "who": who, "details": {**details, "done_s": time.time()}}
    descriptor = os.open(directory / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    sync(directory)


def waiting(directory: Path) -> bool:
    """Whether there is something to hand over; costs one ``stat``."""
    try:
        return (directory / FILE).stat().st_size > 0
    except FileNotFoundError:
        return False


def hand_over(directory: Path, write: Callable[..., Any]) -> None:
    """Give every deed to ``write(action, who, **details)``, in order. The authority's lock is held.

    Raises:
        DamageError: a line is not what was written.
        Exception: whatever ``write`` raises; the deeds are handed over again then.
    """
    path = directory / FILE
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
            action, who, details = record["action"], record["who"], dict(record["details"])
        except (ValueError, KeyError, TypeError) as error:
            raise DamageError(
                f"{path} is damaged", got=error, todo="Move it aside; it says who invited whom."
            ) from error
        write(action, who, **details)
    os.truncate(path, 0)
