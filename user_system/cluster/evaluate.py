"""Judging weights of a run on fresh starts: its robots and tasks, without learners or people.

Robots of other machines are judged too. Their hosts know one head, so an evaluation takes its place
while the run is down: with its keys, at its addresses. They notice that what they are to run has
changed, follow, and go back to the run when that is up again. What they record meanwhile lies
apart on their disks, and the evaluation's episodes have names of its own, so that neither side is
ever given the other's.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from user_system.cluster import auditing, census, runs, up
from user_system.cluster.compose import Composer
from user_system.cluster.configs import HubHostConfig
from user_system.cluster.layout import RunDir
from user_system.cluster.manifest import Manifest, load_manifest
from user_system.cluster.parse import read_json
from user_system.cluster.ports import Ports
from user_system.core.clock import WallClock
from user_system.core.deeds import Deed
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
        ConfigError: there is no such run or version; or it is up, and has robots of other machines.
    """
    source = up.resumed(run, settings)
    manifest = load_manifest(Path(source.file), source.settings)
    if manifest.remote_hosts:
        _check_down(run, manifest)
    stored = run / "hub" / "weights"
    if not stored.is_dir():
        raise ConfigError(f"{run} has no weights yet", todo="Let it learn first.")
    root = _next(run / "eval")
    page = manifest.teleop if manifest.remote_hosts else replace(manifest.teleop, port=0)
    # A host that was cut off reports late: what it says of one evaluation is none of another's.
    name = f"{manifest.name}-eval-{root.name}"
    manifest = replace(manifest, name=name, operators={}, teleop=page)
    checked = up.check(manifest, root)
    if manifest.remote_hosts:
        _check_address(run, manifest, checked[0])
    shutil.copytree(stored, root / "hub" / "weights")
    try:
        chosen = _choose(root / "hub" / "weights", manifest, version or _frozen(run))
    except ConfigError:
        shutil.rmtree(root)
        raise
    if manifest.remote_hosts:
        (root / "pki").symlink_to(Path("..", "..", "pki"))
    rule = replace(
        manifest.schedule,
        judge_version=chosen,
        final_episodes=episodes,
        seed=seed,
        stop_when_done=True,
    )
    prepared = up.make(replace(manifest, schedule=rule), root, checked, learning=False)
    auditing.note(
        prepared.run.pki,
        Deed.SETTINGS,
        file=source.file,
        settings=" ".join(source.settings),
        how=f"judged, version {chosen}",
    )
    up.open_tunnel(prepared)
    return prepared


def _check_down(run: Path, manifest: Manifest) -> None:
    """Check that the robots of other machines are free.

    Raises:
        ConfigError: they work for the run.
    """
    record = census.read_record(run)
    if record is not None and runs.Found(run, record).alive:
        raise ConfigError(
            f"run {run} is up, and its robots on other machines work for it",
            got=", ".join(manifest.remote_hosts),
            todo=f"End it first: user-system down {run}, and afterwards: user-system up --resume "
            f"{run}. To judge while it learns, see schedule.eval_episodes.",
        )


def _check_address(run: Path, manifest: Manifest, found: Ports) -> None:
    """Check that robot hosts will find the evaluation where they look for their head.

    Raises:
        ConfigError: its hub would be elsewhere.
    """
    told = read_json(run / "config" / "hub.json", HubHostConfig).join_facts
    nowhere = RunDir(run, run)
    facts = Composer(manifest, nowhere, found, cores=(), learning=False).join_facts
    if told is not None and (told.hub, told.kind) != (facts.hub, facts.kind):
        raise ConfigError(
            "robot hosts look for their head elsewhere",
            got=f"{facts.hub} ({facts.kind})",
            allowed=f"{told.hub} ({told.kind})",
            todo="Give the manifest fixed ports (tunnel.hub_port), or --set what the run had.",
        )


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
