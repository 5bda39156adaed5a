"""What a spool's books say of one (producer, epoch): how far it is, whose it is, what holds it up.

It lies beside the items, not in them: damage to every item of a source must not make it nobody's.
"""

import struct
from typing import NamedTuple

from user_system.replay.tables import U64

_HEAD = struct.Struct(">QI")


class Origin(NamedTuple):
    """A row of the table ``sources``."""

    following: int = 0
    """The sequence to append next."""
    boot: str = ""
    """Of the process that recorded it; empty: not known, as in spools of earlier versions."""
    stuck: str = ""
    """Why the other side takes none of it; empty: as far as is known it does."""

    @classmethod
    def parse(cls, value: bytes) -> "Origin":
        """Return what a value of the table ``sources`` says; older ones say how far it is only."""
        if len(value) == U64.size:
            return cls(*U64.unpack(value))
        following, length = _HEAD.unpack_from(value)
        end = _HEAD.size + length
        parts = value[_HEAD.size : end], value[end:]
        return cls(following, *(part.decode(errors="backslashreplace") for part in parts))

    def pack(self) -> bytes:
        """Return what ``parse`` reads."""
        boot = self.boot.encode()
        return _HEAD.pack(self.following, len(boot)) + boot + self.stuck.encode()
