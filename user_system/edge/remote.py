"""A robot's way to a policy that is too large for its host and acts at the head.

What the policy has not got yet travels with each question: the observations that its history wants
and the actions executed since. While nobody can be reached, questions are answered with no plan at
once; the robot goes on with the chunk at hand, then rests. A new stream is told everything again.
"""

import logging
import threading
import time
from collections import deque

from comms import inference_wire as coded
from comms.inference_client import InferenceLink
from comms.packing import Packing
from comms.pb import inference_pb2 as pb
from comms.tunnel import Tunnel
from user_system.codec.images import Codec
from user_system.core.clock import MS
from user_system.core.errors import DamageError, PluginError, UserSystemError
from user_system.core.interfaces import ActMode
from user_system.core.specs import PolicySpec
from user_system.core.types import Array, Observation, Segment
from user_system.edge import wire
from user_system.edge.mind import checked_plan
from user_system.edge.planners import (
    Acts,
    Away,
    Failed,
    Planned,
    Ready,
    Tell,
    Unplanned,
    Where,
)

log = logging.getLogger(__name__)


class Remote:
    """One robot's policy at the head; a ``planners.Planner``. Dials from the beginning.

    Args:
        tunnel: the way to the head.
        actor: whose policy.
        robot: for whom.
        tell: is told plans and failures, from the link's thread.
        images: how images travel: ``zstd`` loses nothing.
    """

    later: Where = "head"

    def __init__(self, tunnel: Tunnel, actor: str, robot: str, tell: Tell, images: Codec = "zstd"):
        self._actor, self._tell = actor, tell
        self._packing = Packing(images)
        self._lock = threading.RLock()
        self._spec: PolicySpec | None = None
        self._episode, self._seed, self._version = "", 0, 0
        self._executed: deque[tuple[Array, Segment]] = deque(maxlen=coded.MAX_EXECUTED)
        self._untold = 0
        """Executed actions at the end that the policy does not know of."""
        self._past: deque[tuple[int, Observation]] = deque(maxlen=1)
        self._shown = -1
        """Newest step whose observation was sent on this stream."""
        self._asked: dict[int, int] = {}
        self._link = InferenceLink(tunnel, actor, robot, self)
        self._link.start()

    # --- the robot's side ---------------------------------------------------------------------

    def begin(self, episode: str, seed: int, version: int) -> None:
        """An episode begins; ``version``: the only weights to act with, 0 for the newest."""
        with self._lock:
            self._episode, self._seed, self._version = episode, seed, version
            self._executed.clear()
            self._past.clear()
            self._asked.clear()
            self._link.send(self._begin())

    def _begin(self) -> pb.InferenceRequest:
        self._untold, self._shown = 0, -1
        begin = pb.InferenceBegin(
            episode=self._episode,
            seed=self._seed,
            version=self._version,
            content=coded.executed_to_bytes(list(self._executed)),
        )
        return pb.InferenceRequest(begin=begin)

    def replan(self) -> None:
        """A person handed back: forget plans and memory."""
        with self._lock:
            content = coded.executed_to_bytes(self._news())
            self._link.send(pb.InferenceRequest(replan=pb.InferenceReplan(content=content)))

    def saw(self, step: int, observation: Observation) -> None:
        """Step ``step`` begins with ``observation``."""
        with self._lock:
            if self._spec is not None:
                seen = {name: observation[name] for name in self._spec.observation}
                self._past.append((step, seen))

    def executed(self, action: Array, segment: Segment) -> None:
        """The last step executed ``action`` ``(Da,)``."""
        with self._lock:
            self._executed.append((action, segment))
            self._untold = min(self._untold + 1, coded.MAX_EXECUTED)

    def _news(self) -> list[tuple[Array, Segment]]:
        news = list(self._executed)[len(self._executed) - self._untold :]
        self._untold = 0
        return news

    def ask(self, step: int, mode: ActMode) -> Planned | None:
        """Ask for a plan of step ``step``; it is told when it is there.

        Raises:
            PluginError: the observations are too large to travel.
        """
        with self._lock:
            seen = tuple(item for item in self._past if item[0] > self._shown)
            asked = coded.Asked(seen, self._news())
            try:
                content = coded.ask_to_bytes(asked, self._packing)
            except UserSystemError as error:
                raise PluginError(f"actor {self._actor!r} cannot be asked", got=error) from error
            about = pb.InferenceAsk(episode=self._episode, step=step, mode=mode, content=content)
            if self._link.send(pb.InferenceRequest(ask=about)):
                self._shown = step
                self._asked[step] = time.monotonic_ns()
            else:
                self._tell(Unplanned(self._episode, step))
        return None

    def load(self, version: int, path: str) -> None:
        """The head loads weights by itself."""
        log.warning("actor %s acts at the head; version %d was not loaded", self._actor, version)

    def close(self) -> None:
        """Hang up."""
        self._link.close()

    # --- the head's side ------------------------------------------------------------------------

    def opened(self) -> None:
        """Tell a new stream of the episode at hand."""
        with self._lock:
            self._link.resume([self._begin()] if self._episode else [])
        self._tell(Away(""))

    def heard(self, reply: pb.InferenceReply) -> None:
        """Pass on what the policy said."""
        match reply.WhichOneof("message"):
            case "ready":
                self._met(wire.policy_spec(coded.spec_from_bytes(reply.ready.content)))
            case "plan":
                self._planned(reply.plan)
            case "unplanned":
                with self._lock:
                    self._asked.pop(reply.unplanned.step, None)
                self._tell(Unplanned(reply.unplanned.episode, reply.unplanned.step))
            case "acts":
                self._tell(Acts(reply.acts.version))
            case "failed":
                self._tell(Failed(reply.failed.episode, reply.failed.error))

    def _met(self, spec: PolicySpec) -> None:
        with self._lock:
            if self._spec is None or self._past.maxlen != spec.history:
                self._past = deque(self._past, maxlen=spec.history)
            self._spec = spec
        self._tell(Ready(spec))

    def _planned(self, message: pb.InferencePlan) -> None:
        with self._lock:
            asked = self._asked.pop(message.step, None)
            spec, current = self._spec, message.episode == self._episode
        if asked is None or spec is None or not current:
            return
        try:
            plan = checked_plan(coded.plan_from_message(message), spec, self._actor)
        except (PluginError, DamageError) as error:
            self._tell(Failed(message.episode, str(error)))
            return
        took_ms = (time.monotonic_ns() - asked) / MS
        self._tell(Planned(message.episode, message.step, plan, took_ms, message.compute_ms))

    def broke(self, why: str) -> None:
        """Nothing that was asked on this stream will be answered."""
        with self._lock:
            lost, self._asked = list(self._asked), {}
            episode = self._episode
        for step in lost:
            self._tell(Unplanned(episode, step))
        self._tell(Away(why))
