"""Settings of RLPD. The defaults are HIL-SERL's."""

from dataclasses import dataclass, field
from typing import get_args

from user_system.core.draws import Draw, PresetName
from user_system.core.errors import ConfigError

HALVES = {"online": 0.5, "prior": 0.5}
"""What HIL-SERL draws: interventions are in both halves."""
_PRESETS = get_args(PresetName)


@dataclass(frozen=True)
class RlpdConfig:
    """Hyper-parameters; what a manifest's ``config`` of an ``rlpd`` learner may say."""

    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers of actor and critics."""
    activation: str = "tanh"
    critics: int = 2
    """Members of the critic ensemble."""
    critic_subset: int = 2
    """Members, drawn anew for each update, whose minimum is the target."""
    batch: int = 256
    preset: PresetName | None = None
    """What each batch is drawn from, by the name of who published it."""
    mix: dict[str, float] = field(default_factory=dict)
    """The same in one's own words: view -> share of each batch, as exact counts. With neither of
    them it is ``hil_serl``: half ``online``, half ``prior``."""
    gamma: float = 0.97
    """Discount per step."""
    nstep: int = 1
    """Steps whose rewards are summed before the critics are asked."""
    tau: float = 0.005
    """Share of the new parameters in each move of the target critics."""
    learning_rate: float = 3e-4
    actor_average: float = 1.0
    """Share of the new parameters in each move of the actor that is published; 1: the newest.

    A single actor of the sequence may be poor where its neighbours are good; their average is
    steadier, and so is an evaluation of it.
    """
    alpha: float = 1e-2
    """Initial temperature."""
    target_entropy: float | None = None
    """None: minus half the number of action dimensions."""
    backup_entropy: bool = False
    """Whether the value of the next step counts its entropy."""
    actor_every: int = 2
    """Critic updates per actor and temperature update (critic-to-actor ratio)."""
    updates_per_step: float = 2.0
    """Critic updates per online step, at most: the update-to-data ratio."""
    start_after: int = 100
    """Online steps before the first update."""
    publish_every: int = 50
    """Critic updates between requests to publish."""
    normalise: str = "data"
    """``data``: statistics of the first ``statistics_rows`` drawn; ``range``: declared ranges."""
    statistics_rows: int = 4096
    std_min: float = 1e-5
    std_max: float = 5.0
    """Bounds of the actor's standard deviation before squashing."""
    threads: int = 1
    """Torch threads of the learner's process."""

    @property
    def views(self) -> tuple[str, ...]:
        """Names of the views that it draws from, for whoever checks a manifest."""
        return tuple(self.mix)

    def draw(self, n: int) -> Draw:
        """Return the request for ``n`` steps."""
        if self.preset is not None:
            return Draw(n=n, preset=self.preset)
        return Draw(n=n, mix=dict(self.mix or HALVES))

    def __post_init__(self) -> None:
        if self.preset is not None and self.preset not in _PRESETS:
            raise ConfigError("rlpd: unknown preset", got=self.preset, allowed=", ".join(_PRESETS))
        if self.preset and self.mix:
            raise ConfigError(
                "rlpd: a preset is a mix",
                got=f"preset {self.preset!r} and a mix of {', '.join(self.mix)}",
                allowed="one of both",
            )
        _within("critic_subset", self.critic_subset, 1, self.critics)
        _within("batch", self.batch, len(self.mix), 1 << 20)
        _within("gamma", self.gamma, 0.0, 1.0)
        _within("tau", self.tau, 0.0, 1.0)
        _within("actor_average", self.actor_average, 1e-6, 1.0)
        _within("nstep", self.nstep, 1, 1000)
        _within("actor_every", self.actor_every, 1, 1000)
        if self.updates_per_step <= 0 or self.alpha <= 0 or self.learning_rate <= 0:
            raise ConfigError("updates_per_step, alpha and learning_rate must be positive")
        if self.normalise not in ("data", "range"):
            raise ConfigError("unknown normaliser", got=self.normalise, allowed="data, range")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"rlpd: {name} is out of range", got=value, allowed=f"{low}..{high}")
