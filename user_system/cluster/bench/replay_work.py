"""The workload that replay benchmarks store and draw: how much of it, and what it looks like.

Workload W: episodes of 100 steps, two 128x128x3 images, 32 float32 of state, 7 float32 of action,
in fragments of 10 steps as the edge makes them. The images are noise, which no codec shrinks.

Every observation bears a number, in its state and in the first bytes of each of its images, and
the observation after a step bears the next one: so what is drawn can be checked without keeping it.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from user_system.core.errors import DamageError
from user_system.core.types import (
    Array,
    Batch,
    End,
    Fragment,
    FragmentHeader,
    Observation,
    Purpose,
    Segment,
)

CAMERAS = ("front", "wrist")
STATE, ACTION = 32, 7
PERIOD_NS = 50_000_000
_STAMP = 8
"""Bytes of an image that hold its number."""


@dataclass(frozen=True)
class Sizes:
    """How much is stored and how long it is measured."""

    steps: int = 10_000
    """Steps of the store that is drawn from."""
    episode: int = 100
    fragment: int = 10
    side: int = 128
    """Height and width of images, pixels."""
    batch: int = 256
    rounds: int = 7
    round_s: float = 2.0
    """How long one backend draws in one round."""
    cold_rounds: int = 5
    writer_hz: float = 200.0
    """Steps that are appended beside a reader, per second."""
    long_steps: int = 100_000
    """Steps after which the writer's memory is looked at."""
    records: int = 1_000_000
    """Fragments of one step each, without images."""
    robots: int = 4
    """How many take turns in making those."""
    open_rounds: int = 3
    verify_rounds: int = 3
    saves: int = 5
    """Checkpoints per store."""
    learner_bytes: int = 20_000_000

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.side * self.side * 3

    def images(self, steps: int) -> int:
        """Return how many different images so many steps of whole episodes have."""
        return len(CAMERAS) * (steps + steps // self.episode)


FULL = Sizes()
QUICK = Sizes(
    steps=400,
    side=32,
    batch=32,
    rounds=2,
    round_s=0.2,
    cold_rounds=1,
    long_steps=400,
    records=2_000,
    open_rounds=1,
    verify_rounds=1,
    saves=2,
    learner_bytes=200_000,
)
"""For tests of the benchmark; its figures say nothing."""


class Recorder:
    """One robot that makes fragments, one after the other.

    Args:
        sizes: of episodes, fragments and images.
        producer: its name.
        cameras: whether it has any.
        fragment: steps per fragment; as ``sizes`` say where not given.
    """

    def __init__(
        self,
        sizes: Sizes,
        producer: str = "arm",
        *,
        cameras: bool = True,
        fragment: int | None = None,
    ):
        self._sizes, self._producer, self._cameras = sizes, producer, cameras
        self._fragment = fragment or sizes.fragment
        self._rng = np.random.Generator(np.random.SFC64(7))
        self._sequence = self._step = 0

    def fragments(self, steps: int | None = None) -> Iterator[Fragment]:
        """Yield the fragments of the next ``steps`` steps, of all that will ever be without it."""
        end = None if steps is None else self._step + steps
        while end is None or self._step < end:
            episode, k = divmod(self._step, self._sizes.episode)
            count = min(self._fragment, self._sizes.episode - k)
            yield self._make(episode, k, count if end is None else min(count, end - self._step))

    def observations(self, first: int, count: int) -> dict[str, Array]:
        """Return observations number ``first`` up to ``first + count`` ``[count, ...]``."""
        numbers = np.arange(first, first + count)
        state = self._rng.standard_normal((count, STATE), np.float32)
        state[:, 0] = numbers
        found: dict[str, Array] = {"state": state}
        for name in CAMERAS if self._cameras else ():
            side = self._sizes.side
            pixels = np.frombuffer(self._rng.bytes(count * self._sizes.image_bytes), np.uint8)
            flat = pixels.reshape(count, -1).copy()
            flat[:, :_STAMP] = numbers.astype("<u8").view(np.uint8).reshape(count, _STAMP)
            found[name] = flat.reshape(count, side, side, 3)
        return found

    def actions(self, count: int) -> Array:
        """Return actions ``[count, 7]``."""
        return self._rng.standard_normal((count, ACTION), np.float32)

    def _make(self, episode: int, k: int, count: int) -> Fragment:
        final = k + count == self._sizes.episode
        first = episode * (self._sizes.episode + 1) + k
        end = np.zeros(count, np.uint8)
        end[-1] = End.TIMEOUT if final else End.NONE
        executed = self.actions(count)
        made = Fragment(
            header=self._header(episode, k),
            observation=self.observations(first, count + final),
            executed=executed,
            proposed=executed,
            reward=np.zeros(count, np.float32),
            segment=np.full(count, Segment.AUTO, np.uint8),
            end=end,
            robot_ns=np.arange(first, first + count + final, dtype=np.int64) * PERIOD_NS,
            policy=np.zeros(count, np.uint16),
            version=np.zeros(count, np.int64),
            operator=np.zeros(count, np.uint16),
            chunk=np.zeros(count, np.int32),
            position=np.arange(k, k + count, dtype=np.int32),
        )
        self._sequence += 1
        self._step += count
        return made

    def _header(self, episode: int, k: int) -> FragmentHeader:
        return FragmentHeader(
            producer=self._producer,
            epoch=1,
            sequence=self._sequence,
            run="bench",
            task="bench",
            episode=f"{self._producer}-{episode}",
            start=k,
            purpose=Purpose.TRAIN,
            schema="bench",
            robot=self._producer,
            embodiment="bench",
            boot="bench",
            wall_ns=self._step * PERIOD_NS,
            wall_bound_ns=1,
        )


def records(sizes: Sizes) -> Iterator[Fragment]:
    """Yield ``sizes.records`` fragments of one step, of several robots in turn, without images."""
    each = sizes.records // sizes.robots
    makers = [
        Recorder(sizes, f"arm-{i}", cameras=False, fragment=1).fragments(each)
        for i in range(sizes.robots)
    ]
    return itertools.chain.from_iterable(zip(*makers, strict=True))


def check(batch: Batch) -> None:
    """Make sure that a batch holds what was stored, and after each step what came after it.

    Raises:
        DamageError: it does not, or not in contiguous arrays.
    """
    now, after = _numbers(batch.observation), _numbers(batch.next_observation)
    if not (after == now + 1).all():
        raise DamageError("a draw gave a step the observation of another one")


def _numbers(observation: Observation) -> Array:
    numbers: Array = observation["state"][:, 0].astype(np.int64)
    cameras: Mapping[str, Array] = {n: observation[n] for n in CAMERAS if n in observation}
    for name, pixels in cameras.items():
        if not pixels.flags.c_contiguous:
            raise DamageError(f"images of {name!r} are not contiguous")
        stamps = pixels.reshape(len(pixels), -1)[:, :_STAMP].copy().view("<u8")[:, 0]
        if not (stamps == numbers.astype(np.uint64)).all():
            raise DamageError(f"a draw gave a step the image of another one, {name!r}")
    return numbers
