"""RLPD's actor at the edge: a tanh-squashed Gaussian in NumPy.

The network answers mean and log standard deviation; ``tanh(mean + std * noise)`` in [-1, 1] becomes
physical units through the action's declared bounds.
"""

from functools import partial

import numpy as np

from learners.kit import FunctionPolicy, Tensors, policy_spec
from learners.networks import mlp
from learners.networks.features import Features
from learners.rlpd.config import RlpdConfig
from user_system.core.specs import RobotSpec
from user_system.core.types import Array


def actor_layout(spec: RobotSpec, config: RlpdConfig) -> mlp.Layout:
    """Return the layout of the actor: features to mean and log std of each action dimension."""
    inputs, outputs = Features(spec.observation).size, 2 * len(spec.action)
    return mlp.Layout(inputs, config.hidden, outputs, config.activation)


def make_policy(spec: RobotSpec, config: RlpdConfig) -> FunctionPolicy:
    """Build the actor with random weights, the same on every host: version 0."""
    layout = actor_layout(spec, config)
    initial = layout.split(layout.initial(np.random.default_rng(0), last_gain=0.1))
    centre, half = spec.action.scale
    function = partial(_act, config=config, centre=centre, half=half)
    return FunctionPolicy(policy_spec(spec), function, initial)


def _act(
    tensors: Tensors,
    x: Array,
    noise: Array | None,
    *,
    config: RlpdConfig,
    centre: Array,
    half: Array,
) -> Array:
    mean, log_std = np.split(mlp.forward(tensors, x, config.activation), 2, axis=-1)
    if noise is not None:
        mean = mean + np.clip(np.exp(log_std), config.std_min, config.std_max) * noise
    action: Array = centre + half * np.tanh(mean)
    return action
