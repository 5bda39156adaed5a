"""What the hub and the fresh lane say to a robot's session, and what it answers.

Names and meaning are those of ``proto/hub.proto`` and ``proto/fresh.proto``; plain values here, so
that the session knows no wire.
"""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

from user_system.core.types import Array, End, Purpose


@dataclass(frozen=True, slots=True)
class Grant:
    """The current right to command a robot; ``holder`` is empty where it is the agent's own."""

    robot: str
    token: int
    holder: str = ""
    ttl_ms: int = 0
    """Lease time left, wall ms; 0: does not run out."""
    realtime: bool = False
    """The holder acts in real time: a simulated robot drops to rate 1."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a robot's next episode is for."""

    robot: str
    purpose: Purpose
    task: str
    seed: int
    episode: str
    version: int = 0
    """Weights to act with; 0: the newest, renewed on the way."""
    max_steps: int = 0
    """Steps after which it times out; 0: the task's own limit."""


@dataclass(frozen=True, slots=True)
class Request:
    """A person's wish: a name of ``core.modes.Event``."""

    robot: str
    event: str
    operator: str = ""
    token: int = 0
    id: str = ""
    success: bool | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request."""

    id: str
    robot: str
    ok: bool
    mode: str
    error: str = ""


class Answers:
    """The newest answers, for requests that come again because their answer was lost."""

    KEPT = 256

    def __init__(self) -> None:
        self._by_id: OrderedDict[str, Answer] = OrderedDict()

    def of(self, request: str) -> Answer | None:
        """Return what the request of this id was answered, if it is known."""
        return self._by_id.get(request)

    def keep(self, answer: Answer) -> Answer:
        """Remember and return ``answer``; one to a request without an id is not kept."""
        if answer.id:
            self._by_id[answer.id] = answer
            if len(self._by_id) > self.KEPT:
                self._by_id.popitem(last=False)
        return answer


@dataclass(frozen=True, slots=True)
class OperatorCommand:
    """What a person wants now: the action per control period; delta dimensions are rates."""

    robot: str
    operator: str
    token: int
    boot: str
    sequence: int
    valid_ms: float
    action: Array
    """``(Da,)`` float32."""
    born_ns: int
    """Time on this host's clock before which it was not made: a state that was sent then was seen
    by who made it."""
    rested_ms: float = 0.0
    """How old that state had become at the person's page."""


@dataclass(frozen=True, slots=True)
class WeightsReady:
    """A version of the robot's policy lies on this host's disk, whole and verified."""

    version: int
    path: str
    offered_s: float
    """Wall time (monotonic, s) at which its learner offered it, as far as known here."""


@dataclass(frozen=True, slots=True)
class WeightsNews:
    """The hub says which version of the robot's policy is the newest."""

    version: int
    offered_s: float
    """Wall time (monotonic, s) at which its learner offered it."""
    heard_s: float
    """Wall time at which the hub said so."""


@dataclass(frozen=True, slots=True)
class EpisodeReport:
    """What became of an episode."""

    robot: str
    episode: str
    purpose: Purpose
    success: bool | None
    end: End
    steps: int
    human_steps: int
    reward: float
    version: int
    seed: int
    takeovers: int = 0
    segments: Mapping[int, int] = field(default_factory=dict)
    """Steps by segment number."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A process that the robot needs died; ``why`` is what it said last."""

    why: str
