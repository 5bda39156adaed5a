"""What the scripts say on machines that lack something; commands of the system are played."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [p for p in sorted((ROOT / "scripts").iterdir()) if p.is_file() and not p.suffix]
SCRIPTS += [ROOT / ".ci" / "run"]


class Machine:
    """A folder of commands that come before the real ones."""

    def __init__(self, folder: Path):
        self.folder = folder

    def has(self, command: str, script: str) -> None:
        path = self.folder / command
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self, *argv: str, cwd: Path = ROOT, **env: str) -> "subprocess.CompletedProcess[str]":
        path = f"{self.folder}:{os.environ['PATH']}"
        return subprocess.run(
            argv, cwd=cwd, env={**os.environ, "PATH": path, **env}, capture_output=True, text=True
        )


@pytest.fixture
def machine(tmp_path):
    """A Debian without the rendering packages, where sudo asks for a password."""
    folder = tmp_path / "bin"
    folder.mkdir()
    machine = Machine(folder)
    machine.has("dpkg-query", "echo unknown ok not-installed")
    machine.has("id", "echo 1000")
    machine.has("sudo", "exit 1")
    machine.has("apt-get", "echo apt-get called; exit 99")
    return machine


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_run(path):
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", path], check=True)


def test_help_lists_every_target():
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True)
    for target in ("demo", "test", "check", "bench", "venv", "system", "clean", "chaos", "nat"):
        assert f"make {target} " in done.stdout


def test_system_names_the_command_where_it_may_not_install(machine):
    done = machine.run("scripts/system")
    assert done.returncode == 0
    assert "run: sudo apt-get install -y --no-install-recommends libegl1" in done.stderr
    assert "apt-get called" not in done.stdout + done.stderr


def test_system_installs_where_it_may(machine, tmp_path):
    machine.has("id", "echo 0")
    machine.has("apt-get", f'echo "$DEBIAN_FRONTEND $*" >> {tmp_path}/calls')
    assert machine.run("scripts/system").returncode == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0].startswith("noninteractive update")
    assert "noninteractive install" in calls[1]
    assert "libegl-mesa0" in calls[1]


def test_system_installs_what_tests_need_only_for_tests(machine):
    assert "iptables" not in machine.run("scripts/system").stderr
    assert "iproute2 iptables" in machine.run("scripts/system", "--tests").stderr


def test_system_goes_on_when_installing_fails(machine):
    machine.has("id", "echo 0")
    done = machine.run("scripts/system")
    assert done.returncode == 0
    assert "could not install libegl1" in done.stderr


def test_system_is_quiet_when_all_is_there(machine):
    machine.has("dpkg-query", "echo install ok installed")
    done = machine.run("scripts/system")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def checkout(tmp_path):
    """A checkout without .venv."""
    folder = tmp_path / "checkout"
    (folder / "scripts").mkdir(parents=True)
    for name in ("scripts/venv", "pyproject.toml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
        (folder / name).chmod(0o755)
    return folder


def test_venv_says_which_python_it_needs(machine, checkout):
    done = machine.run("scripts/venv", cwd=checkout, PYTHON="/nonexistent/python")
    assert done.returncode == 2
    assert "no Python >= 3.11" in done.stderr
    assert "apt-get install" in done.stderr


def test_venv_names_the_package_that_debian_splits_off(machine, checkout):
    machine.has(
        "bare-python", f'case "$*" in *ensurepip*) exit 1;; esac\nexec {sys.executable} "$@"'
    )
    done = machine.run("scripts/venv", cwd=checkout, PYTHON="bare-python")
    assert done.returncode == 2
    assert "no ensurepip" in done.stderr
    assert "run: apt-get install python3" in done.stderr
    assert not (checkout / ".venv").exists()


def test_check_names_what_failed(machine, tmp_path):
    """One failing step must not hide the others, nor pass."""
    folder = tmp_path / "checkout"
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / "scripts").mkdir()
    for name, status in {"ruff": 0, "mypy": 1, "lint-imports": 1, "python": 0}.items():
        tool = folder / ".venv" / "bin" / name
        tool.write_text(f"#!/bin/sh\nexit {status}\n")
        tool.chmod(0o755)
    for name, text in {
        "check": (ROOT / "scripts/check").read_text(),
        "proto": "#!/bin/sh\n",
    }.items():
        (folder / "scripts" / name).write_text(text)
        (folder / "scripts" / name).chmod(0o755)
    done = machine.run("scripts/check", cwd=folder)
    assert done.returncode == 1
    assert done.stderr.strip() == "check: FAILED: types layers"
    assert done.stdout.count(" ok ") == 4
