r"""The tables of a store, their keys, and how each is walked.

::

    log       offset                     -> record: the fragment without its images, checksummed
    images    offset camera group        -> images of a camera (see ``images``)
    places    offset                     -> where these lie in the file (see ``places``)
    blocks    first offset, part         -> end offset, position and length of the block
    columns   first offset, part         -> the block: a part of the log as columns (see ``blocks``)
    next      producer \0 epoch          -> the sequence expected, written with the data it counts,
                                           and whose the source is (see ``books``)
    refused   producer \0 epoch sequence -> why; so that a repeated one gets the same answer
    labels    number                     -> one late label, checksummed
    versions  hash of episode, name, version -> hash of what it says, so that a repeat is no news
    schemas   schema id                  -> shapes of its rows
    episodes, pieces, order, live        -> who holds how much (see ``ledger``)
    gone      number                     -> offsets of fragments that were removed, why, by whom
    meta      "offset", "label", "gone"  -> the next number of ``log``, ``labels``, ``gone``
              kinds \0 schema            -> its kinds of extras and streams (see ``kinds``)

Records, labels, blocks and images bear checksums of their own; all other values end in one of
their key and themselves. Numbers are big-endian: LMDB's order is the order of time. The log is only
appended to; a rewind, a label, a verdict are later entries that readers apply.
"""

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import xxhash

from user_system.core.errors import DamageError
from user_system.replay import layout
from user_system.replay.env import Env, Txn
from user_system.replay.mapped import position
from user_system.replay.schema import Schema

KIND = "replay"
TABLES = (
    "log",
    "images",
    "places",
    "blocks",
    "columns",
    "next",
    "refused",
    "labels",
    "versions",
    "schemas",
    "episodes",
    "pieces",
    "order",
    "live",
    "gone",
    "meta",
)
SEALED = (
    "blocks",
    "next",
    "refused",
    "versions",
    "schemas",
    "episodes",
    "pieces",
    "order",
    "live",
    "meta",
)
"""Tables whose values end in a checksum of their key and themselves."""
U64 = struct.Struct(">Q")
_BLOCK_KEY = struct.Struct(">QH")
_BLOCK = struct.Struct("<QQQ")
_SUM = struct.Struct("<Q")


def put(txn: Txn, env: Env, table: str, key: bytes, value: bytes) -> None:
    """Store a small value together with a checksum of it and its key."""
    txn.put(key, value + _SUM.pack(xxhash.xxh3_64_intdigest(key + value)), db=env.table(table))


def append(txn: Txn, env: Env, table: str, key: bytes, value: bytes) -> None:
    """Store a value under a key that follows all others.

    Raises:
        DamageError: there is one that does not come before it, so a counter is not what it was.
    """
    if not txn.put(key, value, db=env.table(table), append=True):
        raise DamageError(
            f"{env.path} has entries of {table!r} behind its end",
            got=key.hex(),
            todo=layout.verify_hint(env.path),
        )


def check_books(txn: Txn, env: Env) -> None:
    """Make sure that what says where to go on is what was written; it is small.

    Raises:
        DamageError: it is not.
    """
    for table in ("meta", "next", "schemas"):
        cursor = txn.cursor(env.table(table))
        there = cursor.first()
        while there:
            try:
                unseal(bytes(cursor.key()), cursor.value())
            except DamageError as error:
                hint = layout.verify_hint(env.path)
                raise DamageError(f"{env.path} is damaged", got=error.what, todo=hint) from error
            there = cursor.next()


def get(txn: Txn, env: Env, table: str, key: bytes) -> bytes | None:
    """Return a value that ``put`` stored; None: there is none.

    Raises:
        DamageError: it is not what was stored there.
    """
    stored = txn.get(key, db=env.table(table))
    return None if stored is None else unseal(key, stored)


def unseal(key: bytes, stored: Any) -> bytes:
    """Return what ``put`` was given, from what is stored under ``key``.

    Raises:
        DamageError: it is not what was stored there.
    """
    value = bytes(stored[: -_SUM.size])
    if len(stored) < _SUM.size or (
        _SUM.unpack(stored[-_SUM.size :])[0] != xxhash.xxh3_64_intdigest(key + value)
    ):
        raise DamageError("value does not belong to its key", got=key.hex())
    return value


def peek(txn: Txn, env: Env, name: str) -> int:
    """Return a counter of ``meta``; 0 where it was never written."""
    stored = get(txn, env, "meta", name.encode())
    return 0 if stored is None else int(U64.unpack(stored)[0])


def count(txn: Txn, env: Env, name: str) -> int:
    """Return a counter of ``meta`` and add one to it."""
    number = peek(txn, env, name)
    put(txn, env, "meta", name.encode(), U64.pack(number + 1))
    return number


def entries(txn: Txn, env: Env, table: str, start: int) -> Iterator[tuple[int, Any]]:
    """Yield (number, value) of a table with numbers for keys, from ``start`` on, in order."""
    cursor = txn.cursor(env.table(table))
    there = cursor.set_range(U64.pack(start))
    while there:
        yield U64.unpack(cursor.key())[0], cursor.value()
        there = cursor.next()


def numbers(txn: Txn, env: Env, table: str, start: int, stop: int) -> Iterator[int]:
    """Yield the numbers in ``[start, stop)`` that are keys of a table, in order."""
    cursor = txn.cursor(env.table(table))
    there = cursor.set_range(U64.pack(start))
    while there and (number := U64.unpack(cursor.key())[0]) < stop:
        yield number
        there = cursor.next()


class BlockPlace(NamedTuple):
    """Where a block lies."""

    end: int
    """First offset that is not in it."""
    position: int
    """In the file."""
    length: int


def schemas(txn: Txn, env: Env) -> Iterator[Schema]:
    """Yield the schemas of a store.

    Raises:
        DamageError: one is not readable.
    """
    cursor = txn.cursor(env.table("schemas"))
    there = cursor.first()
    while there:
        key = bytes(cursor.key())
        yield Schema.parse(key, unseal(key, cursor.value()))
        there = cursor.next()


def put_block(txn: Txn, env: Env, start: int, part: int, end: int, data: bytes) -> None:
    """Store one block of the log's entries ``[start, end)``."""
    key, table = _BLOCK_KEY.pack(start, part), env.table("columns")
    txn.put(key, data, db=table)
    place = BlockPlace(end, position(txn.get(key, db=table)), len(data))
    put(txn, env, "blocks", key, _BLOCK.pack(*place))


def blocks(txn: Txn, env: Env, start: int) -> Iterator[BlockPlace]:
    """Yield where the blocks that begin at ``start`` lie, one per schema.

    Raises:
        DamageError: a value is not the place of one.
    """
    cursor = txn.cursor(env.table("blocks"))
    there = cursor.set_range(_BLOCK_KEY.pack(start, 0))
    while there and _BLOCK_KEY.unpack(cursor.key())[0] == start:
        yield BlockPlace(*_BLOCK.unpack(unseal(bytes(cursor.key()), cursor.value())))
        there = cursor.next()


def next_block(txn: Txn, env: Env, start: int) -> int:
    """Return where the first block at or after ``start`` begins; a huge number: nowhere."""
    cursor = txn.cursor(env.table("blocks"))
    if not cursor.set_range(_BLOCK_KEY.pack(start, 0)):
        return 1 << 63
    return int(_BLOCK_KEY.unpack(cursor.key())[0])


def remove_blocks(txn: Txn, env: Env, start: int) -> None:
    """Remove the blocks that begin at ``start``."""
    table = env.table("blocks")
    cursor = txn.cursor(table)
    first = _BLOCK_KEY.pack(start, 0)
    while cursor.set_range(first) and (key := bytes(cursor.key())).startswith(U64.pack(start)):
        txn.delete(key, db=table)
        txn.delete(key, db=env.table("columns"))


def blocked(txn: Txn, env: Env) -> int:
    """Return up to which offset the log is in blocks."""
    cursor = txn.cursor(env.table("blocks"))
    if not cursor.last():
        return 0
    return BlockPlace(*_BLOCK.unpack(unseal(bytes(cursor.key()), cursor.value()))).end
