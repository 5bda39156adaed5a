"""What remains of a run for people: ``report.json`` and the learning curve."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from user_system.cluster.status import View
from user_system.core.errors import StoreError
from user_system.core.types import Purpose

PACKAGES = ("user-system", "ray", "torch", "mujoco", "numpy", "grpcio", "pyzmq", "lmdb")


def make(view: View, journal: Sequence[Mapping[str, Any]], *, seed: int, wall_s: float) -> Any:
    """Return the report of a run.

    Args:
        view: the last look at it.
        journal: one entry per episode, see ``user_system.hub.schedule.read_journal``.
        seed: of the schedule.
        wall_s: since the command was given, start-up included.
    """
    figures = view.figures
    train = [e for e in journal if e.get("purpose") == Purpose.TRAIN]
    steps = sum(e.get("steps", 0) for e in train)
    return {
        "run": view.run,
        "phase": view.phase,
        "seed": seed,
        "success_rate": figures.get("final_success", figures.get("success_rate", 0.0)),
        "episodes": int(figures.get("episodes", len(journal))),
        "env_steps": int(figures.get("env_steps", 0)),
        "wall_s": wall_s,
        "intervention_rate": sum(e.get("human_steps", 0) for e in train) / max(steps, 1),
        "freeze": {
            key.removeprefix("freeze_"): value
            for key, value in figures.items()
            if key.startswith("freeze_")
        },
        "evaluations": list(view.evaluations),
        "figures": dict(sorted(figures.items())),
        "robots": {r.name: dict(sorted(r.figures.items())) for r in view.robots},
        "audit": {"records": view.audit_records, "head": view.audit_head},
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return what ran: Python, the system, and the packages that matter."""
    found = {"python": platform.python_version(), "machine": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def write(run: Path, report: Mapping[str, Any]) -> Path:
    """Write ``report.json``; return its path."""
    path = run / "report.json"
    try:
        path.write_text(json.dumps(report, indent=1) + "\n")
    except OSError as error:
        raise StoreError(f"cannot write {path}", got=error.strerror) from error
    return path


def draw(
    run: Path, journal: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, float]]
) -> Path:
    """Draw success and help over env steps; return the picture's path."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    steps = [entry["env_steps"] for entry in journal]
    axes.plot(steps, [e["success_rate"] for e in journal], label="success without help, last 20")
    axes.plot(steps, [e["intervention_rate"] for e in journal], label="steps driven by people")
    axes.plot(
        [e["env_steps"] for e in evaluations],
        [e["successes"] / max(e["episodes"], 1) for e in evaluations],
        "ko",
        label="evaluations",
    )
    axes.set(xlabel="env steps (0.1 s of robot time each)", ylabel="share", ylim=(-0.03, 1.03))
    axes.legend(loc="center right")
    axes.grid(alpha=0.3)
    path = run / "learning_curve.png"
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path
