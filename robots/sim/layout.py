"""Where the cube lies: a function of the episode's seed and the task's options alone."""

from collections.abc import Mapping

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.types import Array

DEFAULTS = {"x_low": 0.42, "x_high": 0.58, "y_low": -0.12, "y_high": 0.12, "turn": 0.25}
"""Region of the cube's centre, m in the base frame, and largest turn, rad."""


def cube_pose(seed: int, options: Mapping[str, float]) -> Array:
    """Return ``(x m, y m, turn rad)`` of the cube, reproducibly from ``seed``.

    Raises:
        SpecError: an option is unknown.
    """
    unknown = options.keys() - DEFAULTS.keys()
    if unknown:
        raise SpecError("unknown scene option", got=sorted(unknown), allowed=sorted(DEFAULTS))
    o = {**DEFAULTS, **options}
    low = (o["x_low"], o["y_low"], -o["turn"])
    high = (o["x_high"], o["y_high"], o["turn"])
    return np.random.default_rng([seed, 0]).uniform(low, high)
