"""Makes steps into fragments: what was seen, proposed, executed and judged, period by period.

A step is opened with the observation in which its action is chosen and closed by the next one, when
it is known what was executed. Its judgement may come with that or later. Fragments go out as soon
as they hold ``length`` steps, but the newest closed step always stays until the episode's end is
known not to lie there: the last step carries the end, and with it the last observation.

So at any moment at most ``length`` closed steps and the open one are not spooled yet.

Samples of sensors at their own rates go into the fragment in whose time they were taken: from its
first observation on, up to the next fragment's. The first fragment also has those of the period
that led to its first observation, and the last one ends with its last observation.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from user_system.core.clock import SECOND
from user_system.core.errors import SpecError
from user_system.core.specs import PolicySpec, RobotSpec
from user_system.core.types import (
    HUMAN_SEGMENTS,
    Array,
    End,
    Fragment,
    FragmentHeader,
    Observation,
    Segment,
    Stream,
    TimeStep,
)
from user_system.edge.chunks import Proposal
from user_system.edge.messages import Assignment
from user_system.edge.samples import Samples, most_bytes

MAX_UNSPOOLED_S = 0.3
"""Robot seconds of closed steps that may wait."""


def fragment_steps(spec: RobotSpec) -> int:
    """Return how many closed steps may wait: fragments of a robot are no longer."""
    return max(1, int(MAX_UNSPOOLED_S * spec.control_hz) - 1)


def largest_fragment(spec: RobotSpec) -> int:
    """Return a bound of a fragment's size in bytes, images uncompressed."""
    row = sum(math.prod(f.shape) * np.dtype(f.dtype).itemsize for f in spec.fields.values())
    steps = fragment_steps(spec) + 2
    return steps * (row + 1024) + 8192 + most_bytes(spec.streams, steps / spec.control_hz)


@dataclass(frozen=True)
class Producer:
    """Who records: the same for all fragments of one life of the agent."""

    name: str
    epoch: int
    boot: str
    run: str
    spec: RobotSpec
    policy: str
    """Id of the policy, as the weight store knows it."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What an episode came to."""

    steps: int = 0
    human_steps: int = 0
    reward: float = 0.0
    """Sum of the rewards known."""
    version: int = 0
    """Newest version of the weights that acted."""
    segments: Mapping[int, int] = field(default_factory=dict)


class Adder:
    """Collects one robot's steps. One thread's business.

    Args:
        producer: who records.
        utc_offset_ns: UTC minus this host's monotonic clock, ns, for the fragments' civil time.
        utc_bound_ns: half-width of that estimate.
    """

    def __init__(self, producer: Producer, utc_offset_ns: int, utc_bound_ns: int = SECOND):
        self.producer = producer
        self._utc = utc_offset_ns, utc_bound_ns
        self._length = fragment_steps(producer.spec)
        self._extras: Mapping[str, Any] = {}
        self._sequence = 0
        self._samples = Samples()
        self._closed: list[TimeStep] = []
        self._open: TimeStep | None = None
        self._wall: dict[int, int] = {}
        self._header: FragmentHeader | None = None
        self._voids: list[tuple[int, int]] = []
        self._steps = self._start = 0
        self._human = 0
        self._segments: Counter[int] = Counter()
        self._reward, self._version = 0.0, 0

    @property
    def recording(self) -> bool:
        """Whether an episode is open."""
        return self._header is not None

    @property
    def opened(self) -> bool:
        """Whether a step is open."""
        return self._open is not None

    @property
    def step(self) -> int:
        """Index of the open step."""
        return self._steps

    @property
    def totals(self) -> Totals:
        """What the fragments of this episode came to so far."""
        return Totals(self._start, self._human, self._reward, self._version, dict(self._segments))

    def begin(self, assignment: Assignment, policy: PolicySpec | None) -> None:
        """Open an episode."""
        if self._header is not None:
            raise SpecError("an episode is still open", got=self._header.episode)
        producer, spec = self.producer, self.producer.spec
        self._extras = dict(policy.extras) if policy else {}
        self._header = FragmentHeader(
            producer=producer.name,
            epoch=producer.epoch,
            sequence=0,
            run=producer.run,
            task=assignment.task,
            episode=assignment.episode,
            start=0,
            purpose=assignment.purpose,
            schema=spec.schema,
            robot=producer.name,
            embodiment=spec.embodiment,
            boot=producer.boot,
            wall_ns=0,
            wall_bound_ns=self._utc[1],
        )
        self._closed, self._open, self._voids = [], None, []
        self._samples.clear()
        self._steps = self._start = self._human = self._version = 0
        self._segments, self._reward = Counter(), 0.0

    def renew(self, epoch: int) -> None:
        """Go on in a new epoch: what came before drains behind what comes now."""
        self.producer, self._sequence = replace(self.producer, epoch=epoch), 0

    def open(
        self,
        observation: Observation,
        robot_ns: int,
        wall_ns: int,
        segment: Segment,
        proposal: Proposal | None,
        operator: str,
    ) -> None:
        """Begin a step with the observation in which its action is chosen."""
        da = len(self.producer.spec.action)
        nothing = np.full(da, np.nan, np.float32)
        self._wall[self._steps] = wall_ns
        self._open = TimeStep(
            observation={name: np.array(value) for name, value in observation.items()},
            executed=nothing,
            proposed=nothing if proposal is None else np.array(proposal.action, np.float32),
            reward=float("nan"),
            segment=segment,
            end=End.NONE,
            robot_ns=robot_ns,
            policy=self.producer.policy if proposal else "",
            version=proposal.version if proposal else 0,
            operator=operator,
            chunk=proposal.chunk if proposal else 0,
            position=proposal.position if proposal else 0,
            extras=proposal.extras if proposal else {},
        )

    def sense(self, samples: Mapping[str, Stream]) -> None:
        """Take what sensors at their own rates delivered since the last call, in order."""
        self._samples.add(samples)

    def close(self, executed: Array) -> None:
        """End the open step: ``executed`` ``(Da,)`` float32 is what the robot was really told."""
        step = self._open
        if step is None:
            return
        self._closed.append(replace(step, executed=np.asarray(executed, np.float32)))
        self._open = None
        self._steps += 1

    def judge(self, index: int, reward: float) -> bool:
        """Take the reward of step ``index``; False: too late, it is spooled and stays unknown."""
        at = index - self._start
        if 0 <= at < len(self._closed):
            self._closed[at] = replace(self._closed[at], reward=reward)
            return True
        return False

    def void(self, first: int) -> None:
        """A rewind undid the steps from ``first`` up to the next one; the next fragment says so."""
        self._voids.append((first, self._steps))

    def ready(self) -> list[Fragment]:
        """Return the fragments that may go now."""
        fragments = []
        while len(self._closed) > 1:
            border = self._border()
            if len(self._closed) <= min(self._length, border):
                break
            fragments.append(self._cut(min(self._length, border, len(self._closed) - 1)))
        return fragments

    def _border(self) -> int:
        """Steps up to the next border of a void: fragments end and begin there."""
        ahead = [at - self._start for _, at in self._voids if at > self._start]
        return min(ahead, default=1 << 31)

    def finish(
        self,
        end: End,
        success: bool | None,
        reward: float | None,
        index: int | None,
        last: tuple[Observation, int] | None,
    ) -> tuple[list[Fragment], Totals]:
        """End the episode.

        Args:
            end: why.
            success: whether it reached its goal; None: not known.
            reward: a person's, for the last step.
            index: step that ended it; later ones, made before that was known, are dropped.
            last: (observation, robot ns) that followed the last closed step; None: the one of the
                open step.
        """
        if index is not None and 0 <= index - self._start < len(self._closed) - 1:
            cut = index - self._start + 1
            after = self._closed[cut]
            last = (after.observation, after.robot_ns)
            self._closed, self._open = self._closed[:cut], None
            self._steps = index + 1
        if last is None and self._open is not None:
            last = (self._open.observation, self._open.robot_ns)
        self._open = None
        fragments = []
        if self._closed and last is not None:
            final = self._closed[-1]
            worth = final.reward if reward is None else reward
            self._closed[-1] = replace(final, end=end, reward=worth)
            while self._border() <= len(self._closed) and len(self._closed) > 1:
                fragments.append(self._cut(min(self._border(), len(self._closed) - 1)))
            fragments.append(self._cut(len(self._closed), success, (last,)))
        totals = self.totals
        self._header = None
        self._closed = []
        self._wall.clear()
        return fragments, totals

    def _cut(
        self,
        count: int,
        success: bool | None = None,
        last: tuple[tuple[Observation, int], ...] = (),
    ) -> Fragment:
        if self._header is None:
            raise SpecError("no episode is open")
        steps, self._closed = self._closed[:count], self._closed[count:]
        names = ["", *sorted(({s.policy for s in steps} | {s.operator for s in steps}) - {""})]
        header = replace(
            self._header,
            sequence=self._sequence,
            start=self._start,
            names=tuple(names),
            wall_ns=self._wall[self._start] + self._utc[0],
            success=success,
            void_from=self._void_from(final=bool(last)),
        )
        self._tally(steps)
        self._sequence += 1
        self._start += count
        self._wall = {k: v for k, v in self._wall.items() if k >= self._start}
        until = last[0][1] + 1 if last else self._closed[0].robot_ns
        streams = self._samples.take(until)
        return _fragment(header, steps, last, names, self._extras, streams)

    def _void_from(self, *, final: bool) -> int | None:
        """Return what the fragment that begins now voids; the last one speaks for all that wait."""
        due = [(first, at) for first, at in self._voids if final or at <= self._start]
        self._voids = [void for void in self._voids if void not in due]
        return min((min(first, self._start) for first, _ in due), default=None)

    def _tally(self, steps: list[TimeStep]) -> None:
        self._segments.update(int(step.segment) for step in steps)
        self._human += sum(step.segment in HUMAN_SEGMENTS for step in steps)
        self._reward += float(np.nansum([step.reward for step in steps]))
        self._version = max([self._version, *(step.version for step in steps)])


def _fragment(
    header: FragmentHeader,
    steps: list[TimeStep],
    last: tuple[tuple[Observation, int], ...],
    names: list[str],
    extras: Mapping[str, Any],
    streams: Mapping[str, Stream],
) -> Fragment:
    rows = [(step.observation, step.robot_ns) for step in steps] + list(last)

    def column(key: str, dtype: str) -> Array:
        return np.asarray([getattr(step, key) for step in steps], dtype)

    def name(key: str) -> Array:
        return np.asarray([names.index(getattr(step, key)) for step in steps], np.uint16)

    return Fragment(
        header=header,
        observation={key: np.stack([row[key] for row, _ in rows]) for key in rows[0][0]},
        executed=np.stack([step.executed for step in steps]),
        proposed=np.stack([step.proposed for step in steps]),
        reward=column("reward", "float32"),
        segment=column("segment", "uint8"),
        end=column("end", "uint8"),
        robot_ns=np.asarray([ns for _, ns in rows], np.int64),
        policy=name("policy"),
        version=column("version", "int64"),
        operator=name("operator"),
        chunk=column("chunk", "int32"),
        position=column("position", "int32"),
        extras={key: _extra(key, field, steps) for key, field in extras.items()},
        streams=streams,
    )


def _extra(name: str, field: Any, steps: list[TimeStep]) -> Array:
    dtype = np.dtype(field.dtype)
    missing = np.full(field.shape, np.nan if dtype.kind == "f" else 0, dtype)
    return np.stack([np.asarray(step.extras.get(name, missing), dtype) for step in steps])
