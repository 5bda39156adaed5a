import dataclasses

import numpy as np
import pytest

from user_system.core.interfaces import Draw, constant_plan
from user_system.core.types import End, Plan, Reading


def test_what_travels_cannot_be_changed():
    plan = Plan(actions=np.zeros((1, 4), np.float32))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.version = 3
    reading = Reading(fields={}, setpoint=np.zeros(3), robot_ns=1, wall_ns=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        reading.fault = "gone"


def test_stored_numbers_never_change():
    """They are on disks and wires; a new meaning gets a new number."""
    assert {end.name: int(end) for end in End} == {
        "NONE": 0,
        "TERMINATED": 1,
        "TIMEOUT": 2,
        "HANDBACK": 3,
        "FAULT": 4,
        "ABORT": 5,
    }


def test_constant_plan_repeats_its_action():
    plan = constant_plan(np.array([1.0, 2.0]), horizon=3)
    assert plan.actions.dtype == np.float32
    assert plan.actions.tolist() == [[1.0, 2.0]] * 3


def test_draws_do_not_share_their_mix():
    assert Draw(n=1).mix == {"all": 1.0}
    assert Draw(n=1).mix is not Draw(n=1).mix
