"""Who answers a seat's questions for plans: at once, in its own time, or from the head.

A plan of one action is for the step that asks, so it is answered at once (``Inline``). A plan of
several may come while the one before it is executed: its policy thinks in a thread of its own
(``Apart``), or at the head (``remote.Remote``), and delays neither judgements nor other robots.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Literal, Protocol

from user_system.core.clock import MS
from user_system.core.errors import PluginError
from user_system.core.interfaces import ActMode
from user_system.core.specs import PolicySpec
from user_system.core.types import Array, Observation, Plan, Segment
from user_system.edge.mind import Mind
from user_system.edge.reading import Read, read_aside

log = logging.getLogger(__name__)

Where = Literal["", "here", "head"]


@dataclass(frozen=True, slots=True)
class Ready:
    """Questions can be asked now."""

    spec: PolicySpec


@dataclass(frozen=True, slots=True)
class Planned:
    """The plan for step ``step``."""

    episode: str
    step: int
    plan: Plan
    took_ms: float
    """Wall time from question to answer."""
    compute_ms: float
    """The part of it that passed where the policy is."""


@dataclass(frozen=True, slots=True)
class Unplanned:
    """There will be no plan for step ``step``: a later question overtook it, or it was lost."""

    episode: str
    step: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The policy raised, hung or answered nonsense; the text names it."""

    episode: str
    error: str


@dataclass(frozen=True, slots=True)
class Took:
    """Weights were taken over, or refused with ``error``."""

    version: int
    error: str


@dataclass(frozen=True, slots=True)
class Acts:
    """Weights that act from the next plan on, where others choose them."""

    version: int


@dataclass(frozen=True, slots=True)
class Away:
    """The policy cannot be reached and why; empty: it can be again."""

    why: str


@dataclass(frozen=True, slots=True)
class Due:
    """Something that the seat is to do in its own thread, between two plans."""

    run: Callable[[], None]


Said = Ready | Planned | Unplanned | Failed | Took | Acts | Away | Due
Tell = Callable[[Said], None]


class Planner(Protocol):
    """One robot's policy as its seat sees it. Calls never block but on the plugin's own code."""

    later: Where
    """Where plans come from that are told when they are there; "": ``ask`` returns them."""

    def begin(self, episode: str, seed: int, version: int) -> None:
        """An episode begins; ``version``: the only weights to act with, 0 for the newest."""

    def replan(self) -> None:
        """A person handed back: forget plans and memory."""

    def saw(self, step: int, observation: Observation) -> None:
        """Step ``step`` begins with ``observation``."""

    def executed(self, action: Array, segment: Segment) -> None:
        """The last step executed ``action`` ``(Da,)``."""

    def ask(self, step: int, mode: ActMode) -> Planned | None:
        """Ask for a plan of step ``step``, whose observation was seen last."""

    def load(self, version: int, path: str) -> None:
        """Take over weights before the next plan."""

    def close(self) -> None:
        """End threads and connections."""


class Inline:
    """Answers at once, in the seat's own thread. Its calls raise what the plugin does wrong."""

    later: Where = ""

    def __init__(self, mind: Mind, tell: Tell):
        self._mind, self._tell = mind, tell
        self._episode = ""

    def begin(self, episode: str, seed: int, version: int) -> None:
        """Reset the policy."""
        self._episode = episode
        self._mind.begin(seed)

    def replan(self) -> None:
        """Reset the policy in the midst of an episode."""
        self._mind.replan()

    def saw(self, step: int, observation: Observation) -> None:
        """Remember the observation."""
        self._mind.saw(observation)

    def executed(self, action: Array, segment: Segment) -> None:
        """Tell the policy."""
        self._mind.executed(action, segment)

    def ask(self, step: int, mode: ActMode) -> Planned | None:
        """Return the plan."""
        began = time.monotonic_ns()
        plan = self._mind.act(mode)
        took_ms = (time.monotonic_ns() - began) / MS
        return Planned(self._episode, step, plan, took_ms, took_ms)

    def load(self, version: int, path: str) -> None:
        """Load weights: they are read aside, and taken over between two plans."""

        def take(found: Read) -> None:
            self._tell(Took(version, self._mind.take(found)))

        read_aside(version, path, lambda found: self._tell(Due(lambda: take(found))))

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True, slots=True)
class _Job:
    run: Callable[[], None]
    ask: tuple[str, int] | None = None
    """(episode, step) of a question for a plan."""
    number: int = 0
    """Of the word that makes earlier questions pointless."""


class Apart:
    """Thinks in a thread of its own, everything in the order in which it was said.

    A question that waited until a later one, another episode or a hand-back came is not answered
    with a plan any more.

    Args:
        mind: the policy; from now on only that thread touches it.
        tell: called from that thread.
    """

    later: Where = "here"

    def __init__(self, mind: Mind, tell: Tell):
        self._mind, self._tell = mind, tell
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._episode, self._newest = "", 0
        self._since_s: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"mind {mind.name}", daemon=True)
        self._thread.start()

    @property
    def busy_s(self) -> float:
        """Wall seconds since the plugin was called and has not returned."""
        since = self._since_s
        return 0.0 if since is None else time.monotonic() - since

    @property
    def waiting(self) -> int:
        """Words that wait for the plugin."""
        return self._jobs.qsize()

    def begin(self, episode: str, seed: int, version: int) -> None:
        """Reset the policy."""
        self._episode = episode
        self._overtake(lambda: self._mind.begin(seed))

    def replan(self) -> None:
        """Reset the policy in the midst of an episode."""
        self._overtake(self._mind.replan)

    def _overtake(self, run: Callable[[], None]) -> None:
        self._newest += 1
        self._jobs.put(_Job(run))

    def saw(self, step: int, observation: Observation) -> None:
        """Remember the observation."""
        self._jobs.put(_Job(lambda: self._mind.saw(observation)))

    def executed(self, action: Array, segment: Segment) -> None:
        """Tell the policy."""
        self._jobs.put(_Job(lambda: self._mind.executed(action, segment)))

    def ask(self, step: int, mode: ActMode) -> Planned | None:
        """Ask; the plan is told when it is there."""
        episode, asked = self._episode, time.monotonic_ns()

        def think() -> None:
            plan = self._mind.act(mode)
            took_ms = (time.monotonic_ns() - asked) / MS
            self._tell(Planned(episode, step, plan, took_ms, took_ms))

        self._newest += 1
        self._jobs.put(_Job(think, (episode, step), self._newest))
        return None

    def load(self, version: int, path: str) -> None:
        """Load weights: they are read aside, and taken over between two plans."""

        def take(found: Read) -> None:
            self._tell(Took(version, self._mind.take(found)))

        read_aside(version, path, lambda found: self._jobs.put(_Job(lambda: take(found))))

    def close(self) -> None:
        """Have the thread end after what waits; a plugin that hangs is left behind."""
        self._jobs.put(None)
        self._thread.join(1.0)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.ask and job.number != self._newest:
                self._tell(Unplanned(*job.ask))
                continue
            self._since_s = time.monotonic()
            try:
                job.run()
            except PluginError as error:
                self._tell(Failed(self._episode, str(error)))
            except Exception as error:  # top of a thread: whoever waits for it is told
                log.exception("policy %s", self._mind.name)
                self._tell(Failed(self._episode, f"{type(error).__name__}: {error}"))
            finally:
                self._since_s = None
