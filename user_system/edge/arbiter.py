"""Who commands now: emergency stop > person > rewind and reset > policy.

Whoever it is, what leaves here is one absolute set-point that continues from the last accepted one,
so a change of hands never makes the robot jump: a person's first command moves it from where it is
told to be (a clutch by construction), and so does the policy's.

A person's delta dimensions are rates, applied pro rata whenever ``drive`` is called, and by no more
than one full action per period. Where a simulated clock runs faster than the wall's, a script
drives: its command is one action, as the policy's is (``act``; see ``turns``). Rewind and reset
move at a fraction of the robot's speed limits.
"""

from collections import deque
from dataclasses import dataclass

import numpy as np

from user_system.core.clock import MS, SECOND
from user_system.core.interfaces import ResetPlan
from user_system.core.modes import HUMAN_MODES, POLICY_MODES, Mode
from user_system.core.specs import RobotSpec
from user_system.core.types import Array
from user_system.edge.chunks import Proposal
from user_system.edge.messages import OperatorCommand
from user_system.edge.wire import Telemetry


@dataclass(frozen=True)
class ArbiterConfig:
    """Speeds and patience of motions that nobody steers."""

    rewind_speed: float = 0.25
    """Fraction of the velocity limits."""
    rewind_steps: int = 50
    """Steps that one rewind goes back at most."""
    tolerance: float = 0.02
    """Fraction of the workspace box within which a waypoint counts as reached."""
    patience_s: float = 3.0
    """Robot seconds at a waypoint before the reset counts as failed."""


class Arbiter:
    """Chooses the set-point of one robot.

    Args:
        spec: of the robot.
        config: speeds and patience.
    """

    def __init__(self, spec: RobotSpec, config: ArbiterConfig | None = None):
        self.spec, self.config = spec, config or ArbiterConfig()
        self.target: Array = np.zeros(len(spec.limits))
        """Where the robot is told to be ``(Dc,)`` float64."""
        self._mode = Mode.HOLD
        self._period_ns = SECOND / spec.control_hz
        self._box = np.subtract(spec.limits.high, spec.limits.low)
        self._past: deque[tuple[int, Array]] = deque(maxlen=1000)
        self._undone = 0
        self._rewound_to: int | None = None
        self._waypoint = 0
        self._waited_ns = 0
        self._last_ns = 0
        self._command: tuple[Array, int] | None = None
        self._base = self.target
        """Target at the start of the period."""
        self._bounds = np.asarray(spec.action.low), np.asarray(spec.action.high)
        self.stepwise = False
        """Whether the robot clock is a fast one, for which a person's command is one action."""

    # --- once per period ----------------------------------------------------------------------

    def begin_episode(self) -> None:
        """Forget the motion of the last one: it cannot be rewound."""
        self._past.clear()

    def enter(self, mode: Mode, seen: Telemetry) -> None:
        """Take over in ``mode``, from the target that the gate accepted last."""
        if mode is self._mode:
            return
        self._mode, self.target = mode, np.array(seen.accepted)
        self._base, self.stepwise = self.target, seen.reading.rate > 1.0
        self._command, self._last_ns = None, seen.reading.robot_ns
        self._undone, self._rewound_to, self._waypoint = 0, None, 0
        self._waited_ns = seen.reading.robot_ns

    def choose(self, seen: Telemetry, step: int | None, proposal: Proposal | None) -> Array:
        """Return the target ``(Dc,)`` for the period that ``seen`` begins.

        Args:
            seen: the robot at the start of the period.
            step: index of the episode's step; None where none is recorded.
            proposal: of the policy, if it had one in time.
        """
        if self._mode in HUMAN_MODES:
            if seen.holding:
                self.target = np.array(seen.accepted)
            self._note(seen, step)
            return self._follow_person(seen)
        self.target = np.array(seen.accepted)
        if self._mode in POLICY_MODES:
            self._note(seen, step)
            if proposal is not None:
                wish = self.spec.action.target(self.target, proposal.action)
                self.target = self.spec.limits.clip(wish)
        elif self._mode is Mode.REWIND:
            self._go_back()
        return self.target

    def _follow_person(self, seen: Telemetry) -> Array:
        self._base, self.stepwise = self.target, seen.reading.rate > 1.0
        if self.stepwise:
            self._command = None
        return self.target

    def _note(self, seen: Telemetry, step: int | None) -> None:
        if step is not None:
            self._past.append((step, np.array(seen.accepted)))

    @property
    def mode(self) -> Mode:
        """In which it chose last."""
        return self._mode

    def rest(self) -> None:
        """A person stopped driving within a period: move no further."""
        if self._mode in HUMAN_MODES:
            self._mode, self._command = Mode.HOLD, None

    # --- a person ------------------------------------------------------------------------------

    def act(self, action: Array) -> Array:
        """Take a person's action ``(Da,)`` of this period of a fast clock; return the target."""
        if self._mode in HUMAN_MODES:
            wish = self.spec.action.target(self._base, self.spec.action.clip(action))
            self.target = self.spec.limits.clip(wish)
        return self.target

    def steer(self, command: OperatorCommand, now_ns: int) -> Array:
        """Take a person's newest command at robot time ``now_ns``; return the target so far."""
        target = self.drive(now_ns)
        valid_ms = min(command.valid_ms, self.spec.hold_after_ms)
        self._command = (self.spec.action.clip(command.action), now_ns + int(valid_ms * MS))
        return target

    def drive(self, now_ns: int) -> Array:
        """Apply the person's command for the robot time since the last call; return the target.

        A command that is over moves nothing: the robot rests until the next one.
        """
        since, self._last_ns = self._last_ns, max(now_ns, self._last_ns)
        if self._command is None or self._mode not in HUMAN_MODES or self.stepwise:
            return self.target
        action, until_ns = self._command
        share = max(0.0, min(now_ns, until_ns) - since) / self._period_ns
        if share > 0:
            moved = np.where(self.spec.action.delta, action * min(share, 1.0), action)
            wish = self.spec.action.target(self.target, moved)
            least, most = (self.spec.action.target(self._base, a) for a in self._bounds)
            self.target = self.spec.limits.clip(np.clip(wish, least, most))
        if now_ns >= until_ns:
            self._command = None
        return self.target

    # --- motions nobody steers -------------------------------------------------------------------

    def _toward(self, goal: Array, speed: float) -> bool:
        """Move the target toward ``goal`` for one period; True once it is there."""
        reach = np.asarray(self.spec.limits.velocity) * speed * self._period_ns / SECOND
        away = goal - self.target
        self.target = np.where(np.abs(away) <= reach, goal, self.target + np.sign(away) * reach)
        return bool(np.array_equal(self.target, goal))

    def _go_back(self) -> None:
        if not self.rewinding:
            return
        step, goal = self._past[-1]
        if self._toward(goal, self.config.rewind_speed):
            self._past.pop()
            self._undone += 1
            self._rewound_to = step

    @property
    def rewinding(self) -> bool:
        """Whether there is more to run backwards."""
        return bool(self._past) and self._undone < self.config.rewind_steps

    @property
    def rewound_to(self) -> int | None:
        """First step that the present rewind has undone; None: none yet."""
        return self._rewound_to

    def reset(self, seen: Telemetry, plan: ResetPlan) -> bool | None:
        """Move on through the reset's waypoints; True: done, None: it cannot be reached."""
        if self._waypoint >= len(plan.waypoints):
            return True
        goal = self.spec.limits.clip(np.asarray(plan.waypoints[self._waypoint], np.float64))
        now = seen.reading.robot_ns
        if not self._toward(goal, plan.speed):
            self._waited_ns = now
            return False
        away = np.abs(seen.reading.setpoint - goal) / self._box
        if away.max() <= self.config.tolerance:
            self._waypoint, self._waited_ns = self._waypoint + 1, now
            return self._waypoint >= len(plan.waypoints)
        return None if now - self._waited_ns > self.config.patience_s * SECOND else False
