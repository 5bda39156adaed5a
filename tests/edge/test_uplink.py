"""What crosses the tunnel says the same on both sides."""

from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from comms.pb import fresh_pb2, hub_pb2
from user_system.core.modes import Mode
from user_system.core.types import Purpose
from user_system.edge import uplink
from user_system.edge.messages import Assignment, Request


def test_assignments():
    message = hub_pb2.Assignment(
        robot="arm", purpose=2, task="t", seed=5, version=7, max_steps=50, episode="e"
    )
    assert uplink._assignment(message) == Assignment(
        robot="arm",
        purpose=Purpose.TRAIN,
        task="t",
        seed=5,
        episode="e",
        version=7,
        max_steps=50,
    )


@pytest.mark.parametrize("success", [None, True, False])
def test_requests(success):
    message = hub_pb2.Request(id="1", robot="arm", event="done", operator="ann", token=4)
    if success is not None:
        message.success = success
    assert uplink._request(message) == Request("arm", "done", "ann", 4, "1", success)


def test_commands():
    command = uplink._command(
        fresh_pb2.OperatorCommand(
            robot="arm",
            operator="ann",
            token=4,
            boot="b",
            sequence=9,
            valid_ms=150,
            action=[0.5, -0.5],
            seen_s=12.5,
            rested_ms=30.0,
        )
    )
    assert (command.born_ns, command.rested_ms) == (12_530_000_000, 30.0)
    assert (command.operator, command.token, command.boot) == ("ann", 4, "b")
    assert (command.sequence, command.valid_ms) == (9, 150.0)
    assert command.action.dtype == np.float32
    assert command.action.tolist() == [0.5, -0.5]


def test_every_message_field_is_used():
    """A field that the protocol gains must not be dropped here in silence."""
    assert {f.name for f in hub_pb2.Assignment.DESCRIPTOR.fields} == set(Assignment.__slots__)
    assert {f.name for f in hub_pb2.Request.DESCRIPTOR.fields} == set(Request.__slots__)


class Part:
    """Stands for a connection: notes what is asked of it."""

    made: ClassVar[list["Part"]] = []

    def __init__(self, *arguments, **more):
        self.calls = []
        self.made.append(self)

    def __getattr__(self, name):
        return lambda *arguments, **more: self.calls.append(name)


def test_people_see_motion_now_and_then_but_news_and_driving_at_once(
    monkeypatch, tmp_path, processes
):
    for name in ("HubAttachment", "FreshPeer", "ExperienceClient", "WeightPuller", "WeightClient"):
        monkeypatch.setattr(uplink, name, Part)
    now = [100.0]
    monkeypatch.setattr(uplink.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(uplink, "_state", lambda *arguments: fresh_pb2.RobotState())
    head = uplink.Uplink(None, "host", "boot", SimpleNamespace(depth=0), tmp_path)
    leases = SimpleNamespace(lease=None)
    session = SimpleNamespace(
        name="arm", mode=Mode.AUTO, assignment=None, help="", fault="", leases=leases
    )
    station = SimpleNamespace(session=session)

    def sent(after_s):
        now[0] += after_s
        before = len(head._fresh.calls)
        head.state(station, None)
        return len(head._fresh.calls) - before

    assert sent(0.0) == 1
    assert sent(0.012) == 0
    assert sent(uplink.STATE_S) == 1
    session.help = "stuck"
    assert (sent(0.001), sent(0.001)) == (1, 0)
    leases.lease = "ann"
    assert sent(0.001) == 1
    session.mode = Mode.CORRECTION
    assert [sent(0.001) for _ in range(3)] == [1, 1, 1], "who drives sees every period"


def test_a_robot_that_comes_late_costs_the_others_nothing(monkeypatch, tmp_path, processes):
    """The attachment holds wants, reports and answers not heard yet: it is never replaced."""
    monkeypatch.setattr(Part, "made", [])
    for name in ("HubAttachment", "FreshPeer", "ExperienceClient", "WeightPuller", "WeightClient"):
        monkeypatch.setattr(uplink, name, Part)
    head = uplink.Uplink(None, "host", "boot", None, tmp_path)
    hub = head._hub
    head.enlist([uplink.Entry("arm", processes.SPEC, "t", "p")])
    head.want("arm")
    head.enlist([uplink.Entry("leg", processes.SPEC, "t", "p")])
    assert head._hub is hub
    assert hub.calls == ["start", "want", "redial"]
    assert [robot.name for robot in head._hello().robots] == ["arm", "leg"]
