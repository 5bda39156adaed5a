"""A head, and a robot host that is a machine of its own: one line, and it works; whatever ends."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from comms.authority import Authority
from comms.credentials import Role
from comms.invitations import Invitations
from user_system.cluster import census, resident, runs, status
from user_system.cluster.bench.system import System
from user_system.core.errors import ConfigError, LinkError
from user_system.core.types import Purpose
from user_system.hub.schedule import read_journal
from user_system.replay import overview

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

LIMIT_S = 120.0
"""Bounds a hang; says nothing about speed."""

MANIFEST = """\
name: lab
robots:
  arm-1: {kind: gymnasium, task: swing, actor: swing, host: lab-1, config: {env: Pendulum-v1}}
tasks: {swing: {kind: gymnasium, config: {max_steps: 40}}}
hosts: {lab-1: {remote: true}}
learners:
  rlpd: {kind: rlpd, publish_every: 1s, config: {hidden: [32], mix: {online: 1.0}, batch: 64}}
actors: {swing: {learner: rlpd}}
schedule: {demos: 0, eval_episodes: 1, eval_pass: 1}
tunnel: {hub_port: HUB_PORT, fresh_port: 0, replay_port: 0}
"""


class Host:
    """``user-system edge`` as a child, in a directory of its own."""

    def __init__(self, root: Path):
        self.root, self.output = root, root.with_name("output")
        self.marks: set[str] = set()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *words: str) -> None:
        self.start_as([sys.executable, "-m", "user_system.cli", "edge", *words], self.root.parent)

    def start_as(self, command: list[str], cwd: Path, env: dict[str, str] | None = None) -> None:
        with self.output.open("wb") as sink:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, cwd=cwd, env=env
            )

    def said(self, text: str) -> bool:
        assert self.process is not None
        told = self.output.read_text()
        assert self.process.poll() is None, told
        record = census.read_record(self.root)
        self.marks |= {record.mark} if record is not None else set()
        return text in told

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(LIMIT_S)

    def left(self) -> list[int]:
        return [process.pid for mark in self.marks for process in census.members(mark)]

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for mark in self.marks:
            census.end(mark)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.1)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path / "robot" / "lab-1")
    host.root.parent.mkdir()
    yield host
    host.close()


def serves(system: System) -> bool:
    system.check()
    return "all processes serve" in system.log.read_text()


def invite(system: System) -> str:
    """Return a line as `user-system enrol create` prints it."""
    record = census.read_record(system.run)
    assert record is not None
    page = urlsplit(record.page)
    assert page.scheme == "https", "robot hosts join over TLS only"
    invitations = Invitations(Authority.open(system.run / "pki"), by="test")
    return invitations.create("lab-1", Role.ROBOT, page.hostname, page.port, 600.0).line()


def look(system: System) -> status.View | None:
    try:
        with status.Looker(system.run) as looker:
            return looker.look()
    except LinkError:
        return None


def the_host(system: System) -> status.HostView:
    view = look(system)
    assert view is not None
    (host,) = view.hosts
    return host


def steps(system: System) -> float:
    view = look(system)
    return view.figures.get("env_steps", 0.0) if view is not None else 0.0


def test_one_line_makes_a_robot_host(tmp_path: Path, host: Host) -> None:
    manifest = tmp_path / "lab.yaml"
    with socket.socket() as probe:  # where the host looks for its head in every life of it
        probe.bind(("127.0.0.1", 0))
        manifest.write_text(MANIFEST.replace("HUB_PORT", str(probe.getsockname()[1])))
    with System(manifest, tmp_path / "head") as system:
        wait_for(lambda: serves(system), "the head serves, without its robot host")
        waits_for_nobody(system)
        joins(system, host)
        does_its_work(system, host)
        is_healthy(host)
        follows_a_changed_setup(system, host)
        leaves_nothing_when_killed(host)
        lives_as_its_unit_says(system, host)
        wait_for(lambda: the_host(system).link == "away", "noticed")
    starts_without_its_head(host)
    is_judged(system, host)


def waits_for_nobody(system: System) -> None:
    """The head serves; of the robot host it has the resource node and nothing else."""
    record = census.read_record(system.run)
    assert record is not None
    assert "resources-lab-1" in record.processes
    assert not [name for name in record.processes if name.startswith(("edge", "driver", "world"))]
    assert the_host(system).link == "awaited"
    assert not (system.run / "pki" / "lab-1.pem").exists(), "its key is made there, not here"


def joins(system: System, host: Host) -> None:
    host.start("join", invite(system), "--dir", str(host.root))
    wait_for(lambda: host.said("lab-1 is live: arm-1 work for run 'lab'; see https://"), "live")
    wait_for(lambda: the_host(system).link == "online", "attached")
    wait_for(lambda: the_host(system).current, "known to be so")
    assert (host.root / "user-system-edge-lab-1.service").exists()
    assert {path.stat().st_mode & 0o077 for path in (host.root / "pki").glob("lab-1.*")} == {0}


def does_its_work(system: System, host: Host) -> None:
    """What it records is acknowledged and stored at the head; weights come the other way."""
    wait_for(lambda: steps(system) >= 200, "experience")
    weights = host.root / "edge" / "lab-1" / "weights"
    wait_for(lambda: list((weights / "rlpd").glob("*.json")), "weights")

    def acts_with_them() -> bool:
        view = look(system)
        return view is not None and any(robot.version > 0 for robot in view.robots)

    wait_for(acts_with_them, "acts with them")
    stored = overview.look(system.run / "replay").steps["robot"]
    assert stored["arm-1"] > 100


def is_healthy(host: Host) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "user_system.cli", "doctor", str(host.root), "--json"],
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    findings = json.loads(done.stdout)
    assert [f for f in findings if not f["ok"]] == []
    assert {"certificate", "fresh lane", "clocks", "large messages to the head", "spool"} <= {
        f["what"] for f in findings
    }


def follows_a_changed_setup(system: System, host: Host) -> None:
    """The agent finishes its episode, and its next life is told the new thing; no fault of it."""
    path = system.run / "config" / "setups" / "lab-1.json"
    changed = json.loads(path.read_text())
    changed["configs"]["edge-lab-1"]["spool_bytes"] = 123 * 2**20
    path.write_text(json.dumps(changed))
    config = host.root / "config" / "edge-lab-1.json"
    wait_for(lambda: f"{123 * 2**20}" in config.read_text(), "the new config")
    wait_for(lambda: the_host(system).current and not the_host(system).trouble, "runs it")
    before = steps(system)
    wait_for(lambda: steps(system) > before + 40, "it goes on, without anybody's help")
    log = (host.root / "logs" / "edge-lab-1.log").read_text()
    assert "-> fault" not in log


def leaves_nothing_when_killed(host: Host) -> None:
    assert host.left()
    host.end(signal.SIGKILL)
    wait_for(lambda: not host.left(), "nothing outlives it")


def lives_as_its_unit_says(system: System, host: Host) -> None:
    """Exactly the unit's command line, with what systemd gives it and nothing else, is a host."""
    found = {}
    for text in (host.root / "user-system-edge-lab-1.service").read_text().splitlines():
        key, equals, value = text.partition("=")
        if equals and not text.startswith("#"):
            found[key] = value
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = str(host.root.parent / "notify")
        manager.bind(address)
        manager.settimeout(LIMIT_S)
        given = dict(word.split("=", 1) for word in shlex.split(found["Environment"]))
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
        host.start_as(
            shlex.split(found["ExecStart"].replace("%%", "%").replace("$$", "$")),
            cwd=Path("/"),
            env={"PATH": path, "LANG": "C.UTF-8", "NOTIFY_SOCKET": address, **given},
        )
        assert manager.recv(1000).startswith(b"READY=1\n")
        while not manager.recv(1000).startswith(b"STATUS=live: arm-1"):
            assert host.said("")
        assert manager.recv(1000) == b"WATCHDOG=1"
        wait_for(lambda: the_host(system).link == "online", "attached again")
        assert host.end(signal.SIGTERM) == int(found["SuccessExitStatus"])
    assert host.left() == []


def starts_without_its_head(host: Host) -> None:
    host.start("run", str(host.root))
    wait_for(lambda: host.said("lab-1 is live"), "what it ran the last time")
    record = census.read_record(host.root)
    assert record is not None
    with pytest.raises(ConfigError, match="runs already"):
        resident.clear(host.root)
    assert runs.down(runs.Found(host.root, record)) == 0
    assert host.process is not None
    assert host.process.wait(LIMIT_S) == 128 + signal.SIGTERM
    assert host.left() == []


def is_judged(system: System, host: Host) -> None:
    """While the run is down an evaluation takes its place; neither gets what is the other's."""
    host.start("run", str(host.root))
    wait_for(lambda: host.said("lab-1 is live"), "waits for a head")
    command = [sys.executable, "-m", "user_system.cli", "eval", str(system.run), "--episodes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    judged = system.run / "eval" / "1"
    report = json.loads((judged / "report.json").read_text())
    assert report["phase"] == "done", report
    told = list(read_journal(judged / "hub" / "episodes.jsonl"))
    assert [e["episode"] for e in told] == ["lab-eval-1-000000", "lab-eval-1-000001"]
    assert {e["purpose"] for e in told} == {Purpose.EVAL}
    assert {e["version"] > 0 for e in told} == {True}
    assert (host.root / "edge" / "lab-1" / "eval" / "spool").is_dir()
    assert overview.look(judged / "replay").steps["robot"]["arm-1"] == 2 * 40
    config = json.loads((host.root / "config" / "edge-lab-1.json").read_text())
    assert config["run"] == "lab-eval-1"
    log = (host.root / "logs" / "edge-lab-1.log").read_text()
    assert "-> fault" not in log
    leaves_while_its_head_is_away(host)


def leaves_while_its_head_is_away(host: Host) -> None:
    """It runs until then; nothing that runs, and nothing that opens the head, is left."""
    assert host.left()
    command = [sys.executable, "-m", "user_system.cli", "edge", "leave", str(host.root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "left to do at the head: user-system enrol revoke lab-1" in done.stdout
    assert host.process is not None
    assert host.process.wait(LIMIT_S) == 128 + signal.SIGTERM
    assert host.left() == []
    assert not (host.root / "pki").exists()
    assert not (host.root / "edge.json").exists()


def test_it_needs_no_head_packages() -> None:
    """A robot host imports neither Ray nor a page, nor torch."""
    code = (
        "import sys\n"
        "from user_system.cluster import edge_doctor, edge_host, join, resident, world_host\n"
        "print(sorted({'ray', 'torch', 'fastapi', 'uvicorn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ
    )
    assert done.stdout == "[]\n"
