"""The two ends of a tunnel as processes, for tests in which they are on different hosts.

    python far_ends.py head '{"pki": ..., "listen": ...}'
    python far_ends.py edge '{"pki": ..., "kind": ..., "settings": ..., "at": ...}'

Orders come as lines of JSON on stdin, each answered by one line on stdout. The models of hub, store
and spool are those of the unit tests, which lie in this folder.
"""

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from test_experience import ModelIngest, ModelOutbox
from test_hub import ModelHub
from test_weights import ModelShelf

from comms.credentials import AllowList, Credentials
from comms.experience_client import ExperienceClient
from comms.experience_service import ExperienceService
from comms.fresh import FreshPeer
from comms.fresh_hub import FreshHub
from comms.hub_client import HubClient
from comms.hub_service import HubService
from comms.pb import fresh_pb2 as fresh
from comms.serving import serve
from comms.tunnel import DirectTunnel, Endpoints, open_tunnel
from comms.weight_publisher import WeightPublisher
from comms.weight_puller import Wanted, WeightPuller
from comms.weight_service import WeightService
from user_system.core.errors import UserSystemError
from user_system.core.types import End, Fragment, FragmentHeader, Purpose, Segment

HUB, REPLAY, FRESH = 7400, 7401, 7402
SIDE = 32
ROBOT = "arm-1"


def endpoints(host: str) -> Endpoints:
    return Endpoints(hub=f"{host}:{HUB}", replay=f"{host}:{REPLAY}", fresh=f"{host}:{FRESH}")


class Head:
    """Hub, replay and an operator beside them."""

    def __init__(self, pki: str, listen: str):
        place, at = Path(pki), endpoints(listen)
        allow = AllowList(place)
        self.ingest, shelf = ModelIngest(), ModelShelf()
        hub = Credentials.load(place, "hub")
        self.parts: list[Any] = [
            serve(
                [HubService(ModelHub()), WeightService(shelf)],
                credentials=hub,
                allow=allow,
                address=at.hub,
            ),
            serve(
                [ExperienceService(self.ingest)],
                credentials=Credentials.load(place, "replay"),
                allow=allow,
                address=at.replay,
            ),
        ]
        self.fresh = FreshHub(hub, allow, at.fresh)
        self.fresh.start()
        self.operator = FreshPeer(
            DirectTunnel(at, Credentials.load(place, "ada")), role="viewer", robots=["*"]
        )
        self.operator.start()
        learner = Credentials.load(place, "learner")
        self.publisher = WeightPublisher(DirectTunnel(at, learner, "localhost"))

    def stored(self) -> list[int]:
        """Return the sequences on the head's disk, in their order."""
        return [f.header.sequence for f in self.ingest.stored[ROBOT, 1]]

    def publish(self, size: int) -> int:
        """Publish weights of ``size`` numbers."""
        weights = np.random.default_rng(1).normal(size=size).astype(np.float32)
        return self.publisher.publish("p", {"actor": {"w": weights}})

    def command(self, sequence: int) -> None:
        """Command the robot as an operator."""
        self.operator.send(
            fresh.OperatorCommand(
                robot=ROBOT, operator="ada", sequence=sequence, valid_ms=60_000, action=[0.5]
            )
        )

    def heard(self, timeout_s: float) -> list[int]:
        """Return the states of the robot that came, by sequence."""
        came = self.operator.receive(timeout_s)
        return [message.sequence for message in came if isinstance(message, fresh.RobotState)]

    def close(self) -> None:
        """End it all."""
        self.operator.close()
        self.fresh.close()
        for part in self.parts:
            part.stop(0)


class Edge:
    """A robot host: all of its links through one tunnel."""

    def __init__(self, pki: str, kind: str, settings: dict[str, Any], at: str):
        me = Credentials.load(Path(pki), "host-1")
        self.tunnel = open_tunnel(kind, endpoints(at), me, settings, Path(pki))
        self.hub = HubClient(self.tunnel, timeout_s=1.0)
        self.outbox = ModelOutbox()
        self.experience = ExperienceClient(self.tunnel, self.outbox, "host-1")
        self.fresh = FreshPeer(self.tunnel, role="robot", robots=[ROBOT])
        self.puller = WeightPuller(self.tunnel)
        self.made = 0
        self.stop = threading.Event()
        self.maker = threading.Thread(target=self._make, daemon=True)
        self.asker = threading.Thread(target=self._ask, daemon=True)
        self.answered_s = 0.0

    def start(self) -> None:
        """Dial, and record from now on."""
        self.experience.start()
        self.fresh.start()
        self.maker.start()
        self.asker.start()

    def _ask(self) -> None:
        """Ask the hub all the time, as a robot host does, so that there is always an attempt."""
        while not self.stop.wait(0.05):
            if (answered_s := self.call()) is not None:
                self.answered_s = answered_s

    def _make(self) -> None:
        while not self.stop.wait(0.05):
            self.outbox.put(fragment(self.made))
            self.made += 1

    def call(self, patience_s: float = 0.0) -> float | None:
        """Return when the hub answered, monotonic s; None: not in time."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                self.hub.status()
                return time.monotonic()
            except UserSystemError:
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.05)

    def answered(self) -> float:
        """Return when the hub answered last, monotonic s."""
        return self.answered_s

    def fetch(self) -> int:
        """Fetch the newest weights; return how many numbers they have."""
        transfer = self.puller.pull(Wanted("p"))
        return 0 if transfer is None else len(b"".join(transfer)) // 4

    def state(self, sequence: int) -> None:
        """Say how the robot is."""
        self.fresh.send(fresh.RobotState(robot=ROBOT, mode="auto", sequence=sequence))

    def commanded(self, timeout_s: float) -> list[int]:
        """Return the commands that came, by sequence."""
        came = self.fresh.receive(timeout_s)
        return [message.sequence for message in came if isinstance(message, fresh.OperatorCommand)]

    def recorded(self) -> int:
        """Record no more, and return how much that was."""
        self.stop.set()
        self.maker.join()
        self.asker.join()
        return self.made

    def waiting(self) -> int:
        """Return what the head has not acknowledged yet."""
        return sum(self.outbox.left().values())

    def trouble(self) -> str:
        """Return what the tunnel says of itself."""
        return self.tunnel.trouble()

    def figures(self) -> dict[str, float]:
        """Return what the links say of themselves."""
        return {**self.tunnel.stats(), **self.experience.stats()}

    def close(self) -> None:
        """End it all."""
        self.experience.close()
        self.fresh.close()
        self.tunnel.close()


def fragment(sequence: int) -> Fragment:
    """Return a fragment that says in its observations which one it is."""
    return Fragment(
        header=FragmentHeader(
            producer=ROBOT,
            epoch=1,
            sequence=sequence,
            run="run",
            task="task",
            episode="e",
            start=2 * sequence,
            purpose=Purpose.TRAIN,
            schema="schema",
            robot=ROBOT,
            embodiment="body",
            boot="boot",
            wall_ns=1_700_000_000_000_000_000,
            wall_bound_ns=1000,
        ),
        observation={"wrist": np.full((2, SIDE, SIDE, 3), sequence % 251, np.uint8)},
        executed=np.zeros((2, 2), np.float32),
        proposed=np.zeros((2, 2), np.float32),
        reward=np.zeros(2, np.float32),
        segment=np.full(2, Segment.AUTO, np.uint8),
        end=np.full(2, End.NONE, np.uint8),
        robot_ns=np.arange(2, dtype=np.int64) + 2 * sequence,
        policy=np.zeros(2, np.uint16),
        version=np.zeros(2, np.int64),
        operator=np.zeros(2, np.uint16),
        chunk=np.zeros(2, np.int32),
        position=np.zeros(2, np.int32),
    )


def main() -> None:
    """Obey until stdin ends."""
    end: Any = {"head": Head, "edge": Edge}[sys.argv[1]](**json.loads(sys.argv[2]))
    print(json.dumps("ready"), flush=True)
    try:
        for line in sys.stdin:
            order, *values = json.loads(line)
            print(json.dumps(getattr(end, order)(*values)), flush=True)
    finally:
        end.close()


if __name__ == "__main__":
    main()
