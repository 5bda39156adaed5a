"""A script that picks the cube: what demonstrations and tests are made of."""

import numpy as np

from user_system.core.types import Array, Observation

LEAD_S = 0.05
"""The tool trails its target by about its velocity times this, s."""
GAIN = 0.6
"""Share of the way taken per step: what keeps it calm when its actions arrive late."""
HOVER_M = 0.05
"""Height over the cube at which to stop approaching sideways and descend, m."""
OPEN, CLOSED = 0.08, 0.0


def pick_cube(observation: Observation, step_m: float = 0.04) -> Array:
    """Return the action ``(4,)`` float32 ``[dx dy dz width]``, m, for one observation.

    Come over the cube, descend, close, lift. A pure function of the observation: it can take over
    anywhere, which is what a person's recovery looks like.
    """
    tcp = observation["tcp_position"].astype(np.float64)
    lead = observation["tcp_velocity"].astype(np.float64) * LEAD_S
    offset = observation["cube_position"].astype(np.float64) - tcp
    width = float(observation["gripper_width"][0])
    gripped = float(observation["gripper_force"][0]) > 5.0
    aside = float(np.linalg.norm(offset[:2]))
    around = aside < 0.015 and offset[2] > -0.012
    if gripped and around:
        return _action((0.0, 0.0, step_m), CLOSED, step_m)
    if around and np.linalg.norm(lead) < 0.02:
        return _action((0.0, 0.0, 0.0), CLOSED, step_m)
    goal = offset.copy()
    if aside > 0.012 and (width < 0.06 or aside > 0.02):
        goal[2] += HOVER_M
    return _action(GAIN * (goal - lead), OPEN, step_m)


def _action(move: Array | tuple[float, float, float], width: float, step_m: float) -> Array:
    return np.array((*np.clip(move, -step_m, step_m), width), np.float32)
