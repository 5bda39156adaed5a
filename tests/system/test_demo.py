"""The whole system from one command: it ends by itself, goes on after a crash, leaves nothing."""

import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from user_system.cluster import census, runs, status
from user_system.core.errors import LinkError

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]

DEMO = Path(__file__).parents[2] / "deploy" / "demo.yaml"
SHORT = (
    "teleop.port=0", "schedule.demos=2", "schedule.eval_episodes=2", "schedule.eval_pass=2",
    "schedule.max_behind_steps=0", "learners.rlpd.checkpoint_every=2s",
)  # fmt: skip
LIMIT_S = 300.0
"""Bounds a hang; says nothing about speed."""


class Up:
    """``user-system up`` as a child, ended with the test."""

    def __init__(self, folder: Path, *arguments: str, settings: tuple[str, ...] = SHORT):
        self.run = folder / "runs" / "demo"
        sets = [word for setting in settings for word in ("--set", setting)]
        self.output = folder / "output"
        with self.output.open("ab") as sink:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "user_system.cli", "up", *arguments, *sets],
                cwd=folder,
                env={**os.environ, "CI": "true"},
                stdout=sink,
                stderr=sink,
            )
        self.marks: set[str] = set()

    def look(self) -> status.View | None:
        record = census.read_record(self.run)
        if record is not None:
            self.marks.add(record.mark)
        if record is None or not (self.run / "config" / status.FILE).exists():
            return None
        try:
            with status.Looker(self.run) as looker:
                return looker.look()
        except LinkError:
            return None

    def wait(self, condition: Callable[[status.View], bool], what: str) -> status.View:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"ended before: {what}\n{self.output.read_text()}"
            view = self.look()
            if view is not None and condition(view):
                return view
            time.sleep(0.3)
        pytest.fail(f"never: {what}\n{self.output.read_text()}")

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(LIMIT_S)

    def left(self) -> list[psutil.Process]:
        return [process for mark in self.marks for process in census.members(mark)]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*arguments: str, **more) -> Up:
        started.append(Up(tmp_path, *(arguments or (str(DEMO),)), **more))
        return started[-1]

    yield start
    for item in started:
        item.look()
        if item.process.poll() is None:
            item.process.kill()
            item.process.wait()
        record = census.read_record(item.run)
        if record is not None:
            runs.down(runs.Found(item.run, record))


def test_a_run_that_is_done_ends_with_a_report_and_nothing_left(up) -> None:
    demo = up(settings=(*SHORT, "schedule.give_up_steps=300", "schedule.max_behind_steps=50"))
    demo.wait(lambda view: len(view.robots) == 2, "both arms are there")
    assert demo.process.wait(LIMIT_S) == 0, demo.output.read_text()
    assert demo.left() == []
    report = json.loads((demo.run / "report.json").read_text())
    wanted = {
        "success_rate", "episodes", "env_steps", "wall_s", "intervention_rate", "seed", "versions",
    }  # fmt: skip
    assert wanted <= report.keys()
    assert report["env_steps"] >= 300
    assert report["evaluations"][0]["version"] == 0
    assert report["figures"]["demos"] == 2
    assert (demo.run / "learning_curve.png").stat().st_size > 1000
    lines = demo.output.read_text()
    assert "page: http://127.0.0.1:" in lines
    assert "env steps" in lines
    judge(demo.run)


def judge(run: Path) -> None:
    """Judge what a run learned, and look for a version that it does not have."""
    command = [sys.executable, "-m", "user_system.cli", "eval", str(run), "--episodes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((run / "eval" / "1" / "report.json").read_text())
    assert report["episodes"] == 2
    assert report["env_steps"] == 0, "nothing of it is learned from"
    missing = subprocess.run(
        [*command, "--version", "99999"], capture_output=True, text=True, check=False
    )
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: there are no weights of version 99999")
    assert [path.name for path in (run / "eval").iterdir()] == ["1"]


@pytest.mark.parametrize("moment", ["at once", "while starting", "while learning"])
def test_ctrl_c_ends_everything_it_started(up, moment) -> None:
    demo = up()
    if moment == "while learning":
        demo.wait(lambda view: view.phase == "train" and view.version > 0, "weights")
    elif moment == "while starting":
        deadline = time.monotonic() + LIMIT_S
        while not (demo.run / "ready" / "hub").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        demo.look()
    else:
        deadline = time.monotonic() + LIMIT_S
        while census.read_record(demo.run) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        demo.look()
    assert demo.marks, "there was something to end"
    assert demo.end(signal.SIGINT) == 128 + signal.SIGINT
    assert demo.left() == []
    assert census.read_record(demo.run) is None


def test_a_crash_of_everything_is_resumed(up) -> None:
    demo = up()
    before = demo.wait(
        lambda view: view.phase == "train" and view.version > 3, "weights of this life"
    )
    deadline = time.monotonic() + LIMIT_S
    while not list((demo.run / "learner" / "rlpd").glob("*")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (mark,) = demo.marks
    demo.process.kill()
    demo.process.wait()
    for process in census.members(mark):
        process.kill()
    again = up("--resume", "runs/demo", settings=())
    after = again.wait(
        lambda view: view.version > before.version and view.figures.get("updates", 0) > 0,
        "newer weights in the next life",
    )
    told = subprocess.run(
        [sys.executable, "-m", "user_system.cli", "status", str(again.run), "--json"],
        capture_output=True, text=True, timeout=LIMIT_S, check=True,
    )  # fmt: skip
    assert [robot["name"] for robot in json.loads(told.stdout)["robots"]] == ["arm-1", "arm-2"]
    assert after.phase == "train", "two demonstrations were enough the first time"
    assert after.figures["env_steps"] >= before.figures["env_steps"]
    assert after.figures["demos"] == before.figures["demos"]
    assert len(after.evaluations) >= len(before.evaluations)
    assert again.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert again.left() == []


def test_nothing_outlives_a_launcher_that_was_killed(up) -> None:
    demo = up()
    demo.wait(lambda view: view.phase == "train" and view.version > 0, "weights")
    closed(demo)
    learners_have_their_cpus(demo)
    demo.process.kill()
    demo.process.wait()
    deadline = time.monotonic() + LIMIT_S
    while demo.left():
        assert time.monotonic() < deadline, [process.cmdline() for process in demo.left()]
        time.sleep(0.2)


def closed(demo: Up) -> None:
    """Look from outside at what a stranger on this machine or its network could reach."""
    sockets = [c for process in demo.left() for c in process.net_connections("inet")]
    listening = {c.laddr.ip for c in sockets if c.status == psutil.CONN_LISTEN}
    assert listening, "nothing was looked at"
    addresses = [ipaddress.ip_address(ip) for ip in listening]
    # Ray's gRPC listens through IPv6 on an IPv4 address.
    plain = [getattr(address, "ipv4_mapped", None) or address for address in addresses]
    assert all(address.is_loopback for address in plain), listening
    secrets = [
        path for end in ("*.key", "*.pem", "*.curve", "*.token", "accounts.json")
        for path in (demo.run / "pki").glob(end)
    ]  # fmt: skip
    assert len(secrets) > 5
    assert {path.stat().st_mode & 0o077 for path in secrets} == {0}
    record = census.read_record(demo.run)
    for path in ("/api/status", "/api/robots/arm-1/ask", "/nowhere", "/docs", "/openapi.json"):
        assert answered(record.page + path) in {401, 403, 404, 405}, path
    stop = urllib.request.Request(f"{record.page}/api/robots/arm-1/ask", b"{}", method="POST")
    assert answered(stop) in {401, 403}


def learners_have_their_cpus(demo: Up) -> None:
    """While something is learned, nothing else runs on the CPUs that learners reserve."""
    pids = census.read_record(demo.run).processes
    if len(os.sched_getaffinity(0)) < 2:
        return
    learner = os.sched_getaffinity(pids["learner-rlpd"])
    deadline = time.monotonic() + LIMIT_S
    while any(os.sched_getaffinity(pids[name]) & learner for name in ("edge-local", "hub")):
        assert time.monotonic() < deadline, "they were never taken back"
        time.sleep(0.1)


def answered(request: str | urllib.request.Request) -> int:
    """Return the status of an answer."""
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            return answer.status
    except urllib.error.HTTPError as refusal:
        with refusal:
            return refusal.code
