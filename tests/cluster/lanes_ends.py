"""Two ends of a link under load: ``head`` and ``edge``, each a process of its own.

The edge has experience for minutes waiting, shows two cameras and tells its state; the head sends
commands and stops. Both run on one machine, so times of one are those of the other. Each prints
what it saw as one line of JSON when its time is over. Run as::

    python lanes_ends.py head PKI ADDRESS SECONDS
    python lanes_ends.py edge PKI ADDRESS SECONDS [uncapped]
"""

import json
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from comms.credentials import AllowList, Credentials, Peer
from comms.experience_client import ExperienceClient
from comms.experience_service import ExperienceService
from comms.fresh import FreshPeer
from comms.fresh_hub import FreshHub
from comms.link import Link
from comms.pb import fresh_pb2 as pb
from comms.serving import serve
from comms.sockets import own, segments
from comms.tunnel import DirectTunnel, Endpoints
from user_system.core.ports import Refused
from user_system.core.types import Array, End, Fragment, FragmentHeader, Parcel, Purpose, Segment
from user_system.edge.pictures import Pictures

REPLAY, FRESH = 7401, 7402
WARM_S = 3.0
"""Time in which the link is got to know; what is measured then does not count."""

Source = tuple[str, int]


class Ingest:
    """A replay buffer that keeps nothing."""

    def __init__(self) -> None:
        self.next: dict[Source, int] = defaultdict(int)
        self.bytes = 0

    def expected(self, producer: str, epoch: int) -> int:
        return self.next[producer, epoch]

    def strange(self, producer: str, epoch: int, boot: str) -> bool:
        return False

    def append(self, fragments: Sequence[Parcel]) -> Sequence[Refused]:
        for parcel in fragments:
            header = parcel.fragment.header
            source = header.producer, header.epoch
            if header.sequence == self.next[source]:
                self.next[source] += 1
                self.bytes += sum(a.nbytes for a in parcel.fragment.observation.values())
        return []

    def skip(self, refused: Refused) -> None:
        raise AssertionError(refused)

    def refused(self, producer: str, epoch: int, start: int) -> Sequence[Refused]:
        return []

    def label(self, *values: Any) -> None:
        raise AssertionError(values)

    def stats(self) -> Mapping[str, float]:
        return {"bytes": float(self.bytes)}


def fragment(sequence: int, side: int) -> Fragment:
    """Return four steps with pictures that do not shrink."""
    noise = np.random.default_rng(sequence).integers(0, 256, (4, side, side, 3), np.uint8)
    return Fragment(
        header=FragmentHeader(
            producer="arm-1",
            epoch=0,
            sequence=sequence,
            run="run",
            task="task",
            episode=f"e-{sequence // 5}",
            start=(sequence % 5) * 4,
            purpose=Purpose.TRAIN,
            schema="schema",
            robot="arm-1",
            embodiment="body",
            boot="boot",
            wall_ns=1_700_000_000_000_000_000,
            wall_bound_ns=1000,
        ),
        observation={"q": np.zeros((4, 7), np.float32), "wrist": noise},
        executed=np.zeros((4, 2), np.float32),
        proposed=np.full((4, 2), np.nan, np.float32),
        reward=np.zeros(4, np.float32),
        segment=np.full(4, Segment.AUTO, np.uint8),
        end=np.full(4, End.NONE, np.uint8),
        robot_ns=np.arange(4, dtype=np.int64),
        policy=np.zeros(4, np.uint16),
        version=np.zeros(4, np.int64),
        operator=np.zeros(4, np.uint16),
        chunk=np.zeros(4, np.int32),
        position=np.zeros(4, np.int32),
    )


class Backlog:
    """A spool with more than the link can carry."""

    def __init__(self, side: int) -> None:
        self.side, self.below = side, 0

    def sources(self) -> Sequence[Source]:
        return [("arm-1", 0)]

    def boot(self, producer: str, epoch: int) -> str:
        return "boot"

    def read(self, producer: str, epoch: int, start: int, limit: int) -> Sequence[Fragment]:
        return [fragment(k, self.side) for k in range(start, start + limit)]

    def forget(self, producer: str, epoch: int, below: int) -> None:
        self.below = max(self.below, below)

    def set_aside(self, refused: Refused) -> None:
        raise AssertionError(refused)

    def lost(self, producer: str, epoch: int, sequence: int) -> Refused | None:
        return None

    def note_stuck(self, producer: str, epoch: int, why: str) -> None:
        pass

    def wait(self, timeout_s: float) -> bool:
        time.sleep(timeout_s)
        return False


class Late:
    """How late messages come, ms, after the first seconds."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.ms: dict[str, list[float]] = defaultdict(list)

    def came(self, kind: str, sent_s: float) -> None:
        now = time.monotonic()
        if now - self.began > WARM_S:
            self.ms[kind].append(1000 * (now - sent_s))

    def said(self) -> dict[str, dict[str, float]]:
        return {
            kind: {
                "n": len(ms),
                "p50": float(np.percentile(ms, 50)),
                "p90": float(np.percentile(ms, 90)),
                "p99": float(np.percentile(ms, 99)),
                "max": max(ms),
            }
            for kind, ms in self.ms.items()
        }


def as_most_hosts_do() -> None:
    """Have the connections of this process use CUBIC, where they may: it fills any queue."""
    for one in own({REPLAY, FRESH}):
        with suppress(OSError):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")


def every(period_s: float, until: float, act: Any) -> threading.Thread:
    """Do something at a rate, in a thread of its own."""

    def run() -> None:
        at = time.monotonic()
        while (at := at + period_s) < until:
            time.sleep(max(0.0, at - time.monotonic()))
            act()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def head(pki: Path, address: str, seconds: float) -> dict[str, Any]:
    """Serve, command and stop; return how late states came, and what else did."""
    late, ingest = Late(), Ingest()

    def heard(peer: Peer, message: object) -> None:
        if isinstance(message, pb.RobotState):
            late.came("state", message.figures["sent_s"])

    allow = AllowList(pki)
    fresh = FreshHub(
        Credentials.load(pki, "hub"),
        allow,
        f"{address}:{FRESH}",
        owner=lambda robot: "host-1",
        on_message=heard,
    )
    fresh.start()
    viewer = FreshPeer(
        DirectTunnel(Endpoints(fresh=f"{address}:{FRESH}"), Credentials.load(pki, "eve")),
        role="viewer",
        robots=["*"],
        previews=["*"],
    )
    viewer.start()
    replay = Credentials.load(pki, "replay")
    service = ExperienceService(ingest)
    pictures = []
    with serve([service], credentials=replay, allow=allow, address=f"{address}:{REPLAY}"):
        print("ready", flush=True)
        until = time.monotonic() + seconds
        order = iter(range(1 << 30))
        every(0.05, until, lambda: fresh.send(command(next(order))))
        every(0.25, until, lambda: fresh.send(pb.Stop(robot="arm-1", operator=now())))
        while time.monotonic() < until:
            for message in viewer.receive(0.2):
                if isinstance(message, pb.Preview):
                    pictures.append(len(message.jpeg))
    viewer.close()
    fresh.close()
    return {
        "late": late.said(),
        "bytes": ingest.bytes,
        "fragments": sum(ingest.next.values()),
        "pictures": len(pictures),
        "picture_bytes": sum(pictures) / max(1, len(pictures)),
    }


def command(sequence: int) -> pb.OperatorCommand:
    return pb.OperatorCommand(
        robot="arm-1",
        operator="ada",
        sequence=sequence,
        valid_ms=60_000,
        action=[0.1] * 7,
        seen_s=time.monotonic(),
    )


def now() -> str:
    return repr(time.monotonic())


def edge(pki: Path, address: str, seconds: float, capped: bool = True) -> dict[str, Any]:
    """Send all that a robot host sends; return how late commands and stops came."""
    late = Late()
    endpoints = Endpoints(replay=f"{address}:{REPLAY}", fresh=f"{address}:{FRESH}")
    tunnel = DirectTunnel(endpoints, Credentials.load(pki, "host-1"))
    link = Link(lambda: segments({REPLAY, FRESH}))
    fresh = FreshPeer(tunnel, role="robot", robots=["arm-1"], link=link)
    backlog = Backlog(160)
    lane = link.experience if capped else None
    experience = ExperienceClient(tunnel, backlog, "host-1", budget=lane)
    fresh.start()
    experience.start()
    until = time.monotonic() + seconds
    shown, order = Pictures(), iter(range(1 << 30))
    image: Array = np.kron(
        np.random.default_rng(0).integers(0, 255, (24, 32, 3)), np.ones((10, 10, 1))
    )
    image = image.astype(np.uint8)

    def state() -> None:
        state = pb.RobotState(robot="arm-1", mode="auto", sequence=next(order), setpoint=[0.5] * 32)
        for key in range(16):
            state.figures[f"some_figure_{key}"] = key
        state.figures["sent_s"] = time.monotonic()
        fresh.send(state)

    def show() -> None:
        for camera in ("wrist", "side"):
            jpeg = shown.pack(camera, image, link.video.left())
            if shown.degraded:
                link.video.want()
            if jpeg:
                picture = pb.Preview(robot="arm-1", camera=camera, sequence=next(order), jpeg=jpeg)
                fresh.send(picture)

    every(0.2, until, as_most_hosts_do)
    every(0.05, until, state)
    every(0.1, until, show)
    while time.monotonic() < until:
        for message in fresh.receive(0.2):
            if isinstance(message, pb.OperatorCommand):
                late.came("command", message.seen_s)
            elif isinstance(message, pb.Stop):
                late.came("stop", float(message.operator))
    found = {
        "late": late.said(),
        "link": link.stats(),
        "up": link.up.stats(),
        "acked": backlog.below,
        "pictures": shown.stats(),
        "experience": experience.stats(),
    }
    experience.close()
    fresh.close()
    tunnel.close()
    return found


if __name__ == "__main__":
    role, pki, address, seconds = sys.argv[1], Path(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    if role == "head":
        print(json.dumps(head(pki, address, seconds)), flush=True)
    else:
        print(json.dumps(edge(pki, address, seconds, "uncapped" not in sys.argv)), flush=True)
