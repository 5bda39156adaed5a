"""RLPD: soft actor-critic from demonstrations, interventions and its own experience, half and half.

Published as "Efficient Online Reinforcement Learning with Offline Data" (Ball et al., 2023); the
defaults are those of HIL-SERL (Luo et al., 2024), which put people into the loop.
"""

from typing import TYPE_CHECKING

from learners.kit import Plugin
from learners.rlpd.config import RlpdConfig
from learners.rlpd.policy import make_policy
from user_system.core.interfaces import Data
from user_system.core.specs import RobotSpec

if TYPE_CHECKING:
    from learners.rlpd.learner import RlpdLearner

__all__ = ["RlpdConfig", "make_learner", "make_policy", "plugin"]


def make_learner(spec: RobotSpec, config: RlpdConfig, *, data: Data, seed: int) -> "RlpdLearner":
    """Build the learning side; only here is torch needed."""
    from learners.rlpd.learner import RlpdLearner

    return RlpdLearner(spec, config, data=data, seed=seed)


plugin = Plugin(RlpdConfig, make_policy, make_learner)
