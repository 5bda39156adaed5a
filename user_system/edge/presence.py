"""Whether a policy worker is there: it may be away, and it may be there and hang."""

from dataclasses import dataclass
from typing import Literal

from user_system.edge.patience import StationConfig
from user_system.edge.worker_client import WorkerClient


@dataclass(frozen=True, slots=True)
class Change:
    """The worker came, or was lost, and why."""

    what: Literal["came", "lost"]
    why: str = ""


class Presence:
    """Notes when a worker came, went, or was silent for too long.

    Args:
        worker: seat in it.
        config: for how long it may be silent.
        policy: name of its policy, for messages to people.
        task: name of its task.
    """

    def __init__(self, worker: WorkerClient, config: StationConfig, policy: str, task: str):
        self._worker, self._config = worker, config
        self._policy, self._task = policy, task
        self.up = False
        """Whether it is there and answers."""
        self.hung = False
        """The worker hangs and is to be killed; False again once its link is gone."""

    def look(self, *, recording: bool) -> list[Change]:
        """Return what changed, oldest first; ``recording``: an episode runs, answers come soon."""
        if not self._worker.alive:
            self.hung = False
            return self._lose(f"the worker of policy {self._policy!r} died") if self.up else []
        changes = []
        if not self.up and not self.hung:
            self.up = True
            changes.append(Change("came"))
        patience_s = self._config.hang_s if recording else self._config.begin_s
        hangs = self._worker.silent_s > patience_s
        if self._worker.thinking_s > self._config.think_s:
            hangs, patience_s = True, self._config.think_s
        if self.up and hangs:
            self.hung = True
            whose = f"policy {self._policy!r} or task {self._task!r}"
            why = f"{whose} hangs, silent for {patience_s:.1f} s; its worker is restarted"
            changes += self._lose(why)
        return changes

    def _lose(self, why: str) -> list[Change]:
        self.up = False
        return [Change("lost", why)]
