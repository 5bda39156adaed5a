"""Plans for robots of other hosts: ``Inference`` over gRPC, one stream per robot.

A robot is served to the host that it is wired to and to nobody else. Its policy, a ``Desk``, lives
longer than its streams. A stream whose policy cannot follow is not read any further, so gRPC holds
the sender back.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from queue import SimpleQueue
from typing import Protocol

import grpc

from comms.credentials import Peer
from comms.inference_wire import (
    Asked,
    Executed,
    Fields,
    ask_from_bytes,
    executed_from_bytes,
    spec_to_bytes,
)
from comms.pb import inference_pb2 as pb
from comms.pb import inference_pb2_grpc
from comms.security import identify
from comms.silence import speak
from user_system.core.errors import LinkError, SecurityError, SpecError, UserSystemError
from user_system.core.interfaces import ActMode

log = logging.getLogger(__name__)

MAX_WAITING = 256
"""Words that may wait for one robot's policy."""
_NAME = 256
"""Characters of an episode's id."""
_BEAT = pb.InferenceReply(beat=pb.InferenceBeat())
_PAUSE_S = 0.02

Outgoing = SimpleQueue["pb.InferenceReply | UserSystemError | None"]


class Desk(Protocol):
    """One robot's policy at the head. Calls come from one stream at a time and do not block."""

    @property
    def fields(self) -> Fields:
        """What the policy sees."""

    @property
    def actions(self) -> int:
        """Numbers per action."""

    @property
    def spec(self) -> Mapping[str, object]:
        """Fields of its ``PolicySpec`` as plain values."""

    @property
    def waiting(self) -> int:
        """Words that wait for the policy."""

    def attach(self, outgoing: Outgoing) -> None:
        """From now on answer here."""

    def detach(self, outgoing: Outgoing) -> None:
        """Nobody listens there any more."""

    def begin(self, episode: str, seed: int, version: int, executed: Executed) -> None:
        """An episode begins or goes on."""

    def replan(self, executed: Executed) -> None:
        """A person handed back."""

    def ask(self, episode: str, step: int, mode: ActMode, asked: Asked) -> None:
        """A plan is wanted."""


class InferenceService(inference_pb2_grpc.InferenceServicer):
    """Serves ``Inference``.

    Args:
        hosts: robot -> host that it is wired to, whose certificate must name it.
        desk: makes the policy of a robot, when its host asks for the first time.
    """

    def __init__(self, hosts: Mapping[str, str], desk: Callable[[str], Desk]):
        self._hosts, self._make = hosts, desk
        self._lock = threading.Lock()
        self._making = {robot: threading.Lock() for robot in hosts}
        self._desks: dict[str, Desk] = {}
        self._streams: dict[str, Outgoing] = {}
        self._closed = threading.Event()
        self._figures = dict.fromkeys(("streams", "asks", "refused"), 0.0)

    def register(self, server: grpc.Server) -> None:
        """Add the methods to ``server``."""
        inference_pb2_grpc.add_InferenceServicer_to_server(  # type: ignore[no-untyped-call]
            self, server
        )

    def start(self) -> None:
        """Do nothing: policies are made when they are asked for."""

    def close(self) -> None:
        """End the streams."""
        self._closed.set()
        with self._lock:
            streams = list(self._streams.values())
        for outgoing in streams:
            outgoing.put(LinkError("the policy host is shutting down"))

    def stats(self) -> dict[str, float]:
        """Return streams now, and questions and refusals since the start."""
        with self._lock:
            return {**self._figures, "attached": float(len(self._streams))}

    def Attach(  # noqa: N802 (gRPC's name)
        self, request_iterator: Iterator[pb.InferenceRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.InferenceReply]:
        """Serve one robot for as long as its connection holds."""
        robot = self._robot(identify(context), next(request_iterator, None))
        desk = self._desk(robot)
        outgoing: Outgoing = SimpleQueue()
        if not context.add_callback(lambda: outgoing.put(None)):
            return  # over before it began
        self._open(robot, outgoing)
        try:
            ready = pb.InferenceReady(content=spec_to_bytes(dict(desk.spec)))
            outgoing.put(pb.InferenceReply(ready=ready))
            desk.attach(outgoing)
            args = robot, desk, outgoing, request_iterator
            threading.Thread(
                target=self._read, args=args, name=f"asks of {robot}", daemon=True
            ).start()
            yield from speak(outgoing, _BEAT)
        finally:
            desk.detach(outgoing)
            with self._lock:
                if self._streams.get(robot) is outgoing:
                    del self._streams[robot]

    def _robot(self, peer: Peer, first: pb.InferenceRequest | None) -> str:
        """Return whose plans are wanted, if this peer may have them."""
        if first is None or not first.HasField("hello"):
            raise SpecError(
                "a stream begins with a hello", got=first and first.WhichOneof("message")
            )
        robot = first.hello.robot
        if self._hosts.get(robot) != peer.name:
            self._figures["refused"] += 1
            raise SecurityError(
                f"{peer.name!r} may not ask for plans of this robot",
                got=robot[:64],
                allowed=", ".join(r for r, host in self._hosts.items() if host == peer.name)
                or "no robot",
                todo="Does the manifest of the head name this host and this actor for it?",
            )
        return robot

    def _desk(self, robot: str) -> Desk:
        # Building one may take long, and other robots do not wait for it.
        with self._making[robot]:
            if robot not in self._desks:
                self._desks[robot] = self._make(robot)
            return self._desks[robot]

    def _open(self, robot: str, outgoing: Outgoing) -> None:
        with self._lock:
            if self._closed.is_set():
                raise LinkError("the policy host is shutting down")
            older = self._streams.get(robot)
            self._streams[robot] = outgoing
            self._figures["streams"] += 1
        if older is not None:
            older.put(LinkError("this robot's stream was opened again"))

    def _read(
        self,
        robot: str,
        desk: Desk,
        outgoing: Outgoing,
        requests: Iterator[pb.InferenceRequest],
    ) -> None:
        """Hand what a robot says to its policy, as long as this stream is the robot's."""
        error: UserSystemError | None = None
        try:
            for request in requests:
                while desk.waiting > MAX_WAITING and not self._closed.is_set():
                    time.sleep(_PAUSE_S)
                if self._streams.get(robot) is not outgoing:
                    break
                self._hand(desk, request)
        except UserSystemError as wrong:
            error = wrong
        except grpc.RpcError:
            log.debug("stream of %s broke", robot)
        except Exception:  # top of a thread: this stream ends, the others go on
            log.exception("reading from %s failed", robot)
            error = LinkError("unforeseen error at the policy host; see its log")
        finally:
            outgoing.put(error)

    def _hand(self, desk: Desk, request: pb.InferenceRequest) -> None:
        match request.WhichOneof("message"):
            case "begin":
                begin = request.begin
                executed = executed_from_bytes(begin.content, desk.actions)
                desk.begin(_episode(begin.episode), begin.seed, begin.version, executed)
            case "replan":
                desk.replan(executed_from_bytes(request.replan.content, desk.actions))
            case "ask":
                ask = request.ask
                if ask.mode not in ("explore", "eval"):
                    raise SpecError("no such mode", got=ask.mode[:32], allowed="explore, eval")
                self._figures["asks"] += 1
                asked = ask_from_bytes(ask.content, desk.fields, desk.actions)
                mode: ActMode = "eval" if ask.mode == "eval" else "explore"
                desk.ask(_episode(ask.episode), ask.step, mode, asked)
            case other:
                raise SpecError("nothing that a stream goes on with", got=other)


def _episode(name: str) -> str:
    if not 0 < len(name) <= _NAME:
        raise SpecError("id of an episode", got=f"{len(name)} characters", allowed=f"1..{_NAME}")
    return name
