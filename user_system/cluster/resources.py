"""Ray, as little of it as is needed: one head, and one small node per edge host that shows robots.

Ray places learners on CPUs and GPUs and reserves robots with them; experience, weights and commands
never travel through it. A robot host does not run Ray: its *resource node*, a raylet beside the hub
with no CPUs and one custom resource per robot, stands for it. Everything listens on the loopback
address and asks for a token that only this run's own processes get.
"""

import json
import secrets
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from user_system.cluster.process import write_private

LOOPBACK = "127.0.0.1"
TOKEN_FILE = "ray.token"
READY_LINE = "Ray runtime started."


def robot_resource(robot: str) -> str:
    """Return the name of the Ray resource that stands for a robot."""
    return f"robot:{robot}"


def make_token(pki: Path) -> str:
    """Return the run's Ray token, made at the first start."""
    path = pki / TOKEN_FILE
    if not path.exists():
        write_private(path, secrets.token_hex(32))
    return path.read_text().strip()


def environment(token: str) -> dict[str, str]:
    """Return the variables that every process that speaks to Ray needs."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        # The learner gives itself its place; see ``LearnerEntry.nice``.
        "RAY_worker_niceness": "0",
        # Prestarted workers would cost 60 MB each; learners are few and long-lived.
        "RAY_prestart_worker_first_driver": "0",
        "RAY_enable_worker_prestart": "0",
        # Resource nodes and learners wait so long for a head that died before they end, and while
        # one lives on, no new head starts at its address.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
        # A learner that died restarts from its checkpoint; its core file is of no use.
        "RAY_DISABLE_MEMORY_MONITOR": "1",
        "RAY_memory_monitor_refresh_ms": "0",
    }


def head_argv(
    port: int, client_port: int, cpus: float, gpus: int, store_bytes: int, temporary: Path
) -> list[str]:
    """Return the command line of the head."""
    return [
        *_start(temporary, store_bytes),
        "--head",
        f"--port={port}",
        f"--num-cpus={int(cpus)}",
        f"--num-gpus={gpus}",
        "--include-dashboard=false",
        "--no-monitor",
        f"--ray-client-server-port={client_port}",
    ]


def node_argv(address: str, robots: Iterable[str], store_bytes: int, temporary: Path) -> list[str]:
    """Return the command line of the resource node of one edge host."""
    shown: Mapping[str, float] = {robot_resource(robot): 1.0 for robot in robots}
    return [
        *_start(temporary, store_bytes),
        f"--address={address}",
        "--num-cpus=0",
        "--num-gpus=0",
        f"--resources={json.dumps(shown)}",
    ]


def _start(temporary: Path, store_bytes: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "user_system.cluster.ray_node",
        "start",
        "--block",
        "--disable-usage-stats",
        f"--node-ip-address={LOOPBACK}",
        f"--object-store-memory={store_bytes}",
        f"--temp-dir={temporary}",
        "--include-log-monitor=false",
        "--log-color=false",
    ]
