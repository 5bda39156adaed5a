"""Time within an episode: a fragment that was observed before what is stored is not its sequel.

From a robot's host such a fragment is refused. One that another store holds was acknowledged there,
by a version that did not look: it is copied, since robot time cannot be bought again, and named.
"""

import logging
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import TypeAlias

from user_system.codec import fragments
from user_system.core.errors import DamageError, SpecError
from user_system.core.types import Fragment
from user_system.replay.env import Env, Txn
from user_system.replay.ledger import Ledger, key_of
from user_system.replay.tables import U64

log = logging.getLogger(__name__)

Moments: TypeAlias = MutableMapping[bytes, tuple[str, int]]
"""Episode -> who records it, and the robot ns of its last observation; the newest one last."""


class Order:
    """Knows the last moment of the episodes that are being recorded.

    Args:
        env: the writer's environment.
        ledger: its books.
    """

    def __init__(self, env: Env, ledger: Ledger):
        self._env = env
        self._ledger = ledger
        self._moments: dict[str, tuple[bytes, int]] = {}

    def note(self, fragment: Fragment, fresh: Moments) -> None:
        """Note when a fragment that was stored ended, among what its transaction did."""
        header = fragment.header
        key = key_of(header.producer, header.epoch, header.episode)
        fresh.pop(key, None)
        fresh[key] = header.producer, int(fragment.robot_ns[-1])

    def took(self, fresh: Mapping[bytes, tuple[str, int]]) -> None:
        """Take over what a transaction noted that is on disk now."""
        for key, (producer, moment) in fresh.items():
            self._moments[producer] = key, moment

    def refusal(self, txn: Txn, fragment: Fragment, fresh: Moments) -> str:
        """Return why a fragment cannot follow what its episode has; empty: it can."""
        header = fragment.header
        key = key_of(header.producer, header.epoch, header.episode)
        last = self._last(txn, key, header.producer, fresh)
        first = int(fragment.robot_ns[0])
        if last is None or first > last:
            return ""
        at = f"fragment {header.sequence} of {header.producer!r}"
        allowed = f"after {last}, the last of episode {header.episode!r} so far"
        return str(SpecError(f"{at}: robot_ns runs backwards", got=first, allowed=allowed))

    def _last(self, txn: Txn, key: bytes, producer: str, fresh: Moments) -> int | None:
        """Return the last moment of an episode so far; None: there is none of it."""
        if key in fresh:
            return fresh[key][1]
        known = self._moments.get(producer)
        return known[1] if known is not None and known[0] == key else self._stored(txn, key)

    def _stored(self, txn: Txn, key: bytes) -> int | None:
        offset = self._ledger.last(txn, key)
        if offset is None:
            return None
        record = txn.get(U64.pack(offset), db=self._env.table("log"))
        try:
            return None if record is None else int(fragments.decode(record).robot_ns[-1])
        except DamageError:
            return None  # whoever reads it says so


def report(path: Path, late: Sequence[str]) -> int:
    """Log what goes back in time among what was copied from ``path``; return how many do."""
    for reason in late:
        log.warning("%s: copied as it is: %s", path, reason)
    return len(late)
