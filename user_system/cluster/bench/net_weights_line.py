"""Weights on a slow line: 20 MB at 20 Mbit/s through a router, whole, and cut on the way.

Cut by the end of the robot host's process, or by a line that falls silent for longer than either
end waits: then the connection ends, and another one goes on.
"""

import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from comms.authority import Authority
from comms.credentials import Role
from comms.weight_publisher import WeightPublisher
from user_system.cluster.bench import net_weights_host as hosts
from user_system.cluster.lab import Lab
from user_system.core.errors import LinkError

RATE_BPS = 20e6
CHUNK = 20_000
"""Bytes of a piece: 8 ms of the line."""
CAP = int(RATE_BPS / 8 * (0.040 + 0.050))
"""Bytes under way: rate x (base round trip + 50 ms)."""
SILENCE_S = 12.0
"""A cut of the line: two seconds more than a stream may be silent."""
_TENSORS = 40
_MODULE = hosts.__name__


@dataclass(frozen=True)
class Found:
    """What one transfer took."""

    seconds: float
    """From the learner's call until a worker could load the version."""
    came: int
    """Bytes that arrived at it, in all its lives."""


def run(directory: Path, size: int, cuts: int, silence_s: float = 0.0) -> Found:
    """Let a robot host fetch one version, cut ``cuts`` times on the way.

    Args:
        directory: for keys, store and host; made here.
        size: of the version, bytes.
        cuts: how often.
        silence_s: for so long the line is silent at each cut; 0: the host is killed instead.
    """
    directory.mkdir(parents=True)
    with Lab("line20") as lab:
        pki = directory / "pki"
        authority = Authority.open(pki)
        authority.issue("hub", Role.SERVICE, sans=("127.0.0.1", lab.head.address))
        authority.issue("learner", Role.LEARNER)
        authority.issue("edge", Role.ROBOT)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        argv = [sys.executable, "-m", _MODULE]
        hub = lab.head.popen(
            [*argv, "hub", str(pki), str(directory / "store"), "0.0.0.0"],
            **pipes,
        )
        port = int(_line(hub))
        address = f"{lab.head.address}:{port}"
        edge = [
            *argv,
            "edge",
            str(pki),
            "edge",
            address,
            str(directory / "e"),
            "",
            f"{CAP}/{CHUNK}",
        ]
        life = lab.edge.popen(edge, **pipes)
        _ask(life)  # it is there, and waits
        publisher = [sys.executable, "-m", __name__, str(pki), str(port), str(size)]
        began = int(lab.head.run(publisher, timeout_s=120.0))
        came = 0
        for number in range(cuts):
            if silence_s:
                _wait(life, (number + 1) * size // (cuts + 1))
                with lab.link.outage():
                    time.sleep(silence_s)
            else:
                came += _part(life, size // (cuts + 1))
                life = lab.edge.popen(edge, **pipes)
        _, ended, rest = map(int, _line(life).split())
        life.kill()
        life.wait()
        return Found((ended - began) / 1e9, came + rest)


def _part(process: "subprocess.Popen[str]", size: int) -> int:
    """Let a host fetch ``size`` bytes and kill it; return how many it got to know of."""
    came = _wait(process, size)
    process.kill()
    process.wait()
    return came


def _wait(process: "subprocess.Popen[str]", size: int) -> int:
    """Wait until a host got ``size`` bytes; return how many it got."""
    while (came := _ask(process)) < size:
        time.sleep(0.02)
    return came


def _ask(process: "subprocess.Popen[str]") -> int:
    """Return how many bytes a host got so far."""
    if process.stdin is not None:
        process.stdin.write("?\n")
        process.stdin.flush()
    return int(_line(process).split()[2])


def _line(process: "subprocess.Popen[str]") -> str:
    line = process.stdout.readline() if process.stdout is not None else ""
    if not line:
        raise LinkError("a process of the benchmark ended", got=process.args)
    return line


def main() -> None:
    """Publish a version in the head's namespace."""
    pki, port, size = sys.argv[1:]
    with closing(hosts.tunnel_to(f"127.0.0.1:{port}", Path(pki), "learner")) as tunnel:
        weights = hosts.modules(np.random.default_rng(0), int(size), _TENSORS)
        began = time.monotonic_ns()
        WeightPublisher(tunnel).publish(hosts.POLICY, weights)
        print(began)


if __name__ == "__main__":
    main()
