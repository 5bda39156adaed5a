"""What the tests do to a store, each in a process of its own (see ``zygote``)."""

import random
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash
from kit import made
from kit.history import Stored, StoredLabel
from kit.zygote import HANGS_S, Channel

from user_system.codec import arrays, fragments
from user_system.core.errors import StoreError
from user_system.core.types import Array, Fragment
from user_system.replay import env as env_module
from user_system.replay import images, tables
from user_system.replay.env import Env, Txn
from user_system.replay.schema import Schema
from user_system.replay.store import Store, reader

STUCK_S = 1.5
"""Age at which a snapshot's process counts as stuck; a minute where nobody is in a hurry."""
ONLY_FEW = 1 << 17
"""Bytes of a first map that has to grow again and again."""


def records(env: Env, start: int = 0) -> Iterator[tuple[int, Fragment]]:
    """Yield (number, fragment with its images) of a store's log, every checksum checked."""
    with env.read() as txn:
        for number, value in tables.entries(txn, env, "log", start):
            yield number, whole(txn, env, number, value)


def whole(txn: Txn, env: Env, number: int, value: Any) -> Fragment:
    """Return an entry of the log with its images.

    Raises:
        DamageError: some of it is not what was stored.
    """
    fragment = fragments.decode(bytes(value))
    schema = fragment.header.schema.encode()
    stored = tables.unseal(schema, txn.get(schema, db=env.table("schemas")))
    return with_images(txn, env, number, fragment, Schema.parse(schema, stored))


def with_images(txn: Txn, env: Env, number: int, fragment: Fragment, schema: Schema) -> Fragment:
    """Return a record of the log together with the images that it was recorded with."""
    count, table = len(fragment.robot_ns), env.table("images")
    whole: dict[str, Array] = dict(fragment.observation)
    for camera, (field, shape) in enumerate(schema.images.items()):
        whole[field] = images.read_stack(txn, table, number, camera, count, shape)
    values = {name: getattr(fragment, name) for name in fragment.__dataclass_fields__}
    return Fragment(**{**values, "observation": whole})


def stored(fragment: Fragment) -> Stored:
    """Return a fragment as a history knows it."""
    header = fragment.header
    return Stored(header.producer, header.epoch, header.sequence, made.digest(fragment))


def labels(env: Env) -> list[StoredLabel]:
    """Return the late labels of a store, in order."""
    found = []
    with env.read() as txn:
        for _, value in tables.entries(txn, env, "labels", 0):
            meta, blocks = arrays.unpack(bytes(value))
            found.append(StoredLabel(meta["episode"], meta["version"], label_hash(meta, blocks)))
    return found


def label_hash(meta: dict[str, Any], blocks: dict[str, Array]) -> str:
    """Return the hash of everything a label says."""
    said = repr((meta["episode"], meta["name"], meta["version"], meta["success"]))
    values = blocks["values"].tobytes() if "values" in blocks else b""
    return xxhash.xxh3_64_hexdigest(said.encode() + values)


def read(channel: Channel, path: str, start: int = 0) -> None:
    """Say what a store holds from record ``start`` on, and all labels, as a reader sees it."""
    with reader(path).open() as env:
        found = [(number, *stored(fragment)) for number, fragment in records(env, start)]
        channel.send({"rows": found, "labels": labels(env)})


def recover(channel: Channel, path: str, producers: int, resume: int, side: int) -> None:
    """Open what a crash left behind as its writer, say what is there, and go on with it."""
    try:
        store = Store(path).open(create=True)
    except StoreError as error:
        channel.send({"error": f"{type(error).__name__}: {error}"})
        return
    with store:
        rows = [stored(fragment) for _, fragment in records(store.env)]
        found = labels(store.env)
        ends = {made.name(p): store.expected(made.name(p), 1) for p in range(producers)}
        again = [
            made.fragment(producer, 1, sequence, side)
            for producer, end in ends.items()
            for sequence in range(max(0, end - 2), end + resume)  # two of them are repeats
        ]
        refused = [refusal.reason for refusal in store.append(again)]
        after = [stored(fragment) for _, fragment in records(store.env)]
    kept = after[: len(rows)] == rows and not refused
    fresh = after[len(rows) :]
    answer = {"rows": rows, "labels": found, "ends": ends, "kept": kept, "fresh": fresh}
    channel.send(answer)


def work(
    channel: Channel, path: str, seed: int, operations: int, producers: int, side: int
) -> None:
    """Make a store and do this and that to it; say before each thing that, and after that it is.

    What it says is written down beside its system calls, and is the history of a crash state. An
    error of the store is said too, and the next thing is tried.
    """
    env_module.INITIAL_MAP = ONLY_FEW
    channel.receive()  # somebody now records, or disturbs, our system calls
    store, rng = Store(path), random.Random(seed)
    while True:
        try:
            store.open(create=True)
            break
        except StoreError as error:
            channel.send({"error": str(error)})
    hands = Hands(channel, store, rng, producers, side)
    for _ in range(operations):
        try:
            hands.act()
        except StoreError as error:
            channel.send({"error": str(error)})
            hands.look_again()
    store.close()
    channel.send("done")


class Hands:
    """Random work on a store, told to a channel as lines of a history."""

    def __init__(
        self, channel: Channel, store: Store, rng: random.Random, producers: int, side: int
    ):
        self._channel, self._store, self._rng, self._side = channel, store, rng, side
        self._producers = producers
        self._next = dict.fromkeys(range(producers), 0)
        self._labels = 0
        self._doomed: list[str] = []

    def act(self) -> None:
        """Do one thing."""
        what = self._rng.random()
        episodes = self._complete()
        if what < 0.15 and episodes:
            self._label(self._rng.choice(episodes))
        elif what < 0.25 and len(episodes) > 4 and hasattr(self._store, "delete"):
            self._delete(self._rng.choice(episodes))
        else:
            self._append()

    def look_again(self) -> None:
        """Ask how far the store is, as a host does that was not answered."""
        for number in self._next:
            self._next[number] = self._store.expected(made.name(number), 1)

    def _say(self, *words: object) -> None:
        self._channel.send(" ".join(map(str, words)))

    def _complete(self) -> list[str]:
        return [
            f"{made.name(number)}.1.{episode}"
            for number, count in self._next.items()
            for episode in range(count // made.PIECES)
            if f"{made.name(number)}.1.{episode}" not in self._doomed
        ]

    def _append(self) -> None:
        batch = []
        for _ in range(self._rng.randint(1, 6)):
            number = self._rng.randrange(self._producers)
            batch.append(made.fragment(made.name(number), 1, self._next[number], self._side))
            self._next[number] += 1
        for fragment in batch:
            self._say("S", *stored(fragment), fragment.header.episode)
        refused = self._store.append(batch)
        if refused:
            raise AssertionError(refused)
        for header in (fragment.header for fragment in batch):
            self._say("A", header.producer, header.epoch, header.sequence + 1)

    def _label(self, episode: str) -> None:
        self._labels += 1
        version = f"v{self._labels}"
        meta = {"episode": episode, "name": "success", "version": version, "success": True}
        self._say("L", episode, version, label_hash(meta, {}))
        self._store.label(episode, "success", version, success=True, values=None)
        self._say("K", episode, version)

    def _delete(self, episode: str) -> None:
        self._doomed.append(episode)
        self._say("D", episode)
        self._store.delete(episode, who="chaos", why="to see what happens")
        self._say("X", episode)


def exists(path: str) -> bool:
    """Return whether a store was ever made there."""
    return (Path(path) / "manifest.json").exists()


def idle(channel: Channel) -> None:
    """Do nothing until told to."""
    channel.receive()


def fill_map(channel: Channel, path: str, more: int, side: int) -> None:
    """Append until the map cannot grow any more; get more room, open again, go on."""
    env_module.INITIAL_MAP = 1 << 20
    name, sequence, error = made.name(0), 0, ""
    with Store(path).open(create=True) as store:
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (size + more, before[1]))
        while not error and sequence < 10_000:
            try:
                store.append([made.fragment(name, 1, sequence, side)])
                sequence += 1
            except Exception as caught:
                error = f"{type(caught).__name__}: {caught}"
        resource.setrlimit(resource.RLIMIT_AS, before)
    with Store(path).open() as store:
        rows = [stored(fragment) for _, fragment in records(store.env)]
        refused = store.append([made.fragment(name, 1, store.expected(name, 1), side)])
    refusals = [refusal.reason for refusal in refused]
    channel.send({"acked": sequence, "error": error, "rows": rows, "refused": refusals})


def hold(channel: Channel, path: str) -> None:
    """Hold a snapshot until told to let go."""
    with reader(path).open() as env, env.read() as txn:
        for _ in tables.entries(txn, env, "log", 0):
            break
        channel.send("holding")
        channel.receive(1e6)


def churn(channel: Channel, path: str, quota: int, quotas: float, side: int) -> None:
    """Append many times the quota; say how large the file has become at most."""
    env_module.READER_CHECK_S = 0.1
    with Store(path, quota_bytes=quota, reader_limit_s=STUCK_S).open(create=True) as store:
        data, name = Path(path) / "data.mdb", made.name(0)
        size = sum(a.nbytes for a in made.fragment(name, 1, 0, side).observation.values())
        channel.send("open")
        channel.receive()
        sequence, peak, refused = store.expected(name, 1), 0, 0
        for _ in range(int(quotas * quota / size)):
            refused += _append_at_last(store, made.fragment(name, 1, sequence, side))
            sequence += 1
            peak = max(peak, data.stat().st_size)
        rows = [stored(f) for _, f in records(store.env)]
        answer = {"peak": peak, "acked": sequence, "rows": rows, "refused": refused}
        channel.send(answer)
        channel.receive()


def _append_at_last(store: Store, fragment: Fragment) -> int:
    """Append, again and again, as a host does that is told to wait; return how often it was."""
    refused, deadline = 0, time.monotonic() + HANGS_S
    while True:
        try:
            store.append([fragment])
            return refused
        except StoreError:
            if time.monotonic() > deadline:
                raise
            refused += 1
            time.sleep(0.05)
