"""The agent's process: what it does with what lies in its directory before robots move."""

from pathlib import Path

from comms.authority import Authority
from comms.credentials import Role
from user_system.cluster import configs, dial, edge_host
from user_system.cluster.process import Life


class Idle:
    """An agent without robots."""

    def __init__(self, settings, spool, uplink):
        self.settings = settings

    def run(self) -> None: ...

    def close(self) -> None: ...

    def finish(self) -> None: ...

    def stop(self) -> None: ...


def start(root: Path, pki: Path) -> None:
    link = configs.LinkConfig("lab-1", pki, *["127.0.0.1:1"] * 3)
    edge_host.main(configs.EdgeHostConfig(link, "lab-1", "run", root, 1 << 20, (), ()), Life())


def test_weights_of_another_authoritys_head_are_forgotten(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(edge_host, "Agent", Idle)
    keys = []
    for name in ("before", "after"):
        authority = Authority.open(tmp_path / name)
        authority.issue("lab-1", Role.ROBOT)
        authority.issue("lab-1", Role.ROBOT, anew=True)
        keys.append(dial.authority_of(configs.LinkConfig("lab-1", tmp_path / name, "", "", "")))
        assert keys[-1] == authority.pin.hex(), "which no renewal changes"
    laid = tmp_path / "edge" / "weights" / "p" / "1.json"
    start(tmp_path / "edge", tmp_path / "before")
    laid.parent.mkdir()
    laid.touch()
    start(tmp_path / "edge", tmp_path / "before")
    assert laid.exists()
    start(tmp_path / "edge", tmp_path / "after")
    assert not laid.exists()
