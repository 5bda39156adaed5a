"""A LeRobotDataset v3 into a store: ours back as it was, those of others as demonstrations.

Everything is read and checked once before anything is stored, then read again and appended like
experience from a robot: fragments of one source, each exactly once. The source's epoch is a hash of
the dataset and of what it is to be called, so an import that is repeated stores nothing twice, and
one that was interrupted goes on where it stopped. A store that has the same episodes from elsewhere
(the one they were exported from, or an import by other names) refuses them.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import xxhash

from user_system.codec import fragments as codec
from user_system.core.errors import ConfigError, SpecError, StoreError
from user_system.core.types import Fragment
from user_system.replay import disk, tables
from user_system.replay.episodes import Episodes
from user_system.replay.exchange.lerobot_beside import Beside
from user_system.replay.exchange.lerobot_foreign import Foreign, Names, Reward, numbered
from user_system.replay.exchange.lerobot_meta import Dataset
from user_system.replay.exchange.lerobot_own import Own
from user_system.replay.exchange.lerobot_rows import Videos, read
from user_system.replay.exchange.lerobot_table import Table
from user_system.replay.progress import Progress
from user_system.replay.schema import Schema
from user_system.replay.store import Store

_BATCH_BYTES = 32 << 20
"""Images per transaction."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to import; what is empty is as the dataset says."""

    robot: str = ""
    task: str = ""
    run: str = ""
    reward: Reward = "unknown"
    """What a dataset without rewards meant: see ``lerobot_foreign``."""
    producer: str = "import"


@dataclass(slots=True)
class Imported:
    """What an import did."""

    producer: str
    epoch: int
    ours: bool
    episodes: int = 0
    steps: int = 0
    fragments: int = 0
    """Stored now."""
    present: int = 0
    """Fragments that were there from an earlier import."""
    labels: int = 0
    ignored: dict[str, str] = field(default_factory=dict)
    """Columns that were left out, and why."""


def import_dataset(
    store: Path,
    source: Path,
    options: Options,
    *,
    create: bool = False,
    progress: Progress = lambda *_: None,
) -> Imported:
    """Store a dataset; ``create`` makes the store where there is none.

    Raises:
        ConfigError: a name is missing, or the store has these episodes from elsewhere.
        SpecError: the dataset is not whole, or not what it says; nothing was stored.
        StoreError: the store cannot be opened, or the disk failed.
    """
    with disk.explained(f"cannot open {store}"):
        there = store.exists()
    if there or not create:
        with Store(store).open():
            pass  # what cannot be written to is said now, not after reading everything
    job = _Job(source, options)
    schemas: dict[str, Schema] = {}
    for fragment, done in job.fragments():
        job.check(fragment, schemas)
        progress("checking", done, job.dataset.frames)
    with Store(store).open(create=create) as opened:
        _check_store(opened, job, schemas)
        return _fill(opened, job, progress)


class _Job:
    """One dataset under one set of names."""

    def __init__(self, source: Path, options: Options):
        self.dataset = Dataset.open(source)
        self._fingerprint = self.dataset.fingerprint()
        self.ours = self.dataset.ours is not None
        robot = options.robot or ("" if self.ours else self.dataset.robot_type)
        if not robot and not self.ours:
            raise ConfigError(f"{source} names no robot", todo="Say --robot NAME.")
        if self.ours and options.reward != "unknown":
            raise ConfigError(f"{source} has its rewards", got=options.reward, allowed="unknown")
        called = (robot, options.task, options.run, options.reward)
        epoch = xxhash.xxh3_64_intdigest("\0".join((self._fingerprint, *called)).encode())
        self.names = Names(
            producer=options.producer,
            epoch=epoch >> 16,  # 48 bits: no reader of JSON rounds it
            robot=robot,
            task=options.task,
            run=options.run or ("" if self.ours else f"import-{source.resolve().name}"),
            reward=options.reward,
        )
        self.own: Own | None = None
        self.episodes: set[str] = set()

    def fragments(self) -> Iterator[tuple[Fragment, int]]:
        """Yield (fragment, frames read so far); the same ones each time."""
        dataset, sequence, done = self.dataset, 0, 0
        with ExitStack() as stack:
            videos = stack.enter_context(Videos(dataset))
            beside = stack.enter_context(Beside(dataset)) if self.ours else None
            self.own = Own(dataset, self.names, beside) if beside else None
            maker = self.own or Foreign(dataset, self.names, self._fingerprint)
            for frames in read(dataset):
                table = Table(frames, dataset.features, videos)
                for fragment in maker.fragments(table):
                    done += len(fragment)
                    yield numbered(fragment, sequence), done
                    sequence += 1
            if beside:
                beside.finish()

    def check(self, fragment: Fragment, schemas: dict[str, Schema]) -> None:
        """Refuse what the store would refuse."""
        header = fragment.header
        try:
            codec.check(fragment)
            schema = Schema.of(fragment)
            schemas.setdefault(schema.id, schema).require(schema)
        except SpecError as error:
            at = f"{self.dataset.root}: episode {header.episode} from step {header.start}"
            raise SpecError(f"{at}: {error.what}", got=error.got, allowed=error.allowed) from error
        self.episodes.add(header.episode)


def _check_store(store: Store, job: _Job, schemas: dict[str, Schema]) -> None:
    """Refuse episodes that are there from elsewhere, and rows that do not stack with what is there.

    Raises:
        ConfigError: which episode, from where.
        SpecError: which field.
    """
    source = job.names.producer, job.names.epoch
    for producer, epoch, episode in Episodes(store.env).identities():
        if episode in job.episodes and (producer, epoch) != source:
            raise ConfigError(
                f"the store has episode {episode!r} of {job.dataset.root} already",
                got=f"from {producer!r}, epoch {epoch}",
                allowed="each episode once",
                todo="Import it into another store, or under the names of the first time.",
            )
    with store.env.read() as txn:
        for name, schema in schemas.items():
            key = name.encode()
            text = tables.get(txn, store.env, "schemas", key)
            if text is not None:
                Schema.parse(key, text).require(schema)


def _fill(store: Store, job: _Job, progress: Progress) -> Imported:
    names, dataset = job.names, job.dataset
    done = Imported(names.producer, names.epoch, job.ours, ignored=dict(dataset.ignored))
    done.present = store.expected(names.producer, names.epoch)
    batch: list[Fragment] = []
    size = 0
    for fragment, frames in job.fragments():
        if fragment.header.sequence >= done.present:
            batch.append(fragment)
            size += sum(values.nbytes for values in fragment.observation.values())
            done.steps += len(fragment)
        if size >= _BATCH_BYTES:
            _append(store, batch)
            batch, size = [], 0
        progress("storing", frames, dataset.frames)
    _append(store, batch)
    done.fragments = store.expected(names.producer, names.epoch) - done.present
    done.episodes = len(dataset.episodes)
    if job.own is not None:
        for (episode, name), (version, values) in job.own.labels.items():
            store.label(episode, name, version, None, values)
        for episode, (version, verdict) in job.own.verdicts.items():
            store.label(episode, "success", version, verdict, None)
        done.labels = len(job.own.labels) + len(job.own.verdicts)
    return done


def _append(store: Store, batch: list[Fragment]) -> None:
    refused = store.append(batch) if batch else []
    if refused:
        raise StoreError(
            "the store refused a fragment that was sound a moment ago",
            got=refused[0].reason,
            todo="Did the dataset change meanwhile? Import it again: what is stored stays.",
        )
