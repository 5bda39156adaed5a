"""A robot's policy at the head: the other end of ``remote``.

The policy thinks in a thread of its own, so one that is slow or hangs delays no other robot. Its
weights are the newest, or the version that an evaluation pins, as on a robot host; they are loaded
between two plans.
"""

import logging
import threading
from collections.abc import Callable, Mapping

from comms import inference_wire as coded
from comms.inference_service import Outgoing
from comms.pb import inference_pb2 as pb
from user_system.core.interfaces import ActMode
from user_system.edge import wire
from user_system.edge.acting import ActingWeights
from user_system.edge.messages import WeightsReady
from user_system.edge.mind import Mind
from user_system.edge.planners import Apart, Failed, Planned, Said, Took, Unplanned
from user_system.edge.worker_client import Loaded

log = logging.getLogger(__name__)


class PolicyDesk:
    """One robot's policy. Thread-safe; a ``comms.inference_service.Desk``.

    Args:
        mind: the policy.
        need: asks for a version that is not there.
    """

    def __init__(self, mind: Mind, need: Callable[[int], None]):
        self.name, self._spec, self._need = mind.name, mind.spec, need
        self._planner = Apart(mind, self._tell)
        self._weights = ActingWeights()
        self._lock = threading.RLock()
        self._outgoing: Outgoing | None = None
        self._episode, self._pinned = "", 0
        self._plans, self._compute_ms = 0, 0.0

    @property
    def fields(self) -> coded.Fields:
        """What the policy sees."""
        return self._spec.observation

    @property
    def actions(self) -> int:
        """Numbers per action."""
        return len(self._spec.action)

    @property
    def spec(self) -> Mapping[str, object]:
        """Fields of its ``PolicySpec`` as plain values."""
        return wire.spec_to_json(self._spec)

    @property
    def waiting(self) -> int:
        """Words that wait for the policy."""
        return self._planner.waiting

    @property
    def busy_s(self) -> float:
        """Wall seconds since the plugin was called and has not returned."""
        return self._planner.busy_s

    # --- the robot's side -----------------------------------------------------------------------

    def attach(self, outgoing: Outgoing) -> None:
        """From now on answer here; first, which weights act."""
        with self._lock:
            self._outgoing = outgoing
            self._say(pb.InferenceReply(acts=pb.InferenceActs(version=self._weights.version)))

    def detach(self, outgoing: Outgoing) -> None:
        """Nobody listens there any more."""
        with self._lock:
            if self._outgoing is outgoing:
                self._outgoing = None

    def begin(self, episode: str, seed: int, version: int, executed: coded.Executed) -> None:
        """An episode begins or goes on."""
        with self._lock:
            self._episode, self._pinned = episode, version
            if not self._weights.knows(version):
                self._need(version)
            self._load()
            self._planner.begin(episode, seed, version)
            self._tell_executed(executed)

    def replan(self, executed: coded.Executed) -> None:
        """A person handed back."""
        with self._lock:
            self._tell_executed(executed)
            self._planner.replan()

    def ask(self, episode: str, step: int, mode: ActMode, asked: coded.Asked) -> None:
        """A plan is wanted."""
        with self._lock:
            if episode != self._episode:
                return
            self._load()
            self._tell_executed(asked.executed)
            for number, observation in asked.seen:
                self._planner.saw(number, observation)
            self._planner.ask(step, mode)

    def _tell_executed(self, executed: coded.Executed) -> None:
        for action, segment in executed:
            self._planner.executed(action, segment)

    # --- weights ----------------------------------------------------------------------------------

    def found(self, ready: WeightsReady) -> None:
        """A version lies on this host's disk."""
        with self._lock:
            self._weights.found(ready)
            self._load()

    def _load(self) -> None:
        """Between plans is the safe point: the policy's thread takes everything in turn."""
        if (ready := self._weights.due(self._pinned)) is not None:
            self._planner.load(ready.version, ready.path)

    # --- the policy's side ------------------------------------------------------------------------

    def _tell(self, said: Said) -> None:
        match said:
            case Planned(episode, step, plan, took_ms, _):
                self._plans += 1
                self._compute_ms += 0.05 * (took_ms - self._compute_ms)
                self._say(coded.plan_to_reply(episode, step, plan, took_ms))
            case Unplanned(episode, step):
                missed = pb.InferenceUnplanned(episode=episode, step=step)
                self._say(pb.InferenceReply(unplanned=missed))
            case Failed(_, error):
                self.failed(error)
            case Took(version, error):
                with self._lock:
                    self._weights.loaded(Loaded(version, error))
                    self._load()
                    if error:
                        log.warning("version %d of %s is refused: %s", version, self.name, error)
                    else:
                        acts = pb.InferenceActs(version=version)
                        self._say(pb.InferenceReply(acts=acts))

    def failed(self, error: str) -> None:
        """Tell the robot that its policy failed, and how."""
        failed = pb.InferenceFailed(episode=self._episode, error=error)
        self._say(pb.InferenceReply(failed=failed))

    def _say(self, reply: pb.InferenceReply) -> None:
        outgoing = self._outgoing
        if outgoing is not None:
            outgoing.put(reply)

    def close(self) -> None:
        """End the policy's thread."""
        self._planner.close()

    def stats(self) -> dict[str, float]:
        """Return plans made, how long they take, ms (moving average), and the weights' figures."""
        plans = {"plans": float(self._plans), "compute_ms": self._compute_ms}
        return {**plans, **self._weights.stats()}
