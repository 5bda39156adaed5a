"""Whether a store is the one a checkpoint was made with: what it holds at one place of its log.

A store that was compacted, salvaged or merged holds the same fragments under other numbers.
"""

from collections.abc import Sequence

from user_system.codec import arrays
from user_system.core.errors import DamageError, SpecError
from user_system.replay.env import Env
from user_system.replay.tables import U64


def anchor(env: Env, end: int) -> list[int] | None:
    """Return the place of the last entry of the log below ``end``, and the checksum it bears.

    None where there is none, or none any more.
    """
    with env.read() as txn:
        value = txn.get(U64.pack(end - 1), db=env.table("log")) if end else None
        return None if value is None else [end - 1, arrays.stated_checksum(value)]


def require(env: Env, anchored: Sequence[int] | None) -> None:
    """Make sure that the log holds there what it held then, if it holds anything sound.

    Raises:
        SpecError: it holds another fragment.
    """
    if anchored is None:
        return
    place, checksum = (int(number) for number in anchored)
    with env.read() as txn:
        value = txn.get(U64.pack(place), db=env.table("log"))
        if value is None or arrays.stated_checksum(value) == checksum:
            return
        try:
            arrays.unpack(value)
        except DamageError:
            return  # its reader says so
    raise SpecError(
        f"{env.path} is not the store that the learner drew from, or was written anew since",
        got=f"another fragment at {place} of its log",
        todo="Resume with that store, or let the learner begin its draws anew.",
    )
