"""Fragments that anybody can make again from their name, and the hash of everything in them.

Every observation bears a number of its own, from which all its fields follow; so whoever is served
a row knows what must be in it. Five fragments make an episode: 3 steps each, 4 in the last one.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np
import xxhash

from user_system.core.types import (
    Array,
    Batch,
    End,
    Fragment,
    FragmentHeader,
    Purpose,
    Segment,
    Stream,
)

PIECES = 5
"""Fragments per episode."""
STEPS = 3
PER_EPISODE = STEPS * PIECES + 2
"""Observations: one step more in the last fragment, and the one after it."""
SIDE = 24
"""Pixels of an image's side, where nobody asks for another."""
STRIDE = 10_000_000
"""Numbers of observations between producers."""


def name(number: int) -> str:
    """Return the name of a producer."""
    return f"arm-{number}"


def first_number(producer: str, epoch: int, sequence: int) -> int:
    """Return the number of a fragment's first observation."""
    base = int(producer.rpartition("-")[2]) * STRIDE + (epoch % 100) * (STRIDE // 100)
    episode, piece = divmod(sequence, PIECES)
    return base + episode * PER_EPISODE + piece * STEPS


def fragment(producer: str, epoch: int, sequence: int, side: int = SIDE) -> Fragment:
    """Return fragment ``sequence`` of (producer, epoch): always the same."""
    episode, piece = divmod(sequence, PIECES)
    final = piece == PIECES - 1
    steps = STEPS + final
    first = first_number(producer, epoch, sequence)
    numbers = np.arange(first, first + steps + final)
    end = np.zeros(steps, np.uint8)
    end[-1] = End.TERMINATED if final else End.NONE
    zeros = np.zeros(steps)
    return Fragment(
        header=FragmentHeader(
            producer=producer,
            epoch=epoch,
            sequence=sequence,
            run="chaos",
            task="survive",
            episode=f"{producer}.{epoch}.{episode}",
            start=piece * STEPS,
            purpose=Purpose.TRAIN,
            schema=f"side-{side}",
            robot=producer,
            embodiment="body",
            boot=f"boot-{epoch}",
            wall_ns=1_700_000_000_000_000_000 + first,
            wall_bound_ns=1000,
            names=("", "policy"),
        ),
        observation=observation(numbers, side),
        executed=action(numbers[:steps]),
        proposed=action(numbers[:steps]) + 1,
        reward=(numbers[:steps] % 7).astype(np.float32),
        segment=np.full(steps, Segment.AUTO, np.uint8),
        end=end,
        robot_ns=numbers * 1_000_000,
        policy=np.ones(steps, np.uint16),
        version=numbers[:steps] // 100,
        operator=zeros.astype(np.uint16),
        chunk=(np.arange(steps) // 2).astype(np.int32),
        position=(np.arange(steps) % 2).astype(np.int32),
        extras={"logp": numbers[:steps].astype(np.float32)},
        streams={"force": Stream(numbers * 1_000_000, action(numbers))},
    )


def observation(numbers: Array, side: int = SIDE) -> dict[str, Array]:
    """Return the observations of these numbers."""
    fields: dict[str, Array] = {
        "number": numbers.astype(np.int64),
        "state": np.stack([numbers, -numbers, numbers % 13], 1).astype(np.float64),
    }
    if side:
        fields["cam"] = np.stack([picture(int(number), side) for number in numbers])
        fields["wrist"] = 255 - fields["cam"]
    return fields


@functools.lru_cache(4096)
def picture(number: int, side: int) -> Array:
    """Return the image that this number has and no other."""
    return np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)


def action(numbers: Array) -> Array:
    """Return what was executed at these numbers ``[T, 2]``."""
    return np.stack([numbers % 1009, numbers % 31], 1).astype(np.float32)


def digest(fragment: Fragment) -> str:
    """Return the hash of a fragment's header and of every array in it."""
    hash = xxhash.xxh3_128()
    hash.update(json.dumps(asdict(fragment.header), sort_keys=True).encode())
    groups: dict[str, Mapping[str, Array]] = {
        "o": fragment.observation,
        "x": fragment.extras,
        "t": {name: stream.stamps for name, stream in fragment.streams.items()},
        "v": {name: stream.values for name, stream in fragment.streams.items()},
        "c": {column: getattr(fragment, column) for column in _COLUMNS},
    }
    for group, arrays in groups.items():
        for key in sorted(arrays):
            array = np.ascontiguousarray(arrays[key])
            hash.update(f"{group}/{key} {array.dtype.str} {array.shape}".encode())
            hash.update(array.tobytes())
    return hash.hexdigest()


_COLUMNS = (
    *("executed", "proposed", "reward", "segment", "end", "robot_ns", "policy", "version"),
    *("operator", "chunk", "position"),
)


def wrong_rows(batch: Batch, side: int = SIDE) -> list[int]:
    """Return the numbers of the rows of a batch of single steps that are not what was recorded."""
    numbers = batch.observation["number"]
    right = (batch.action == action(numbers)).all(1)
    right &= batch.reward == numbers % 7
    right &= batch.end == np.where(_last(numbers), End.TERMINATED, End.NONE)
    for fields, of in ((batch.observation, numbers), (batch.next_observation, numbers + 1)):
        for key, wanted in observation(of, side).items():
            same = fields[key] == wanted
            right &= same.reshape(len(numbers), -1).all(1)
    return [int(number) for number in numbers[~right]]


def _last(numbers: Array) -> Array:
    within = numbers % STRIDE % (STRIDE // 100) % PER_EPISODE
    return within == PER_EPISODE - 2


def text_hash(data: bytes) -> str:
    """Return the hash of bytes that are no fragment."""
    return xxhash.xxh3_128_hexdigest(data)
