"""An episode whose policy acts at the head, 120 ms away: 100 steps at 10 Hz in chunks of 8.

The real processes run at both ends: hub, replay and policy at the head; a simulated arm, its
driver, agent and worker at the robot host. An episode lasts from its first observation until the
head has acknowledged its last step; steps at rest before the first plan are beside the hundred.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from user_system.cluster import away, enrol, plan
from user_system.cluster.bench import net_policy, net_remote_edge
from user_system.cluster.bench.figures import Figure, Goal, judged
from user_system.cluster.bench.options import Options
from user_system.cluster.bench.started import Popen, Started
from user_system.cluster.compose import Composer
from user_system.cluster.configs import EdgeHostConfig, LinkConfig, WorkerHostConfig
from user_system.cluster.layout import open_run
from user_system.cluster.manifest import Manifest, load_manifest, plugin_config
from user_system.cluster.ports import Ports
from user_system.core.clock import SECOND
from user_system.core.errors import LinkError

IDS = ("net.episode_remote_s",)
ROBOT, HOST, ACTOR = "arm-1", "site", "deep"
HZ, STEPS, EPISODES = 10.0, 100, 3
_GOAL = Goal("<=", 10.5)
_POLL_S = 0.05

_MANIFEST = """
name: remote
robots: {{{robot}: {{kind: sim.franka, task: stay, actor: {actor}, host: {host}}}}}
tasks: {{stay: {{kind: sim.pick_cube, config: {{max_steps: {steps}}}}}}}
learners: {{{actor}: {{kind: {kind}}}}}
actors: {{{actor}: {{learner: {actor}, where: head}}}}
teleop: {{enabled: false}}
tunnel: {{listen: {address}, host: {address}}}
schedule: {{demos: 0}}
"""

PORTS = Ports(
    hub=7400,
    fresh=7401,
    replay=7402,
    reader=7403,
    page=0,
    ray=0,
    ray_client=0,
    policies={ACTOR: 7410},
)


@dataclass(frozen=True)
class Ends:
    """Where the two ends are, and how the robot host reaches the policy."""

    address: str = "127.0.0.1"
    """Of the head, as both ends see it."""
    head: Popen = subprocess.Popen
    edge: Popen = subprocess.Popen
    ports: Ports = PORTS
    detour: str = ""
    """``host:port`` at which the robot host dials the policy; empty: where it listens."""


@dataclass(frozen=True)
class Seen:
    """One episode."""

    total_s: float
    steps: int
    positions: tuple[int, ...]
    """Of each step its index in its chunk; -1: there was no action for it."""
    chunks: tuple[int, ...]
    tool: Any
    """Position of the tool ``[T, 3]``, m."""

    @property
    def waited(self) -> int:
        """Steps before the first plan was there."""
        return next((i for i, at in enumerate(self.positions) if at >= 0), self.steps)

    @property
    def starved(self) -> int:
        """Steps without an action after that."""
        return sum(at < 0 for at in self.positions) - self.waited


def measure(options: Options) -> Iterator[Figure]:
    """Make episodes over the link of profile ``remote``."""
    from user_system.cluster.lab import Lab

    with Lab("remote", seed=1) as lab:
        ends = Ends(lab.head.address, lab.head.popen, lab.edge.popen)
        steps, count = (20, 1) if options.quick else (STEPS, EPISODES)
        with site(options.directory / "remote", ends, steps) as here:
            seen = [here.episode() for _ in range(count)]
    yield figure(seen)


def figure(seen: list[Seen]) -> Figure:
    """Return what was seen: the slowest episode counts."""
    ages = np.concatenate([np.array(s.positions)[np.array(s.positions) >= 0] for s in seen]) / HZ
    note = (
        f"slowest of {len(seen)}, first observation to last acknowledgement; the first plan came "
        f"after {max(s.waited for s in seen)} steps, {sum(s.starved for s in seen)} starved later; "
        f"observations acted on were {1000 * np.median(ages):.0f} ms old at the step's begin, p99 "
        f"{1000 * np.percentile(ages, 99):.0f} ms"
    )
    each = ", ".join(f"{s.total_s:.2f}" for s in seen)
    reference = f"the steps alone: {STEPS / HZ:g} s; episodes: {each}"
    return judged(IDS[0], max(s.total_s for s in seen), _GOAL, "s", reference=reference, note=note)


class Site:
    """Processes that run; see ``site``."""

    def __init__(self, directory: Path, processes: list["subprocess.Popen[bytes]"]):
        self._file = directory / net_remote_edge.FILE
        self._processes, self._read = processes, 0

    def episode(self, timeout_s: float = 120.0) -> Seen:
        """Return the next episode that is over and acknowledged.

        Raises:
            LinkError: there was none in time, or a process ended.
        """
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            lines = self._file.read_text().splitlines() if self._file.exists() else []
            if len(lines) > self._read:
                self._read += 1
                return _seen(json.loads(lines[self._read - 1]))
            if any(process.poll() is not None for process in self._processes):
                raise LinkError("a process ended", todo="Look into its log.")
            time.sleep(_POLL_S)
        raise LinkError(f"no episode in {timeout_s:g} s")


def _seen(noted: Mapping[str, Any]) -> Seen:
    return Seen(
        total_s=(noted["acked_ns"] - noted["began_ns"]) / SECOND,
        steps=noted["steps"],
        positions=tuple(noted["positions"]),
        chunks=tuple(noted["chunks"]),
        tool=np.array(noted["setpoints"][: noted["steps"]]),
    )


@contextmanager
def site(directory: Path, ends: Ends, steps: int) -> Iterator[Site]:
    """Start a head and a robot host; they end with the block.

    Raises:
        LinkError: one of them does not serve.
    """
    directory.mkdir(parents=True, exist_ok=True)
    run = open_run(directory / "run")
    run.make()
    manifest = _manifest(directory, ends, steps)
    enrol.make_pki(run.pki, manifest)
    composer = Composer(manifest, run, ends.ports, cores=(), learning=False)
    processes = [_edited(process, ends) for process in composer.processes()]
    plan.write_configs(processes)
    installed = str(net_policy.install(directory / "plugins"))
    logs = run.root / "logs"
    logs.mkdir(exist_ok=True)
    with ExitStack() as stack:
        head = stack.enter_context(Started(logs, ends.head))
        edge = stack.enter_context(Started(logs, ends.edge))
        started = []
        for process in processes:
            name = process.spec.name
            path = installed if name == f"{away.PEER}{ACTOR}" else ""
            paths = [item for item in (path, os.environ.get("PYTHONPATH", "")) if item]
            env = {**process.spec.env, "PYTHONPATH": os.pathsep.join(paths)}
            argv = [sys.executable, *process.spec.argv[1:]]
            end = edge if process.host == HOST else head
            started.append(end.start(name, argv, env=env))
        yield Site(run.edge(HOST), started)


def _manifest(directory: Path, ends: Ends, steps: int) -> Manifest:
    path = directory / "remote.yaml"
    path.write_text(
        _MANIFEST.format(
            robot=ROBOT,
            actor=ACTOR,
            host=HOST,
            kind=net_policy.KIND,
            address=ends.address,
            steps=steps,
        )
    )

    def config(group: str, kind: str) -> type | None:
        return net_policy.Config if kind == net_policy.KIND else plugin_config(group, kind)

    return load_manifest(path, plugins=config)


def _edited(process: plan.Process, ends: Ends) -> plan.Process:
    """Let the agent take notes, and its worker go the way that is measured."""
    config: Any = process.config
    children = tuple(_edited(child, ends) for child in process.children)
    spec = process.spec
    if isinstance(config, EdgeHostConfig):
        spec = replace(spec, argv=(*spec.argv[:2], net_remote_edge.__name__, *spec.argv[3:]))
    if isinstance(config, WorkerHostConfig) and config.away and ends.detour:
        link: LinkConfig = replace(config.away.link, policies={ACTOR: ends.detour})
        config = replace(config, away=replace(config.away, link=link))
    return replace(process, spec=spec, config=config, children=children)
