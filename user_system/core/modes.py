"""The mode table: every state a robot's session can be in and everything that may change it.

``user_system/edge/session.py`` is the only writer of a robot's mode; everybody else asks it to and
mirrors what it says. A mode that no row leaves for the asker is refused with the list of what is
allowed. Only a person leaves ``FAULT`` and ``ESTOP``.
"""

from enum import StrEnum

from user_system.core.errors import TransitionError
from user_system.core.types import Segment


class Mode(StrEnum):
    """State of a robot's session."""

    HOLD = "hold"
    """Powered, still, nobody drives. Start and end of everything."""
    RESET = "reset"
    """The task's reset motion, before an episode."""
    DEMO = "demo"
    """A person drives a whole episode."""
    AUTO = "auto"
    """The policy drives; the episode is trained on."""
    EVAL = "eval"
    """The policy drives; the episode is only judged."""
    REWIND = "rewind"
    """Recent motion is run backwards."""
    RECOVERY = "recovery"
    """A person brings the robot back to states that demonstrations know."""
    CORRECTION = "correction"
    """A person does the part that the policy failed at."""
    HANDBACK = "handback"
    """From the person to the policy: the set-point rests until a fresh plan is there."""
    FAULT = "fault"
    """The robot cannot move."""
    ESTOP = "estop"
    """Somebody pressed stop. Latched."""


class Event(StrEnum):
    """What may change a mode."""

    RESET = "reset"
    DEMONSTRATE = "demonstrate"
    RUN = "run"
    EVALUATE = "evaluate"
    HOLD = "hold"
    """A takeover, a detector's call, a plugin's failure, a lost operator: be still and wait."""
    REWIND = "rewind"
    RECOVER = "recover"
    CORRECT = "correct"
    HAND_BACK = "hand_back"
    DONE = "done"
    """It came to its own end: pose reached, rewind over, fresh plan there, episode over."""
    FAULT = "fault"
    ESTOP = "estop"
    RELEASE = "release"


class Who(StrEnum):
    """Who asks."""

    SESSION = "session"
    """The agent itself: schedule, watchdogs, ends of motions."""
    DETECTOR = "detector"
    DRIVER = "driver"
    OPERATOR = "operator"
    """The person (or script) who holds the lease."""
    ANYONE = "anyone"
    """Any authenticated person, lease or not: only to stop."""


SEGMENT: dict[Mode, Segment] = {
    Mode.HOLD: Segment.HOLD,
    Mode.RESET: Segment.RESET,
    Mode.DEMO: Segment.DEMO,
    Mode.AUTO: Segment.AUTO,
    Mode.EVAL: Segment.AUTO,
    Mode.REWIND: Segment.REWIND,
    Mode.RECOVERY: Segment.RECOVERY,
    Mode.CORRECTION: Segment.CORRECTION,
    Mode.HANDBACK: Segment.HOLD,
    Mode.FAULT: Segment.HOLD,
    Mode.ESTOP: Segment.HOLD,
}
"""What the steps of each mode are labelled."""

HUMAN_MODES = frozenset({Mode.DEMO, Mode.RECOVERY, Mode.CORRECTION})
POLICY_MODES = frozenset({Mode.AUTO, Mode.EVAL})
STOPPED_MODES = frozenset({Mode.FAULT, Mode.ESTOP})

_OPERATOR, _SESSION = frozenset({Who.OPERATOR}), frozenset({Who.SESSION})
_HOLDERS = frozenset({Who.OPERATOR, Who.SESSION, Who.DETECTOR, Who.DRIVER})

TABLE: dict[tuple[Mode, Event], tuple[Mode, frozenset[Who]]] = {
    # An episode begins at rest.
    (Mode.HOLD, Event.RESET): (Mode.RESET, _SESSION | _OPERATOR),
    (Mode.RESET, Event.DONE): (Mode.HOLD, _SESSION),
    (Mode.HOLD, Event.RUN): (Mode.AUTO, _SESSION),
    (Mode.HOLD, Event.EVALUATE): (Mode.EVAL, _SESSION),
    (Mode.HOLD, Event.DEMONSTRATE): (Mode.DEMO, _OPERATOR),
    # It ends.
    # A person who holds the lease may judge an episode over (success or failure).
    (Mode.AUTO, Event.DONE): (Mode.HOLD, _SESSION | _OPERATOR),
    (Mode.EVAL, Event.DONE): (Mode.HOLD, _SESSION),
    (Mode.DEMO, Event.DONE): (Mode.HOLD, _SESSION | _OPERATOR),
    (Mode.CORRECTION, Event.DONE): (Mode.HOLD, _SESSION | _OPERATOR),
    (Mode.RECOVERY, Event.DONE): (Mode.HOLD, _SESSION | _OPERATOR),
    # A person steps in, always through HOLD.
    (Mode.HOLD, Event.REWIND): (Mode.REWIND, _OPERATOR),
    (Mode.REWIND, Event.DONE): (Mode.HOLD, _SESSION),
    (Mode.HOLD, Event.RECOVER): (Mode.RECOVERY, _OPERATOR),
    (Mode.HOLD, Event.CORRECT): (Mode.CORRECTION, _OPERATOR),
    (Mode.RECOVERY, Event.CORRECT): (Mode.CORRECTION, _OPERATOR),
    (Mode.CORRECTION, Event.RECOVER): (Mode.RECOVERY, _OPERATOR),
    # And hands back.
    (Mode.HOLD, Event.HAND_BACK): (Mode.HANDBACK, _OPERATOR),
    (Mode.RECOVERY, Event.HAND_BACK): (Mode.HANDBACK, _OPERATOR),
    (Mode.CORRECTION, Event.HAND_BACK): (Mode.HANDBACK, _OPERATOR),
    (Mode.HANDBACK, Event.DONE): (Mode.AUTO, _SESSION),
    # Anything that moves can be held.
    **{
        (mode, Event.HOLD): (Mode.HOLD, _HOLDERS)
        for mode in Mode
        if mode not in STOPPED_MODES | {Mode.HOLD}
    },
    # Faults and stops reach every mode; only a person clears them.
    **{
        (mode, Event.FAULT): (Mode.FAULT, frozenset({Who.DRIVER, Who.SESSION}))
        for mode in Mode
        if mode not in STOPPED_MODES
    },
    **{(mode, Event.ESTOP): (Mode.ESTOP, frozenset(Who)) for mode in Mode},
    (Mode.FAULT, Event.RELEASE): (Mode.HOLD, _OPERATOR),
    (Mode.ESTOP, Event.RELEASE): (Mode.HOLD, _OPERATOR),
}


def allowed(mode: Mode, who: Who) -> list[Event]:
    """Return the events that ``who`` may cause in ``mode``, in table order."""
    return [event for (m, event), (_, askers) in TABLE.items() if m is mode and who in askers]


def follow(mode: Mode, event: Event, who: Who) -> Mode:
    """Return the mode that ``event`` from ``who`` leads to.

    Raises:
        TransitionError: the table has no such row, or not for this asker.
    """
    row = TABLE.get((mode, event))
    if row is None or who not in row[1]:
        raise TransitionError(
            f"{who} may not cause {event} in mode {mode}",
            allowed=", ".join(allowed(mode, who)) or "nothing",
        )
    return row[0]
