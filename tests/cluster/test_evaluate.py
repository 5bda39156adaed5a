"""Judging robots of other machines: the evaluation takes the place of a run that is down."""

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from user_system.cluster import census, evaluate, up
from user_system.codec import weights as codec
from user_system.core.clock import WallClock
from user_system.core.errors import ConfigError
from user_system.core.ports import Manifest, TensorEntry
from user_system.hub.weight_store import WeightStore

MANIFEST = """\
name: lab
robots:
  arm-1: {kind: gymnasium, task: swing, actor: swing, host: lab-1, config: {env: Pendulum-v1}}
tasks: {swing: {kind: gymnasium, config: {max_steps: 40}}}
hosts: {lab-1: {remote: true}}
learners: {rlpd: {kind: rlpd, config: {hidden: [32], mix: {online: 1.0}}}}
actors: {swing: {learner: rlpd}}
"""
REMOTE_EDGE = "config/setups/lab-1.json"


def publish(directory: Path) -> None:
    """Put one version of a policy into a store, as a learner's tensors would come."""
    tensors = {"w": np.ones((2, 2), np.float32)}
    rows = codec.entries({"policy": tensors})
    entries = tuple(TensorEntry(*row) for row in rows)
    store = WeightStore(directory, WallClock())
    store.open()
    manifest = Manifest("rlpd", 0, codec.entries_hash(rows), entries, notes={})
    upload, missing = store.offer(manifest)
    for tensor in missing:
        data = tensors["w"].tobytes()
        store.put(upload, tensor, 0, len(data), data)
    store.commit(upload)
    store.close()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run that has weights, and is down."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    file = tmp_path / "lab.yaml"
    file.write_text(MANIFEST)
    places = (f"run_dir={tmp_path / 'run'}", f"tunnel.hub_port={port}")
    rest = ("tunnel.fresh_port=0", "tunnel.replay_port=0", "teleop.port=0")
    made = up.prepare(up.Source(str(file), (*places, *rest)))
    publish(made.run.weights)
    return made.run.root


def edge(root: Path) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads((root / REMOTE_EDGE).read_text())
    return plain["configs"]["edge-lab-1"]


def test_hosts_find_the_evaluation_where_their_head_was(run: Path) -> None:
    made = evaluate.prepare(run, version=0, episodes=3, seed=1)
    root = made.run.root
    assert root == run / "eval" / "1"
    assert (root / "pki").resolve() == run / "pki", "they know one authority"
    before, now = edge(run), edge(root)
    assert now["link"]["hub"] == before["link"]["hub"]
    assert made.manifest.schedule.judge_version == 1
    assert "judged, version 1" in (run / "pki" / "deeds.jsonl").read_text()


def test_neither_records_into_the_other(run: Path) -> None:
    evaluate.prepare(run, version=0, episodes=3, seed=1)
    before, now = edge(run), edge(run / "eval" / "1")
    assert before["apart"] is None
    assert now["apart"] == "edge/lab-1/eval"
    # Tokens, whom robots wait for, latched faults and the local stop stay where they are.
    assert now["directory"] == before["directory"] == "edge/lab-1"
    again = evaluate.prepare(run, version=0, episodes=3, seed=1)
    runs_of = [before["run"], now["run"], again.manifest.name]
    assert runs_of == ["lab", "lab-eval-1", "lab-eval-2"], "episodes are named after them"


def test_a_run_that_is_up_keeps_its_robots(run: Path) -> None:
    me = psutil.Process()
    census.Record("mark", me.pid, me.create_time()).write(run)
    with pytest.raises(ConfigError, match=r"is up, and its robots.*(?s:.*)user-system down"):
        evaluate.prepare(run, version=0, episodes=3, seed=1)
    assert not (run / "eval").exists()


def test_hosts_that_would_look_elsewhere_are_named(run: Path) -> None:
    with pytest.raises(ConfigError, match="look for their head elsewhere"):
        evaluate.prepare(run, version=0, episodes=3, seed=1, settings=["tunnel.hub_port=0"])
    assert not (run / "eval").exists()


def test_a_version_that_is_not_kept_leaves_nothing_behind(run: Path) -> None:
    with pytest.raises(ConfigError, match="no weights of version 7"):
        evaluate.prepare(run, version=7, episodes=3, seed=1)
    assert not list((run / "eval").iterdir())
    assert (run / "pki" / "ca.crt").exists()
