"""The pause at a swap: a policy plans as fast as it can while new weights are read and taken over.

The worker's own planner does it: it reads in a thread, and takes over between two plans. What a
swap costs a robot is what it adds to the time between two plans.
"""

import time
from pathlib import Path
from queue import SimpleQueue
from statistics import median
from typing import Any

import numpy as np

from user_system.cluster.configs import PluginConfig, learner_plugin, robot_spec
from user_system.codec.weights import entries, entries_hash
from user_system.core.errors import PluginError
from user_system.core.interfaces import Policy
from user_system.core.ports import Manifest, TensorEntry
from user_system.core.types import Array
from user_system.edge.mind import Mind
from user_system.edge.planners import Due, Inline, Said, Took
from user_system.edge.weight_files import Folder

SIZES = ((0, (128, 128)), (1, (776, 776)))
"""(number, widths of the hidden layers): those of the demo, and 2.5 MB."""
_APART_S = 0.02


def run(directory: Path, hidden: tuple[int, ...], rounds: int) -> list[float]:
    """Return what each of so many swaps added to the longest time between two plans, s."""
    directory.mkdir(parents=True)
    spec = robot_spec(PluginConfig("sim.franka", {}))
    plugin, config = learner_plugin(PluginConfig("rlpd", {"hidden": list(hidden)}))
    made: list[Any] = []

    def make() -> Policy:
        policy = plugin.make_policy(spec, config)
        made.append(policy)
        return policy

    said: SimpleQueue[Said] = SimpleQueue()
    planner = Inline(Mind("rlpd", make), said.put)
    fields = made[0].spec.observation.items()
    seen = {name: np.zeros(field.shape, field.dtype) for name, field in fields}
    paths = [str(_lay(directory / str(n), made[0].initial, n)) for n in (1, 2)]
    planner.begin("episode", 0, 0)
    pauses = []
    for number in range(rounds):
        usual = _plan_for(planner, seen, _APART_S)
        planner.load(number + 1, paths[number % 2])
        pauses.append(max(0.0, _swap(planner, seen, said) - usual))
    return pauses


def _plan(planner: Inline, seen: dict[str, Array]) -> None:
    planner.saw(0, seen)
    planner.ask(0, "eval")


def _plan_for(planner: Inline, seen: dict[str, Array], seconds: float) -> float:
    """Plan for so long; return the usual time between two plans."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    while (now := time.perf_counter()) < until:
        _plan(planner, seen)
        times.append(time.perf_counter() - now)
    return median(times)


def _swap(planner: Inline, seen: dict[str, Array], said: "SimpleQueue[Said]") -> float:
    """Plan until new weights act; return the longest time between two plans."""
    longest, loaded = 0.0, False
    last = time.perf_counter()
    while not loaded:
        while not said.empty():
            match said.get():
                case Due(run):
                    run()
                case Took(_, error):
                    if error:
                        raise PluginError(error)
                    loaded = True
        _plan(planner, seen)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    return longest


def _lay(directory: Path, tensors: dict[str, Array], version: int) -> Path:
    """Lay weights down as a robot host does; return where."""
    directory.mkdir()
    rng = np.random.default_rng(version)
    new = {n: rng.standard_normal(t.shape).astype(t.dtype) * 0.01 for n, t in tensors.items()}
    rows = entries({"policy": new})
    manifest = Manifest(
        "rlpd", version, entries_hash(rows), tuple(TensorEntry(*row) for row in rows)
    )
    fresh = {row.hash: new[row.name].tobytes() for row in rows}
    return Folder(directory).lay(manifest, fresh, {}, None).path
