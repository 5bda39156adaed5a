"""What travels: steps, fragments, batches, plans and weights. All immutable, all named.

The words are the architecture's (docs/architecture.md); there are no synonyms. A *step* is one
period of the control rate of one robot: the observation in which an action was chosen, the action
that was executed, the action the policy had proposed, and what followed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
"""An n-dimensional NumPy array; shape, dtype, unit and frame stand where it is declared."""

Observation = Mapping[str, Array]
"""One instant of one robot: field name -> array, as declared by the robot's specification."""


class Segment(IntEnum):
    """What a step was: who moved the robot, and to what end. One per mode."""

    DEMO = 1
    AUTO = 2
    HOLD = 3
    REWIND = 4
    RECOVERY = 5
    CORRECTION = 6
    RESET = 7
    SYNTHETIC = 8


HUMAN_SEGMENTS = frozenset({Segment.DEMO, Segment.RECOVERY, Segment.CORRECTION})
"""Segments in which a person chose the executed action."""


class End(IntEnum):
    """Why an episode stopped after a step. Only ``TERMINATED`` stops bootstrapping."""

    NONE = 0
    TERMINATED = 1
    TIMEOUT = 2
    HANDBACK = 3
    FAULT = 4
    ABORT = 5


class Purpose(IntEnum):
    """What an episode is for. ``EVAL`` episodes are stored but never trained on by default."""

    COLLECT = 1
    TRAIN = 2
    EVAL = 3


@dataclass(frozen=True, slots=True)
class Reading:
    """What a robot reports at one instant of its own clock."""

    fields: Observation
    """Observation fields by name, as in ``RobotSpec.observation``."""
    setpoint: Array
    """Where the robot is, in set-point coordinates ``(Dc,)`` float64; the gate starts here."""
    robot_ns: int
    """Capture time on the robot clock, in ns."""
    wall_ns: int
    """The same instant on this host's monotonic clock, in ns."""
    rate: float = 1.0
    """Robot seconds per wall second; 1.0 unless the robot is simulated."""
    fault: str = ""
    """Why the robot cannot move; empty while it can. It stays until ``Robot.recover``."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A policy's answer to one observation: an action chunk in physical units."""

    actions: Array
    """Shape ``(Tp, Da)`` float32, in the units of ``ActionSpec``."""
    version: int = 0
    """Version of the weights that produced it."""
    latent: Array | None = None
    """Output of a slow policy, input of ``Policy.track``."""
    extras: Mapping[str, Array] = field(default_factory=dict)
    """What the policy declared to record: log-probability, noise, value, base action …"""
    confidence: float | None = None
    """In [0, 1]; ``None`` where the policy has no notion of it."""


@dataclass(frozen=True, slots=True)
class TimeStep:
    """One step of one robot, complete: what was seen, chosen, done, and what it was worth."""

    observation: Observation
    """The observation in which the action was chosen."""
    executed: Array
    """Shape ``(Da,)`` float32: what the robot was really told to do, after arbitration and gate."""
    proposed: Array
    """Shape ``(Da,)`` float32: what the policy wanted; NaN where no policy was asked in time."""
    reward: float
    """Reward of this step; NaN means not known yet, and such a step is not sampled."""
    segment: Segment
    end: End
    robot_ns: int
    """Capture time of ``observation`` on the robot clock, in ns."""
    policy: str = ""
    """Id of the policy that proposed; empty where none did."""
    version: int = 0
    """Version of its weights."""
    operator: str = ""
    """Who drove; empty where nobody did."""
    chunk: int = 0
    """Number of the action chunk within the episode."""
    position: int = 0
    """Index of this step's action within that chunk."""
    extras: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """A sensor at its own rate: stamps ``[N]`` int64 ns on the robot clock, values ``[N, …]``."""

    stamps: Array
    values: Array


@dataclass(frozen=True, slots=True)
class FragmentHeader:
    """What is the same for every step of a fragment."""

    producer: str
    """Who made it: the robot's name within its host, unique in the lab."""
    epoch: int
    """Counts the producer's uninterrupted lives; sequence numbers start again in each."""
    sequence: int
    """0, 1, 2 … within (producer, epoch), without gaps."""
    run: str
    task: str
    episode: str
    """Unique id of the episode."""
    start: int
    """Index within the episode of this fragment's first step."""
    purpose: Purpose
    schema: str
    """Hash of the observation and action fields; rows of one schema stack."""
    robot: str
    embodiment: str
    """Hash of the kind of body; policies declare which ones they drive."""
    boot: str
    """Random id of the agent process that recorded it."""
    wall_ns: int
    """Estimated UTC time of the first step, ns since 1970."""
    wall_bound_ns: int
    """Half-width of that estimate, ns."""
    names: tuple[str, ...] = ("",)
    """String table of the ``policy`` and ``operator`` columns; entry 0 is the empty string."""
    success: bool | None = None
    """Whether the episode reached its goal; ``None`` until known."""
    void_from: int | None = None
    """A rewind undid the episode's steps from this index up to ``start``: they become *void*."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """T consecutive steps of one episode: the unit of wire, acknowledgement and disk.

    A fragment has T actions and T + 1 observations. The border observation is stored once: the
    last one of a fragment is the first one of the next, so ``observation`` holds T rows, and
    T + 1 only in the last fragment of an episode (``final``).
    """

    header: FragmentHeader
    observation: Mapping[str, Array]
    """Field -> ``[T, …]``, or ``[T + 1, …]`` in the last fragment of an episode."""
    executed: Array
    """``[T, Da]`` float32, physical units."""
    proposed: Array
    """``[T, Da]`` float32; NaN rows where no policy proposed."""
    reward: Array
    """``[T]`` float32; NaN: not known yet."""
    segment: Array
    """``[T]`` uint8, values of ``Segment``."""
    end: Array
    """``[T]`` uint8, values of ``End``; only the last may differ from ``NONE``."""
    robot_ns: Array
    """``[T]`` or ``[T + 1]`` int64, capture times of the observations on the robot clock."""
    policy: Array
    """``[T]`` uint16, index into ``header.names``."""
    version: Array
    """``[T]`` int64, version of the policy's weights."""
    operator: Array
    """``[T]`` uint16, index into ``header.names``."""
    chunk: Array
    """``[T]`` int32, number of the action chunk within the episode."""
    position: Array
    """``[T]`` int32, index within that chunk."""
    extras: Mapping[str, Array] = field(default_factory=dict)
    """Name -> ``[T, …]``, as the policy declared."""
    streams: Mapping[str, Stream] = field(default_factory=dict)
    """Sensors at their own rates."""

    def __len__(self) -> int:
        return len(self.executed)

    @property
    def final(self) -> bool:
        """Whether this is the last fragment of its episode."""
        return len(self.end) > 0 and int(self.end[-1]) != End.NONE


@dataclass(frozen=True, slots=True)
class Parcel:
    """A fragment that was checked, beside its record: what the head stores as it came."""

    fragment: Fragment
    record: bytes
    """Everything but the images, as ``codec.fragments.record`` wrote it where it was recorded."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What a learner consumes. ``B`` rows; windows add a second axis ``L`` after it."""

    observation: Mapping[str, Array]
    """``[B, …]``; ``[B, L, …]`` for windows, ``[B, H, …]`` for a history of H."""
    action: Array
    """Executed actions ``[B, Da]`` or ``[B, L, Da]`` float32, physical units."""
    reward: Array
    """``[B]`` float32: the (n-step, discounted) sum; ``[B, L]`` for windows."""
    discount: Array
    """``[B]`` float32: multiplies the value of ``next_observation``; 0 after ``TERMINATED``."""
    next_observation: Mapping[str, Array]
    """``[B, …]``: recorded after this very step (after the last one of an n-step draw); with those
    before it, ``[B, H, …]``, for a history."""
    end: Array
    """``[B]`` uint8, values of ``End`` of the last step drawn."""
    valid: Array
    """``[B]`` or ``[B, L]`` bool: False where a window ran past its episode; never padding."""
    ids: Array
    """``[B]`` uint64: the step's place in the store, for write-backs."""
    extras: Mapping[str, Array] = field(default_factory=dict)
    """Requested further columns: segment, version, proposed, operator, policy extras; and what a
    draw adds: ``importance``, ``relabelled``, ``history_valid``, ``next_history_valid``."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Weights:
    """One version of a policy. The weight store assigns ``version``, never a learner."""

    policy: str
    version: int
    hash: str
    """Hash over names, dtypes, shapes and bytes of all modules and statistics."""
    modules: Mapping[str, Mapping[str, Array]]
    """Module -> tensor name -> array; only what an actor needs."""
    statistics: Mapping[str, Array] = field(default_factory=dict)
    """Normaliser statistics; they travel with the weights that were trained under them."""
    bases: Mapping[str, str] = field(default_factory=dict)
    """Frozen base models by hash only; they never travel."""
