"""What is wrong with this machine, each finding with the line that mends it."""

import importlib.metadata
import importlib.util
import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from user_system.cluster import machine, runs, tunnel_doctor
from user_system.cluster.finding import Finding
from user_system.core.errors import UserSystemError
from user_system.core.registry import GROUPS, Registry

_MODULES = {
    "ray": "head",
    "torch": "head",
    "fastapi": "head",
    "matplotlib": "head",
    "mujoco": "sim",
}


CONGESTION = Path("/proc/sys/net/ipv4/tcp_congestion_control")


def examine() -> list[Finding]:
    """Look at everything that a run on this machine depends on."""
    return [finding for look in _LOOKS for finding in look()]


def _python() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    ok = sys.version_info >= (3, 11)
    yield Finding("Python", version, ok, "" if ok else "Install Python 3.11 or newer.")


def _packages() -> Iterator[Finding]:
    try:
        machine.check_packages()
        yield Finding("our packages", "of one place", True)
    except UserSystemError as error:
        yield Finding("our packages", error.what, False, error.todo)
    for module, extra in _MODULES.items():
        there = importlib.util.find_spec(module) is not None
        found = importlib.metadata.version(module) if there else "missing"
        todo = "" if there else f"pip install 'user-system[{extra}]'"
        yield Finding(f"package {module}", found, there, todo)


def _plugins() -> Iterator[Finding]:
    for group in GROUPS:
        try:
            names = Registry[object](group).names()
            yield Finding(f"plugins: {group}", ", ".join(names) or "none", True)
        except UserSystemError as error:
            yield Finding(f"plugins: {group}", error.what, False, error.todo)


def _compute() -> Iterator[Finding]:
    here = machine.look(Path("runs"))
    yield Finding("CPUs", str(here.cpus), here.cpus >= 2, "" if here.cpus >= 2 else "Use two.")
    yield Finding("GPUs", str(here.gpus), True)
    ok = here.free_bytes > 2 * 2**30
    found = f"{here.free_bytes / 2**30:.1f} GiB"
    yield Finding("free disk", found, ok, "" if ok else "Make space; a run keeps 1 GiB free.")


def _rendering() -> Iterator[Finding]:
    ok = machine.can_render()
    todo = "" if ok else f"{machine.RENDERING} (only for pictures)"
    yield Finding("off-screen rendering", "yes" if ok else "no", ok, todo)


def _shared_memory() -> Iterator[Finding]:
    place = Path("/dev/shm")  # Ray's object store lies there
    free = shutil.disk_usage(place).free if place.is_dir() else 0
    ok = free > 200 * 2**20
    todo = "" if ok else "Give the container more: --shm-size=512m."
    yield Finding("shared memory", f"{free / 2**20:.0f} MiB", ok, todo)


def _sockets() -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(prefix="us-") as folder, socket.socket(socket.AF_UNIX) as made:
        try:
            made.bind(f"{folder}/probe")
            yield Finding("unix sockets", folder, True)
        except OSError as error:
            yield Finding("unix sockets", str(error), False, "Set TMPDIR to a local folder.")


def _realtime() -> Iterator[Finding]:
    # A better period for drivers; everything works without it.
    may = os.geteuid() == 0 or resource.getrlimit(resource.RLIMIT_RTPRIO)[0] > 0
    yield Finding("SCHED_FIFO", "permitted" if may else "no; drivers run as everybody", True)


def _congestion() -> Iterator[Finding]:
    # Whoever sends has it: a robot host its experience, the head its weights.
    if not CONGESTION.exists():
        return
    found = CONGESTION.read_text().strip()
    if found != "bbr":
        found += (
            "; over links that lose packets bbr carries many times as much: "
            "sysctl -w net.ipv4.tcp_congestion_control=bbr"
        )
    yield Finding("TCP congestion control", found, True)


def _runs() -> Iterator[Finding]:
    for run in runs.living():
        ok = run.record.launcher_alive
        todo = "" if ok else f"user-system down {run.root}"
        yield Finding(f"run {run.root}", "up" if ok else "its launcher was killed", ok, todo)
        if ok:
            yield from _way_in(run.root / "pki")


def _way_in(pki: Path) -> Iterator[Finding]:
    try:
        yield from tunnel_doctor.head(pki)
    except UserSystemError as error:
        yield Finding("tunnel", error.what, False, error.todo)


def _tunnels() -> Iterator[Finding]:
    yield from tunnel_doctor.programs()


_LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _packages,
    _plugins,
    _compute,
    _rendering,
    _shared_memory,
    _sockets,
    _realtime,
    _congestion,
    _tunnels,
    _runs,
)
