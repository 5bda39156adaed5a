"""What a person may choose about a benchmark."""

from dataclasses import dataclass
from pathlib import Path

from user_system.core.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """Choices; the defaults are those of the published figures.

    Raises:
        ConfigError: a number is out of range.
    """

    only: tuple[str, ...] = ()
    """Ids of the figures wanted, each entry one or several with commas; none named: all."""
    seeds: int = 5
    """Runs whose figures are pooled."""
    periods: int = 5000
    """Control periods over which their error is taken."""
    manifest: Path = Path("deploy/demo.yaml")
    directory: Path = Path("runs/bench")
    """Where the runs are kept, one directory each; on the disk that is measured."""
    quick: bool = False
    """Whether to store and measure next to nothing: to see that a benchmark works. ``loop`` has
    its own numbers for that."""

    def __post_init__(self) -> None:
        split = tuple(name for entry in self.only for name in entry.split(",") if name)
        object.__setattr__(self, "only", split)
        if self.seeds < 1 or self.periods < 1:
            raise ConfigError(
                "seeds and periods are counts", got=(self.seeds, self.periods), allowed=">= 1"
            )

    def wants(self, *ids: str) -> bool:
        """Return whether any of these figures is asked for."""
        return not self.only or bool({*ids} & {*self.only})
