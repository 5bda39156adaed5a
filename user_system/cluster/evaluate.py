"""Judging weights of a run on fresh starts: its robots and tasks, without learners or people."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from user_system.cluster import up
from user_system.cluster.manifest import Manifest, load_manifest
from user_system.core.clock import WallClock
from user_system.core.errors import ConfigError
from user_system.hub.weight_store import WeightStore


def prepare(
    run: Path, *, version: int, episodes: int, seed: int, settings: Sequence[str] = ()
) -> up.Prepared:
    """Prepare a run in ``RUN/eval/<number>`` that judges weights of ``run``, and nothing else.

    Args:
        run: directory of the run that has the weights; it may be up.
        version: which; 0: the frozen one, or the newest where none was frozen.
        episodes: how many starts.
        seed: names them.
        settings: further overrides of the manifest.

    Raises:
        ConfigError: there is no such run or version.
    """
    source = up.resumed(run, settings)
    manifest = load_manifest(Path(source.file), source.settings)
    if manifest.remote_hosts:
        raise ConfigError(
            "robots of other machines are judged in the run itself",
            got=", ".join(manifest.remote_hosts),
            todo="See schedule.eval_episodes and schedule.final_episodes.",
        )
    stored = run / "hub" / "weights"
    if not stored.is_dir():
        raise ConfigError(f"{run} has no weights yet", todo="Let it learn first.")
    root = _next(run / "eval")
    manifest = replace(
        manifest,
        name=f"{manifest.name}-eval",
        operators={},
        teleop=replace(manifest.teleop, port=0),
    )
    checked = up.check(manifest, root)
    shutil.copytree(stored, root / "hub" / "weights")
    try:
        chosen = _choose(root / "hub" / "weights", manifest, version or _frozen(run))
    except ConfigError:
        shutil.rmtree(root)
        raise
    rule = replace(
        manifest.schedule,
        judge_version=chosen,
        final_episodes=episodes,
        seed=seed,
        stop_when_done=True,
    )
    return up.make(replace(manifest, schedule=rule), root, checked, learning=False)


def _next(folder: Path) -> Path:
    number = 1
    while (root := folder / str(number)).exists():
        number += 1
    return root


def _frozen(run: Path) -> int:
    """Return the version that a run froze; 0 where it did not."""
    path = run / "report.json"
    if not path.exists():
        return 0
    return int(json.loads(path.read_text())["freeze"].get("version", 0))


def _choose(directory: Path, manifest: Manifest, version: int) -> int:
    store = WeightStore(directory, WallClock())
    store.open()
    for policy in manifest.learners:
        if (found := version or store.newest(policy)) and store.get(policy, found) is not None:
            return found
    raise ConfigError(
        f"there are no weights of version {version}" if version else "there are no weights yet",
        todo="Leave --version out for the frozen or newest one.",
    )
