"""A recorder that makes fragments whose every observation bears a number of its own."""

import dataclasses
import os
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from user_system.core.types import End, Fragment, FragmentHeader, Purpose, Segment
from user_system.replay.sampler import ReplayData
from user_system.replay.store import Store

sys.path.insert(0, str(Path(__file__).parent))  # for ``replay_model`` and ``replay_world``


@dataclass
class Step:
    """A step as plain Python knows it; ``after`` is what was recorded after it, once stored."""

    o: int
    k: int
    episode: str
    purpose: Purpose
    segment: Segment = Segment.AUTO
    recorded: float = 0.0
    reward: float = 0.0
    end: End = End.NONE
    version: int = 0
    operator: str = ""
    robot: str = ""
    void: bool = False
    after: int | None = None
    follower: "Step | None" = None


@dataclass
class Recorder:
    """One robot's life; numbers its observations from a counter that all recorders share."""

    counter: list[int]
    producer: str = "arm"
    epoch: int = 1
    schema: str = "s"
    cameras: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    extras: bool = False
    sequence: int = 0
    episodes: int = 0
    k: int = 0
    episode: str = ""
    purpose: Purpose = Purpose.TRAIN
    task: str = "pick"
    run: str = "run"
    void_from: int | None = None
    pending: list[Step] = field(default_factory=list)

    def begin(self, purpose=Purpose.TRAIN):
        assert not self.pending
        self.episodes += 1
        self.episode = f"{self.producer}-{self.epoch}-{self.episodes}"
        self.k, self.purpose, self.void_from = 0, purpose, None
        return self.episode

    def step(self, n=1, **values):
        if not self.episode:
            self.begin()
        for _ in range(n):
            self.counter[0] += 1
            step = Step(self.counter[0], self.k, self.episode, self.purpose, robot=self.producer)
            step = dataclasses.replace(step, **values)
            step.reward = step.recorded
            self.pending.append(step)
            self.k += 1

    def flush(self) -> Fragment:
        steps, self.pending = self.pending, []
        final = steps[-1].end != End.NONE
        numbers = [s.o for s in steps]
        if final:
            self.counter[0] += 1
            numbers.append(self.counter[0])
        operators = sorted({s.operator for s in steps} | {""})
        fragment = Fragment(
            header=FragmentHeader(
                producer=self.producer,
                epoch=self.epoch,
                sequence=self.sequence,
                run=self.run,
                task=self.task,
                episode=self.episode,
                start=steps[0].k,
                purpose=self.purpose,
                schema=self.schema,
                robot=self.producer,
                embodiment="e",
                boot="b",
                wall_ns=1,
                wall_bound_ns=1,
                names=tuple(operators),
                success=None,
                void_from=self.void_from,
            ),
            observation={
                "o": np.array([[n, -n] for n in numbers], np.float64),
                "flag": np.array(numbers, np.int64),
                **{c: np.stack([picture(n, s) for n in numbers]) for c, s in self.cameras.items()},
            },
            executed=np.array([[s.o, s.k, 0.5] for s in steps], np.float32),
            proposed=np.full((len(steps), 3), np.nan, np.float32),
            reward=np.array([s.recorded for s in steps], np.float32),
            segment=np.array([s.segment for s in steps], np.uint8),
            end=np.array([s.end for s in steps], np.uint8),
            robot_ns=np.array(numbers, np.int64) * 100_000_000,
            policy=np.zeros(len(steps), np.uint16),
            version=np.array([s.version for s in steps], np.int64),
            operator=np.array([operators.index(s.operator) for s in steps], np.uint16),
            chunk=np.array([s.k // 4 for s in steps], np.int32),
            position=np.array([s.k % 4 for s in steps], np.int32),
            extras={"logp": np.array([s.o for s in steps], np.float32)} if self.extras else {},
        )
        self.sequence += 1
        self.void_from = None
        if final:
            self.episode = ""
        return fragment

    def run_episode(self, n, flush_every=4, end=End.TERMINATED, **values) -> list[Fragment]:
        """Return the fragments of a whole episode of ``n`` steps."""
        self.begin(values.pop("purpose", Purpose.TRAIN))
        fragments = []
        for i in range(n):
            last = {"end": end} if i == n - 1 else {}
            self.step(**values, **last)
            if len(self.pending) == flush_every or i == n - 1:
                fragments.append(self.flush())
        return fragments


def picture(number: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Return an image that no other number has."""
    return np.random.default_rng(number).integers(0, 256, shape, np.uint8)


@pytest.fixture
def recorder():
    counter = [0]

    def make(producer="arm", **values):
        return Recorder(counter, producer, **values)

    return make


@pytest.fixture
def quick_path():
    """A directory in memory where there is such a place, for tests that commit very often."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place) as path:
        yield Path(path)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "replay").open(create=True) as store:
        yield store


@pytest.fixture
def data(store):
    return ReplayData(store.env, seed=1)
