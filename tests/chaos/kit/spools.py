"""What the tests do to the spool of a robot host, each in a process of its own (see ``zygote``).

Two promises, two histories: what ``put`` returned for survives the end of any process; what
``read`` has handed out, and only that travels, survives a power cut too.
"""

import base64
import random
import threading
import time
from pathlib import Path

from kit import made
from kit.history import Journal, Stored
from kit.namespace import tiny_disk
from kit.stores import ONLY_FEW, stored
from kit.zygote import HANGS_S, Channel

from user_system.core.errors import UserSystemError
from user_system.core.types import Fragment
from user_system.edge.spool import Spool
from user_system.replay import env as env_module
from user_system.replay.queue import Queue

SIDE = 12
JOURNAL = 48 << 10
"""Bytes: a few fragments, so that it wraps all the time."""


def open_spool(place: Path, quota: int = 1 << 28, journal: int = JOURNAL) -> tuple[Queue, Spool]:
    """Return the spool of a host, started."""
    queue = Queue(place / "queue", max_bytes=quota).open(create=True)
    spool = Spool(queue, quota, journal)
    spool.start(place / "journals")
    return queue, spool


def carried(spool: Spool) -> None:
    """Wait until nothing is in the journals."""
    deadline = time.monotonic() + HANGS_S
    while spool.waiting:
        if time.monotonic() > deadline:
            raise AssertionError(f"the journal is not carried on: {spool.stats()}")
        time.sleep(0.002)


# --- kill -9 -------------------------------------------------------------------------------------


def live(channel: Channel, place: str, journal: str, seed: int, producers: int) -> None:
    """Be a robot host whose link is up now and then, until killed."""
    env_module.INITIAL_MAP = ONLY_FEW
    _queue, spool = open_spool(Path(place))
    notes, rng = Journal(journal), random.Random(seed)
    head = Head(Path(place) / "head")
    names = [made.name(number) for number in range(producers)]
    robots = [
        threading.Thread(target=_record, args=(spool, name, notes, rng.random()), daemon=True)
        for name in names
    ]
    for robot in robots:
        robot.start()
    channel.send("ready")
    while True:
        for source in spool.sources():
            head.take(spool, *source)
        time.sleep(rng.uniform(0, 0.01))


def _record(spool: Spool, name: str, notes: Journal, pace: float) -> None:
    """Be one robot's loop."""
    epoch, sequence = spool.begin_epoch(name), 0
    while True:
        fragment = made.fragment(name, epoch, sequence, SIDE)
        notes.note("S", *stored(fragment))
        put_until_taken(spool, fragment)
        notes.note("A", name, epoch, sequence + 1)
        sequence += 1
        time.sleep(pace * 0.004)


def put_until_taken(spool: Spool, fragment: Fragment) -> None:
    """Put, and again while the journal has no room: a loop would hold its robot meanwhile."""
    while True:
        try:
            spool.put(fragment)
            return
        except UserSystemError:
            time.sleep(0.002)


class Head:
    """What the other side of the link has on its disk: it outlives the host's processes."""

    def __init__(self, path: Path):
        self.rows: list[Stored] = []
        for line in path.read_text().splitlines() if path.exists() else []:
            producer, epoch, sequence, hash = line.split()[1:]
            self.rows.append(Stored(producer, int(epoch), int(sequence), hash))
        self.next: dict[tuple[str, int], int] = {row[:2]: row.sequence + 1 for row in self.rows}
        self._file = Journal(path)

    def take(self, spool: Spool, producer: str, epoch: int) -> None:
        """Take over what is new of a source, then let the spool forget it."""
        start = self.next.get((producer, epoch), 0)
        for fragment in spool.read(producer, epoch, start, 4):
            row = stored(fragment)
            self._file.note("P", *row)
            self.next[producer, epoch] = row.sequence + 1
        spool.forget(producer, epoch, self.next.get((producer, epoch), 0))


def rest(channel: Channel, place: str, producers: int) -> None:
    """Say what the head has, and then what the spool still holds."""
    head = Head(Path(place) / "head")
    queue, spool = open_spool(Path(place))
    for number in range(producers):
        spool.begin_epoch(made.name(number))
    carried(spool)
    left = [
        stored(fragment)
        for source in sorted(spool.sources())
        for fragment in spool.read(*source, head.next.get(source, 0), 1 << 20)
    ]
    lost = spool.stats()["spool_lost"]
    spool.close()
    queue.close()
    channel.send({"rows": [*head.rows, *left], "lost": lost})


# --- power ---------------------------------------------------------------------------------------


def work(channel: Channel, path: str, seed: int, operations: int, producers: int) -> None:
    """Put, read, forget and set aside at random; say so, and show the journals' files."""
    env_module.INITIAL_MAP = ONLY_FEW
    channel.receive()
    queue, spool = open_spool(Path(path))
    hands = Hands(channel, spool, Path(path), random.Random(seed), producers)
    for _ in range(operations):
        hands.act()
    spool.close()
    queue.close()
    channel.send("done")


class Hands:
    """Random work on a spool."""

    def __init__(
        self, channel: Channel, spool: Spool, place: Path, rng: random.Random, producers: int
    ):
        self._channel, self._spool, self._place, self._rng = channel, spool, place, rng
        self._epoch: dict[str, int] = {}
        self._next: dict[str, int] = {}
        self._read: dict[tuple[str, int], int] = {}
        for number in range(producers):
            self._begin(made.name(number))

    def act(self) -> None:
        """Do one thing."""
        name, what = self._rng.choice(sorted(self._epoch)), self._rng.random()
        if what < 0.05:
            self._begin(name)
        elif what < 0.5:
            self._put(name)
        elif sources := self._spool.sources():
            source = self._rng.choice(sorted(sources))
            (self._forget if what < 0.6 else self._take)(*source)
        self._show()

    def _say(self, *words: object) -> None:
        self._channel.send(" ".join(map(str, words)))

    def _show(self) -> None:
        """Say what is in the journals' pages now: no system call does."""
        for path in sorted((self._place / "journals").glob("*.journal")):
            content = base64.b64encode(path.read_bytes()).decode()
            self._channel.send({"look": path.name, "at": content})

    def _begin(self, name: str) -> None:
        self._epoch[name] = self._spool.begin_epoch(name)
        self._next[name] = 0
        self._say("E", name, self._epoch[name])

    def _put(self, name: str) -> None:
        fragment = made.fragment(name, self._epoch[name], self._next[name], SIDE)
        self._say("S", *stored(fragment))
        put_until_taken(self._spool, fragment)
        self._next[name] += 1

    def _take(self, name: str, epoch: int) -> None:
        start = self._read.get((name, epoch), 0)
        found = self._spool.read(name, epoch, start, self._rng.randint(1, 4))
        if found:
            self._read[name, epoch] = found[-1].header.sequence + 1
            self._say("A", name, epoch, self._read[name, epoch])

    def _forget(self, name: str, epoch: int) -> None:
        below = self._rng.randint(0, self._read.get((name, epoch), 0))
        self._say("F", name, epoch, below)
        self._spool.forget(name, epoch, below)


def recover(channel: Channel, place: str, producers: int) -> None:
    """Start a host again after whatever happened; say what its spool holds."""
    try:
        queue, spool = open_spool(Path(place))
        epochs = {}
        for number in range(producers):
            epochs[made.name(number)] = spool.begin_epoch(made.name(number))
    except UserSystemError as error:
        channel.send({"error": f"{type(error).__name__}: {error}"})
        return
    carried(spool)
    rows, lost = [], []
    for source in sorted(spool.sources()):
        found = [stored(fragment) for fragment in spool.read(*source, 0, 1 << 20)]
        rows += found
        there = {row.sequence for row in found}
        lost += [(*source, n) for n in range(max(there) + 1) if spool.lost(*source, n)]
    for name, epoch in epochs.items():  # it goes on
        spool.put(made.fragment(name, epoch, 0, SIDE))
    carried(spool)
    fresh = [[stored(f) for f in spool.read(name, epoch, 0, 9)] for name, epoch in epochs.items()]
    spool.close()
    queue.close()
    channel.send({"rows": rows, "lost": lost, "epochs": epochs, "fresh": fresh})


# --- failing calls, full disks -------------------------------------------------------------------


def queue_work(channel: Channel, path: str, seed: int, operations: int, producers: int) -> None:
    """Append, forget and set aside at random, in one thread; say each error and go on."""
    env_module.INITIAL_MAP = ONLY_FEW
    channel.receive()
    rng, queue = random.Random(seed), Queue(path, max_bytes=1 << 28)
    while True:
        try:
            queue.open(create=True)
            break
        except UserSystemError as error:
            channel.send({"error": str(error)})
    for _ in range(operations):
        name, what = made.name(rng.randrange(producers)), rng.random()
        try:
            sequence = queue.next_sequence(name, 1)
            data = queue_item(name, sequence)
            if what < 0.6:
                channel.send(f"S {name} 1 {sequence} {made.text_hash(data)}")
                queue.append(name, 1, sequence, data)
                channel.send(f"A {name} 1 {sequence + 1}")
            elif what < 0.8:
                below = rng.randint(0, sequence)
                channel.send(f"F {name} 1 {below}")
                queue.forget(name, 1, below)
            elif sequence:
                channel.send(f"R {name} 1 {sequence - 1}")
                queue.set_aside(name, 1, sequence - 1, "refused")
        except UserSystemError as error:
            channel.send({"error": str(error)})
    queue.close()
    channel.send("done")


def queue_item(name: str, sequence: int) -> bytes:
    """Return the bytes of an item."""
    return random.Random(f"{name} {sequence}").randbytes(200 + 37 * (sequence % 200))


def queue_recover(channel: Channel, path: str, producers: int) -> None:
    """Open what a queue's writer left behind, say what it holds, and go on."""
    with Queue(path, max_bytes=1 << 28).open(create=True) as queue:
        rows = []
        for source in sorted(queue.sources()):
            items = queue.read(*source, 0, 1 << 20)
            rows += [(*source, item.sequence, made.text_hash(item.data)) for item in items]
        for name in map(made.name, range(producers)):
            sequence = queue.next_sequence(name, 1)
            queue.append(name, 1, sequence, queue_item(name, sequence))
    channel.send({"rows": rows})


def fill(channel: Channel, place: str, size: int, by: str) -> None:
    """Record on a disk that is full, by our own data or by others', then get some of it back."""
    disk = Path(place)
    try:
        tiny_disk(disk, size)
    except OSError as error:
        channel.send({"skip": str(error)})
        return
    ballast = (disk / "ballast").open("wb", buffering=0)
    ballast.write(bytes(size // 3))
    queue, spool = open_spool(disk, journal=512 << 10)
    name, sequence, error = made.name(0), 0, ""
    epoch = spool.begin_epoch(name)
    while by == "others":
        try:
            ballast.write(bytes(4096))
        except OSError:
            break
    while not error:
        try:
            spool.put(made.fragment(name, epoch, sequence, SIDE))
            sequence += 1
        except UserSystemError as caught:
            time.sleep(0.002)  # else it is only that the disk is slower than this loop
            error = str(caught) if spool.full else ""
    channel.send({"put": sequence, "error": error, "full": spool.full})
    channel.receive()
    (disk / "ballast").unlink()
    ballast.close()
    carried(spool)
    rows = [stored(fragment) for fragment in spool.read(name, epoch, 0, 1 << 20)]
    spool.close()
    queue.close()
    channel.send({"rows": rows, "epoch": epoch})
