"""A policy of action chunks for measuring: the tool goes to and fro by millimetres.

It is installed for the policy host alone, as a package of its own would be: robot hosts need not
have the code of a policy that acts at the head.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from learners.kit import Tensors, function_plugin
from user_system.core.interfaces import Draw
from user_system.core.types import Array, Batch

KIND = "bench.chunks"
HORIZON = 8
AMPLITUDE = 0.002
"""Largest action, in the action's unit: well within what a step of the arm may do."""


@dataclass(frozen=True)
class Config:
    """Nothing to choose."""


def _start(inputs: int, actions: int, config: Any) -> Tensors:
    return {"amplitude": np.full(actions, AMPLITUDE, np.float32)}


def _act(tensors: Tensors, x: Array, noise: Array | None) -> Array:
    phase = 2 * np.pi * np.arange(HORIZON) / HORIZON
    return np.asarray(np.sin(phase)[:, None] * tensors["amplitude"], np.float32)


def _step(tensors: Tensors, x: Array, batch: Batch, config: Any) -> Tensors:
    return tensors


plugin = function_plugin(Config, _start, _act, _step, Draw(n=1), HORIZON)


def install(directory: Path) -> Path:
    """Make the plugin known to processes that have the result on their ``PYTHONPATH``."""
    facts = directory / "bench_chunks-0.dist-info"
    facts.mkdir(parents=True, exist_ok=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-chunks\nVersion: 0\n")
    entry = f"[user_system.learners]\n{KIND} = {__name__}:plugin\n"
    (facts / "entry_points.txt").write_text(entry)
    return directory
