"""The loop that runs any learner: update, publish, checkpoint, report. It knows no Ray, no network.

    while not stopped:
        learner.update()          as often as there is fresh experience for it
        publish(weights)          when the learner asks, at the latest every publish_s
        checkpoints.save(state)   every checkpoint_s
        report(figures)           every report_s

Publishing and reporting happen aside, one of each at a time: learning never waits for the network.

A checkpoint holds the learner and its window on the data (random state, cursors), so that a learner
killed at any moment goes on as if only the time since its last checkpoint had not happened.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from learners.checkpoints import Checkpoints
from user_system.core.clock import SECOND, Clock, WallClock
from user_system.core.errors import ConfigError, LinkError, PluginError
from user_system.core.interfaces import Data, Learner, NotReady, Report
from user_system.core.types import Array

log = logging.getLogger(__name__)

Modules = Mapping[str, Mapping[str, Array]]
Figures = Mapping[str, float]


class Publish(Protocol):
    """Sends weights to the weight store."""

    def __call__(self, modules: Modules, statistics: Mapping[str, Array], notes: Figures) -> int:
        """Return the version that the store assigned.

        Raises:
            LinkError: the store cannot be reached now; newer weights will be offered later.
        """


@dataclass(frozen=True)
class RunnerConfig:
    """Periods, in wall seconds."""

    publish_s: float = 1.0
    """New weights are never kept back longer."""
    publish_min_s: float = 0.2
    """They are never sent more often, even if the learner asks."""
    checkpoint_s: float = 20.0
    report_s: float = 0.2
    """Robots that wait for learning hear as often how far it is."""
    rate_s: float = 2.0
    """Updates per second are those of the last so many seconds."""
    poll_s: float = 0.01
    """How often to look for fresh steps while the learner waits for some."""
    slow_update_s: float = 2.0
    """An update that takes longer is said aloud: it delays everything else of this loop."""

    def __post_init__(self) -> None:
        if not 0 <= self.publish_min_s <= self.publish_s <= 2.0:
            raise ConfigError(
                "weights must be published at least every two seconds",
                got=f"publish_min_s {self.publish_min_s}, publish_s {self.publish_s}",
                allowed="0 <= publish_min_s <= publish_s <= 2",
            )


class Runner:
    """Runs one learner until told to stop.

    Args:
        learner: what learns.
        data: the same window on the replay buffer that the learner was built with.
        publish: sends weights; may fail with ``LinkError``, and is then asked again.
        checkpoints: where the state is kept.
        report: takes the figures.
        name: of the plugin, for errors.
        active: False while there is nothing to learn for (the policy is frozen); then nothing is
            updated, while what is unpublished is still published.
        aside: where ``publish`` and ``report`` run; none given: two threads.
    """

    def __init__(
        self,
        learner: Learner,
        data: Data,
        *,
        publish: Publish,
        checkpoints: Checkpoints,
        report: Callable[[Figures], None],
        name: str = "learner",
        active: Callable[[], bool] = lambda: True,
        aside: Executor | None = None,
        config: RunnerConfig | None = None,
        clock: Clock | None = None,
    ):
        self._learner, self._data, self._name = learner, data, name
        self._publish, self._checkpoints, self._report = publish, checkpoints, report
        self._active = active
        self._aside = aside or ThreadPoolExecutor(2, thread_name_prefix="aside")
        self._sending: Future[int] | None = None
        self._telling: Future[None] | None = None
        self._config = config or RunnerConfig()
        self._clock = clock or WallClock()
        self._metrics: dict[str, float] = {}
        self.updates = 0
        """Gradient steps of the learner's whole life, restarts included."""
        self.version = 0
        """Version of the weights last published; 0 before any."""
        self._dirty = self._asked = False
        self._wait_until = 0
        """Online steps to wait for before the next update."""
        self._wants = 0
        """Fresh steps to wait for; the steps there are could not be counted yet."""
        self._published = self._saved = self._reported = self._clock.now_ns()
        self._marks = deque([(self._reported, 0)])
        self._failures = 0

    def run(self, stop: Callable[[], bool]) -> None:
        """Loop until ``stop()``; then publish and save what is new.

        Raises:
            PluginError: the learner failed; names it. Nothing of that state was published.
            StoreError: a checkpoint cannot be written.
        """
        while not stop():
            worked = self._active() and self._update()
            self._publish_when_due()
            self._save_when_due()
            self._report_when_due()
            if not worked:
                poll_ns = int(self._config.poll_s * SECOND)
                self._clock.sleep_until(self._clock.now_ns() + poll_ns)
        self._hear(wait=True)
        self._offer()
        self._hear(wait=True)
        self.save()

    def resume(self) -> bool:
        """Go on from the newest whole checkpoint; False: there is none.

        Raises:
            DamageError: there are some, and none can be read.
            PluginError: the learner cannot go on from it.
        """
        tree = self._checkpoints.newest()
        if tree is None:
            return False
        self._guarded("load_state_dict", lambda: self._learner.load_state_dict(tree["learner"]))
        self._data.load_state_dict(tree["data"])
        self.updates, self.version = int(tree["updates"]), int(tree["version"])
        self._marks = deque([(self._clock.now_ns(), self.updates)])
        self._dirty = self.updates > 0
        return True

    def save(self) -> None:
        """Write a checkpoint now; there is none to write before anything could be drawn."""
        self._saved = self._clock.now_ns()
        try:
            place = self._data.state_dict()
        except NotReady as why:
            log.warning("no checkpoint: %s", why)
            return
        tree = {
            "learner": self._guarded("state_dict", self._learner.state_dict),
            "data": place,
            "updates": self.updates,
            "version": self.version,
        }
        self._checkpoints.save(self.updates, tree)
        self._saved = self._clock.now_ns()

    def stats(self) -> dict[str, float]:
        """Return the learner's metrics and the loop's figures."""
        began, before = self._marks[0]
        elapsed = max(self._since(began), 1e-9)
        return {
            **self._metrics,
            "updates": float(self.updates),
            "updates_per_s": (self.updates - before) / elapsed,
            "version": float(self.version),
            "publish_failures": float(self._failures),
            "publish_age_s": self._since(self._published) if self._dirty else 0.0,
        }

    # --- the four parts ----------------------------------------------------------------------

    def _update(self) -> bool:
        """Do one unit of work; False: there is not enough data for one yet."""
        try:
            if self._lacks_steps():
                return False
            start = time.perf_counter()
            report = self._guarded("update", self._learner.update)
        except NotReady:
            return False
        took = time.perf_counter() - start
        if took > self._config.slow_update_s:
            log.warning("an update of %s took %.1f s", self._name, took)
        self._note(report, took)
        return True

    def _note(self, report: Report, took: float) -> None:
        broken = [k for k, v in report.metrics.items() if not math.isfinite(v)]
        if broken:
            raise PluginError(f"{self._name} reports numbers that are not finite", got=broken)
        self._metrics = {
            **report.metrics,
            "update_ms": took * 1e3 / max(report.updates, 1),
            "behind_steps": float(report.behind_steps),
        }
        self.updates += report.updates
        self._dirty = True
        self._asked = self._asked or report.publish
        self._wait_until, self._wants = 0, max(0, report.wants_steps)
        with suppress(NotReady):  # then they are counted before the next update
            self._set_goal()

    def _lacks_steps(self) -> bool:
        """Return whether the learner waits for fresh steps that are not there yet.

        Raises:
            NotReady: nobody can say.
        """
        self._set_goal()
        return self._wait_until > 0 and self._data.count("online") < self._wait_until

    def _set_goal(self) -> None:
        """Turn the fresh steps that the learner wants into a number of online steps."""
        if self._wants:
            self._wait_until, self._wants = self._data.count("online") + self._wants, 0

    def _publish_when_due(self) -> None:
        self._hear()
        if self._sending is not None:
            return
        period = self._config.publish_min_s if self._asked else self._config.publish_s
        if self._dirty and self._since(self._published) >= period:
            self._offer()

    def _offer(self) -> None:
        """Begin to publish what is new."""
        if not self._dirty:
            return
        self._published = self._clock.now_ns()
        modules, statistics = self._guarded("weights", self._learner.weights)
        # Learning goes on meanwhile and may write into the same memory.
        modules = {name: _copied(tensors) for name, tensors in modules.items()}
        statistics = _copied(statistics)
        self._check({**modules, "statistics": statistics})
        self._dirty = self._asked = False
        notes = {"updates": float(self.updates)}
        self._sending = self._aside.submit(self._publish, modules, statistics, notes)
        self._hear()

    def _hear(self, *, wait: bool = False) -> None:
        """Note what became of the weights sent; if the store was away, they are due again."""
        sending = self._sending
        if sending is None or not (wait or sending.done()):
            return
        self._sending = None
        try:
            self.version = sending.result()
        except LinkError as error:
            self._failures += 1
            self._dirty = True
            log.warning("weights were not published, trying again: %s", error)

    def _check(self, modules: Modules) -> None:
        broken = [
            f"{module}.{name}"
            for module, tensors in modules.items()
            for name, tensor in tensors.items()
            if not np.isfinite(tensor).all()
        ]
        if broken:
            raise PluginError(
                f"{self._name} offers weights that are not finite; they were not published",
                got=", ".join(broken),
                todo="The robots keep the version they have; restart from the last checkpoint.",
            )

    def _save_when_due(self) -> None:
        if self._since(self._saved) >= self._config.checkpoint_s:
            self.save()

    def _report_when_due(self) -> None:
        if self._telling is not None:
            if not self._telling.done():
                return
            self._telling.result()
            self._telling = None
        if self._since(self._reported) < self._config.report_s:
            return
        self._telling = self._aside.submit(self._report, self.stats())
        self._reported = self._clock.now_ns()
        self._marks.append((self._reported, self.updates))
        while len(self._marks) > 1 and self._since(self._marks[1][0]) >= self._config.rate_s:
            self._marks.popleft()

    def _since(self, then_ns: int) -> float:
        return (self._clock.now_ns() - then_ns) / SECOND

    def _guarded(self, what: str, call: Callable[[], Any]) -> Any:
        """Call the plugin; name it when it raises. A plugin's error may be of any type."""
        try:
            return call()
        except (NotReady, PluginError):
            raise
        except Exception as error:
            raise PluginError(
                f"{self._name} failed in {what}",
                got=f"{type(error).__name__}: {error}",
                todo="The last checkpoint and the published weights are unharmed.",
            ) from error


def _copied(tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.array(tensor) for name, tensor in tensors.items()}
