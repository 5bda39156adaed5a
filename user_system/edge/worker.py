"""The policy worker: the one process of a robot host in which plugin code runs.

It serves all robots of one policy, each with a policy and a task object of its own. Whatever a
plugin does ends here: what it raises, and answers that are not what was declared, go back as a text
that names it; if it hangs, nobody but this process does. Requests of a robot are served in order;
a plan that newer requests have already overtaken is not computed.
"""

import logging
import os
import select
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from user_system.codec import weights as weights_codec
from user_system.core.errors import PluginError, StoreError
from user_system.core.interfaces import Judgement, Policy, Task
from user_system.core.priority import prefer
from user_system.core.specs import PolicySpec
from user_system.core.types import Array, Observation, Plan, Purpose, Segment, Weights
from user_system.edge import wire
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


class Seat:
    """One robot's policy and task, and the channel to its agent.

    Args:
        config: names and builders.
        boot: id of this life of the worker.
    """

    def __init__(self, config: SeatConfig, boot: str):
        self.config, self.boot = config, boot
        self.link = Duplex(config.socket, "listen", config.ring_bytes)
        self.served = self.failures = 0
        self._policy: Policy
        self._task: Task
        self._spec: PolicySpec
        self._episode = ""
        self._seed = 0
        self._before: Observation | None = None
        self._at = -1
        """Step whose question came last; one that was lost must not be judged by its neighbour."""
        self._past: deque[Observation] = deque(maxlen=1)
        self._greeted = 0

    def open(self) -> None:
        """Build the plugins and listen.

        Raises:
            PluginError: one of them cannot be built.
        """
        config = self.config
        self._policy = self._guard(config.policy_name, "be built", config.make_policy)
        self._task = self._guard(config.task_name, "be built", config.make_task)
        self._spec = self._guard(config.policy_name, "tell its spec", lambda: self._policy.spec)
        self._past = deque(maxlen=self._spec.history)
        self.link.open()

    def _guard(self, plugin: str, doing: str, call: Callable[[], Any]) -> Any:
        """Run plugin code; whatever it raises comes out as an error that names it."""
        try:
            return call()
        except Exception as error:
            log.exception("plugin %s", plugin)
            text = f"{type(error).__name__}: {error}"
            raise PluginError(f"plugin {plugin!r} could not {doing}", got=text) from error

    def serve(self) -> None:
        """Serve everything that waits."""
        while (message := self.link.receive()) is not None:
            self._serve(*message)
        if self._greeted != self.link.connects:
            greeting = wire.Hello(self.boot, os.getpid(), wire.spec_to_json(self._spec))
            if self.link.send(greeting.message()):
                self._greeted = self.link.connects

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
                    self._reset("handback")
                case "load":
                    self._load(meta)
            self.served += 1
        except PluginError as error:
            self.failures += 1
            where = {"episode": self._episode, "step": meta.get("step")}
            self.link.send({"k": "failed", "error": str(error), **where})

    def _reset(self, reason: Any) -> None:
        name = self.config.policy_name
        self._guard(name, "reset", lambda: self._policy.reset(seed=self._seed, reason=reason))

    def _begin(self, meta: Mapping[str, Any]) -> None:
        self._episode, self._seed = str(meta["episode"]), int(meta["seed"])
        self._before, self._at = None, -1
        self._past.clear()
        purpose = Purpose(meta["purpose"])
        self._reset("episode")
        plan = self._guard(
            self.config.task_name,
            "reset",
            lambda: asdict(self._task.reset(seed=self._seed, purpose=purpose)),
        )
        self.link.send({"k": "begun", "episode": self._episode, **plan})

    def _step(self, meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        if meta["episode"] != self._episode:
            return
        observation = wire.unprefixed(arrays, wire.OBSERVATION)
        answer: dict[str, Any] = {"k": "answer", "episode": self._episode, "step": meta["step"]}
        blocks: dict[str, Array] = {}
        follows, self._at = int(meta["step"]) == self._at + 1, int(meta["step"])
        if "executed" in arrays and self._before is not None and follows:
            answer["judgement"] = asdict(self._judge(meta, arrays["executed"], observation))
        self._before = observation
        self._remember(observation)
        if meta["plan"] and not self.link.pending:
            plan = self._act(meta["mode"])
            answer["plan"] = {"version": plan.version, "confidence": plan.confidence}
            blocks = {"actions": plan.actions, **wire.prefixed(plan.extras, wire.EXTRA)}
        self.link.send(answer, blocks)

    def _judge(self, meta: Mapping[str, Any], executed: Array, after: Observation) -> Judgement:
        before = self._before
        if before is None:
            raise ValueError("nothing to judge")
        segment, clock = Segment(meta["segment"]), int(meta["clock"])
        name, task = self.config.task_name, self._task
        self._guard(
            self.config.policy_name, "observe", lambda: self._policy.observe(executed, segment)
        )
        judgement = self._guard(name, "judge", lambda: task.judge(before, executed, after, clock))
        if not isinstance(judgement, Judgement) or np.isinf(judgement.reward):
            allowed = "a Judgement with a finite or NaN reward"
            raise PluginError(f"plugin {name!r} judged nonsense", got=judgement, allowed=allowed)
        success = None if judgement.success is None else bool(judgement.success)
        return Judgement(
            float(judgement.reward), bool(judgement.terminated), bool(judgement.timeout), success
        )

    def _remember(self, observation: Observation) -> None:
        self._past.append(observation)
        while len(self._past) < self._spec.history:
            self._past.appendleft(observation)

    def _act(self, mode: Any) -> Plan:
        """Ask for a plan of the present observation, or of the last ``To``, oldest first."""
        spec, name = self._spec, self.config.policy_name
        wanted = {key: self._past[-1][key] for key in spec.observation}
        if spec.history > 1:
            wanted = {key: np.stack([past[key] for past in self._past]) for key in wanted}
        plan = self._guard(name, "act", lambda: self._policy.act(wanted, mode=mode))
        return checked_plan(plan, spec, name)

    def _load(self, meta: Mapping[str, Any]) -> None:
        """Load weights from a file; refused ones change nothing."""
        name, version, error = self.config.policy_name, int(meta["version"]), ""
        try:
            weights = Weights(**weights_codec.load(Path(meta["path"])))
            self._guard(name, f"load version {version}", lambda: self._policy.load(weights))
        except (PluginError, StoreError, TypeError) as refused:
            error = str(refused)
        self.link.send({"k": "loaded", "version": version, "error": error})


def checked_plan(plan: object, spec: PolicySpec, name: str) -> Plan:
    """Return ``plan`` with the dtypes and shapes that ``spec`` declares.

    Raises:
        PluginError: it is not such a plan, or not finite.
    """
    shape = (spec.horizon, len(spec.action))
    if not isinstance(plan, Plan) or np.shape(plan.actions) != shape:
        got = np.shape(plan.actions) if isinstance(plan, Plan) else type(plan).__name__
        raise PluginError(
            f"plugin {name!r} answered no plan", got=got, allowed=f"actions of shape {shape}"
        )
    actions = np.asarray(plan.actions, np.float32)
    if not np.isfinite(actions).all():
        raise PluginError(f"plugin {name!r} acted nonsense", got=actions, allowed="finite numbers")
    extras = {}
    for key, field in spec.extras.items():
        try:
            value = np.asarray(plan.extras[key], field.dtype)
            extras[key] = np.broadcast_to(value, (spec.horizon, *field.shape))
        except (KeyError, ValueError) as error:
            raise PluginError(
                f"plugin {name!r} gave another extra {key!r} than declared", got=error
            ) from error
    return Plan(actions, int(plan.version), None, extras, plan.confidence)


class WorkerServer:
    """Serves seats until told to stop or left alone; ``run`` is the process.

    Args:
        seats: one per robot.
        orphan_after_s: wall seconds without any agent after which it exits.
        priority: SCHED_FIFO where the machine permits it, below loops and drivers; 0: never ask.
    """

    def __init__(self, seats: list[SeatConfig], orphan_after_s: float = 20.0, priority: int = 5):
        self.boot = uuid.uuid4().hex[:12]
        self.seats = [Seat(seat, self.boot) for seat in seats]
        self._orphan_after_s, self._priority = orphan_after_s, priority
        self._running = True

    def run(self) -> None:
        """Build all plugins, then serve.

        Raises:
            PluginError: one cannot be built; the process ends and its agent says so.
        """
        poller = select.epoll()
        try:
            for seat in self.seats:
                seat.open()
                poller.register(seat.link.fileno(), select.EPOLLIN)
            # Robots wait for plans; building plugins, which may take long, nobody waits for.
            prefer(self._priority)
            heard = time.monotonic()
            while self._running:
                poller.poll(0.5)
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
                seat.link.close()

    def stop(self) -> None:
        """Let ``run`` return soon; may be called from a signal handler."""
        self._running = False

    def stats(self) -> dict[str, float]:
        """Return counters over all seats."""
        return {
            "served": float(sum(seat.served for seat in self.seats)),
            "failures": float(sum(seat.failures for seat in self.seats)),
        }
