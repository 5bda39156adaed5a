"""Setups of remote hosts: each gets its own, and shows by asking that it lives."""

import hashlib

import pytest

import user_system
from comms.pb import hub_pb2, types_pb2
from user_system.core.clock import SECOND
from user_system.core.errors import ConfigError
from user_system.core.versions import PROTOCOL
from user_system.hub.registry import RobotRecord
from user_system.hub.setups import AWAY_S, Setups


class Clock:
    rate = 1.0

    def __init__(self) -> None:
        self.now = 1000.0

    def now_ns(self) -> int:
        return round(self.now * SECOND)

    def sleep_until(self, ns: int) -> None:
        raise AssertionError("nobody sleeps here")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def setups(tmp_path, clock) -> Setups:
    (tmp_path / "lab-1.json").write_bytes(b'{"one": 1}')
    (tmp_path / "lab-2.json").write_bytes(b'{"two": 2}')
    return Setups(tmp_path, clock)


def ask(setups: Setups, host: str, **more: str) -> hub_pb2.SetupReply:
    return setups.answer(host, hub_pb2.SetupQuery(**more))


def record(name: str, host: str, clock: Clock, online: bool = True) -> RobotRecord:
    return RobotRecord(
        name, types_pb2.RobotSpec(), "t", "p", host, "boot-a", online, clock.now_ns()
    )


def test_each_host_gets_its_own(setups) -> None:
    reply = ask(setups, "lab-1")
    assert reply.document == b'{"one": 1}'
    assert reply.hash == hashlib.sha256(reply.document).hexdigest()
    assert (reply.protocol, reply.version) == (PROTOCOL, user_system.__version__)
    assert ask(setups, "lab-2").document == b'{"two": 2}'


def test_what_a_host_has_does_not_travel_again(setups, tmp_path) -> None:
    have = ask(setups, "lab-1").hash
    assert ask(setups, "lab-1", hash=have).document == b""
    (tmp_path / "lab-1.json").write_bytes(b'{"one": 2}')
    again = ask(setups, "lab-1", hash=have)
    assert (again.document, again.hash != have) == (b'{"one": 2}', True)


@pytest.mark.parametrize("name", ["lab-3", "local", "../pki/ca", "", "lab-1.json"])
def test_others_are_told_what_to_write(setups, name) -> None:
    with pytest.raises(ConfigError, match=r"nothing to do for robot host.*lab-1, lab-2"):
        ask(setups, name)


def test_a_run_without_remote_hosts_has_none(clock) -> None:
    with pytest.raises(ConfigError, match="no remote hosts at all"):
        ask(Setups(None, clock), "lab-1")
    assert Setups(None, clock).hosts([]) == []


def test_a_host_on_its_way(setups, clock) -> None:
    def status() -> hub_pb2.HostStatus:
        return setups.hosts(robots)[0]

    robots: list[RobotRecord] = []
    assert (status().name, status().link, status().current) == ("lab-1", "awaited", False)
    ask(setups, "lab-1", version="0.1.7", boot="b1", trouble="x" * 9999)
    clock.now += 3.0
    assert (status().link, status().last_seen_s, status().version) == ("starting", 3.0, "0.1.7")
    assert len(status().trouble) == 500
    robots = [record("arm-1", "lab-1", clock)]
    ask(setups, "lab-1", hash=hashlib.sha256(b'{"one": 1}').hexdigest(), boot="b1")
    assert (status().link, status().current, status().boot) == ("online", True, "b1")
    robots = [record("arm-1", "lab-1", clock, online=False)]
    assert status().link == "starting", "its agent is not there, but it asks"
    clock.now += AWAY_S + 1
    assert (status().link, status().last_seen_s) == ("away", AWAY_S + 1)


def test_hosts_of_this_machine_are_shown_too(setups, clock) -> None:
    (found,) = [h for h in setups.hosts([record("arm-2", "local", clock)]) if h.name == "local"]
    assert (found.remote, found.link, found.boot, found.current) == (
        False, "online", "boot-a", True,
    )  # fmt: skip
    assert found.version == user_system.__version__
