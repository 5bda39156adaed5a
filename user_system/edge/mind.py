"""A policy plugin, what it saw last, and the guard around it.

Whatever the plugin raises, and every answer that is not what it declared, comes out as a
``PluginError`` that names it. One thread's business.
"""

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from user_system.core.errors import PluginError
from user_system.core.interfaces import Policy
from user_system.core.specs import PolicySpec
from user_system.core.types import Array, Observation, Plan, Segment
from user_system.edge.reading import Read, read

log = logging.getLogger(__name__)

T = TypeVar("T")


def guarded(plugin: str, doing: str, call: Callable[[], T]) -> T:
    """Run plugin code.

    Raises:
        PluginError: it raised; the text names the plugin and says what it was about to do.
    """
    try:
        return call()
    except Exception as error:
        log.exception("plugin %s", plugin)
        text = f"{type(error).__name__}: {error}"
        raise PluginError(f"plugin {plugin!r} could not {doing}", got=text) from error


class Mind:
    """One robot's policy.

    Args:
        name: of the plugin, for messages to people.
        make: builds it.

    Raises:
        PluginError: it cannot be built, or does not tell its spec.
    """

    def __init__(self, name: str, make: Callable[[], Policy]):
        self.name = name
        self._policy = guarded(name, "be built", make)
        self.spec: PolicySpec = guarded(name, "tell its spec", lambda: self._policy.spec)
        self._seed = 0
        self._past: deque[Observation] = deque(maxlen=self.spec.history)

    def begin(self, seed: int) -> None:
        """An episode begins: forget the past."""
        self._seed = seed
        self._past.clear()
        self._reset("episode")

    def replan(self) -> None:
        """A person handed back: forget plans and memory, not what was seen."""
        self._reset("handback")

    def _reset(self, reason: Any) -> None:
        guarded(self.name, "reset", lambda: self._policy.reset(seed=self._seed, reason=reason))

    def saw(self, observation: Observation) -> None:
        """Remember what a step began with; of an episode's first, as often as history wants."""
        self._past.append(observation)
        while len(self._past) < self.spec.history:
            self._past.appendleft(observation)

    def executed(self, action: Array, segment: Segment) -> None:
        """Let the policy learn what was executed ``(Da,)``."""
        guarded(self.name, "observe", lambda: self._policy.observe(action, segment))

    def act(self, mode: Any) -> Plan:
        """Ask for a plan of the present observation, or of the last ``To``, oldest first."""
        spec = self.spec
        wanted = {key: self._past[-1][key] for key in spec.observation}
        if spec.history > 1:
            wanted = {key: np.stack([past[key] for past in self._past]) for key in wanted}
        plan = guarded(self.name, "act", lambda: self._policy.act(wanted, mode=mode))
        return checked_plan(plan, spec, self.name)

    def load(self, version: int, path: str) -> str:
        """Load weights from a file; return why they are refused, and then nothing changed."""
        return self.take(read(version, path))

    def take(self, found: Read) -> str:
        """Take over weights that were read; return why not, and then nothing changed."""
        if (weights := found.weights) is None:
            return found.error
        doing = f"load version {found.version}"
        try:
            guarded(self.name, doing, lambda: self._policy.load(weights))
        except PluginError as refused:
            return str(refused)
        return ""


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
