"""A robot host's agent whose spool notes when episodes began and when all of them was acknowledged.

python -m user_system.cluster.bench.net_remote_edge CONFIG.json
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from user_system.cluster import edge_host
from user_system.cluster.configs import EdgeHostConfig
from user_system.cluster.process import Life, run
from user_system.core.types import Fragment
from user_system.edge.spool import Spool

FILE = "episodes.jsonl"


@dataclass
class Noted:
    """One episode; times in UTC ns as its fragments have them."""

    episode: str
    began_ns: int
    """When its first observation was captured."""
    ended_ns: int = 0
    """The same of the last one."""
    acked_ns: int = 0
    steps: int = 0
    last: tuple[int, int] | None = None
    """(epoch, sequence) of its last fragment."""
    end: int = 0
    positions: list[int] = field(default_factory=list)
    """Of each step its index in its chunk; -1: there was no action for it."""
    chunks: list[int] = field(default_factory=list)
    setpoints: list[list[float]] = field(default_factory=list)
    """The tool's position in each step, where the robot has one."""

    def add(self, fragment: Fragment) -> None:
        """Take a fragment into account."""
        planned = ~np.isnan(fragment.proposed[:, 0])
        self.positions += np.where(planned, fragment.position, -1).tolist()
        self.chunks += fragment.chunk.tolist()
        self.setpoints += fragment.observation.get("tcp_position", np.empty((0, 3))).tolist()
        self.steps += len(fragment)
        if fragment.final:
            self.end = int(fragment.end[-1])
            self.last = fragment.header.epoch, fragment.header.sequence


class NotingSpool(Spool):
    """A spool that writes down what became of each episode of its one robot."""

    _file: Path
    _open_episodes: dict[str, Noted]

    def start(self, directory: Path) -> None:
        """Begin to carry fragments."""
        self._file, self._open_episodes = directory.parent / FILE, {}
        super().start(directory)

    def put(self, fragment: Fragment) -> None:
        """Keep a fragment."""
        name, header = fragment.header.episode, fragment.header
        noted = self._open_episodes.setdefault(name, Noted(name, header.wall_ns))
        noted.add(fragment)
        passed = int(fragment.robot_ns[-1] - fragment.robot_ns[0])
        noted.ended_ns = header.wall_ns + passed
        super().put(fragment)

    def forget(self, producer: str, epoch: int, below: int) -> None:
        """Drop what the head has."""
        super().forget(producer, epoch, below)
        now = time.time_ns()
        for name, noted in list(self._open_episodes.items()):
            if noted.last is not None and noted.last[0] == epoch and noted.last[1] < below:
                noted.acked_ns = now
                del self._open_episodes[name]
                with self._file.open("a") as file:
                    file.write(json.dumps(asdict(noted)) + "\n")


def main(config: EdgeHostConfig, life: Life) -> None:
    """Run the robots of this host until told to stop."""
    edge_host.main(config, life, NotingSpool)


if __name__ == "__main__":
    run(main, EdgeHostConfig)
