"""The audit log of a run, for people; and deeds of the command line, which the hub moves into it.

The log has one writer, the hub. What is done while it may not run is noted beside the authority
(``comms.deeds``), and is in the log as soon as the hub is there.
"""

import getpass
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from comms import deeds
from comms.authority import locked
from user_system.core.deeds import MAX_TEXT, Deed
from user_system.core.errors import DamageError, MissingError
from user_system.hub.audit import GENESIS, records

LOG = Path("hub") / "audit.jsonl"
"""Within a run's directory."""

COLUMNS = ("number", "when", "what", "who", "details")


@dataclass(frozen=True)
class Checked:
    """A log that was read to its end, every record in its place."""

    count: int
    head: str
    """Hash of the last record: the same one tomorrow means that nothing before it was touched."""
    waiting: int
    """Deeds of the command line that no hub has moved into it yet."""


def note(pki: Path, deed: Deed, **details: str) -> None:
    """Note what a person did with a command; nothing where there is no authority.

    Args:
        pki: directory of the run's authority.
        deed: what.
        details: short texts.
    """
    if not (pki / "ca.crt").exists():
        return
    cut = {name: text[:MAX_TEXT] for name, text in details.items()}
    with locked(pki):
        deeds.note(pki, deed.value, getpass.getuser(), **cut)


def read(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a run's log, each checked against those before it.

    Raises:
        MissingError: there is none.
        DamageError: naming the first line that is not what was written.
    """
    path = run / LOG
    if not path.exists():
        raise MissingError(
            f"no audit log in {run}", got=f"no {path}", todo="Name the directory of a run."
        )
    yield from records(path)


def check(run: Path, head: str = "") -> Checked:
    """Read a run's log to its end.

    Args:
        run: its directory.
        head: a hash that was written down earlier; it must be one of the chain's.

    Raises:
        MissingError: there is no log.
        DamageError: a line was tampered with, or the log does not go on from ``head``.
    """
    count, last, known = 0, GENESIS, not head
    for record in read(run):
        count, last = count + 1, record["hash"]
        known = known or last == head
    if not known:
        raise DamageError(
            f"the audit log of {run} has no record {head[:16]}…: its end was cut off, or it is "
            "another log",
            got=f"{count} records up to {last[:16]}…",
        )
    waiting = run / "pki" / deeds.FILE
    lines = len(waiting.read_bytes().splitlines()) if waiting.exists() else 0
    return Checked(count, last, lines)


def cells(record: dict[str, Any]) -> tuple[str, ...]:
    """Return a record as a row of ``COLUMNS``; what peers said of themselves is escaped."""
    when = datetime.fromtimestamp(record["wall_ns"] / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    details = ", ".join(f"{k} {_plain(v)}" for k, v in sorted(record["details"].items()) if v)
    who = _plain(record["who"])
    return (str(record["sequence"]), when, _plain(record["action"]), who, details)


def _plain(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
