"""The unit of a robot host: what systemd is told, and that it can read it."""

import shutil
import socket
import subprocess
import sys

import pytest

from user_system.cluster import systemd


@pytest.fixture(params=["root", "user"])
def unit(request, monkeypatch, tmp_path) -> str:
    monkeypatch.setattr(systemd, "as_root", lambda: request.param == "root")
    return systemd.unit("lab-1", tmp_path / "a place" / "lab-1")


def options(unit: str) -> dict[str, str]:
    pairs = [line.partition("=") for line in unit.splitlines() if "=" in line]
    return {key: value for key, _, value in pairs if not key.startswith("#")}


def test_it_is_kept_alive_and_ended_in_order(unit) -> None:
    found = options(unit)
    assert found["Restart"] == "always"
    assert found["Type"] == "notify"
    assert found["SuccessExitStatus"] == "143", "a host that was stopped has not failed"
    assert int(found["WatchdogSec"]) == systemd.WATCHDOG_S
    assert found["KillMode"] == "mixed", "drivers are ended by their agent, robots at rest first"
    assert found["StartLimitIntervalSec"] == "0", "a head may be away for a week"


def test_it_runs_this_installation(unit, tmp_path) -> None:
    command = options(unit)["ExecStart"]
    assert command.startswith(f"{sys.executable} -m user_system.cli edge run ")
    assert command.endswith(f"'{tmp_path}/a place/lab-1'"), "quoted"


def test_nothing_that_takes_robots_or_shared_memory_away(unit) -> None:
    found = options(unit)
    assert found["NoNewPrivileges"] == "yes"
    for taken in (
        "PrivateDevices", "DevicePolicy", "ProtectClock", "RestrictRealtime", "PrivateIPC",
        "MemoryDenyWriteExecute", "PrivateTmp", "PrivateNetwork", "SystemCallFilter", "MemoryMax",
    ):  # fmt: skip
        assert taken not in found
    assert int(found["LimitRTPRIO"]) >= 20, "drivers ask for SCHED_FIFO 20"


def test_only_root_gets_mount_namespaces(unit, tmp_path) -> None:
    found = options(unit)
    if systemd.as_root():
        assert found["ProtectSystem"] == "strict"
        assert f"'{tmp_path}/a place/lab-1'" in found["ReadWritePaths"]
        assert found["WantedBy"] == "multi-user.target"
    else:
        assert not {"ProtectSystem", "ReadWritePaths", "ProtectHome"} & found.keys()
        assert found["WantedBy"] == "default.target"


def test_signs_of_a_shell_or_of_systemd_mean_nothing(monkeypatch, tmp_path) -> None:
    text = systemd.unit("lab-1", tmp_path / "50%i $HOME")
    assert "50%%i $$HOME" in options(text)["ExecStart"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_can_read_it(unit, tmp_path) -> None:
    path = tmp_path / "user-system-edge-lab-1.service"
    path.write_text(unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)],
        capture_output=True, text=True, check=False, timeout=60.0,
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if path.name in line]
    assert said == [], said
    if done.returncode:  # it said nothing of this unit, so it is this machine
        pytest.skip(f"systemd cannot run here: {done.stderr.strip()[-200:]}")


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(monkeypatch, tmp_path, abstract) -> None:
    address = f"@us-{tmp_path.name}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        manager.settimeout(10.0)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        systemd.tell("READY=1", "STATUS=live: arm-1")
        assert manager.recv(1000) == b"READY=1\nSTATUS=live: arm-1"


def test_without_systemd_nobody_is_told(monkeypatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    systemd.tell("READY=1")
