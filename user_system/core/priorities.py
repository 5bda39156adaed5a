"""What may be said of how much steps are worth to a learner, wherever its window is."""

import numpy as np

from user_system.core.errors import SpecError
from user_system.core.types import Array


def checked(ids: Array, values: Array) -> tuple[Array, Array]:
    """Return ids ``[N]`` uint64 and values ``[N]`` float32 of what was said.

    Raises:
        SpecError: these are no ids, or no finite numbers, one for each.
    """
    ids, values = np.asarray(ids), np.asarray(values)
    if ids.dtype != np.uint64 or ids.ndim != 1 or values.shape != ids.shape:
        got = (ids.dtype, ids.shape, values.shape)
        raise SpecError("priorities", got=got, allowed="ids [N] uint64 and numbers [N]")
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise SpecError("priorities", got=values.dtype, allowed="finite numbers")
    return ids, values.astype(np.float32)
