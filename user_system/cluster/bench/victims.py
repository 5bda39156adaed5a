"""The processes of a run by kind, found without any help of theirs, and their end."""

import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path

import psutil

from user_system.cluster.bench.system import System

KINDS = ("policy worker", "learner", "driver", "teleop", "hub", "replay", "agent", "ray head")
"""Kinds of processes that a run must survive the death of, in the order in which they die."""

_MODULES = {"policy worker": "worker_host", "driver": "driver_host", "agent": "edge_host"}
_NAMES = {"teleop": "teleop", "hub": "hub", "replay": "replay"}
_ACTOR = "ray::LearnerActor"
_RAY = "ray"


def find(system: System, kind: str) -> list[psutil.Process]:
    """Return the living processes of a kind; those of the Ray head are several that die together.

    Of robots' drivers, the first one's.
    """
    if kind == "ray head":
        return _head(system)
    if kind in _NAMES:
        return _named(system, _NAMES[kind])
    wanted = _ACTOR if kind == "learner" else f"user_system.cluster.{_MODULES[kind]}"
    found = [p for p in system.processes() if any(wanted in word for word in _words(p))]
    return sorted(found, key=lambda process: _words(process)[-1])[:1]


def name(process: psutil.Process) -> str:
    """Return what to call a process in a report: its config's name, or its own title."""
    words = _words(process) or [str(process.pid)]
    own = [word for word in words if word.endswith(".json")]
    return Path(own[-1]).stem if own else Path(words[0]).name


def kill(processes: Sequence[psutil.Process]) -> None:
    """Send SIGKILL to all of them, at once; psutil compares creation times."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    psutil.wait_procs(list(processes), timeout=10.0)


def _head(system: System) -> list[psutil.Process]:
    """Return the launcher's child, the control store and the raylet: all that is the head."""
    found = _named(system, _RAY)
    children = [child for process in found for child in process.children(recursive=True)]
    return found + [c for c in children if _program(c) in {"gcs_server", "raylet"}]


def _named(system: System, process: str) -> list[psutil.Process]:
    record = system.record
    pid = record.processes.get(process) if record is not None else None
    if pid is None:
        return []
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(pid)
        if found.status() != psutil.STATUS_ZOMBIE:
            return [found]
    return []


def _words(process: psutil.Process) -> list[str]:
    try:
        return [word for word in process.cmdline() if word]  # a set title leaves empty ones
    except psutil.Error:
        return []


def _program(process: psutil.Process) -> str:
    return Path((_words(process) or [""])[0]).name
