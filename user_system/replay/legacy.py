"""What format 1 looked like, as far as it takes to read it once and write it anew."""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from user_system.codec import images as codecs
from user_system.core.errors import DamageError
from user_system.replay import images
from user_system.replay.env import Env, Txn
from user_system.replay.schema import Schema
from user_system.replay.tables import U64

FORMAT = 1
TABLES = ("log", "images", "next", "refused", "labels", "versions", "schemas", "meta")

_HEAD = struct.Struct("<HBxHHHxx")


def peek(txn: Txn, env: Env, name: str) -> int:
    """Return a counter of ``meta``; 0 where it was never written."""
    stored = txn.get(name.encode(), db=env.table("meta"))
    return 0 if stored is None else int(U64.unpack(stored)[0])


def schemas(txn: Txn, env: Env) -> Iterator[Schema]:
    """Yield the schemas of a store.

    Raises:
        DamageError: one is not readable.
    """
    cursor = txn.cursor(env.table("schemas"))
    there = cursor.first()
    while there:
        yield Schema.parse(bytes(cursor.key()), bytes(cursor.value()))
        there = cursor.next()


def parse_group(data: Any) -> images.Group:
    """Return a group of images; in format 1 it did not say whose they are.

    Raises:
        DamageError: it is none.
    """
    if len(data) < _HEAD.size:
        raise DamageError("image group is cut", got=len(data))
    count, number, *shape = _HEAD.unpack_from(data)
    first = _HEAD.size + count * images.ENTRY.itemsize
    if number >= len(codecs.CODECS) or len(data) < first:
        raise DamageError("image group has a damaged head", got=(count, number))
    table = np.frombuffer(data, images.ENTRY, count, _HEAD.size)
    ends = first + np.cumsum(table["length"], dtype=np.int64)
    if count == 0 or ends[-1] != len(data):
        raise DamageError("image group has the wrong size", got=len(data))
    return images.Group(
        data,
        0,
        0,
        0,
        codecs.CODECS[number],
        tuple(shape),
        table["length"],
        table["checksum"],
        ends - table["length"],
    )
