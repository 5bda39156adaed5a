"""Behaviour cloning with a linear policy: gradient steps towards what people did."""

from dataclasses import make_dataclass

import numpy as np

from learners.kit import function_plugin
from user_system.core.interfaces import Draw


def start(inputs, actions, config):
    return {"w": np.zeros((inputs + 1, actions))}


def act(tensors, x, noise):
    return np.insert(x, 0, 1.0, axis=-1) @ tensors["w"]


def step(tensors, x, batch, config):
    error = act(tensors, x, None) - batch.action
    return {"w": tensors["w"] - config.rate * np.insert(x, 0, 1.0, axis=-1).T @ error / len(x)}


Config = make_dataclass("Config", [("rate", float, 0.1)], frozen=True)
plugin = function_plugin(Config, start, act, step, Draw(n=64, mix={"human": 1.0}))
