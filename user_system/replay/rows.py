"""All steps of one schema, as columns in memory; images stay on disk.

A step does not assume that what followed it lies beside it: it holds the number of the observation
recorded after it, which is the next row of its fragment, the first row of the *same episode's* next
fragment, or the extra last row of the episode. Until that is there, the number is -1 and the step
is not drawn. So interleaved robots, interventions, truncations and lost fragments cannot make a
neighbour in storage a successor.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.types import Array
from user_system.replay.blocks import FRAGMENT, STEP, Block, EpisodeKey
from user_system.replay.columns import Column, Extra, Extras, Late, Names
from user_system.replay.interventions import Interventions
from user_system.replay.schema import Schema
from user_system.replay.streams import Streams

STEP_DTYPES: Mapping[str, str] = {
    "piece": "int32",
    "obs": "int32",
    "next_obs": "int32",
    "next_step": "int32",
    "void": "bool",
    "damaged": "bool",
    "gone": "bool",
    "reward": "float32",
    "recorded_reward": "float32",
    "segment": "uint8",
    "end": "uint8",
    "operator": "int32",
    "policy": "int32",
    "version": "int64",
    "chunk": "int32",
    "position": "int32",
}
"""Per-step columns of one number; operator and policy are codes of ``names``."""

PIECE_DTYPES: Mapping[str, str] = {
    **FRAGMENT,
    "row": "int32",
    "obs": "int32",
    "prev": "int32",
}
"""Per-fragment columns: its first step and observation row, the piece before it of its episode."""

OF_PIECE = ("purpose", "episode", "robot", "task", "run", "wall_ns")
"""Columns that a step has from its fragment."""

Label = Array | bool | None
"""Values ``[T]`` of a per-step label, or a verdict."""


class Watcher(Protocol):
    """Somebody who derives something from rows."""

    low: int
    """First row that changed since it looked."""


@dataclass(slots=True)
class Episode:
    """One episode: a chain of pieces, of which it knows the last."""

    number: int
    id: str


class Rows:
    """Steps and observations of one schema, and what links them."""

    def __init__(self, schema: Schema):
        self.schema = schema
        self.names = Names()
        self.steps = {name: Column(dtype) for name, dtype in STEP_DTYPES.items()}
        self.steps["executed"] = Column("float32", (schema.action,))
        self.steps["proposed"] = Column("float32", (schema.action,))
        self.pieces = {name: Column(dtype) for name, dtype in PIECE_DTYPES.items()}
        self.fields = {name: Column(dtype, tail) for name, (dtype, tail) in schema.fields.items()}
        self.robot_ns = Column("int64")
        """By observation row."""
        self.piece_of = Column("int32")
        """By observation row: its piece."""
        self.extras = Extras()
        """What policies recorded."""
        self.labels: dict[str, Late] = {}
        """Late per-step labels other than the reward."""
        self.streams = Streams()
        self.episodes: dict[EpisodeKey, Episode] = {}
        self.by_id: dict[str, list[Episode]] = {}
        self.success = Column("int8")
        """By episode number: 1 yes, 0 no, -1 not known."""
        self.complete = Column(bool)
        """By episode number: its end is here."""
        self.last_piece = Column("int32")
        """By episode number; -1: none."""
        self.first_row = Column("int32")
        """By episode number: its first step; -1: none is here."""
        self.interventions = Interventions()
        self.excluded: set[int] = set()
        """Observation rows that turned out to be damaged."""
        self.watchers: list[Watcher] = []

    def __len__(self) -> int:
        return len(self.steps["obs"])

    def __getitem__(self, column: str) -> Array:
        return self.steps[column].data

    def of(self, name: str, rows: Array) -> Array:
        """Return a column at steps ``rows`` ``[N]``: of the step, its fragment or its episode.

        Raises:
            SpecError: there is no such column.
        """
        if name in self.steps:
            return self[name][rows]
        piece = self["piece"][rows]
        if name in OF_PIECE:
            return self.pieces[name].data[piece]
        if name == "success":
            return self.success.data[self.pieces["episode"].data[piece]]
        if name == "robot_ns":
            return self.robot_ns.data[self["obs"][rows]]
        within = rows - self.pieces["row"].data[piece]
        if name == "k":
            k: Array = self.pieces["start"].data[piece] + within
            return k
        if name == "id":
            ids: Array = self.pieces["offset"].data[piece] << np.uint64(16)
            return ids | within.astype(np.uint64)
        return self.extra(name, rows)

    def reserve(self, block: Block, times: float) -> None:
        """Have space for ``times`` as much as a block holds."""
        observed = [*self.fields.values(), self.robot_ns, self.piece_of]
        groups: list[tuple[int, Iterable[Column]]] = [
            (len(block), self.pieces.values()),
            (len(block.steps["reward"]), self.steps.values()),
            (len(block.robot_ns), observed),
        ]
        for n, columns in groups:
            for column in columns:
                column.reserve(int(n * times))

    def extend(self, block: Block, labels: Mapping[str, Mapping[str, Label]]) -> None:
        """Take over fragments of the log.

        Args:
            block: the next ones of this schema.
            labels: newest late labels of episodes, by id and name.
        """
        episodes = self._take_episodes(block.episodes)
        numbers = np.array([episode.number for episode in episodes], np.int32)
        codes = np.array([self.names.code(name) for name in block.names], np.int32)
        first, first_piece = len(self), len(self.pieces["offset"])
        self._extend_pieces(block, numbers, codes)
        self._extend_steps(block, codes, first_piece)
        self.touch(min(self._link(first_piece), first))
        self._extend_ragged(block, first, first_piece)
        present, at = np.unique(numbers[block.fragments["episode"]], return_index=True)
        fresh = self.first_row.data[present] < 0
        self.first_row.data[present[fresh]] = self.pieces["row"].data[first_piece + at[fresh]]
        self._take_verdicts(block, episodes, first_piece)
        for episode in episodes:
            for name, label in labels.get(episode.id, {}).items():
                self.apply(episode, name, label)

    def apply(self, episode: Episode, name: str, label: Label) -> None:
        """Write a late label over the steps of an episode that are here."""
        if not isinstance(label, np.ndarray):
            self._judge(episode, label)
            return
        for k, rows in self.runs(episode, 0, len(label)):
            self.touch(rows.start)
            part = label[k : k + rows.stop - rows.start]
            if name == "reward":
                recorded = self["recorded_reward"][rows]
                self["reward"][rows] = np.where(np.isnan(part), recorded, part)
            else:
                column = self.labels.setdefault(name, Late())
                column.pad(len(self))
                column.values.data[rows] = part
                column.known.data[rows] = True

    def retract(self, episode: Episode, name: str) -> None:
        """Undo a per-step label, before a newer version that may say less."""
        for _, rows in self.runs(episode, 0, 1 << 62):
            self.touch(rows.start)
            if name == "reward":
                self["reward"][rows] = self["recorded_reward"][rows]
            elif name in self.labels:
                self.labels[name].pad(len(self))
                self.labels[name].values.data[rows] = np.nan
                self.labels[name].known.data[rows] = False

    def runs(self, episode: Episode, low: int, high: int) -> Iterable[tuple[int, slice]]:
        """Yield (k, rows) of the steps of an episode whose k lies in ``[low, high)``."""
        return self._runs(int(self.last_piece.data[episode.number]), low, high)

    def exclude(self, observations: Array) -> int:
        """Never draw again the steps that see these observation rows; return how many."""
        self.excluded |= {int(row) for row in observations}
        bad = np.isin(self["obs"], observations) | np.isin(self["next_obs"], observations)
        bad &= ~self["damaged"]
        found = np.flatnonzero(bad)
        if len(found):
            self["damaged"][found] = True
            self.touch(int(found[0]))
        return len(found)

    def remove(self, offsets: Array) -> int:
        """Never draw again the steps of fragments that left the store; return how many."""
        pieces = np.flatnonzero(np.isin(self.pieces["offset"].data, offsets))
        removed = 0
        for piece in pieces.tolist():
            start = int(self.pieces["row"].data[piece])
            rows = slice(start, start + int(self.pieces["steps"].data[piece]))
            removed += int((~self["gone"][rows]).sum())
            self["gone"][rows] = True
            self.touch(start)
        return removed

    def touch(self, row: int) -> None:
        """Have everybody who derives something from rows look again from ``row`` on."""
        for watcher in self.watchers:
            watcher.low = min(watcher.low, row)

    def drawable(self, low: int = 0, reward: str = "") -> Array:
        """Return for rows ``[low:]`` whether all that a draw needs is known and sound."""
        ready = (self["next_obs"][low:] >= 0) & ~np.isnan(self.rewards(reward)[low:])
        return ready & ~self["damaged"][low:] & ~self["gone"][low:]

    def rewards(self, name: str = "") -> Array:
        """Return the column that a draw calls its reward; NaN where it is not known."""
        if name in ("", "reward", "recorded_reward"):
            return self[name or "reward"]
        if name not in self.labels:
            return np.broadcast_to(np.float32(np.nan), len(self))
        self.labels[name].pad(len(self))
        return self.labels[name].values.data

    def extra(self, name: str, rows: Array) -> Array:
        """Return a label or extra of ``rows`` ``[N]``; NaN where a float one is not known.

        Raises:
            SpecError: nobody recorded it, not for all rows, or in more than one form.
        """
        variants: Sequence[Late | Extra] = self.extras.get(name, [])
        if name in self.labels:
            variants = [self.labels[name]]
            self.labels[name].pad(len(self))
        whole = [v for v in variants if v.has(rows).all()]
        if not whole and len(variants) == 1 and variants[0].dtype.kind == "f":
            whole = list(variants)
        if not whole:
            raise SpecError(
                f"column {name!r} is not recorded for every step drawn",
                got=f"{len(variants)} forms of it",
                allowed=sorted({*self.steps, *OF_PIECE, *_DERIVED, *self.labels, *self.extras}),
                todo="Draw from a view whose steps have it.",
            )
        return whole[0].at(rows)

    @property
    def nbytes(self) -> int:
        """Bytes of memory taken by columns."""
        groups: list[Mapping[str, Column]] = [self.steps, self.pieces, self.fields]
        columns = sum(column.nbytes for group in groups for column in group.values())
        columns += sum(label.nbytes for label in self.labels.values())
        columns += sum(extra.nbytes for kinds in self.extras.values() for extra in kinds)
        return columns + self.streams.nbytes + self.robot_ns.nbytes + self.piece_of.nbytes

    # --- taking over a block ---------------------------------------------------------------------

    def _take_episodes(self, keys: Iterable[EpisodeKey]) -> list[Episode]:
        """Return episodes, new ones for keys that were not seen before."""
        found = []
        for key in keys:
            episode = self.episodes.get(key)
            if episode is None:
                episode = self.episodes[key] = Episode(len(self.episodes), key[2])
                self.by_id.setdefault(key[2], []).append(episode)
            found.append(episode)
        count = len(self.episodes)
        self.success.pad(count, -1)
        self.complete.pad(count, value=False)
        self.last_piece.pad(count, -1)
        self.first_row.pad(count, -1)
        return found

    def _extend_pieces(self, block: Block, numbers: Array, codes: Array) -> None:
        columns = dict(block.fragments)
        columns["episode"] = numbers[columns["episode"]]
        for name in ("robot", "task", "run"):
            columns[name] = codes[columns[name]]
        columns["row"] = len(self) + _starts(columns["steps"])
        columns["obs"] = len(self.robot_ns) + _starts(block.rows)
        columns["prev"] = np.full(len(block), -1, np.int32)
        for name, values in columns.items():
            self.pieces[name].extend(values)

    def _extend_steps(self, block: Block, codes: Array, first_piece: int) -> None:
        counts = block.fragments["steps"]
        piece = first_piece + np.repeat(np.arange(len(block), dtype=np.int32), counts)
        row = np.arange(len(self), len(self) + len(piece), dtype=np.int32)
        obs = self.pieces["obs"].data[piece] + row - self.pieces["row"].data[piece]
        last = np.cumsum(counts) - 1
        next_obs, next_step = obs + 1, row + 1
        next_obs[last[~block.fragments["final"]]] = -1
        next_step[last] = -1
        columns = {"piece": piece, "obs": obs, "next_obs": next_obs, "next_step": next_step}
        columns |= {name: block.steps[name] for name in STEP}
        columns |= {name: codes[block.steps[name]] for name in ("operator", "policy")}
        columns["recorded_reward"] = block.steps["reward"]
        for name, values in columns.items():
            self.steps[name].extend(values)
        for name in ("void", "damaged", "gone"):
            self.steps[name].repeat(value=False, n=len(piece))
        for name, column in self.fields.items():
            column.extend(block.observation[name])
        self.robot_ns.extend(block.robot_ns)
        self.piece_of.extend(
            first_piece + np.repeat(np.arange(len(block), dtype=np.int32), block.rows)
        )

    def _link(self, first_piece: int) -> int:
        """Join each new piece to the one before it, if it is the next; return the lowest change."""
        pieces = {name: column.data for name, column in self.pieces.items()}
        episode, final = pieces["episode"][first_piece:], pieces["final"][first_piece:]
        # Stable: within an episode the order of the log. Then each piece follows the one before.
        order = np.argsort(episode, kind="stable").astype(np.int32)
        of = episode[order]
        fresh = np.concatenate([[True], of[1:] != of[:-1]])
        prev = np.concatenate([[np.int32(-1)], first_piece + order[:-1]])
        prev = np.where(fresh, self.last_piece.data[of], prev)
        # Nothing follows what was final, whether in this block or before it.
        finals = np.cumsum(final[order])
        before = finals - final[order]
        ended = before > np.maximum.accumulate(np.where(fresh, before, 0))
        ended |= self.complete.data[of]
        self.pieces["prev"].data[first_piece + order] = prev
        here = first_piece + order
        end = pieces["start"][prev] + pieces["steps"][prev]
        joins = (prev >= 0) & ~ended & (end == pieces["start"][here])
        last = pieces["row"][prev[joins]] + pieces["steps"][prev[joins]] - 1
        self["next_obs"][last] = pieces["obs"][here[joins]]
        self["next_step"][last] = pieces["row"][here[joins]]
        self.last_piece.data[of] = here  # the last of equal ones stays
        self.complete.data[of[final[order]]] = True
        return int(last.min(initial=len(self)))

    def _extend_ragged(self, block: Block, first: int, first_piece: int) -> None:
        firsts = first + _starts(block.fragments["steps"].astype(np.int64))
        for extra in block.extras:
            there = extra.counts > 0
            if not there.any():
                continue  # it comes later in the block than the part that is taken over
            dtype, tail = extra.values.dtype, extra.values.shape[1:]
            column = self.extras.column(extra.name, dtype, tail, int(there.sum()))
            if column is None:
                continue
            column.extend(firsts[there], extra.counts[there].astype(np.int64), extra.values)
        if block.streams or self.streams:
            self.streams.extend(self, block, first_piece)

    def _take_verdicts(self, block: Block, episodes: list[Episode], first_piece: int) -> None:
        """Apply what headers say of steps before them: rewinds and the episode's success."""
        fragments = block.fragments
        for i in np.flatnonzero(fragments["void_from"] >= 0).tolist():
            # Only what was there when this fragment came can have been undone by it.
            before = int(self.pieces["prev"].data[first_piece + i])
            low, high = int(fragments["void_from"][i]), int(fragments["start"][i])
            for _, rows in self._runs(before, low, high):
                self.touch(rows.start)
                self["void"][rows] = True
        for i in np.flatnonzero(fragments["success"] >= 0).tolist():
            self._judge(episodes[int(fragments["episode"][i])], bool(fragments["success"][i]))

    def _runs(self, last: int, low: int, high: int) -> Iterable[tuple[int, slice]]:
        pieces = self.pieces
        found: list[tuple[int, slice]] = []
        while last >= 0:
            k, row = int(pieces["start"].data[last]), int(pieces["row"].data[last])
            start, end = max(low, k), min(high, k + int(pieces["steps"].data[last]))
            if start < end:
                found.append((start, slice(row + start - k, row + end - k)))
            last = int(pieces["prev"].data[last])
        return found[::-1]

    def _judge(self, episode: Episode, success: bool | None) -> None:
        self.success.data[episode.number] = -1 if success is None else int(success)
        first = int(self.first_row.data[episode.number])
        if first >= 0:
            self.touch(first)


_DERIVED = ("success", "robot_ns", "k", "id")


def _starts(counts: Array) -> Array:
    """Return where each of ``counts`` rows begins."""
    return np.cumsum(counts) - counts
