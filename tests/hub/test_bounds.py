"""What one peer may make the hub keep."""

import time

import pytest

from comms.pb import hub_pb2, types_pb2
from user_system.core.clock import WallClock
from user_system.core.errors import ConfigError, LinkError, SecurityError, SpecError
from user_system.hub.hosts import MAX_EVENT, HostLink
from user_system.hub.registry import MAX_ROBOTS, Registry, RobotRecord
from user_system.hub.service import Hub, HubConfig
from user_system.hub.status import Board


def robots(*names):
    return [RobotRecord(name, types_pb2.RobotSpec(), "t", "p") for name in names]


def test_a_host_with_robots_without_end_is_refused_at_once():
    """Each name was compared with all others, under the lock that everybody needs."""
    registry = Registry(WallClock())
    many = robots(*map(str, range(100_000)))
    began = time.monotonic()
    with pytest.raises(SecurityError, match="too many"):
        registry.attach("h", "b", many)
    assert time.monotonic() - began < 5.0, "it took minutes"
    assert registry.all() == []


def test_hosts_that_come_and_go_leave_so_much_behind():
    registry = Registry(WallClock())
    with pytest.raises(SecurityError, match="too many"):  # noqa: PT012
        for host in range(1000):
            names = [f"{host}-{number}" for number in range(MAX_ROBOTS)]
            session = registry.attach(str(host), "b", robots(*names))
            registry.detach(str(host), session)
    assert len(registry.all()) == 16 * MAX_ROBOTS


@pytest.mark.parametrize("name", ["arm-1", "arm-3", "a" * 300])
def test_a_robot_of_another_host_or_of_none_is_refused_while_that_is_away(name):
    registry = Registry(WallClock(), {"arm-1": "host-1", "arm-2": "host-2"})
    with pytest.raises(SecurityError):
        registry.attach("host-2", "b", robots("arm-2", name))
    registry.attach("host-2", "b", robots("arm-2"))
    with pytest.raises((SecurityError, ConfigError)):
        registry.attach("host-1", "b", robots("arm-2"))


def test_reports_of_processes_have_an_end():
    board = Board(WallClock())
    for number in range(5000):
        board.reported(hub_pb2.ProcessReport(name=str(number), kind="k"))
    assert len(board.processes()) == 256
    assert board.processes()[-1].name
    for report in (
        hub_pb2.ProcessReport(name="a" * 1000),
        hub_pb2.ProcessReport(note="a" * 1000),
        hub_pb2.ProcessReport(figures={str(n): 0.0 for n in range(1000)}),
    ):
        with pytest.raises(SpecError):
            board.reported(report)


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path, HubConfig(run="run"), WallClock())
    hub.open()
    yield hub
    hub.close()


def link(hub):
    return HostLink(hub.hosts, "h", 1, ["arm-1"], hub.wishes.answer)


@pytest.mark.parametrize(
    "event",
    [
        hub_pb2.HostEvent(answer=hub_pb2.Answer(robot="arm-1", error="a" * MAX_EVENT)),
        hub_pb2.HostEvent(episode=hub_pb2.EpisodeReport(robot="arm-1", reward=float("nan"))),
        hub_pb2.HostEvent(episode=hub_pb2.EpisodeReport(robot="arm-1", steps=(1 << 32) - 1)),
        hub_pb2.HostEvent(episode=hub_pb2.EpisodeReport(robot="arm-1", segments={1: 1 << 31})),
        hub_pb2.HostEvent(episode=hub_pb2.EpisodeReport(robot="arm-1", end=99)),
    ],
)
def test_events_that_nobody_sends_are_refused(hub, event):
    if event.HasField("episode") and event.episode.end != 99:
        event.episode.purpose = types_pb2.PURPOSE_TRAIN
    with pytest.raises((SpecError, LinkError)):
        link(hub).receive(event)
    assert hub.book.env_steps == 0


def test_a_robot_that_says_too_much_of_itself_is_refused(hub):
    """Else each status would repeat it, for everybody, twice a second."""
    spec = types_pb2.RobotSpec(kind="k" * 1_000_000)
    hello = hub_pb2.HostHello(host="h", robots=[hub_pb2.RobotEntry(name="arm-1", spec=spec)])
    with pytest.raises(SpecError, match="too much"):
        hub.hosts.attach(hello, lambda event: None, hub.wishes.answer)
    assert hub.registry.all() == []


def test_texts_of_people_have_an_end(hub):
    from comms.hub_service import _check_texts

    with pytest.raises(SpecError, match="force_reason"):
        _check_texts(hub_pb2.ClaimRequest(robot="arm-1", force_reason="a" * 1000))
    _check_texts(hub_pb2.ClaimRequest(robot="arm-1", operator="ann", force_reason="it burns"))
    assert hub.stats()["audit_records"] == 0
