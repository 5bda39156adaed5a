"""One assigned episode on its way from the assignment to its end."""

from dataclasses import dataclass
from typing import Literal

from user_system.core.errors import TransitionError
from user_system.core.interfaces import Judgement, ResetPlan
from user_system.core.modes import Mode
from user_system.core.types import End, Purpose, Segment
from user_system.edge.effects import Finish, Scene
from user_system.edge.messages import Assignment

Stage = Literal["idle", "resetting", "laying", "ready", "running"]
"""Not begun; arm on its way; scene being laid out; at rest where it begins; steps are recorded."""

TIMED = frozenset({Segment.AUTO, Segment.DEMO})
"""Segments whose steps count against a time limit: a person who helps is not hurried."""

SCENE_ASKED = 1 << 62
"""A number that no scene has: the request has not got its own yet."""


@dataclass
class Episode:
    """What the session knows of the episode at hand."""

    assignment: Assignment
    stage: Stage = "idle"
    plan: ResetPlan | None = None
    """How to bring about its start, once the task said so."""
    scene: int = 0
    """Number of the scene that is waited for."""
    clock: int = 0
    """Steps in ``TIMED`` segments."""
    takeovers: int = 0
    orphan: bool = False
    """The worker lost it: nobody can act in it or judge it any more."""

    @property
    def running(self) -> bool:
        """Whether steps are recorded."""
        return self.stage == "running"

    def waits_for(self, unready: str) -> str:
        """Return what it waits for where it begins; empty: nothing, the policy may act."""
        demo = self.assignment.purpose is Purpose.COLLECT
        return "Waits for a demonstration." if demo else unready

    def start(self) -> None:
        """Begin the reset motion, from the first waypoint."""
        self.stage, self.plan = "resetting", None

    def reached(self) -> Scene | None:
        """The robot went through the reset's waypoints; return the scene to lay out, if any."""
        if self.plan is None or self.plan.scene is None:
            self.stage = "ready"
            return None
        self.stage, self.scene = "laying", SCENE_ASKED
        return Scene(self.assignment.seed, self.plan.scene)

    def interrupt(self) -> None:
        """The reset motion was broken off: it will begin again."""
        if self.stage == "resetting":
            self.stage, self.plan = "idle", None

    def ended_by(self, judgement: Judgement, segment: Segment) -> tuple[End, bool | None] | None:
        """Return (end, success) if ``judgement`` ends the episode."""
        limit = self.assignment.max_steps
        if judgement.terminated:
            return End.TERMINATED, judgement.success
        if segment in TIMED and judgement.timeout:
            return End.TIMEOUT, judgement.success
        if segment in TIMED and 0 < limit <= self.clock:
            return End.TIMEOUT, bool(judgement.success)
        return None

    def finish(
        self,
        end: End,
        success: bool | None = None,
        reward: float | None = None,
        index: int | None = None,
    ) -> Finish:
        """Return what is to be done at its end; one that never began is an aborted one."""
        if not self.running:
            return Finish(self.assignment, End.ABORT, None, None, None, 0, recorded=False)
        return Finish(self.assignment, end, success, reward, index, self.takeovers)


def demonstrate(episode: Episode | None, mode: Mode) -> None:
    """Begin a demonstration of an episode that is ready for one, or go on with it.

    Raises:
        TransitionError: none is due.
    """
    ready = episode is not None and episode.stage in {"ready", "running"}
    if episode is None or not ready or episode.assignment.purpose is not Purpose.COLLECT:
        raise TransitionError(
            "no demonstration is due",
            got=f"{mode}, {episode.stage if episode else 'no episode'}",
            todo="Wait until the robot says that it waits for one.",
        )
    episode.stage = "running"
