"""Fragments from a dataset that we exported: the same rows, bit for bit."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from user_system.codec.fragments import COLUMNS
from user_system.core.errors import SpecError
from user_system.core.types import Array, Fragment, FragmentHeader, Purpose, Stream
from user_system.replay.exchange import lerobot_form as form
from user_system.replay.exchange import picture
from user_system.replay.exchange.lerobot_beside import Beside
from user_system.replay.exchange.lerobot_foreign import Names
from user_system.replay.exchange.lerobot_form import Feature
from user_system.replay.exchange.lerobot_meta import Dataset, EpisodeRow
from user_system.replay.exchange.lerobot_table import Table, shape_of, steps_per_fragment
from user_system.replay.exchange.parquet import IMAGE

_TEXTS = ("episode", "run", "task", "robot", "embodiment", "boot", "schema")


class Own:
    """Makes fragments from the frames of our own export, and from what stands beside them."""

    def __init__(self, dataset: Dataset, names: Names, beside: Beside):
        self._dataset, self._names, self._beside = dataset, names, beside
        self._steps = steps_per_fragment(dataset.features)
        self.labels: dict[tuple[str, str], tuple[str, Array]] = {}
        """(episode, name) -> version and values from the episode's first step on."""
        self.verdicts: dict[str, tuple[str, bool | None]] = {}

    def fragments(self, table: Table) -> Iterator[Fragment]:
        """Yield the fragments of one episode; sequences are to be given later."""
        row, about = table.row, _about(table.row)
        beside = self._beside.take(row.index)
        steps = [part["steps"] for part in beside.fragments]
        if sum(steps) != len(table) or min(steps) < 1:
            raise SpecError(f"fragments of episode {row.index}", got=steps, allowed=len(table))
        end = self._after(row, about, beside.last)
        columns = {name: _column(table, name) for name in COLUMNS}
        low = 0
        for part in beside.fragments:
            if part["start"] != about["start"] + low:
                allowed = about["start"] + low
                what = f"start of a fragment of episode {row.index}"
                raise SpecError(what, got=part["start"], allowed=allowed)
            whole = self._fragment(table, columns, part, about, low)
            whole = replace(whole, streams=beside.streams(part["start"]))
            yield from self._cut(table, whole, low, end)
            low += part["steps"]
        self._keep_labels(table, about)

    def _fragment(
        self,
        table: Table,
        columns: Mapping[str, Any],
        part: Mapping[str, Any],
        about: Mapping[str, Any],
        low: int,
    ) -> Fragment:
        """Return one fragment without observations and streams."""
        rows = slice(low, low + part["steps"])
        names, codes = _names([columns["policy"][rows], columns["operator"][rows]])
        values = {n: v[rows] for n, v in columns.items() if n not in ("policy", "operator")}
        extras = [self._extra(position) for position in part["extras"]]
        return Fragment(
            header=_header(about, part, names, self._names),
            observation={},
            policy=codes[0],
            operator=codes[1],
            extras={f.name: table.shaped(f)[rows] for f in extras},
            **values,
        )

    def _cut(
        self, table: Table, whole: Fragment, first: int, end: Mapping[str, Array] | None
    ) -> Iterator[Fragment]:
        """Yield a fragment in parts of a sensible size, with their observations."""
        for low in range(0, len(whole), self._steps):
            high = min(low + self._steps, len(whole))
            final = end is not None and first + high == len(table)
            observation = table.observation(first + low, first + high)
            stamps = whole.robot_ns[low:high]
            if final and end is not None:
                for name in observation:
                    observation[name] = np.concatenate([observation[name], end[f"o/{name}"]])
                stamps = np.concatenate([stamps, end["robot_ns"]])
            yield _part(whole, low, high, observation, stamps)

    def _after(
        self, row: EpisodeRow, about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
    ) -> dict[str, Array] | None:
        """Return the observation after the last step; None where the episode is not complete."""
        if not about["complete"]:
            return None
        if len(rows) != 1:
            what = f"{form.LAST}: rows of episode {row.index}"
            raise SpecError(what, got=len(rows), allowed="1: it is complete")
        found = {"robot_ns": rows[0]["robot_ns"]}
        for feature in (f for f in self._dataset.features if f.kind in ("field", "camera")):
            found[f"o/{feature.name}"] = self._last_value(feature, rows[0], row.index)
        return found

    def _last_value(self, feature: Feature, row: Mapping[str, Any], index: int) -> Array:
        if not feature.stored:
            return np.empty((1, *feature.tail), feature.dtype)
        value = row[feature.key]
        if feature.kind == "camera" and feature.dtype in (IMAGE, form.VIDEO):
            at = f"{form.LAST}: {feature.key} of episode {index}"
            return picture.decode(value[0], shape_of(feature), at)[None]
        return np.asarray(value).reshape(1, *feature.tail)

    def _extra(self, position: object) -> Feature:
        features = self._dataset.features
        if type(position) is not int or not 0 <= position < len(features):
            raise SpecError(f"{form.FRAGMENTS}: extras", got=position, allowed=len(features))
        return features[position]

    def _keep_labels(self, table: Table, about: Mapping[str, Any]) -> None:
        """Note what labels say of these steps; parts of one episode share one label."""
        for name, version in about["label_versions"].items():
            values = table.column("label", name)
            key = about["episode"], name
            before = self.labels.get(key, (version, np.empty(0, np.float32)))[1]
            joined = np.full(max(len(before), about["start"] + len(table)), np.nan, np.float32)
            joined[: len(before)] = before
            joined[about["start"] : about["start"] + len(table)] = values
            self.labels[key] = version, joined
        if about["verdict_version"] is not None:
            self.verdicts[about["episode"]] = about["verdict_version"], about["verdict"]


def _about(row: EpisodeRow) -> dict[str, Any]:
    """Return our columns of an episode, of the right types."""
    about = {**(row.about or {}), "task": row.task}
    try:
        versions = json.loads(about["label_versions"])
        purpose = Purpose[about["purpose"]]
    except (KeyError, ValueError, TypeError) as error:
        raise SpecError(f"our columns of episode {row.index}", got=error) from error
    right = (
        all(isinstance(about[name], str) for name in _TEXTS)
        and type(about["start"]) is int
        and type(about["complete"]) is bool
        and isinstance(about["verdict_version"], str | None)
        and isinstance(about["verdict"], bool | None)
        and isinstance(versions, dict)
        and all(isinstance(version, str) for version in versions.values())
    )
    if not right or about["start"] < 0:
        raise SpecError(f"our columns of episode {row.index}", got=str(about)[:300])
    return about | {"label_versions": versions, "purpose": purpose}


def _header(
    about: Mapping[str, Any], part: Mapping[str, Any], names: tuple[str, ...], given: Names
) -> FragmentHeader:
    return FragmentHeader(
        producer=given.producer,
        epoch=given.epoch,
        sequence=0,
        run=given.run or about["run"],
        task=given.task or about["task"],
        episode=about["episode"],
        start=part["start"],
        purpose=about["purpose"],
        schema=about["schema"],
        robot=given.robot or about["robot"],
        embodiment=about["embodiment"],
        boot=about["boot"],
        wall_ns=part["wall_ns"],
        wall_bound_ns=part["wall_bound_ns"],
        names=names,
        success=part["success"],
        void_from=part["void_from"],
    )


def _column(table: Table, name: str) -> Any:
    """Return a column of fragments; the reward is the recorded one, which labels go over again."""
    if name == "executed":
        return table.column("action")
    return table.column("step", {"reward": "recorded_reward"}.get(name, name))


def _names(texts: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], list[Array]]:
    """Return a string table and the texts as positions in it."""
    codes = {"": 0}
    positions = [[codes.setdefault(text, len(codes)) for text in column] for column in texts]
    return tuple(codes), [np.array(column, np.uint16) for column in positions]


def _part(
    whole: Fragment, low: int, high: int, observation: Mapping[str, Array], stamps: Array
) -> Fragment:
    """Return steps ``[low, high)`` of a fragment; a rewind is told by the first of them."""
    header, rows = whole.header, slice(low, high)
    later = int(whole.robot_ns[low] - whole.robot_ns[0])
    streams = {}
    for name, stream in whole.streams.items():
        streams[name] = _samples(stream, whole.robot_ns, low, high)
    return replace(
        whole,
        header=replace(
            header,
            start=header.start + low,
            wall_ns=header.wall_ns + later,
            void_from=header.void_from if low == 0 else None,
        ),
        observation=observation,
        robot_ns=stamps,
        extras={name: values[rows] for name, values in whole.extras.items()},
        streams=streams,
        **{name: getattr(whole, name)[rows] for name in COLUMNS.keys() - {"robot_ns"}},
    )


def _samples(stream: Stream, stamps: Array, low: int, high: int) -> Stream:
    """Return the samples that fall to steps ``[low, high)`` of a fragment that is cut."""
    first = 0 if low == 0 else int(np.searchsorted(stream.stamps, stamps[low]))
    last = (
        len(stream.stamps)
        if high == len(stamps)
        else int(np.searchsorted(stream.stamps, stamps[high]))
    )
    return Stream(stream.stamps[first:last], stream.values[first:last])
