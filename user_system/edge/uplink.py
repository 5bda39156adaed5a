"""The agent's way out: hub (what must arrive), fresh lane (what must be new), weights, experience.

Translates between the wire's messages and the session's; nothing else in this package knows either
protobuf or a socket to another host. Calls from robots' loops never block here: the hub's
attachment and the fresh lane queue, pictures are packed in a thread of their own.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comms import wire, wire_specs
from comms.experience_client import ExperienceClient
from comms.fresh import FreshPeer
from comms.hub_client import HubAttachment
from comms.link import Link
from comms.packing import Packing
from comms.pb import fresh_pb2, hub_pb2
from comms.tunnel import Tunnel
from comms.weight_puller import WeightPuller
from user_system.core.clock import MS, SECOND
from user_system.core.modes import HUMAN_MODES
from user_system.core.specs import RobotSpec
from user_system.core.types import Array, Purpose
from user_system.edge import messages as say
from user_system.edge.inbox import Heard
from user_system.edge.pictures import Pictures
from user_system.edge.spool import Spool
from user_system.edge.station import Station
from user_system.edge.weight_client import WeightClient
from user_system.edge.wire import Telemetry

log = logging.getLogger(__name__)

STATE_S = 0.05
"""Time between two states of a robot that say nothing new but its motion, wall s."""

LOOK_S = 0.5
"""Time between two looks at the link for people, wall s."""

Post = Callable[[str, Heard], None]
"""Hand something to the loop of a robot, by name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One robot as the hub gets to know it."""

    name: str
    spec: RobotSpec
    task: str
    policy: str


class Uplink:
    """Everything of one robot host that crosses the tunnel.

    Args:
        tunnel: the way to the head.
        host: name of this host, as its certificate states it.
        boot: id of this life of the agent.
        outbox: the spool.
        weights: directory for fetched weights.
        replay: the way to the replay buffer, where that is not at the head.
        away: policies that act at the head, whose weights are not fetched.
        link: what is known of the link, and may be put on it.
        lossy: cameras whose images are kept as JPEG.
        shelf: directory of the weight store, where this host shares its disk.
        run: that the host works for: another one's head is dialled again; "": whoever it is.
    """

    def __init__(
        self,
        tunnel: Tunnel,
        host: str,
        boot: str,
        outbox: Spool,
        weights: Path,
        *,
        replay: Tunnel | None = None,
        away: frozenset[str] = frozenset(),
        link: Link | None = None,
        lossy: Sequence[str] = (),
        shelf: Path | None = None,
        run: str = "",
    ):
        self._away, self._run = away, run
        self._tunnel, self._host, self._boot = tunnel, host, boot
        self._link = link or Link()
        self._entries: dict[str, Entry] = {}
        self._post: Post = lambda _robot, _heard: None
        self._hub = HubAttachment(tunnel, self._hello, self._from_hub)
        self._fresh = FreshPeer(tunnel, role="robot", link=self._link)
        self._outbox = outbox
        # A shard of this site is on this side of the link, which its experience does not cross.
        lane = self._link.experience if replay in (None, tunnel) else None
        behind = self._link.behind if lane else None
        packing = Packing(pressed=lane.pressed, lossy=lossy) if lane else Packing()
        self._experience = ExperienceClient(
            replay or tunnel, outbox, host, packing=packing, budget=lane, behind=behind, run=run
        )
        self._weights = WeightClient(
            lambda: WeightPuller(tunnel, budget=self._link.weights),
            weights,
            self._weights_ready,
            near=shelf,
        )
        self._pictures: queue.Queue[tuple[str, str, Array, int]] = queue.Queue(8)
        self._known: dict[str, float] = {}
        """Of the link, as last looked at: a robot's loop does not look itself."""
        self._shown = Pictures()
        self._sequence = 0
        self._told: dict[str, tuple[object, float]] = {}
        """Robot -> what its last state said, and when."""
        self._open = True
        self._threads = [
            threading.Thread(target=self._listen, name="fresh lane", daemon=True),
            threading.Thread(target=self._pack, name="pictures", daemon=True),
        ]

    def start(self, post: Post) -> None:
        """Go into service; ``enlist`` each robot as it becomes known."""
        self._post = post
        self._fresh.start()
        self._experience.start()
        self._weights.start()
        for thread in self._threads:
            thread.start()

    def enlist(self, entries: Sequence[Entry]) -> None:
        """Tell the hub about these robots beside those it knows."""
        first = not self._entries
        self._entries |= {entry.name: entry for entry in entries}
        self._fresh.subscribe(robots=tuple(self._entries))
        for policy in {entry.policy for entry in entries} - self._away:
            self._weights.follow(policy)
        if first:
            self._hub.start()
        else:
            self._hub.redial()  # a new stream begins with a new hello

    def _hello(self) -> hub_pb2.HostHello:
        robots = [
            hub_pb2.RobotEntry(
                name=entry.name,
                spec=wire_specs.spec_to_proto(entry.spec),
                task=entry.task,
                policy=entry.policy,
            )
            for entry in self._entries.values()
        ]
        return hub_pb2.HostHello(host=self._host, boot=self._boot, robots=robots, run=self._run)

    # --- from the head --------------------------------------------------------------------------

    def _from_hub(self, event: hub_pb2.HubEvent) -> None:
        heard: Heard
        match event.WhichOneof("event"):
            case "grant":
                g = event.grant
                heard = say.Grant(g.robot, g.token, g.holder, g.ttl_ms, g.realtime)
            case "assignment":
                heard = _assignment(event.assignment)
            case "request":
                heard = _request(event.request)
            case _:
                return
        self._post(heard.robot, heard)

    def _listen(self) -> None:
        look_at = 0.0
        while self._open:
            if time.monotonic() >= look_at:
                self._known = self._link.stats()
                look_at = time.monotonic() + LOOK_S
            for message in self._fresh.receive(0.2):
                if isinstance(message, fresh_pb2.OperatorCommand):
                    self._post(message.robot, _command(message))
                elif isinstance(message, fresh_pb2.Stop):
                    stop = say.Request(message.robot, "estop", message.operator)
                    self._post(message.robot, stop)
                elif isinstance(message, fresh_pb2.Announcement):
                    self._announced(message)

    def _announced(self, message: fresh_pb2.Announcement) -> None:
        """Let the robots of a policy know how new the newest weights are."""
        now = time.monotonic()
        heard = say.WeightsNews(message.version, now - message.age_s, now)
        for entry in list(self._entries.values()):
            if entry.policy == message.policy:
                self._post(entry.name, heard)

    def _weights_ready(self, policy: str, ready: say.WeightsReady) -> None:
        for entry in list(self._entries.values()):
            if entry.policy == policy:
                self._post(entry.name, ready)

    # --- to the head ------------------------------------------------------------------------------

    def want(self, robot: str) -> None:
        """The robot is at rest and free."""
        self._hub.want(robot)

    def report(self, report: say.EpisodeReport) -> None:
        """An episode ended."""
        message = hub_pb2.EpisodeReport(
            robot=report.robot,
            episode=report.episode,
            purpose=int(report.purpose),  # type: ignore[arg-type]
            end=int(report.end),
            steps=report.steps,
            human_steps=report.human_steps,
            reward=report.reward,
            version=report.version,
            seed=report.seed,
            segments=report.segments,
            takeovers=report.takeovers,
        )
        if report.success is not None:
            message.success = report.success
        self._hub.report(message)

    def answer(self, answer: say.Answer) -> None:
        """A request was dealt with."""
        self._hub.answer(
            hub_pb2.Answer(
                id=answer.id,
                robot=answer.robot,
                ok=answer.ok,
                mode=answer.mode,
                error=answer.error,
                answered_s=time.monotonic(),
            )
        )

    def need(self, robot: str, version: int) -> None:
        """An evaluation is pinned to this version."""
        policy = self._entries[robot].policy
        if policy not in self._away:
            self._weights.need(policy, version)

    def state(self, station: Station, seen: Telemetry | None) -> None:
        """Send the robot's state; the newest one wins on the way.

        While nobody drives and nothing but the motion is new, people see it every ``STATE_S``: a
        robot clock that runs faster than their eyes would only take time from who computes.
        """
        session = station.session
        lease = session.leases.lease
        news = (session.mode, session.assignment, session.help, session.fault, lease, seen is None)
        told, when_s = self._told.get(session.name, (None, 0.0))
        now_s = time.monotonic()
        if news == told and session.mode not in HUMAN_MODES and now_s - when_s < STATE_S:
            return
        self._told[session.name] = news, now_s
        self._sequence += 1
        message = _state(station, seen, self._boot, self._sequence)
        message.figures["spool_fragments"] = float(self._outbox.depth)
        message.figures.update(self._known)
        self._fresh.send(message)

    def preview(self, robot: str, camera: str, image: Array, wall_ns: int) -> None:
        """Send a picture, if nothing else is in the way."""
        try:
            self._pictures.put_nowait((robot, camera, image, wall_ns))
        except queue.Full:
            log.debug("%s: a picture was skipped", robot)

    def _pack(self) -> None:
        while self._open:
            try:
                robot, camera, image, wall_ns = self._pictures.get(timeout=0.2)
            except queue.Empty:
                continue
            jpeg = self._shown.pack(f"{robot}/{camera}", image, self._link.video.left())
            if self._shown.degraded:
                self._link.video.want()
            if jpeg is None:
                continue
            self._sequence += 1
            self._fresh.send(
                fresh_pb2.Preview(
                    robot=robot, camera=camera, sequence=self._sequence, wall_ns=wall_ns, jpeg=jpeg
                )
            )

    def close(self) -> None:
        """Leave service; what was not acknowledged stays in the spool."""
        self._open = False
        for part in (self._hub, self._experience, self._weights):
            part.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2.0)
        self._fresh.close()

    def stats(self) -> Mapping[str, float]:
        """Return counters and gauges of every connection."""
        parts = {
            "hub": self._hub.stats(),
            "fresh": self._fresh.stats(),
            "experience": self._experience.stats(),
            "weights": self._weights.stats(),
            "link": self._link.stats(),
            "pictures": self._shown.stats(),
        }
        return {f"{p}_{key}": value for p, values in parts.items() for key, value in values.items()}


def _assignment(message: hub_pb2.Assignment) -> say.Assignment:
    return say.Assignment(
        robot=message.robot,
        purpose=Purpose(message.purpose),
        task=message.task,
        seed=message.seed,
        episode=message.episode,
        version=message.version,
        max_steps=message.max_steps,
    )


def _request(message: hub_pb2.Request) -> say.Request:
    return say.Request(
        robot=message.robot,
        event=message.event,
        operator=message.operator,
        token=message.token,
        id=message.id,
        success=message.success if message.HasField("success") else None,
    )


def _command(message: fresh_pb2.OperatorCommand) -> say.OperatorCommand:
    return say.OperatorCommand(
        robot=message.robot,
        operator=message.operator,
        token=message.token,
        boot=message.boot,
        sequence=message.sequence,
        valid_ms=float(message.valid_ms),
        action=np.asarray(message.action, np.float32),
        born_ns=round(SECOND * message.seen_s + MS * message.rested_ms),
        rested_ms=message.rested_ms,
    )


FIGURES = (
    "overruns",
    "unplanned",
    "periods_measured",
    "period_p50_ms",
    "period_p99_ms",
    "step_ms",
    "plan_ms",
    "plan_compute_ms",
    "action_age_p50_ms",
    "action_age_p99_ms",
    "put_ms",
    "weights_age_s",
    "weights_age_p99_s",
    "weights_stale_s",
    "clipped",
    "holds",
    "tick_overruns",
    "takeovers",
)
"""What of a station's figures travels with every state."""


def _state(
    station: Station, seen: Telemetry | None, boot: str, sequence: int
) -> fresh_pb2.RobotState:
    session = station.session
    assignment, lease = session.assignment, session.leases.lease
    figures = station.stats()
    state = fresh_pb2.RobotState(
        robot=session.name,
        boot=boot,
        sequence=sequence,
        mode=session.mode,
        holder=lease.holder if lease else "",
        token=session.leases.token,
        step=station.recorder.step if session.recording else 0,
        help=session.help,
        fault=session.fault,
        left_by=session.left_by,
        version=station.weights.version,
        figures={name: figures[name] for name in FIGURES if name in figures},
    )
    state.figures["sent_s"] = time.monotonic()
    if assignment is not None:
        state.purpose = int(assignment.purpose)  # type: ignore[assignment]
        state.episode, state.seed = assignment.episode, assignment.seed
    if seen is not None:
        small = {k: v for k, v in seen.reading.fields.items() if k in station.spec.observation}
        state.robot_ns, state.rate = seen.reading.robot_ns, seen.reading.rate
        state.observation.extend(wire.named_to_proto(small))
        state.setpoint.extend(seen.accepted.tolist())
    return state
