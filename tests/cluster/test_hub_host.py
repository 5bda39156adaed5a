"""The hub's process: that what a manifest says of others is held against them there."""

import socket
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from comms.authority import Authority
from comms.credentials import Credentials, Role
from comms.tunnel import DirectTunnel, Endpoints
from comms.weight_publisher import WeightPublisher
from user_system.cluster import configs, hub_host
from user_system.cluster.process import Life
from user_system.core.errors import SecurityError
from user_system.core.schedule import ScheduleConfig

GENEROUS_S = 60.0


def free_address() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@pytest.fixture
def hub(tmp_path: Path):
    authority = Authority.open(tmp_path / "pki")
    for name, role in {"hub": Role.SERVICE, "learner-a": Role.LEARNER, "b": Role.LEARNER}.items():
        authority.issue(name, role)
    link = configs.LinkConfig(
        "hub", tmp_path / "pki", *(free_address() for _ in range(3)), reader=""
    )
    config = configs.HubHostConfig(
        link, "run", tmp_path / "hub", ScheduleConfig(run="run"), publishers={"p": "learner-a"}
    )
    life = Life(str(tmp_path / "ready"))
    thread = threading.Thread(target=hub_host.main, args=(config, life), daemon=True)
    thread.start()
    deadline = time.monotonic() + GENEROUS_S
    while not (tmp_path / "ready").exists():
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield link
    life.end()
    thread.join(GENEROUS_S)


def test_only_the_learner_that_a_policy_belongs_to_publishes_it(hub: configs.LinkConfig) -> None:
    weights = {"policy": {"w": np.zeros(3, np.float32)}}

    def publish(name: str) -> int:
        way = DirectTunnel(Endpoints(hub=hub.hub), Credentials.load(hub.pki, name))
        with closing(way):
            return WeightPublisher(way).publish("p", weights)

    with pytest.raises(SecurityError, match="'b' may not publish"):
        publish("b")
    assert publish("learner-a") == 1
