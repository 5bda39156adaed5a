"""What a machine must have before a run may start; everything missing is found at once."""

import ctypes.util
import getpass
import importlib.util
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from user_system.cluster import sshd_host
from user_system.cluster.manifest import Manifest
from user_system.cluster.tree import Problems
from user_system.core.errors import MissingError

PACKAGES = ("user_system", "robots", "learners", "comms")

_EXTRAS = {"ray": "head", "torch": "head", "fastapi": "head", "uvicorn": "head"}
_SIM_EXTRAS = {"mujoco": "sim"}
RENDERING = "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri"
"""What brings off-screen rendering."""
_SLACK_BYTES = 256 * 2**20
"""Logs, checkpoints and weights beside the replay buffer."""


@dataclass(frozen=True)
class Machine:
    """What is here."""

    cores: tuple[int, ...]
    """Numbers of the CPUs that may be used."""
    gpus: int
    free_bytes: int
    """On the disk of the run directory."""

    @property
    def cpus(self) -> int:
        """How many CPUs there are."""
        return len(self.cores)


def look(run: Path) -> Machine:
    """Return what this machine has."""
    place = run.absolute()
    while not place.exists():
        place = place.parent
    gpus = Path("/proc/driver/nvidia/gpus")
    return Machine(
        cores=tuple(sorted(os.sched_getaffinity(0))),
        gpus=len(list(gpus.iterdir())) if gpus.is_dir() else 0,
        free_bytes=shutil.disk_usage(place).free,
    )


def check(manifest: Manifest, machine: Machine, problems: Problems) -> None:
    """Note what the manifest asks and the machine lacks."""
    _check_compute(manifest, machine, problems)
    _check_disk(manifest, machine, problems)
    _check_packages(manifest, problems)
    _check_sshd(manifest, problems)
    if cameras_of(manifest) and not can_render():
        problems.add(
            "",
            "robots",
            "pictures are asked for, and this machine has no off-screen rendering",
            allowed="EGL",
            todo=f"Install it: {RENDERING}, or ask for no cameras and no previews.",
        )


def _check_compute(manifest: Manifest, machine: Machine, problems: Problems) -> None:
    offered = manifest.ray.cpus if manifest.ray.cpus is not None else machine.cpus
    learners, actors = manifest.learners.values(), manifest.away.values()
    gpus = sum(entry.gpus for entry in actors)
    for section, what, asked, has in (
        ("learners", "cpus", sum(entry.cpus for entry in learners), offered),
        ("actors", "cpus", sum(entry.cpus for entry in actors), machine.cpus),
        ("actors", "gpus", gpus, machine.gpus),
        ("learners", "gpus", sum(entry.gpus for entry in learners), max(0, machine.gpus - gpus)),
    ):
        if asked > has:
            problems.add(
                "",
                f"{section}.*.{what}",
                "more asked than the machine has",
                got=f"{asked:g}",
                allowed=f"at most {has:g} together",
                todo=f"Lower {section}.<name>.{what}.",
            )


def _check_disk(manifest: Manifest, machine: Machine, problems: Problems) -> None:
    needed = manifest.replay.reserve_bytes + _SLACK_BYTES
    if machine.free_bytes < needed:
        problems.add(
            "",
            "run_dir",
            f"not enough space for {manifest.run}",
            got=f"{machine.free_bytes / 2**30:.2f} GiB free",
            allowed=f"at least {needed / 2**30:.2f} GiB",
            todo="Make space, or choose another disk with --set run_dir=PATH.",
        )


def _check_packages(manifest: Manifest, problems: Problems) -> None:
    wanted = dict(_EXTRAS)
    if any(robot.kind.startswith("sim.") for robot in manifest.robots.values()):
        wanted |= _SIM_EXTRAS
    for module, extra in wanted.items():
        if importlib.util.find_spec(module) is None:
            todo = f"Install it: pip install 'user-system[{extra}]'."
            problems.add("", "", f"Python package {module} is missing", todo=todo)


def _check_sshd(manifest: Manifest, problems: Problems) -> None:
    way = manifest.tunnel.ssh
    if not manifest.own_sshd:
        return
    try:
        sshd_host.program()
    except MissingError as error:
        problems.add("", "tunnel.ssh.host_key", error.what, todo=error.todo)
    if way.user not in (None, getpass.getuser()):
        problems.add(
            "",
            "tunnel.ssh.user",
            "an sshd of the run's own lets in who runs it, and nobody else",
            got=way.user,
            allowed=getpass.getuser(),
            todo="Leave it out, or give the host_key of the machine's own sshd.",
        )


def cameras_of(manifest: Manifest) -> list[str]:
    """Return the simulated robots of this machine that ask for rendered pictures."""
    return [
        name
        for name, robot in manifest.robots.items()
        if robot.kind.startswith("sim.")
        and not manifest.is_remote(robot.host)
        and (robot.previews or getattr(robot.config, "cameras", None))
    ]


def can_render() -> bool:
    """Whether a library for off-screen rendering is installed."""
    return ctypes.util.find_library("EGL") is not None


def check_packages(names: Sequence[str] = PACKAGES) -> None:
    """Check that our packages come from one place: a script's folder may hide one of them.

    Raises:
        MissingError: naming the intruder.
    """
    origins = {}
    for name in names:
        spec = importlib.util.find_spec(name)
        if spec is None or not spec.origin:
            raise MissingError(f"package {name} is not installed", todo="pip install user-system")
        origins[name] = Path(spec.origin).parent
    parent = origins[names[0]].parent
    for name, origin in origins.items():
        if origin.parent != parent:
            raise MissingError(
                f"package {name} is not ours",
                got=origin,
                allowed=parent / name,
                todo="Run from another directory, or set PYTHONSAFEPATH=1.",
            )
