"""Whole episodes, read from the log one at a time.

An episode's fragments lie between those of other robots. They are joined as long as each one really
continues the one before it. Where one is missing or damaged, or of another form, what is joined
ends there, and what follows is an ``Episode`` of its own with a later first step: nothing sound is
left out, and no step is put beside one that did not follow it.

Labels are applied as they stood when the log was looked through; the newest version wins.
"""

import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from user_system.codec import arrays, fragments
from user_system.core.errors import DamageError, SpecError
from user_system.core.types import Array, Fragment, FragmentHeader, Stream
from user_system.replay import images, joining, tables
from user_system.replay.env import Env, Txn
from user_system.replay.joining import Joint, Piece
from user_system.replay.schema import Schema

log = logging.getLogger(__name__)

EpisodeKey = tuple[str, int, str]
"""(producer, epoch, episode)."""

_PER_SNAPSHOT = 4096
"""Entries looked through per transaction: a long one keeps the writer from reusing pages."""


_FOUND = ("damaged_records", "damaged_images", "gaps", "breaks", "sparse_extras")


class LateLabel(NamedTuple):
    """What a label says about the steps of one episode."""

    version: str
    values: Array
    """``[T]`` float32; NaN where it says nothing."""


@dataclass(frozen=True, slots=True)
class Episode:
    """One episode as it was recorded, or an unbroken part of it; images stay on disk."""

    number: int
    """0, 1, 2 … in the order in which episodes were read."""
    header: FragmentHeader
    """Of its first fragment; ``header.start`` is not 0 where something before it is missing."""
    success: bool | None
    """As recorded, or as the newest label says; ``None``: not known."""
    verdict: tuple[str, bool | None] | None
    """Version and value of the ``success`` label that says so; ``None``: there is no such label."""
    complete: bool
    """Whether its recorded end is here, and with it the observation after the last step."""
    columns: Mapping[str, Array]
    """Every column of ``codec.fragments.COLUMNS`` ``[T, …]``; ``policy`` and ``operator`` are
    int32 indexes into ``names``; ``reward`` is the labelled one, ``recorded_reward`` the other."""
    observation: Mapping[str, Array]
    """Low-dimensional field -> ``[T, …]``, or ``[T + 1, …]`` where ``complete``."""
    robot_ns: Array
    """``[T]`` or ``[T + 1]`` int64."""
    void: Array
    """``[T]`` bool: a rewind undid the step."""
    extras: Mapping[str, Array]
    """``[T, …]``; NaN (or 0, where the dtype has none) where not recorded, see ``known``."""
    labels: Mapping[str, LateLabel]
    """Newest late labels but ``success``, by name; also of ``reward``."""
    streams: Mapping[str, Stream]
    names: tuple[str, ...]
    cameras: Mapping[str, tuple[int, int, int]]
    """Image field -> ``(H, W, C)``."""
    pieces: tuple[Piece, ...]
    _source: "Episodes"

    def __len__(self) -> int:
        return len(self.void)

    @property
    def key(self) -> EpisodeKey:
        """What tells it from all others; parts of one episode share it."""
        return _key(self.header)

    def known(self, extra: str) -> Array:
        """Return for each step whether an extra was recorded ``[T]`` bool."""
        known = np.zeros(len(self), bool)
        for piece in self.pieces:
            known[piece.first : piece.first + piece.steps] = extra in piece.extras
        return known

    def frames(self, camera: str, low: int = 0, high: int | None = None) -> Iterator[Array]:
        """Yield the images ``(H, W, C)`` of one camera, one per row of ``robot_ns``, checked.

        Args:
            camera: which.
            low: first row wanted.
            high: one after the last row wanted; all where not given.

        Raises:
            SpecError: there is no such camera.
            DamageError: one of them is not what was written; none is replaced by another.
        """
        if camera not in self.cameras:
            raise SpecError("unknown camera", got=camera, allowed=", ".join(self.cameras) or "none")
        number = list(self.cameras).index(camera)
        high = len(self.robot_ns) if high is None else high
        for piece in self.pieces:
            wanted = slice(max(0, low - piece.first), max(0, high - piece.first))
            if wanted.start < min(wanted.stop, piece.rows):
                yield from self._source.stack(piece, number, self.cameras[camera])[wanted]


@dataclass(slots=True)
class _Found:
    """Where the fragments of one episode are, and what they say about it as a whole."""

    offsets: list[int] = field(default_factory=list)
    voids: list[tuple[int, int, int]] = field(default_factory=list)
    """(fragments before it, first and last + 1 of the steps it undoes)."""
    success: bool | None = None


class Episodes:
    """The episodes of a store, in the order in which they began. Iterate as often as you like.

    What is there is looked up once, at the first use: later iterations give the same episodes,
    whatever is appended or labelled meanwhile. One episode is in memory at a time.

    Args:
        env: an open environment on the store.
        runs: only of these runs; empty means all. Likewise ``tasks`` and ``robots``.
        tasks: see ``runs``.
        robots: see ``runs``.
        check_images: read all images before an episode is given out; fragments with a damaged one
            are then left out like a damaged record. Otherwise ``frames`` raises when it meets it.
    """

    def __init__(
        self,
        env: Env,
        *,
        runs: Collection[str] = (),
        tasks: Collection[str] = (),
        robots: Collection[str] = (),
        check_images: bool = False,
    ):
        self.env = env
        self._wanted = {"run": runs, "task": tasks, "robot": robots}
        self._check_images = check_images
        self._found: dict[EpisodeKey, _Found] | None = None
        self._labels: dict[str, dict[str, int]] = {}
        self._schemas: dict[str, Schema] = {}
        self._survey_counts: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        """Return how many episodes there are; parts of one count once."""
        return len(self._survey())

    def __iter__(self) -> Iterator[Episode]:
        return self.walk(check_images=self._check_images)

    def identities(self) -> list[EpisodeKey]:
        """Return what tells the episodes apart, in order."""
        return list(self._survey())

    def walk(self, *, check_images: bool) -> Iterator[Episode]:
        """Yield the episodes; see the constructor for ``check_images``."""
        self._counts = Counter()
        number = 0
        for key, found in list(self._survey().items()):
            for part in self._parts(found, check_images=check_images):
                yield self._episode(number, key, found, part)
                self._counts.update(episodes=1, steps=sum(len(f) for _, f in part))
                number += 1

    def stats(self) -> dict[str, float]:
        """Return what was found: of the records by the look-up, of the rest by this iteration.

        ``damaged_records`` and ``damaged_images`` (fragments with one) are left out; ``gaps``
        counts where a fragment is missing, ``breaks`` where one does not fit the one before it,
        ``sparse_extras`` where a large one that few steps have is left out of an episode.
        """
        names = ("episodes", "steps", *_FOUND)
        total = self._survey_counts + self._counts
        return {name: float(total[name]) for name in names}

    def stack(self, piece: Piece, camera: int, shape: tuple[int, int, int]) -> Array:
        """Return the images ``[rows, H, W, C]`` of one camera in one fragment, checked."""
        with self.env.read() as txn:
            table = self.env.table("images")
            return images.read_stack(txn, table, piece.offset, camera, piece.rows, shape)

    # --- what there is ---------------------------------------------------------------------------

    def _survey(self) -> dict[EpisodeKey, _Found]:
        if self._found is None:
            found: dict[EpisodeKey, _Found] = {}
            self._survey_counts = Counter()
            self._look("labels", self._see_label)
            self._look("log", partial(self._see_record, found))
            self._found = found
        return self._found

    def _look(self, table: str, see: Any) -> None:
        """Call ``see`` with every entry of a table, over several short transactions."""
        start: int | None = 0
        while start is not None:
            with self.env.read() as txn:
                entries, start = tables.entries(txn, self.env, table, start), None
                for count, (number, value) in enumerate(entries):
                    if count == _PER_SNAPSHOT:
                        start = number
                        break
                    try:
                        see(number, value)
                    except DamageError as error:
                        self._damaged(f"entry {number} of table {table}", error)

    def _see_label(self, number: int, value: Any) -> None:
        meta, _ = arrays.unpack(value)
        self._labels.setdefault(meta["episode"], {})[meta["name"]] = number

    def _see_record(self, episodes: dict[EpisodeKey, _Found], offset: int, value: Any) -> None:
        header = fragments.decode(value).header
        if any(wanted and getattr(header, n) not in wanted for n, wanted in self._wanted.items()):
            return
        found = episodes.setdefault(_key(header), _Found())
        if header.void_from is not None:
            found.voids.append((len(found.offsets), header.void_from, header.start))
        if header.success is not None:
            found.success = header.success
        found.offsets.append(offset)

    def _damaged(self, what: str, error: DamageError) -> None:
        self._survey_counts["damaged_records"] += 1
        log.error("%s of %s is damaged and left out: %s", what, self.env.path, error)

    # --- one of them -----------------------------------------------------------------------------

    def _parts(self, found: _Found, *, check_images: bool) -> Iterator[list[tuple[int, Fragment]]]:
        """Yield the fragments of an episode in lists that join; numbered as in ``found``."""
        part: list[tuple[int, Fragment]] = []
        joint = Joint()
        for i, fragment in self._fragments(found, check_images=check_images):
            if part and (reason := joint.refuses(fragment)):
                self._counts[reason] += 1
                yield part
                part, joint = [], Joint()
            elif not part and fragment.header.start > 0 and i == 0:
                self._counts["gaps"] += 1
            joint.take(fragment)
            part.append((i, fragment))
        if part:
            yield part

    def _fragments(self, found: _Found, *, check_images: bool) -> Iterator[tuple[int, Fragment]]:
        """Yield what can be read of an episode's fragments; all of them from one snapshot."""
        with self.env.read() as txn:
            values = [_entry(txn, self.env, "log", offset) for offset in found.offsets]
            pairs = zip(found.offsets, values, strict=True)
            sound = [self._sound(txn, o, v, check_images=check_images) for o, v in pairs]
        yield from ((i, fragment) for i, fragment in enumerate(sound) if fragment is not None)

    def _sound(
        self, txn: Txn, offset: int, value: bytes | None, *, check_images: bool
    ) -> Fragment | None:
        """Return a fragment; None where it was deleted or damaged meanwhile, or an image is."""
        if value is None:
            return None
        try:
            fragment = fragments.decode(value)
        except DamageError as error:
            self._count_damage(f"record {offset}", error)
            return None
        if not check_images:
            return fragment
        schema, rows = self._schema(txn, fragment.header.schema), len(fragment.robot_ns)
        try:
            for camera, shape in enumerate(schema.images.values()):
                images.read_stack(txn, self.env.table("images"), offset, camera, rows, shape)
        except DamageError as error:
            self._counts["damaged_images"] += 1
            log.error("record %d of %s is left out: %s", offset, self.env.path, error)
            return None
        return fragment

    def _count_damage(self, what: str, error: DamageError) -> None:
        self._counts["damaged_records"] += 1
        log.error("%s of %s is damaged and left out: %s", what, self.env.path, error)

    def _episode(
        self, number: int, key: EpisodeKey, found: _Found, part: Sequence[tuple[int, Fragment]]
    ) -> Episode:
        joined = [fragment for _, fragment in part]
        labels, verdict = self._late(key[2], joined[0].header.start, sum(map(len, joined)))
        with self.env.read() as txn:
            schema = self._schema(txn, joined[0].header.schema)
        names, columns = joining.columns(joined)
        if "reward" in labels:
            late = labels["reward"].values
            columns["reward"] = np.where(np.isnan(late), columns["recorded_reward"], late)
        extras = joining.extras(joined)
        if left_out := joining.sparse(joined):
            self._counts["sparse_extras"] += len(left_out)
            log.warning("%s: few steps have %s, left out", key, ", ".join(sorted(left_out)))
        return Episode(
            number=number,
            header=joined[0].header,
            success=found.success if verdict is None else verdict[1],
            verdict=verdict,
            complete=joined[-1].final,
            columns=columns,
            observation={
                name: np.concatenate([f.observation[name] for f in joined])
                for name in schema.fields
            },
            robot_ns=np.concatenate([f.robot_ns for f in joined]),
            void=np.concatenate([_void(found, i, fragment) for i, fragment in part]),
            extras=extras,
            labels=labels,
            streams=joining.streams(joined),
            names=names,
            cameras={name: (s[0], s[1], s[2]) for name, s in schema.images.items()},
            pieces=joining.pieces([(found.offsets[i], f) for i, f in part], extras),
            _source=self,
        )

    def _late(
        self, episode: str, start: int, steps: int
    ) -> tuple[dict[str, LateLabel], tuple[str, bool | None] | None]:
        """Return the newest labels of the steps ``[start, start + steps)``, and the verdict."""
        labels: dict[str, LateLabel] = {}
        verdict: tuple[str, bool | None] | None = None
        with self.env.read() as txn:
            for name, number in self._labels.get(episode, {}).items():
                try:
                    meta, blocks = arrays.unpack(_entry(txn, self.env, "labels", number) or b"")
                except DamageError as error:
                    self._count_damage(f"label {number}", error)
                    continue
                if blocks:
                    values = np.full(steps, np.nan, np.float32)
                    part = blocks["values"][start : start + steps]
                    values[: len(part)] = part
                    labels[name] = LateLabel(meta["version"], values)
                else:
                    verdict = meta["version"], meta["success"]
        return labels, verdict

    def _schema(self, txn: Txn, schema: str) -> Schema:
        if schema not in self._schemas:
            key = schema.encode()
            text = tables.get(txn, self.env, "schemas", key)
            if text is None:
                raise DamageError(f"schema {schema!r} of {self.env.path} is missing")
            self._schemas[schema] = Schema.parse(key, text)
        return self._schemas[schema]


def _key(header: FragmentHeader) -> EpisodeKey:
    return header.producer, header.epoch, header.episode


def _entry(txn: Txn, env: Env, table: str, number: int) -> bytes | None:
    """Return a copy of one entry; None where it is gone."""
    for found, value in tables.entries(txn, env, table, number):
        return bytes(value) if found == number else None
    return None


def _void(found: _Found, i: int, fragment: Fragment) -> Array:
    """Return which steps of fragment ``i`` a later one undid ``[T]`` bool."""
    void = np.zeros(len(fragment), bool)
    start = fragment.header.start
    for before, low, high in found.voids:
        if i < before:
            void[max(0, low - start) : max(0, high - start)] = True
    return void
