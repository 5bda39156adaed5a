"""What a run consists of: processes, what each is told, and the table that a person reads."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from user_system.cluster.launch import ProcessSpec
from user_system.cluster.parse import dump
from user_system.cluster.process import write_private

COLUMNS = ("process", "host", "what", "robots", "CPUs", "ports")


@dataclass(frozen=True)
class Process:
    """One process: how to start it, what it is told, and what a person should know of it."""

    spec: ProcessSpec
    config: Any
    """Its config dataclass; None for programs that are not ours."""
    host: str
    what: str
    robots: tuple[str, ...] = ()
    cpus: float = 0.0
    ports: tuple[int, ...] = ()
    children: tuple["Process", ...] = ()
    """Processes that it starts and keeps running itself."""
    remote: bool = False
    """Whether it runs on another machine, which starts it itself."""


def everything(processes: Iterable[Process]) -> list[Process]:
    """Return processes and what they start themselves."""
    return [p for process in processes for p in (process, *process.children)]


def write_configs(processes: Iterable[Process]) -> None:
    """Write the per-process files."""
    for process in everything(processes):
        if process.config is not None:
            write_private(Path(process.spec.argv[3]), json.dumps(dump(process.config), indent=1))


def rows(processes: Iterable[Process]) -> list[tuple[str, ...]]:
    """Return what ``user-system plan`` prints: ``COLUMNS`` of each process, children indented."""
    return [
        (
            process.spec.name if process is parent else f"  {process.spec.name}",
            f"{process.host} (remote)" if process.remote else process.host,
            process.what,
            ", ".join(process.robots),
            f"{process.cpus:g}" if process.cpus else "",
            ", ".join(map(str, process.ports)),
        )
        for parent in processes
        for process in (parent, *parent.children)
    ]
