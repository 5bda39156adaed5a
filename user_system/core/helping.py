"""When a scripted person steps in, and that they do so less and less. Pure decisions, no I/O.

People help a lot at first and then let go. So each training episode is watched with a probability
that falls linearly to zero; a watched one that is not on its way after ``patience`` steps is taken
over, driven on by the script, and labelled as a person's correction.
"""

from dataclasses import dataclass
from random import Random

from user_system.core.errors import ConfigError


@dataclass(frozen=True)
class HelpConfig:
    """The habit of a helper."""

    patience: int = 20
    """Steps that an episode may take before it counts as lost."""
    watch: float = 1.0
    """Share of episodes watched at the beginning."""
    fade_steps: int = 3000
    """Env steps over which that share falls to zero."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.patience < 0 or self.fade_steps < 1 or not 0 <= self.watch <= 1:
            raise ConfigError(
                "a helper's habit is out of range",
                got=(self.patience, self.watch, self.fade_steps),
                allowed="patience >= 0, watch in [0, 1], fade_steps >= 1",
            )


class Helper:
    """Decides for one robot; call ``begin`` at each training episode, ``wants`` at each step."""

    def __init__(self, config: HelpConfig):
        self.config = config
        self._rng = Random(config.seed)
        self._watching = False

    def share(self, env_steps: int) -> float:
        """Return the share of episodes watched after ``env_steps`` steps of the run."""
        return self.config.watch * max(0.0, 1.0 - env_steps / self.config.fade_steps)

    def begin(self, env_steps: int) -> None:
        """An episode begins; decide whether to watch it."""
        self._watching = self._rng.random() < self.share(env_steps)

    def wants(self, k: int, on_its_way: bool) -> bool:
        """Return whether to take over at step ``k`` of an episode.

        Args:
            k: steps done.
            on_its_way: whether the person sees it succeeding; picking: the cube is held.
        """
        return self._watching and k >= self.config.patience and not on_its_way
