"""What the control box reports each cycle: one flat float64 vector with named parts."""

import numpy as np

from user_system.core.types import Array

PARTS: dict[str, slice] = {}
"""Name -> where it lies in the state vector."""

_SIZES = (
    ("q", 7),  # joint positions, rad
    ("dq", 7),  # joint velocities, rad/s
    ("tcp", 6),  # position m and rotation vector rad from tool-down, base frame
    ("tcp_velocity", 3),  # m/s, base frame
    ("width", 1),  # opening of the fingers, m
    ("width_command", 1),  # what the hand was told, m
    ("grip_force", 1),  # force of one finger, N
    ("cube", 3),  # position of its centre, m, base frame
    ("cube_turn", 1),  # rotation about the vertical, rad
)
SIZE = 0
for _name, _n in _SIZES:
    PARTS[_name] = slice(SIZE, SIZE + _n)
    SIZE += _n


def part(state: Array, name: str) -> Array:
    """Return one named part of a state vector, as a view."""
    return state[PARTS[name]]


def cartesian_setpoint(state: Array) -> Array:
    """Return ``(7,)``: where the tool is, and what the hand was told.

    The hand's coordinate is its own command, so that whoever takes over from here does not open
    it: a hand that closed on a part stands at the part's width, not at the width it was told.
    """
    return np.concatenate((part(state, "tcp"), part(state, "width_command")))


def joint_setpoint(state: Array) -> Array:
    """Return ``(8,)``: where the joints are, and what the hand was told."""
    return np.concatenate((part(state, "q"), part(state, "width_command")))


def observe(state: Array, joints: bool) -> dict[str, Array]:
    """Return the observation fields of a state vector, float32, as ``config.spec_of`` declares.

    ``joints`` adds joint positions and velocities.
    """
    cube, tcp = part(state, "cube"), part(state, "tcp")[:3]
    fields = {
        "tcp_position": tcp,
        "tcp_velocity": part(state, "tcp_velocity"),
        "gripper_width": part(state, "width"),
        "gripper_force": part(state, "grip_force"),
        "cube_position": cube,
        "cube_offset": cube - tcp,
    }
    if joints:
        fields["joint_position"] = part(state, "q")
        fields["joint_velocity"] = part(state, "dq")
    return {name: value.astype(np.float32) for name, value in fields.items()}
