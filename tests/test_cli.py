"""What a person types and reads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from user_system import cli
from user_system.cluster import census

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "deploy" / "demo.yaml"


def call(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "user_system.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=cwd,
        check=False,
    )


def run_main(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["user-system", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_help_names_every_command() -> None:
    done = call("--help")
    assert done.returncode == 0
    for name in ("up", "plan", "status", "down", "plugins", "robots", "doctor", "bench", "replay"):
        assert f"  {name} " in done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom user_system import cli\nsys.argv = ['user-system', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'ray', 'grpc', 'zmq', 'fastapi', 'mujoco', 'lmdb', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_plan_prints_what_would_run_where(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, "plan", str(DEMO), "--set", "teleop.port=0") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["process", "host", "what", "robots", "CPUs", "ports"]
    names = [line.split()[0] for line in lines[1:]]
    assert names == [
        "ray", "hub", "replay", "resources-local", "world-arm-1", "world-arm-2", "edge-local",
        "driver-arm-1", "driver-arm-2", "worker-local-pick", "learner-rlpd", "teleop",
        "operator-script",
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == [], "a plan leaves nothing behind"


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("learners.rlpd.cpus=999", "learners.*.cpus: more asked than the machine has; got 999"),
        ("learners.rlpd.gpus=999", "learners.*.gpus: more asked than the machine has; got 999"),
        ("replay.reserve=900000GiB", "run_dir: not enough space for runs/demo"),
        ("learners.rlpd.config.utdd=4", "--set learners.rlpd.config.utdd: learners.rlpd.config.ut"),
        ("robots.arm-1.kind=sim.frank", "--set robots.arm-1.kind: robots.arm-1.kind: no robots "),
    ],
)
def test_bad_input_is_one_line_and_status_2(monkeypatch, capsys, tmp_path, setting, line) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, "up", str(DEMO), "--set", "teleop.port=0", "--set", setting) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {line}")
    assert list(tmp_path.iterdir()) == [], "nothing was started or written"


def test_a_port_in_use_is_named_with_its_user(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    code = (
        "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); "
        "print(s.getsockname()[1], flush=True); import time; time.sleep(600)"
    )
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        port = holder.stdout.readline().strip()
        status = run_main(monkeypatch, "up", str(DEMO), "--set", f"teleop.port={port}")
        holder.kill()
    assert status == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: teleop.port: port {port} of 127.0.0.1 cannot be used; got proc")
    assert f"process {holder.pid}" in line
    assert line.endswith("or take any free port with --set teleop.port=0.")


def test_no_rendering_is_one_line(monkeypatch, capsys, tmp_path) -> None:
    from user_system.cluster import machine

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "can_render", lambda: False)
    setting = "robots.arm-1.config.cameras=[front]"
    assert run_main(monkeypatch, "plan", str(DEMO), "--set", "teleop.port=0", "--set", setting) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: robots: pictures are asked for, and this machine has no off-scre"
    )
    assert "apt-get install" in line


def test_a_missing_package_is_one_line(monkeypatch, capsys, tmp_path) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "mujoco" else real(name, *a)
    )
    assert run_main(monkeypatch, "plan", str(DEMO), "--set", "teleop.port=0") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        "error: Python package mujoco is missing. Install it: pip install 'user-system[sim]'."
    )


def test_up_needs_a_manifest_or_a_run(monkeypatch, capsys) -> None:
    assert run_main(monkeypatch, "up") == 2
    assert "name a manifest, or a run with --resume" in capsys.readouterr().err
    assert run_main(monkeypatch, "up", "--resume", "/nowhere") == 2
    assert "/nowhere is not a run" in capsys.readouterr().err


def test_without_a_run_nothing_can_be_asked(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["status"], ["down"], ["robots", "list"]):
        assert run_main(monkeypatch, *command) == 2
        assert "no run is up" in capsys.readouterr().err


def test_down_ends_a_run_whose_launcher_was_killed(monkeypatch, capsys, tmp_path) -> None:
    mark = f"orphan-{tmp_path}"
    orphan = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"],
        env={**os.environ, census.MARK: mark},
    )
    run = tmp_path / "runs" / "lab"
    run.mkdir(parents=True)
    short = tmp_path / "short"
    short.mkdir()
    census.Record(mark, 2**22 - 1, 0.0, {"one": orphan.pid}, temporary=str(short)).write(run)
    monkeypatch.chdir(tmp_path)
    try:
        assert run_main(monkeypatch, "up", str(DEMO), "--set", "run_dir=runs/lab") == 2
        assert "run runs/lab is up already" in capsys.readouterr().err
        assert run_main(monkeypatch, "down") == 0
        assert capsys.readouterr().out == "runs/lab is down; 1 processes had lost their launcher\n"
        assert orphan.poll() is not None
        assert census.read_record(run) is None
        assert not short.exists()
    finally:
        orphan.kill()
        orphan.wait()


def test_plugins_list(monkeypatch, capsys) -> None:
    assert run_main(monkeypatch, "plugins", "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"group": "learners", "name": "rlpd", "object": "learners.rlpd:plugin",
            "package": "user-system"} in listed  # fmt: skip


def test_doctor_says_what_to_do(monkeypatch, capsys) -> None:
    from user_system.cluster import machine

    monkeypatch.setattr(machine, "can_render", lambda: False)
    assert run_main(monkeypatch, "doctor", "--json") == 2
    findings = {f["what"]: f for f in json.loads(capsys.readouterr().out)}
    assert findings["Python"]["ok"]
    assert not findings["off-screen rendering"]["ok"]
    assert "apt-get install" in findings["off-screen rendering"]["todo"]


def test_what_a_dead_start_left_is_tidied_up_by_the_next(tmp_path) -> None:
    from user_system.cluster import runs

    short = tmp_path / "short"
    short.mkdir()
    census.Record(f"dead-{tmp_path}", 2**22 - 1, 0.0, temporary=str(short)).write(tmp_path)
    runs.check_free(tmp_path)
    assert not short.exists()
    assert census.read_record(tmp_path) is None
