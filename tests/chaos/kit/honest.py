"""Those who work while others throw: they ask everybody all the time, and remember who was slow."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from kit.heads import ACTOR, Heads, Whole
from kit.noise import Noise

from comms import wire_specs
from comms.fresh import FreshPeer
from comms.hub_client import HubAttachment, HubClient
from comms.near import NearTunnel
from comms.pb import (
    experience_pb2,
    experience_pb2_grpc,
    fresh_pb2,
    hub_pb2,
    inference_pb2,
    inference_pb2_grpc,
)
from robots.sim import SimFranka

LIMIT_S = 60.0
"""Bounds hangs only; what counts is in ``slowest``."""
PAUSE_S = 0.05


def hello(host: str = "host-1", robot: str = "arm-1") -> hub_pb2.HostHello:
    """Return the first words of a robot host."""
    return hub_pb2.HostHello(host=host, boot="b", robots=[entry(robot)])


def entry(robot: str) -> hub_pb2.RobotEntry:
    """Return a robot as its host announces it."""
    kind = SimFranka(SimFranka.config_type(socket=Path("none"))).spec
    return hub_pb2.RobotEntry(
        name=robot, spec=wire_specs.spec_to_proto(kind), task="task", policy="p"
    )


class Honest:
    """Asks hub, replay, page and fresh lane by turns, in threads of its own, in a ``with`` block.

    Args:
        heads: whom.
    """

    def __init__(self, heads: Heads):
        self._heads = heads
        self._ended = threading.Event()
        self.slowest: defaultdict[str, float] = defaultdict(float)
        """Longest answer, s."""
        self.worst: defaultdict[str, float] = defaultdict(float)
        """Longest answer without what a bare timer was late by meanwhile, s."""
        self.noise = Noise()
        self._near: NearTunnel | None = None
        self.answered: defaultdict[str, int] = defaultdict(int)
        self.failed: dict[str, str] = {}
        self._robot, self._viewer = heads.tunnel("host-1"), heads.tunnel("teleop")
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Honest":
        hub = HubClient(self._viewer, LIMIT_S)
        replay = experience_pb2_grpc.ExperienceStub(self._viewer.channel("replay"))  # type: ignore[no-untyped-call]
        ask = experience_pb2.StatsRequest()
        self._page = httpx.Client(
            base_url=self._heads.url,
            headers={"origin": self._heads.url},
            timeout=LIMIT_S,
            verify=self._heads.trust(),
        )
        body = {"operator": "joe", "token": self._heads.secrets["joe"]}
        self._page.post("/api/login", json=body).raise_for_status()
        self._arm = FreshPeer(self._robot, role="robot", robots=("arm-1",))
        self._eye = FreshPeer(self._viewer, role="viewer", robots=("arm-1",))
        self._host = HubAttachment(self._robot, hello, lambda event: None)
        self._host.start()
        self._arm.start()
        self._eye.start()
        asks: dict[str, Callable[[], Any]] = {
            "hub": hub.status,
            "replay": lambda: replay.Stats(ask, timeout=LIMIT_S),
            "page": lambda: self._page.get("/api/status").raise_for_status(),
            "fresh lane": self._state,
            **self._of_all(),
        }
        for name, call in asks.items():
            thread = threading.Thread(target=self._run, args=(name, call), daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(LIMIT_S)
        self._page.close()
        for part in (self._host, self._arm, self._eye, self._robot, self._viewer, self._near):
            if part is not None:
                part.close()
        self.noise.close()

    def _of_all(self) -> dict[str, Callable[[], Any]]:
        """What is asked where everything was started."""
        if not isinstance(self._heads, Whole):
            return {}
        policy = inference_pb2_grpc.InferenceStub(self._robot.channel(f"policy:{ACTOR}"))  # type: ignore[no-untyped-call]
        shard = self._heads.shard
        self._near = NearTunnel("replay", shard.socket, self._heads.shard_credentials())
        site = experience_pb2_grpc.ExperienceStub(self._near.channel("replay"))  # type: ignore[no-untyped-call]
        first = inference_pb2.InferenceRequest(hello=inference_pb2.InferenceHello(robot="arm-1"))

        def ready() -> None:
            call = policy.Attach(iter([first]), timeout=LIMIT_S)
            assert next(call).HasField("ready")
            call.cancel()

        ask = experience_pb2.StatsRequest()
        return {"policy": ready, "shard": lambda: site.Stats(ask, timeout=LIMIT_S)}

    def begin(self) -> None:
        """Forget how slow anybody was."""
        self.slowest.clear()
        self.worst.clear()
        self.answered.clear()

    def _state(self) -> None:
        """Have a robot say something, and wait until the page's eye has seen it."""
        number = time.monotonic_ns()
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            self._arm.send(fresh_pb2.RobotState(robot="arm-1", sequence=number))
            for message in self._eye.receive(0.2):
                if isinstance(message, fresh_pb2.RobotState) and message.sequence == number:
                    return
        raise TimeoutError("a state of a robot was not seen")

    def _run(self, name: str, call: Callable[[], Any]) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                call()
            except Exception as error:
                self.failed[name] = f"{type(error).__name__}: {error}"
                return
            ended = time.monotonic()
            took = ended - began
            self.slowest[name] = max(self.slowest[name], took)
            self.worst[name] = max(self.worst[name], took - self.noise.between(began, ended))
            self.answered[name] += 1
            self._ended.wait(PAUSE_S)
