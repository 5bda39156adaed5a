"""What happens to those who open a spoiled store, each in a process that may die of it."""

import contextlib
import importlib
import logging
import struct
from collections.abc import Iterator
from pathlib import Path

from kit import made
from kit.stores import records, stored, whole
from kit.zygote import Channel

from user_system.core.errors import DamageError, StoreError
from user_system.core.interfaces import Draw, NotReady
from user_system.replay import tables
from user_system.replay import verify as verify_module
from user_system.replay.env import Env
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store, reader
from user_system.replay.tables import TABLES

RECORDS = ("log", "images")
"""Tables whose keys begin with the number of a record."""
SHARED = 1024
"""Bytes of a value that surely shares a page with others."""


class Complaints(logging.Handler):
    """What the replay says in its log of errors."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def make(channel: Channel, path: str, producers: int, episodes: int, side: int) -> None:
    """Make a store of whole episodes in many commits; say where its values are to be found."""
    with Store(path).open(create=True) as store:
        for episode in range(episodes):
            for piece in range(made.PIECES):
                sequence = episode * made.PIECES + piece
                store.append(
                    [made.fragment(made.name(p), 1, sequence, side) for p in range(producers)]
                )
    channel.send("made")


def values(env: Env) -> list[tuple[int, bytes]]:
    """Return (record, bytes) of all that belongs to the records of a store."""
    pairs = [pair for table in RECORDS for pair in _entries(env, table)]
    return [(struct.unpack(">Q", key[:8])[0], value) for key, value in pairs]


def books(env: Env) -> list[list[bytes]]:
    """Return the entries of each other table that share a page: key, then value, as in the file."""
    tables = [list(_entries(env, table)) for table in TABLES if table not in RECORDS]
    entries = [[k + v for k, v in pairs if len(v) < SHARED] for pairs in tables]
    return [found for found in entries if found]


def _entries(env: Env, table: str) -> Iterator[tuple[bytes, bytes]]:
    with env.read() as txn:
        cursor = txn.cursor(env.table(table))
        there = cursor.first()
        while there:
            yield bytes(cursor.key()), bytes(cursor.value())
            there = cursor.next()


def draw(channel: Channel, path: str, seed: int, side: int) -> None:
    """Be a learner: draw, then consume all there is, and look at every row."""
    complaints = Complaints()
    logging.getLogger("user_system").addHandler(complaints)
    answer: dict[str, object] = {"rows": 0, "wrong": [], "refused": ""}
    try:
        with reader(path).open() as env:
            data = ReplayData(env, seed=seed)
            for _ in range(5):
                answer["wrong"] += made.wrong_rows(data.draw(Draw(64)), side)
            answer["rows"] = _consume(data, answer, side)
            figures = data.stats()
            answer["damaged"] = figures["damaged_steps"] + figures["damaged_records"]
    except (DamageError, NotReady) as error:
        answer["refused"] = str(error) or "nothing to draw"
    channel.send({**answer, "complaints": complaints.lines[:5]})


def _consume(data: ReplayData, answer: dict, side: int) -> int:
    """Consume all rows, exactly once; return how many there were."""
    seen: set[int] = set()
    size = 64
    while size:
        try:
            batch = data.consume(Draw(size))
        except NotReady:
            size //= 2
            continue
        answer["wrong"] += made.wrong_rows(batch, side)
        numbers = batch.observation["number"].tolist()
        answer["wrong"] += [number for number in numbers if number in seen]
        seen |= set(numbers)
    return len(seen)


def write(channel: Channel, path: str, producers: int, side: int) -> None:
    """Be the writer: say what it expects, go on, and read back what it then has."""
    answer: dict[str, object] = {"refused": "", "expected": [], "fresh": []}
    try:
        with Store(path).open() as store:
            answer["expected"] = [store.expected(made.name(p), 1) for p in range(producers)]
            for name, end in zip(map(made.name, range(producers)), answer["expected"], strict=True):
                if end < 1000:  # else it is damaged, and what it says is looked at
                    store.append([made.fragment(name, 1, end, side)])
            last = int(store.stats()["fragments"]) - producers
            answer["fresh"] = [stored(f) for _, f in records(store.env, max(0, last))]
    except StoreError as error:
        answer["refused"] = f"{type(error).__name__}: {error}"
    channel.send(answer)


def verify(channel: Channel, path: str) -> None:
    """Be the child in which a store is checked."""
    try:
        findings = verify_module.inspect(Path(path))
    except StoreError as error:
        channel.send({"damaged": [str(error)]})
        return
    channel.send({"damaged": list(findings.damaged)})


def salvage(channel: Channel, path: str, target: str) -> None:
    """Be the one who saves what is left."""
    module = importlib.import_module("user_system.replay.salvage")
    try:
        result = module.salvage(Path(path), Path(target))
    except StoreError as error:
        channel.send({"error": str(error)})
        return
    channel.send({"records": result.records, "images": result.images})


def saved(channel: Channel, path: str) -> None:
    """Say what a store holds whole, as a reader finds it; what has lost images is left out."""
    found = []
    with reader(path).open() as env, env.read() as txn:
        for number, value in tables.entries(txn, env, "log", 0):
            with contextlib.suppress(DamageError):
                found.append(stored(whole(txn, env, number, value)))
    channel.send(found)
