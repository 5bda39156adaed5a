"""The stop at the robot host: there while an agent is, and said so where none is."""

import stat
import threading

import pytest
from typer.testing import CliRunner

from user_system.cli import app
from user_system.core.errors import MissingError
from user_system.edge.stop import NAME, StopSocket, found, ring


class Stops:
    def __init__(self):
        self.by, self.news = [], threading.Condition()

    def __call__(self, by):
        with self.news:
            self.by.append(by)
            self.news.notify()

    def wait(self, count=1):
        with self.news:
            assert self.news.wait_for(lambda: len(self.by) >= count, 30.0)


@pytest.fixture
def stops():
    return Stops()


@pytest.fixture
def host(tmp_path):
    """Deeper than the path of a socket may be long."""
    directory = tmp_path / ("d" * 100) / "host"
    directory.mkdir(parents=True)
    return directory


def test_whoever_may_write_stops_all(host, stops):
    local = StopSocket(host, stops)
    local.start()
    assert stat.S_IMODE((host / NAME).stat().st_mode) == 0o600
    ring(host, "ann")
    ring(host, "")
    stops.wait(2)
    assert stops.by == ["ann", "somebody at the robot host"]
    local.close()
    local.close()
    assert len(stops.by) == 2


def test_a_stop_that_met_an_error_leaves_the_next_one_heard(host, stops):
    def stop(by):
        stops(by)
        if by == "ann":
            raise RuntimeError("a robot that is just being enlisted")

    local = StopSocket(host, stop)
    local.start()
    ring(host, "ann")
    ring(host, "bob")
    stops.wait(2)
    local.close()
    assert stops.by == ["ann", "bob"]


def test_an_agent_that_was_killed_leaves_nothing_in_the_way(host, stops):
    first = StopSocket(host, stops)
    first.start()
    second = StopSocket(host, stops)
    second.start()
    ring(host, "ann")
    stops.wait()
    second.close()
    first.close()


def test_where_nobody_listens_it_is_said(host, stops):
    with pytest.raises(MissingError, match="own stop"):
        ring(host, "ann")
    with pytest.raises(MissingError, match="own stop"):
        ring(host / "nowhere", "ann")
    (host / NAME).write_text("no socket")
    assert found(host) == []


def test_the_command_finds_the_hosts_of_a_run(host, stops):
    local = StopSocket(host, stops)
    local.start()
    done = CliRunner().invoke(app, ["edge", "stop", str(host.parent)])
    assert done.exit_code == 0, done.output
    stops.wait()
    local.close()
    done = CliRunner().invoke(app, ["edge", "stop", str(host.parent)])
    assert isinstance(done.exception, MissingError)
