"""What a robot's host says may be wrong in any way; people go on seeing all the other robots."""

import asyncio
import json

import pytest

from comms.pb import fresh_pb2, hub_pb2, types_pb2
from user_system.teleop import live, view

NAN = float("nan")


@pytest.mark.parametrize("number", [NAN, float("inf"), -float("inf")])
def test_numbers_that_json_does_not_know_become_null(number):
    state = fresh_pb2.RobotState(robot="arm-1", rate=number, setpoint=[number, 1.0])
    assert json.loads(json.dumps(view.finite(view.state(state)), allow_nan=False))["rate"] is None
    action = types_pb2.ActionSpec(names=["x"], low=[number], high=[1.0])
    spec = types_pb2.RobotSpec(action=action, control_hz=number)
    status = hub_pb2.SystemStatus(
        robots=[hub_pb2.RobotStatus(name="arm-1", spec=spec, last_seen_s=number)],
        figures={"a": number},
        curve=[hub_pb2.CurvePoint(success_rate=number)],
    )
    text = json.dumps(view.status(status), allow_nan=False)
    assert json.loads(text)["robots"][0]["action"] == {
        "names": ["x"], "units": [], "low": [None], "high": [1.0], "delta": [],
    }  # fmt: skip


def test_an_observation_that_cannot_be_read_is_left_out():
    lie = types_pb2.Array(dtype="float32", shape=[1 << 31, 1 << 31], data=b"")
    observation = [types_pb2.NamedArray(name="q", array=lie)]
    state = fresh_pb2.RobotState(robot="arm-1", mode="auto", observation=observation)
    shown = live._whole(state)
    assert shown["mode"] == "auto"
    assert "observation" not in shown


def test_a_page_outlives_whatever_a_robot_says(page, world, until):
    from tests.teleop.test_live import ANN, scenario

    lie = types_pb2.Array(dtype="object", shape=[3], data=b"")
    bad = fresh_pb2.RobotState(
        robot="arm-1", sequence=1, rate=NAN, setpoint=[NAN],
        observation=[types_pb2.NamedArray(name="q", array=lie)],
    )  # fmt: skip

    async def play(tab):
        await tab.send(type="follow", robots=["arm-1"])
        await asyncio.sleep(0.1)
        world.show(bad)
        await tab.until("states", lambda m: any(s["rate"] is None for s in m["states"]))
        world.show(world.state("arm-2"))
        await tab.until("states", lambda m: any(s["robot"] == "arm-2" for s in m["states"]))

    scenario(page.url, play, ANN)
