"""The run's own sshd: it lets robot hosts in, is seen by the doctor, and leaves nothing behind."""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from comms import admission, ssh_keys
from comms.ssh_client import Destination, client_argv
from comms.tunnel import Endpoints
from user_system.cluster import machine, sshd_host, tunnel_doctor, tunnels
from user_system.cluster.manifest import SshEntry, TunnelEntry, load_manifest
from user_system.cluster.tree import Problems
from user_system.core.errors import MissingError

GENEROUS_S = 60.0
DEMO = Path(__file__).parents[2] / "deploy" / "demo.yaml"
LACKS = [name for name in ("ssh", "ssh-keyscan", "setpriv") if shutil.which(name) is None]
LACKS += [] if shutil.which("sshd", path=sshd_host._PLACES) else ["sshd"]

needs_ssh = pytest.mark.skipif(bool(LACKS), reason=f"not installed: {', '.join(LACKS)}")


class Head:
    """A service, and the sshd that leads to it, as ``up`` starts it."""

    def __init__(self, folder: Path):
        self.pki, self.folder = folder / "pki", folder
        self.service = socket.create_server(("127.0.0.1", 0))
        self.port = free_port()
        self.at = f"127.0.0.1:{self.service.getsockname()[1]}"
        entry = TunnelEntry(
            kind="ssh", host="127.0.0.1", ssh=SshEntry(port=self.port, host_key="own")
        )
        tunnels.publish(self.pki, entry, Endpoints(self.at, self.at, self.at, self.at))
        config = {"file": str(self.pki / "sshd_config"), "pid_file": str(folder / "a sshd.pid")}
        (folder / "sshd.json").write_text(json.dumps(config))
        self.ready = folder / "ready"
        self.log = (folder / "log").open("w+")
        self.host = self.start()
        self.clients: list[subprocess.Popen[bytes]] = []

    def start(self) -> "subprocess.Popen[bytes]":
        self.ready.unlink(missing_ok=True)
        program = [sys.executable, "-m", "user_system.cluster.sshd_host"]
        return subprocess.Popen(
            [*program, str(self.folder / "sshd.json")],
            stderr=self.log,
            env={**os.environ, "USER_SYSTEM_READY": str(self.ready)},
        )

    def serves(self) -> "Head":
        until(lambda: self.ready.exists() or self.host.poll() is not None)
        assert self.host.poll() is None, Path(self.log.name).read_text()
        return self

    def joins(self) -> Path:
        """Let a robot host in; return its folder of keys."""
        edge = self.folder / "edge"
        admission.settle(edge, admission.admit(self.pki, "lab-1", admission.prepare(edge)))
        return edge

    def comes(self) -> "subprocess.Popen[bytes]":
        """Return a robot host's client, through to the service."""
        edge, way = self.joins(), self.folder / "way"
        way.unlink(missing_ok=True)
        to = Destination(getpass.getuser(), "127.0.0.1", self.port)
        client = subprocess.Popen(client_argv(to, edge, {way: self.at}, "lowdelay"))
        self.clients.append(client)
        until(lambda: way.exists() or client.poll() is not None)
        with socket.socket(socket.AF_UNIX) as dialled:
            dialled.connect(str(way))
            self.service.settimeout(GENEROUS_S)
            self.service.accept()[0].close()
        return client

    def processes(self) -> list[psutil.Process]:
        """Return sshd and its connections."""
        return psutil.Process(self.host.pid).children(recursive=True)

    def close(self) -> None:
        for process in (self.host, *self.clients):
            if process.poll() is None:
                process.terminate()
            process.wait(GENEROUS_S)
        self.service.close()
        self.log.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + GENEROUS_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def head(tmp_path: Path) -> Iterator[Head]:
    made = Head(tmp_path)
    try:
        yield made.serves()
    finally:
        made.close()


@needs_ssh
def test_whoever_came_in_goes_with_the_run(head: Head) -> None:
    """Connections are processes of their own, in sessions of their own, without the run's mark."""
    client = head.comes()
    found = head.processes()
    assert len(found) >= 2, "sshd, and the connection"
    head.host.terminate()
    assert head.host.wait(GENEROUS_S) == 0
    assert client.wait(GENEROUS_S) == 255
    until(lambda: not any(process.is_running() for process in found))


@needs_ssh
def test_sshd_ends_with_its_process_however_that_ends(head: Head) -> None:
    (sshd,) = head.processes()
    head.host.kill()
    until(lambda: not sshd.is_running() or sshd.status() == psutil.STATUS_ZOMBIE)
    head.host.wait(GENEROUS_S)
    head.host = head.start()
    head.serves().comes()


@needs_ssh
def test_an_sshd_that_ends_is_named(head: Head) -> None:
    (sshd,) = head.processes()
    sshd.send_signal(signal.SIGKILL)
    assert head.host.wait(GENEROUS_S) == 1, "a supervisor starts it again"
    assert "error: sshd ended with status -9" in Path(head.log.name).read_text()


@needs_ssh
def test_the_doctor_sees_it(head: Head) -> None:
    head.joins()
    found = {f.what: f for f in tunnel_doctor.head(head.pki)}
    assert [finding.ok for finding in found.values()] == [True, True], found
    assert found["tunnel: host key"].found == "the one that robot hosts pin"
    offer = json.loads((head.pki / admission.OFFER).read_text())
    offer["settings"]["host_key"] = ssh_keys.make_key(head.folder / "other")
    (head.pki / admission.OFFER).write_text(json.dumps(offer))
    other = {f.what: f for f in tunnel_doctor.head(head.pki)}["tunnel: host key"]
    assert (other.ok, other.found) == (False, "another one than robot hosts pin")
    head.host.terminate()
    head.host.wait(GENEROUS_S)
    (gone, *_) = tunnel_doctor.head(head.pki)
    assert (gone.ok, gone.found) == (False, "nothing listens there")


@needs_ssh
def test_a_machines_own_sshd_that_reads_other_keys_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "authorized_keys"
    said = f"#!/bin/sh\necho 'authorizedkeyscommand {keys}'\n"
    program = tmp_path / "sshd"
    monkeypatch.setattr(sshd_host, "program", lambda: str(program))
    for text, ok in ((said, True), ("#!/bin/sh\necho authorizedkeysfile .ssh/keys\n", False)):
        program.write_text(text)
        program.chmod(0o755)
        finding = tunnel_doctor._reads(keys, "lab")
        assert finding.ok is ok, finding
    assert "docs/network.md" in finding.todo


def test_what_it_lacks_is_said_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def program() -> str:
        raise MissingError("sshd is not installed", todo="apt-get install openssh-server")

    monkeypatch.setattr(sshd_host, "program", program)
    settings = ["hosts.local.remote=false", "hosts.lab-1.remote=true", "robots.arm-1.host=lab-1"]
    settings += ["tunnel.kind=ssh", "tunnel.host=head.example.org", "tunnel.ssh.user=somebody"]
    here = machine.Machine((0, 1), 0, 2**40)
    problems = Problems()
    machine.check(load_manifest(DEMO, settings), here, problems)
    assert problems.lines == [], "the machine's own sshd is there already"
    machine.check(load_manifest(DEMO, [*settings, "tunnel.ssh.host_key=own"]), here, problems)
    assert [line.partition(":")[0] for line in problems.lines] == [
        "tunnel.ssh.host_key",
        "tunnel.ssh.user",
    ]
