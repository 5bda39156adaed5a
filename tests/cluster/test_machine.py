"""What a machine lacks is said before anything starts."""

import socket
from pathlib import Path

import pytest

from user_system.cluster import machine, ports
from user_system.cluster.manifest import load_manifest
from user_system.cluster.tree import Problems
from user_system.core.errors import MissingError

DEMO = Path(__file__).parents[2] / "deploy" / "demo.yaml"


def test_ports_are_free_and_all_different() -> None:
    problems = Problems()
    chosen = ports.choose(load_manifest(DEMO, ["teleop.port=0"]), problems)
    assert problems.lines == []
    own = {name: port for name, port in vars(chosen).items() if name != "policies"}
    assert len({*own.values()}) == len(own) > 5


def test_a_port_asked_twice_is_one_problem() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    problems = Problems()
    settings = [f"teleop.port={free}", f"tunnel.hub_port={free}"]
    ports.choose(load_manifest(DEMO, settings), problems)
    assert len(problems.lines) == 1
    assert problems.lines[0].startswith(
        f"teleop.port: port {free} of 127.0.0.1 cannot be used; got something else of this run"
    )


@pytest.mark.parametrize(
    ("here", "line"),
    [
        (machine.Machine((), 0, 2**40), "learners.*.cpus: more asked than the machine has; got 1"),
        (
            machine.Machine((0, 1), 0, 2**20),
            "run_dir: not enough space for runs/demo; got 0.00 GiB",
        ),
    ],
)
def test_lacks_are_named(here, line) -> None:
    problems = Problems()
    machine.check(load_manifest(DEMO), here, problems)
    assert len(problems.lines) == 1
    assert problems.lines[0].startswith(line)


def test_everything_missing_is_found_at_once() -> None:
    problems = Problems()
    manifest = load_manifest(DEMO, ["learners.rlpd.gpus=2"])
    machine.check(manifest, machine.Machine((), 0, 0), problems)
    assert len(problems.lines) == 3


def test_a_package_of_somebody_else_is_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "robots").mkdir()
    (tmp_path / "robots" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "robots", raising=False)
    with pytest.raises(MissingError, match=r"package robots is not ours.*PYTHONSAFEPATH"):
        machine.check_packages()


def test_our_packages_are_of_one_place() -> None:
    machine.check_packages()
