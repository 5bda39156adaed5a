"""The command gate: the last thing between anybody's wish and a motor.

Every target passes ``offer`` and every set-point leaves through ``tick``. Between them lies one
jerk-limited motion per coordinate that always exists and always ends at rest: whatever arrives,
late, doubled, forged or not a number, the gate goes on along the motion it has. Pure logic: no
I/O, no clock of its own; time is the robot's and is passed in.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from robots.motion import Motion
from user_system.core.clock import MS, SECOND
from user_system.core.errors import ConfigError, SpecError
from user_system.core.specs import Limits
from user_system.core.types import Array

HOLD_AFTER_MS_MAX = 500.0
"""Longest silence that anybody may configure before the robot holds."""

MAX_TICKS_AT_ONCE = 2.0
"""How far one tick may advance the motion, in tick periods: a stalled driver slows the motion
down instead of making the next set-point jump."""
STALL_TICKS = 5.0
"""Ticks that a driver may miss; after more of them the robot stands at the last set-point."""

Reason = Literal["not finite", "shape", "fenced", "boot", "sequence", "late", "stopped", "idle"]


@dataclass(frozen=True, slots=True)
class Command:
    """A wish for one robot: go to ``target``. Idempotent: it may be lost, doubled, overtaken."""

    token: int
    """Fencing token of the lease under which it was sent."""
    boot: str
    """Boot id of the driver it was meant for."""
    sequence: int
    """Strictly increasing within a token."""
    deadline_ns: int
    """Robot time after which nobody wants it any more."""
    target: Array
    """Absolute set-point ``(Dc,)``, in the units and frame of the robot's limits."""


@dataclass(frozen=True, slots=True)
class Offered:
    """What became of one command."""

    accepted: bool
    reason: Reason | None = None
    """Why it was refused."""
    clipped: bool = False
    """Whether the target lay outside the box and was moved onto its surface."""


@dataclass(frozen=True, slots=True)
class GateTick:
    """What the robot is told in one tick."""

    setpoint: Array
    """``(Dc,)`` float64, safe to apply."""
    target: Array
    """Accepted target ``(Dc,)`` float64 that the motion leads to."""
    moving: bool
    """Whether the set-point is still under way."""
    holding: bool
    """Silence: braking, or standing where the brake ended. Ends with a fresh command."""
    stopped: bool
    """Latched: nothing is accepted until ``release``."""
    clipped: bool
    """Whether the newest accepted command was clipped."""


ACCEPTED = Offered(True)
CLIPPED = Offered(True, clipped=True)


class CommandGate:
    """Checks commands and turns targets into set-points that the robot can follow.

    Args:
        limits: box, velocity, acceleration and jerk of the ``Dc`` coordinates.
        tick_hz: set-points per robot second.
        hold_after_ms: silence after which it brakes and holds, robot ms, at most 500.
        stop_after_ms: silence after which it latches ``stopped``, robot ms.
        boot: id of this life of the driver; commands meant for another life are refused.
        fence: highest token seen in an earlier life.

    Raises:
        ConfigError: the times contradict each other or safety.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        tick_hz: float,
        hold_after_ms: float,
        stop_after_ms: float,
        boot: str,
        fence: int = 0,
    ):
        _check_times(tick_hz, hold_after_ms, stop_after_ms)
        self.boot, self.fence = boot, fence
        self._low, self._high = np.asarray(limits.low), np.asarray(limits.high)
        self._motion = Motion(limits)
        self._period_ns = round(SECOND / tick_hz)
        self._hold_after_ns, self._stop_after_ns = hold_after_ms * MS, stop_after_ms * MS
        self._sequence = -1
        self._heard_ns: int | None = None
        self._ticked_ns: int | None = None
        self._started = self._aligned = False
        self._holding = self._stopped = self._clipped = False
        self._counts: Counter[str] = Counter()

    def start(self, setpoint: Array) -> None:
        """Take over the measured set-point ``(Dc,)`` as the present one, at rest.

        Nothing moves: outside the box it stays where it is until a command (whose target is always
        inside) leads it back.

        Raises:
            SpecError: it is not a finite ``(Dc,)`` vector.
        """
        present = np.array(setpoint, np.float64)
        if present.shape != self._low.shape or not np.isfinite(present).all():
            raise SpecError(
                "the gate cannot start from this set-point",
                got=present.tolist(),
                allowed=f"{len(self._low)} finite numbers",
                todo="Check the driver's Reading.setpoint.",
            )
        self._motion.place(present)
        self._heard_ns = self._ticked_ns = None
        self._started = self._aligned = True
        self._holding = self._clipped = False

    def offer(self, command: Command, now_ns: int) -> Offered:
        """Check a command and, if it passes, head for its target. Never raises.

        In this order: finite and of the right shape; not fenced (a higher token raises the fence);
        meant for this boot; newer than the last one; in time; not stopped. Then the target is
        clipped into the box.
        """
        reason = self._refuse(command, now_ns)
        if reason is not None:
            self._counts[reason] += 1
            return Offered(False, reason)
        self._sequence, self._heard_ns, self._holding = command.sequence, now_ns, False
        target = np.asarray(command.target, np.float64)
        inside = np.minimum(np.maximum(target, self._low), self._high)
        self._clipped = bool((inside != target).any())
        self._counts["accepted"] += 1
        self._counts["clipped"] += self._clipped
        self._motion.head_for(inside)
        return CLIPPED if self._clipped else ACCEPTED

    def _refuse(self, command: Command, now_ns: int) -> Reason | None:
        target = command.target
        if not isinstance(target, np.ndarray) or target.dtype.kind not in "fiu":
            return "shape"
        if target.shape != self._low.shape:
            return "shape"
        if not np.isfinite(target).all():
            return "not finite"
        if command.token < self.fence:
            return "fenced"
        if command.token > self.fence:
            self.fence, self._sequence = command.token, -1
        if command.boot != self.boot:
            return "boot"
        if command.sequence <= self._sequence:
            return "sequence"
        if command.deadline_ns < now_ns:
            return "late"
        if self._stopped:
            return "stopped"
        return None if self._aligned else "idle"

    def tick(self, now_ns: int) -> GateTick:
        """Advance the motion to ``now_ns`` and return the set-point for the robot.

        Never raises once ``start`` was called.

        Raises:
            SpecError: it never was: nobody knows where the robot is.
        """
        if not self._started:
            raise SpecError("the gate was not started", todo="Call start(reading.setpoint) first.")
        self._recover_from_stall(now_ns)
        self._listen(now_ns)
        setpoint = self._motion.advance(self._elapsed_s(now_ns))
        return GateTick(
            setpoint=setpoint,
            target=self._motion.target,
            moving=self._motion.moving,
            holding=self._holding,
            stopped=self._stopped,
            clipped=self._clipped,
        )

    def _recover_from_stall(self, now_ns: int) -> None:
        """Set out from rest where the robot came to rest meanwhile, not at the speed it had."""
        last = self._ticked_ns
        if last is not None and now_ns - last > STALL_TICKS * self._period_ns:
            self._counts["stalls"] += self._motion.moving
            self._motion.rest()
            if self._holding:
                self._motion.brake()

    def _listen(self, now_ns: int) -> None:
        """Brake on silence, latch on long silence. Before the first command nothing is missed."""
        if self._heard_ns is None or self._stopped:
            return
        silence = now_ns - self._heard_ns
        if silence > self._hold_after_ns and not self._holding:
            self._holding = True
            self._counts["holds"] += 1
            self._motion.brake()
        if silence > self._stop_after_ns:
            self._stopped = True
            self._counts["stops"] += 1

    def _elapsed_s(self, now_ns: int) -> float:
        """Return how far to advance: one period at first, never backwards, never a jump."""
        last, self._ticked_ns = self._ticked_ns, now_ns
        if last is None:
            return self._period_ns / SECOND
        if now_ns < last:
            self._ticked_ns = last
            return 0.0
        return min(now_ns - last, self._period_ns * MAX_TICKS_AT_ONCE) / SECOND

    def halt(self) -> None:
        """Brake along the limits at once and latch ``stopped``: an emergency stop at this robot."""
        if not self._stopped:
            self._motion.brake()
            self._counts["halts"] += 1
        self._holding = self._stopped = True

    def release(self) -> None:
        """Unlatch because a person released the robot.

        Commands are refused until ``start`` has aligned the motion with where the robot is now.
        """
        self._stopped = self._aligned = False
        self._heard_ns = None

    @property
    def target(self) -> Array:
        """Accepted target ``(Dc,)`` float64."""
        return self._motion.target

    @property
    def stopped(self) -> bool:
        """Whether commands are refused until ``release``."""
        return self._stopped

    def stats(self) -> Mapping[str, float]:
        """Return counts: accepted, clipped, holds, stops, halts, stalls; refusals by reason."""
        names = ("accepted", "clipped", "holds", "stops", "halts", "stalls")
        refusals = {
            f"refused_{reason.replace(' ', '_')}": float(self._counts[reason])
            for reason in Reason.__args__  # type: ignore[attr-defined]
        }
        return {
            **{name: float(self._counts[name]) for name in names},
            **refusals,
            "unsolved": float(self._motion.unsolved),
        }


def _check_times(tick_hz: float, hold_after_ms: float, stop_after_ms: float) -> None:
    if not 0 < hold_after_ms <= HOLD_AFTER_MS_MAX:
        raise ConfigError(
            "hold_after_ms is unsafe", got=hold_after_ms, allowed=f"(0, {HOLD_AFTER_MS_MAX:.0f}]"
        )
    if not stop_after_ms > hold_after_ms:
        raise ConfigError(
            "stop_after_ms must lie above hold_after_ms",
            got=stop_after_ms,
            allowed=f"> {hold_after_ms}",
        )
    if not 0 < 1000.0 / tick_hz < hold_after_ms:
        raise ConfigError(
            "a tick must be shorter than hold_after_ms",
            got=f"tick_hz {tick_hz}",
            allowed=f"> {1000.0 / hold_after_ms:.1f}",
        )
