"""What a learner may ask of the replay buffer. Data only, so that a request can travel."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

PresetName = Literal["rlpd", "hil_serl", "hg_dagger", "rac", "armada", "sirius"]
"""Published ways to use what people did; see docs/draws.md."""


@dataclass(frozen=True, slots=True)
class AsOf:
    """A sensor at its own rate, as of the moment of an observation: never a later sample."""

    max_age_s: float
    """Samples older than this, in seconds of the robot's clock, are not valid."""
    samples: int = 1
    """The newest so many, oldest first."""


@dataclass(frozen=True, slots=True)
class Weigh:
    """How much more often than others a step of a view is drawn.

    Where ``by`` names a class (``segment success robot task run operator policy purpose``), each
    class has a mass that its steps share equally. Where it is a number of the step (``priority``,
    ``return``, a label, a number that a policy recorded, a column), the step's weight is
    ``max(value, floor) ** power``.

    ``return`` is the episode's, from 0 for the lowest that the view has to 1 for the highest; it
    is known once the episode is complete. ``priority`` is what ``Priorities.prioritise`` said.
    """

    by: str
    power: float = 1.0
    """Of the value. Of classes: 0 leaves them as they are, 1 makes their masses equal."""
    floor: float = 0.0
    """Least value."""
    missing: float = 1.0
    """The value of steps that have none."""
    beta: float = 0.0
    """Exponent of the correction in ``extras["importance"]``: ``(N p)^-beta``, where ``p`` is the
    step's probability and ``N`` the steps of its view. 1 undoes the weighing on average."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Class, or some joined by ``|`` -> its mass; the others keep their proportions in what is
    left. A class without steps leaves its mass to the others."""
    rest: str = ""
    """The class that has what ``shares`` and the natural masses of all others leave of 1, and at
    most its own natural mass."""


@dataclass(frozen=True, slots=True)
class Hindsight:
    """Some steps drawn as if a state that came later in their episode had been the goal.

    A step's goal becomes what was achieved after it or after one that follows it, up to where an
    n-step sum or window would have to end. Its reward says whether the step reached that.
    """

    goal: str
    """The observation field that is the goal."""
    achieved: str
    """The observation field that says what was achieved; shaped as the goal."""
    share: float = 0.8
    """Share of the batch, as an exact count rounded down, spread evenly over its rows."""
    strategy: Literal["future", "final"] = "future"
    """Any of the states that came later, equally likely; or the last of them."""
    tolerance: float = 0.05
    """Distance (Euclidean) within which a goal is reached."""
    reached: float = 1.0
    """Reward of a step that reached the goal."""
    missed: float = 0.0
    """Reward of one that did not."""
    terminate: bool = True
    """Whether a goal that is reached ends the task, so that nothing after it has value."""


@dataclass(frozen=True, slots=True)
class Draw:
    """One request to the replay buffer."""

    n: int
    """Rows."""
    unit: Literal["step", "nstep", "window", "episode"] = "step"
    length: int = 1
    """Steps per n-step sum or window."""
    gamma: float = 0.99
    """Discount per step."""
    mix: Mapping[str, float] = field(default_factory=lambda: {"all": 1.0})
    """View -> share; shares become exact counts, largest remainder first."""
    columns: Sequence[str] = ()
    """Further columns wanted in ``Batch.extras``."""
    observations: Sequence[str] | None = None
    """Only these observation fields; None means all."""
    include_void: bool = False
    cross_segments: bool = True
    """Whether an n-step sum, a window or a history may cross a segment border; never an episode or
    a void."""
    cross_views: bool = True
    """Whether an n-step sum or a window may go on into steps that its view does not show."""
    history: int = 0
    """Observations up to and with the step's own: ``[B, history, ...]``, oldest first, and the
    same before ``next_observation``. ``extras`` say which are valid (``history_valid``,
    ``next_history_valid``). 0: no such axis, and windows have their observations beside their
    actions."""
    streams: Mapping[str, AsOf] = field(default_factory=dict)
    """Stream -> what of it is wanted beside the observation fields, as of each observation:
    ``<name>`` ``[B, samples, ...]``, ``<name>.age`` in seconds and ``<name>.valid``."""
    reward: str = ""
    """The column that is the reward: empty for the newest that is known, ``recorded_reward``, the
    name of a late label, or ``<label>@<version>`` for what one version of it says."""
    weigh: Weigh | None = None
    """None: all steps of a view are equally likely."""
    hindsight: Hindsight | None = None
    preset: str = ""
    """Instead of ``mix``, ``weigh`` and ``cross_views``, those of a published way to use what
    people did, one of ``PresetName``."""
