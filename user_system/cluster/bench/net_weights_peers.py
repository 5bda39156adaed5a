"""From publishing to four edges on this machine: ours, Ray's object store, a plain gRPC stream.

All in one run, in turns, so that how busy the machine is meets all of them.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from comms.authority import Authority
from comms.credentials import Role
from comms.weight_publisher import WeightPublisher
from user_system.cluster import resources
from user_system.cluster.bench import net_weights_host as hosts
from user_system.core.errors import LinkError
from user_system.core.types import Array

EDGES, SIZE, TENSORS = 4, 2_500_000, 40
_WARM = 5
_REST_S = 0.05
"""Wall s between two rounds: what the last one left to be done is done."""

Weights = Mapping[str, Mapping[str, Array]]
Round = Callable[[Weights], float]


class _Ours:
    """The system: a store, four followers, a learner. In ``near`` all share the store's disk."""

    def __init__(self, directory: Path, stack: ExitStack, *, near: bool):
        pki, shelf = directory / "pki", directory / "store"
        authority = Authority.open(pki)
        names = [f"edge-{n}" for n in range(EDGES)]
        roles = {"hub": Role.SERVICE, "learner": Role.LEARNER} | dict.fromkeys(names, Role.ROBOT)
        for name, role in roles.items():
            authority.issue(name, role)
        hub = _start(stack, "net_weights_host", "hub", pki, shelf, "127.0.0.1")
        address = f"127.0.0.1:{int(hub())}"
        place = str(shelf) if near else ""
        self._edges = [
            _start(stack, "net_weights_host", "edge", pki, n, address, directory / n, place, "")
            for n in names
        ]
        tunnel = stack.enter_context(closing(hosts.tunnel_to(address, pki, "learner")))
        self._publisher = WeightPublisher(tunnel, near=shelf if near else None)

    def __call__(self, weights: Weights) -> float:
        began = time.monotonic_ns()
        version = self._publisher.publish(hosts.POLICY, weights)
        lines = [said().split() for said in self._edges]
        if any(int(line[0]) != version for line in lines):
            raise LinkError("other versions came than were published", got=lines, allowed=version)
        return (max(int(line[1]) for line in lines) - began) / 1e9


class _Peer:
    """A process that publishes what it is given the seed of, and says how long that took."""

    def __init__(self, stack: ExitStack, module: str, *arguments: object, **environment: str):
        self._say, self._said = _start_both(stack, module, *arguments, **environment)
        self._said()

    def __call__(self, weights: Weights) -> float:
        del weights  # of the same size; that process makes its own before it looks at the clock
        self._say()
        return float(self._said())


def run(directory: Path, rounds: int) -> dict[str, list[float]]:
    """Return seconds from the call until every edge could use the weights, by whose way."""
    directory.mkdir(parents=True)
    token = os.urandom(32).hex()
    with ExitStack() as stack:
        ways: dict[str, Round] = {
            "ours": _Ours(directory / "near", stack, near=True),
            "wire": _Ours(directory / "wire", stack, near=False),
            "ray": _Peer(stack, "net_weights_ray", **resources.environment(token)),
            "grpc": _Peer(stack, "net_weights_plain", "learner"),
        }
        rng = np.random.default_rng(0)
        found: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(_WARM + rounds):
            for name, way in ways.items():
                took = way(hosts.modules(rng, SIZE, TENSORS))
                if number >= _WARM:
                    found[name].append(took)
                time.sleep(_REST_S)
        return found


def _start(stack: ExitStack, module: str, *arguments: object) -> Callable[[], str]:
    return _start_both(stack, module, *arguments)[1]


def _start_both(
    stack: ExitStack, module: str, *arguments: object, **environment: str
) -> tuple[Callable[[], None], Callable[[], str]]:
    """Start a process of ours; return how to prompt it and how to hear its next line."""
    argv = [sys.executable, "-m", f"user_system.cluster.bench.{module}", *map(str, arguments)]
    process = subprocess.Popen(
        argv,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    stack.callback(_end, process)

    def prompt() -> None:
        if process.stdin is not None:
            process.stdin.write("go\n")
            process.stdin.flush()

    def hear() -> str:
        line = process.stdout.readline() if process.stdout is not None else ""
        if not line:
            raise LinkError(f"{module} ended")
        return line

    return prompt, hear


def _end(process: "subprocess.Popen[str]") -> None:
    """Close its input, which ends it; kill it where it does not."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
