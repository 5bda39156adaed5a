"""What a session wants done. It decides; the station carries out, in order."""

from collections.abc import Mapping
from dataclasses import dataclass

from user_system.core.types import End
from user_system.edge.messages import Assignment


@dataclass(frozen=True, slots=True)
class Begin:
    """Prepare the worker for an episode and ask it how it begins."""

    assignment: Assignment


@dataclass(frozen=True, slots=True)
class Scene:
    """Lay out the scene."""

    seed: int
    options: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Replan:
    """A person handed back: the policy forgets its plans."""


@dataclass(frozen=True, slots=True)
class Finish:
    """End an episode: flush its steps and report it."""

    assignment: Assignment
    end: End
    success: bool | None
    reward: float | None
    """A person's reward for the last step; None: as judged."""
    index: int | None
    """Step that ended it; None: the last one recorded."""
    takeovers: int
    recorded: bool = True
    """Whether it ever began."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the robot at once and latch why."""

    reason: str


@dataclass(frozen=True, slots=True)
class Release:
    """Clear the robot's fault, since a person said so."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Run a simulated robot's clock at ``rate`` robot seconds per wall second."""

    rate: float


@dataclass(frozen=True, slots=True)
class Want:
    """Tell the hub that the robot is at rest and free."""


Effect = Begin | Scene | Replan | Finish | Stop | Release | Pace | Want
