"""The policy worker: the one process of a robot host in which plugin code runs.

It serves all robots of one policy, each with a policy and a task object of its own. Whatever a
plugin does ends here: what it raises, and answers that are not what was declared, go back as a text
that names it; if it hangs, nobody but this process does. Requests of a robot are served in order;
a plan that newer requests have already overtaken is not computed.

A policy whose plans are action chunks answers in its own time, in a thread of its own or at the
head: the question is answered at once, with the judgement of the step that ended, and the plan
follows as a message of its own.
"""

import logging
import os
import select
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from user_system.core.errors import PluginError
from user_system.core.interfaces import Judgement, Policy, Task
from user_system.core.priority import prefer
from user_system.core.specs import PolicySpec
from user_system.core.types import Array, Observation, Purpose, Segment
from user_system.edge import wire
from user_system.edge.mind import Mind, guarded
from user_system.edge.planners import (
    Acts,
    Apart,
    Away,
    Due,
    Failed,
    Inline,
    Planned,
    Planner,
    Ready,
    Said,
    Tell,
    Took,
    Unplanned,
)
from user_system.edge.rings import Duplex

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SeatConfig:
    """One robot in a worker."""

    robot: str
    socket: Path
    """Where the robot's agent finds it; the rings lie beside it."""
    policy_name: str
    """Registry name, for messages to people."""
    task_name: str
    make_policy: Callable[[], Policy]
    make_task: Callable[[], Task]
    ring_bytes: int = 4 << 20
    away: Callable[[Tell], Planner] | None = None
    """Makes the way to a policy that acts elsewhere; None: it is made and acts here."""


class Seat:
    """One robot's policy and task, and the channel to its agent.

    Args:
        config: names and builders.
        boot: id of this life of the worker.
        wake: eventfd that is written when a policy that answers later has answered.
    """

    def __init__(self, config: SeatConfig, boot: str, wake: int):
        self.config, self.boot, self._wake = config, boot, wake
        self.link = Duplex(config.socket, "listen", config.ring_bytes)
        self.served = self.failures = 0
        self._planner: Planner | None = None
        self._task: Task
        self._spec: PolicySpec | None = None
        self._said: deque[Said] = deque()
        self._standing: dict[type, Said] = {}
        """What a policy elsewhere said that holds until it says otherwise."""
        self._episode = ""
        self._before: Observation | None = None
        self._at = -1
        """Step whose question came last; one that was lost must not be judged by its neighbour."""
        self._greeted = 0

    def open(self) -> None:
        """Build the plugins and listen.

        Raises:
            PluginError: one of them cannot be built.
        """
        config = self.config
        if config.away is not None:
            self._planner = config.away(self._tell)
        else:
            mind = Mind(config.policy_name, config.make_policy)
            self._spec = mind.spec
            # Plans of one action are wanted now or not at all.
            make = Apart if mind.spec.horizon > 1 else Inline
            self._planner = make(mind, self._tell)
        self._task = guarded(config.task_name, "be built", config.make_task)
        self.link.open()

    def close(self) -> None:
        """Hang up."""
        if self._planner is not None:
            self._planner.close()
        self.link.close()

    def _tell(self, said: Said) -> None:
        """Take what a planner says; thread-safe."""
        self._said.append(said)
        os.eventfd_write(self._wake, 1)

    @property
    def planner(self) -> Planner:
        """The robot's policy.

        Raises:
            PluginError: the seat is not open.
        """
        if self._planner is None:
            raise PluginError(f"policy {self.config.policy_name!r} is not built yet")
        return self._planner

    def serve(self) -> None:
        """Serve everything that waits."""
        while (message := self.link.receive()) is not None:
            self._serve(*message)
        while self._said:
            self._pass_on(self._said.popleft())
        if self._spec is not None and self._greeted != self.link.connects:
            greeting = wire.Hello(self.boot, os.getpid(), wire.spec_to_json(self._spec))
            if self.link.send(greeting.message()):
                self._greeted = self.link.connects
                for said in self._standing.values():
                    self._pass_on(said)

    def _serve(self, meta: dict[str, Any], arrays: Mapping[str, Array]) -> None:
        if meta.get("boot") != self.boot:
            return  # meant for an earlier life; its episode is not known here
        try:
            match meta["k"]:
                case "begin":
                    self._begin(meta)
                case "step":
                    self._step(meta, arrays)
                case "handback":
                    self.planner.replan()
                case "load":
                    self.planner.load(int(meta["version"]), str(meta["path"]))
            self.served += 1
        except PluginError as error:
            self._fail(str(error), self._episode, step=meta.get("step"))

    def _fail(self, error: str, episode: str, **where: Any) -> None:
        self.failures += 1
        self.link.send({"k": "failed", "error": error, "episode": episode, **where})

    def _begin(self, meta: Mapping[str, Any]) -> None:
        self._episode, seed = str(meta["episode"]), int(meta["seed"])
        self._before, self._at = None, -1
        purpose = Purpose(meta["purpose"])
        self.planner.begin(self._episode, seed, int(meta["version"]))
        plan = guarded(
            self.config.task_name,
            "reset",
            lambda: asdict(self._task.reset(seed=seed, purpose=purpose)),
        )
        self.link.send({"k": "begun", "episode": self._episode, **plan})

    def _step(self, meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        if meta["episode"] != self._episode:
            return
        step, planner = int(meta["step"]), self.planner
        observation = wire.unprefixed(arrays, wire.OBSERVATION)
        answer: dict[str, Any] = {"k": "answer", "episode": self._episode, "step": step}
        blocks: dict[str, Array] = {}
        follows, self._at = step == self._at + 1, step
        if "executed" in arrays and self._before is not None and follows:
            answer["judgement"] = asdict(self._judge(meta, arrays["executed"], observation))
        self._before = observation
        planner.saw(step, observation)
        if meta["plan"] and (planner.later or not self.link.pending):
            answer["later"] = planner.later
            if (planned := planner.ask(step, meta["mode"])) is not None:
                answer["plan"], blocks = _plan(planned)
        self.link.send(answer, blocks)

    def _judge(self, meta: Mapping[str, Any], executed: Array, after: Observation) -> Judgement:
        before = self._before
        if before is None:
            raise ValueError("nothing to judge")
        clock = int(meta["clock"])
        name, task = self.config.task_name, self._task
        self.planner.executed(executed, Segment(meta["segment"]))
        judgement = guarded(name, "judge", lambda: task.judge(before, executed, after, clock))
        if not isinstance(judgement, Judgement) or np.isinf(judgement.reward):
            allowed = "a Judgement with a finite or NaN reward"
            raise PluginError(f"plugin {name!r} judged nonsense", got=judgement, allowed=allowed)
        success = None if judgement.success is None else bool(judgement.success)
        return Judgement(
            float(judgement.reward), bool(judgement.terminated), bool(judgement.timeout), success
        )

    def _pass_on(self, said: Said) -> None:
        """Tell the agent what a planner said in its own time."""
        match said:
            case Planned(episode, step):
                facts, blocks = _plan(said)
                about = {"k": "plan", "episode": episode, "step": step, "plan": facts}
                self.link.send(about, blocks)
            case Unplanned(episode, step):
                self.link.send({"k": "unplanned", "episode": episode, "step": step})
            case Failed(episode, error):
                self._fail(error, episode)
            case Took(version, error):
                self.link.send({"k": "loaded", "version": version, "error": error})
            case Acts(version):
                self._standing[Acts] = said
                self.link.send({"k": "acts", "version": version})
            case Away(why):
                self._standing[Away] = said
                self.link.send({"k": "away", "why": why})
            case Ready(spec):
                self._meet(spec)
            case Due(run):
                run()

    def _meet(self, spec: PolicySpec) -> None:
        """Take note of what a policy elsewhere sees and answers.

        Raises:
            PluginError: it was another before; a new life of this worker begins with the new one.
        """
        if self._spec is not None and spec != self._spec:
            name = self.config.policy_name
            raise PluginError(f"policy {name!r} at the head has another specification now")
        self._spec = spec


def _plan(planned: Planned) -> tuple[dict[str, Any], dict[str, Array]]:
    plan = planned.plan
    facts = {
        "version": plan.version,
        "confidence": plan.confidence,
        "took_ms": planned.took_ms,
        "compute_ms": planned.compute_ms,
    }
    return facts, {"actions": plan.actions, **wire.prefixed(plan.extras, wire.EXTRA)}


class WorkerServer:
    """Serves seats until told to stop or left alone; ``run`` is the process.

    Args:
        seats: one per robot.
        orphan_after_s: wall seconds without any agent after which it exits.
        priority: SCHED_FIFO where the machine permits it, below loops and drivers; 0: never ask.
    """

    def __init__(self, seats: list[SeatConfig], orphan_after_s: float = 20.0, priority: int = 5):
        self.boot = uuid.uuid4().hex[:12]
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.seats = [Seat(seat, self.boot, self._wake) for seat in seats]
        self._orphan_after_s, self._priority = orphan_after_s, priority
        self._running = True

    def run(self) -> None:
        """Build all plugins, then serve.

        Raises:
            PluginError: one cannot be built; the process ends and its agent says so.
        """
        poller = select.epoll()
        poller.register(self._wake, select.EPOLLIN)
        try:
            for seat in self.seats:
                seat.open()
                poller.register(seat.link.fileno(), select.EPOLLIN)
            # Robots wait for plans; building plugins, which may take long, nobody waits for.
            prefer(self._priority)
            heard = time.monotonic()
            while self._running:
                poller.poll(0.5)
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                for seat in self.seats:
                    seat.serve()
                if any(seat.link.connected for seat in self.seats):
                    heard = time.monotonic()
                elif time.monotonic() - heard > self._orphan_after_s:
                    log.warning("no agent for %.0f s", self._orphan_after_s)
                    break
        finally:
            poller.close()
            for seat in self.seats:
                seat.close()

    def stop(self) -> None:
        """Let ``run`` return soon; may be called from a signal handler."""
        self._running = False

    def stats(self) -> dict[str, float]:
        """Return counters over all seats."""
        return {
            "served": float(sum(seat.served for seat in self.seats)),
            "failures": float(sum(seat.failures for seat in self.seats)),
        }
