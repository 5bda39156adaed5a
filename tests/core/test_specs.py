import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from user_system.core.errors import SpecError
from user_system.core.specs import (
    ActionSpec,
    Field,
    Limits,
    RobotSpec,
    StreamSpec,
    validate_observation,
)

LIMITS = Limits(
    names=("x", "y", "grip"),
    units=("m", "m", "m"),
    low=(-1.0, -1.0, 0.0),
    high=(1.0, 1.0, 0.08),
    velocity=(1.0, 1.0, 0.2),
    acceleration=(5.0, 5.0, 1.0),
    jerk=(50.0, 50.0, 10.0),
)
ACTION = ActionSpec(
    names=("dx", "grip"),
    units=("m", "m"),
    low=(-0.05, 0.0),
    high=(0.05, 0.08),
    delta=(True, False),
    coordinate=(0, 2),
)
ROBOT = RobotSpec(
    kind="fake",
    observation={"joints": Field((2,), "float64", "rad")},
    action=ACTION,
    limits=LIMITS,
    cameras={"wrist": Field((4, 4, 3), "uint8")},
)

fields = st.builds(
    Field,
    shape=st.lists(st.integers(0, 4), max_size=3).map(tuple),
    dtype=st.sampled_from(["float32", "float64", "uint8", "int8", "int64", "uint16", "bool"]),
)


@given(fields, st.integers(0, 2**32))
def test_samples_are_valid(field, seed):
    value = field.sample(np.random.default_rng(seed))
    assert field.validate(value, "f") is value


@given(st.floats(-5, 5), st.floats(0, 5), st.integers(0, 99))
def test_samples_respect_bounds(low, width, seed):
    field = Field((50,), "float64", low=low, high=low + width)
    field.validate(field.sample(np.random.default_rng(seed)), "f")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(3, np.float32), "shape"),
        (np.zeros(2, np.float64), "dtype"),
        (np.array([0, np.nan], np.float32), "not finite"),
        (np.array([0, np.inf], np.float32), "not finite"),
        (np.array([0, -3], np.float32), "too low"),
        (np.array([0, 3], np.float32), "too high"),
        ([0.0, 0.0], "dtype"),
        ("text", "shape"),
    ],
)
def test_wrong_values_are_named(value, message):
    field = Field((2,), "float32", "m", low=-1.0, high=1.0)
    with pytest.raises(SpecError, match=f"field 'tcp'.*{message}"):
        field.validate(value, "tcp")


def test_observations_hold_exactly_the_declared_fields():
    declared = {"a": Field((1,)), "b": Field(())}
    good = {"a": np.zeros(1, np.float32), "b": np.float32(0)}
    assert validate_observation(declared, good).keys() == declared.keys()
    for wrong in ({"a": good["a"]}, {**good, "c": good["a"]}):
        with pytest.raises(SpecError, match="other fields"):
            validate_observation(declared, wrong)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": ("m",)}, "one entry per coordinate"),
        ({"jerk": (1.0, 1.0)}, "one entry per coordinate"),
        ({"low": (1.0, -1.0, 0.0)}, "below"),
        ({"velocity": (1.0, 0.0, 1.0)}, "positive"),
        ({"jerk": (1.0, -1.0, 1.0)}, "positive"),
    ],
)
def test_contradictory_limits_are_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        dataclasses.replace(LIMITS, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": ("m",)}, "action.units must have one entry"),
        ({"coordinate": (0,)}, "action.coordinate must have one entry"),
        ({"low": (0.0,)}, "action.low must have one entry"),
        ({"delta": (True,)}, "action.delta must have one entry"),
        ({"low": (0.05, 0.0)}, "below"),
        ({"coordinate": (1, 1)}, "its own coordinate"),
        ({"coordinate": (0, -1)}, "its own coordinate"),
    ],
)
def test_contradictory_actions_are_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        dataclasses.replace(ACTION, **changes)


def test_a_stream_has_a_name_of_its_own():
    force = StreamSpec(Field((3,), "float32", "N"), 100.0)
    assert dataclasses.replace(ROBOT, streams={"force": force}).schema == ROBOT.schema
    for name in ("joints", "wrist"):
        with pytest.raises(SpecError, match=f"name of an observation; got {name}"):
            dataclasses.replace(ROBOT, streams={name: force})


setpoints = st.tuples(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9), st.floats(0, 0.08)).map(np.array)
within = st.tuples(st.floats(-0.05, 0.05), st.floats(0, 0.08)).map(
    lambda pair: np.array(pair, np.float32)
)
anything = st.tuples(*[st.floats(width=32)] * 2).map(lambda pair: np.array(pair, np.float32))


@given(setpoints, within)
def test_between_is_the_inverse_of_target(setpoint, action):
    reached = ACTION.target(setpoint, action)
    np.testing.assert_allclose(ACTION.between(setpoint, reached), action, atol=1e-6)


@given(setpoints, anything)
def test_target_is_bounded_and_finite_whatever_is_asked(setpoint, action):
    reached = ACTION.target(setpoint, action)
    assert np.isfinite(reached).all()
    assert abs(reached[0] - setpoint[0]) <= 0.05 + 1e-6
    assert reached[1] == setpoint[1]
    assert -1e-6 <= reached[2] <= 0.08 + 1e-6


@given(setpoints, anything)
def test_an_absolute_target_may_be_repeated(setpoint, action):
    """What is sent is the target, so a doubled command leads to the same place."""
    target = ACTION.target(setpoint, action)
    before = setpoint.copy()
    np.testing.assert_array_equal(ACTION.target(setpoint, action), target)
    np.testing.assert_array_equal(setpoint, before)


def test_nan_moves_nothing():
    here = np.array([0.3, 0.1, 0.04])
    np.testing.assert_array_equal(ACTION.target(here, np.array([np.nan, np.nan])), here)


def test_scale_maps_the_unit_box_onto_the_bounds():
    centre, half = ACTION.scale
    np.testing.assert_allclose(centre - half, ACTION.low, atol=1e-7)
    np.testing.assert_allclose(centre + half, ACTION.high, atol=1e-7)


def test_schema_changes_with_what_stacks_and_nothing_else():
    same = dataclasses.replace(ROBOT, control_hz=20.0, home=(0.0, 0.0, 0.0))
    assert same.schema == ROBOT.schema
    wider = dataclasses.replace(ROBOT, observation={"joints": Field((3,), "float64", "rad")})
    degrees = dataclasses.replace(ROBOT, observation={"joints": Field((2,), "float64", "deg")})
    blind = dataclasses.replace(ROBOT, cameras={})
    absolute = dataclasses.replace(ROBOT, action=dataclasses.replace(ACTION, delta=(False, False)))
    assert len({s.schema for s in (ROBOT, wider, degrees, blind, absolute)}) == 5


def test_embodiment_is_the_body_not_its_limits():
    slower = dataclasses.replace(LIMITS, velocity=(0.1, 0.1, 0.1))
    assert dataclasses.replace(ROBOT, limits=slower).embodiment == ROBOT.embodiment
    assert dataclasses.replace(ROBOT, kind="other").embodiment != ROBOT.embodiment
