"""The process of an actor at the head: policies too large for their robots' hosts act here.

Each robot has a policy of its own, in a thread of its own. Weights are fetched as a robot host does
it. A plugin that hangs is named to its robot; then this process ends and is started again, for
nothing less frees a thread.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from functools import partial

from comms.inference_service import InferenceService
from comms.serving import serve
from comms.weight_puller import WeightPuller
from user_system.cluster import dial, heartbeat
from user_system.cluster.configs import PolicyHostConfig, learner_plugin, robot_spec
from user_system.cluster.process import Life, run
from user_system.core.errors import PluginError
from user_system.edge.messages import WeightsReady
from user_system.edge.mind import Mind
from user_system.edge.served import PolicyDesk
from user_system.edge.weight_client import Puller, WeightClient
from user_system.edge.weight_files import keep_only

log = logging.getLogger(__name__)


class Policies:
    """The policies of one actor, one per robot, and the weights that they share.

    Args:
        config: whose.
        puller: makes a way to where weights come from.
    """

    def __init__(self, config: PolicyHostConfig, puller: Callable[[], Puller]):
        self._config = config
        self._robots = {robot.name: robot for robot in config.robots}
        self._lock = threading.Lock()
        self._desks: dict[str, PolicyDesk] = {}
        self._here: dict[int, WeightsReady] = {}
        self.weights = WeightClient(
            puller, config.directory, self._ready, near=config.shelf, pack=False
        )

    def desk(self, robot: str) -> PolicyDesk:
        """Build the policy of a robot.

        Raises:
            PluginError: it cannot be built.
        """
        plugin, settings = learner_plugin(self._config.learner)
        spec = robot_spec(self._robots[robot].plugin)
        mind = Mind(self._config.learner.kind, partial(plugin.make_policy, spec, settings))
        desk = PolicyDesk(mind, partial(self.weights.need, self._config.policy))
        with self._lock:
            self._desks[robot] = desk
            newest = max(self._here, default=0)
        if newest:
            desk.found(self._here[newest])
        return desk

    def _ready(self, policy: str, ready: WeightsReady) -> None:
        with self._lock:
            self._here[ready.version] = ready
            self._here = {max(self._here): self._here[max(self._here)]}
            desks = list(self._desks.values())
        for desk in desks:
            desk.found(ready)

    def figures(self) -> Mapping[str, float]:
        """Return each robot's figures.

        Raises:
            PluginError: a plugin hangs; its robot was told.
        """
        with self._lock:
            desks = dict(self._desks)
        for robot, desk in desks.items():
            if desk.busy_s > self._config.hang_s:
                why = f"policy {desk.name!r} at the head hangs, silent for {desk.busy_s:.1f} s"
                desk.failed(f"{why}; it is restarted")
                raise PluginError(why, got=f"robot {robot}")
        return {
            f"{robot}_{key}": value
            for robot, desk in desks.items()
            for key, value in desk.stats().items()
        }


def main(config: PolicyHostConfig, life: Life) -> None:
    """Serve plans until told to stop."""
    wallet, allow = dial.wallet(config.link), dial.allow_list(config.link)
    keep_only(config.directory, dial.authority_of(config.link))
    with dial.tunnel(config.link) as way:
        policies = Policies(config, lambda: WeightPuller(way))
        hosts = {robot.name: robot.host for robot in config.robots}
        service = InferenceService(hosts, policies.desk)
        policies.weights.start()
        policies.weights.follow(config.policy)
        address = dial.listening(config.listen, config.link.policies[config.actor])
        try:
            with serve([service], credentials=wallet, allow=allow, address=address) as server:
                life.ready()

                def figures() -> Mapping[str, float]:
                    return {**server.stats(), **policies.figures()}

                heartbeat.report(way, life, config.link.name, "policy", figures)
        finally:
            policies.weights.close()


if __name__ == "__main__":
    run(main, PolicyHostConfig)
