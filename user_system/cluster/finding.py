"""What ``user-system doctor`` finds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    found: str
    ok: bool
    todo: str = ""
    """What to do where it is not ok."""
