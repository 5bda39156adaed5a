"""What a report is asked for, and the bounds it keeps."""

from dataclasses import dataclass

from user_system.core.errors import ConfigError

MIN_EPISODES = 5
"""A group of fewer episodes gets no estimate: five people's habits are not read from four tries."""
MIN_STEPS = 50
"""Nor one with fewer steps that can be compared."""
GROUPS = 32
"""Groups (task, schema, segment, actor) that are sampled; the steps of further ones are counted.
As many (task, schema, robot) besides."""
SCORED_EPISODES = 4000
"""Stretches (episode, segment) of which the most divergent are looked for."""
SCORED_STEPS = 16
"""Steps looked at in each of them."""
WIDEST = 64
"""Numbers of the widest observation field that is part of the state: beyond it is no longer a
quantity but a picture, in which distances say little."""
STATE = 256
"""Numbers of a state in all."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a report is asked for. The same options and store give the same report.

    Args:
        seed: of every sample that is drawn.
        steps: drawn from each group; memory and time are theirs, whatever the store's size.
        neighbours: similar steps that half of all steps are to have; this sets how near is similar.
        resamples: of each bootstrap.
        fields: observation fields that make the state; none named: all that are not images.
    """

    seed: int = 0
    steps: int = 2000
    neighbours: int = 10
    resamples: int = 1000
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low, high in (
            ("seed", 0, 2**32),
            ("steps", 100, 20_000),
            ("neighbours", 1, 100),
            ("resamples", 100, 100_000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(
                    f"{name} of a quality report", got=value, allowed=f"{low}..{high}"
                )
