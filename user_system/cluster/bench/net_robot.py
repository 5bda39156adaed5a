"""A simulated robot behind a NAT and its head, each with the processes that every run has.

Behind the router: `user-system edge run`, with world, driver, policy worker and agent, which it
fetches from the hub. At the head: hub and replay. There is no learner: the schedule begins with a
set of evaluation episodes in which the policy acts as it was built.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from comms.authority import Authority
from comms.credentials import Role
from user_system.cluster import machine, up
from user_system.cluster.bench.started import Started
from user_system.cluster.edge_home import EdgeFile, EdgeHome
from user_system.cluster.lab import Lab, Profile
from user_system.cluster.layout import QUEUE, RunDir
from user_system.cluster.manifest import load_manifest
from user_system.cluster.ports import Ports
from user_system.core.errors import LinkError

HOST, ROBOT = "host-1", "arm-1"
HZ = 10.0
_MANIFEST = """
name: net
hosts:
  {host}: {{remote: true}}
robots:
  {robot}: {{kind: sim.franka, task: pick, actor: pick, rate: 1, host: {host}}}
tasks:
  pick: {{kind: sim.pick_cube, config: {{max_steps: {steps}}}}}
learners:
  rlpd: {{kind: rlpd, config: {{hidden: [128, 128]}}}}
actors:
  pick: {{learner: rlpd}}
schedule:
  eval_episodes: {episodes}
  eval_pass: {episodes}
  max_steps: {steps}
  stop_hopeless: false
teleop: {{enabled: false}}
tunnel: {{listen: {address}, host: {address}}}
"""


@dataclass(frozen=True)
class Run:
    """What runs."""

    lab: Lab
    run: Path
    """The run's directory at the head."""
    spool: Path
    """The robot host's, of what the head has not acknowledged."""
    edge: Started

    def check(self) -> None:
        """Make sure that the robot host still runs.

        Raises:
            LinkError: it ended.
        """
        self.edge.check("edge")


@contextmanager
def robot(directory: Path, link: Profile | str, episodes: int, steps: int) -> Iterator[Run]:
    """Start it all; the robot then does so many episodes by itself."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab(link, seed=1))
        file = directory / "net.yaml"
        address = lab.head.address
        text = _MANIFEST.format(
            host=HOST, robot=ROBOT, episodes=episodes, steps=steps, address=address
        )
        file.write_text(text)
        ports = Ports(hub=7400, replay=7401, fresh=7402, reader=7403, page=0, ray=0, ray_client=0)
        head, manifest = directory / "head", load_manifest(file)
        prepared = up.make(manifest, head, (ports, machine.look(directory)), learning=False)
        stack.callback(shutil.rmtree, prepared.run.short, ignore_errors=True)
        services = stack.enter_context(Started(directory, lab.head.popen))
        for process in prepared.processes:
            services.start(process.spec.name, process.spec.argv)
        home = EdgeHome(directory / "edge")
        _enrol(prepared.run.pki, home)
        home.write(EdgeFile(HOST, prepared.composer.join_facts))
        edge = stack.enter_context(Started(directory, lab.edge.popen))
        argv = [sys.executable, "-m", "user_system.cli", "edge", "run", str(home.root)]
        edge.start("edge", argv, waits=False)
        # Nobody learns here: to the robot host it is an evaluation.
        records = RunDir(home.root, home.root).judged(HOST)
        yield Run(lab, head, records / QUEUE, edge)


def _enrol(pki: Path, home: EdgeHome) -> None:
    """Give the robot host what joining would have given it."""
    Authority.open(pki).issue(HOST, Role.ROBOT)
    home.pki.mkdir(parents=True, mode=0o700)
    for name in (f"{HOST}.pem", f"{HOST}.curve", "ca.crt", "hub.pub"):
        if not (pki / name).exists():
            raise LinkError("a robot host cannot be enrolled", got=f"no {name}")
        shutil.copy(pki / name, home.pki / name)
