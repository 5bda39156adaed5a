"""The run's own sshd: lets robot hosts through, and leaves nobody behind when it ends."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from comms import ssh_keys
from comms.tunnel_ssh import destination
from user_system.cluster.launch import READY_VARIABLE

pytestmark = pytest.mark.skipif(
    not (shutil.which("sshd", path="/usr/sbin:/usr/bin") and shutil.which("ssh")),
    reason="sshd or ssh is not installed",
)

LIMIT_S = 30.0


def free_port() -> int:
    with closing(socket.socket()) as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def wait_until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """The keys of a head whose own sshd leads to one service."""
    pki = tmp_path / "pki"
    pki.mkdir(mode=0o700)
    return pki


class Served:
    """An sshd_host that runs."""

    def __init__(self, pki: Path, service: int):
        self.port, self.ready = free_port(), pki.parent / "ready"
        user = destination({"user": _me(), "host": "127.0.0.1"}).user
        ssh_keys.make_key(pki / ssh_keys.HOST_KEY)
        text = ssh_keys.sshd_config(
            pki, user, [f"127.0.0.1:{service}"], listen="127.0.0.1", port=self.port
        )
        (pki / ssh_keys.SSHD_CONFIG).write_text(text)
        config = pki.parent / "sshd.json"
        config.write_text(json.dumps({"file": str(pki / ssh_keys.SSHD_CONFIG), "port": self.port}))
        self.log = pki.parent / "sshd.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "user_system.cluster.sshd_host", str(config)],
                env={**os.environ, READY_VARIABLE: str(self.ready)},
                stderr=log,
            )

    def end(self) -> int:
        self.process.terminate()
        return self.process.wait(LIMIT_S)


def _me() -> str:
    import getpass

    return getpass.getuser()


@pytest.fixture
def service() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield listening


def test_who_is_enrolled_gets_through_and_nobody_is_left_behind(
    head: Path, service: socket.socket, tmp_path: Path
) -> None:
    edge = tmp_path / "edge"
    edge.mkdir(mode=0o700)
    at = service.getsockname()[1]
    served = Served(head, at)
    try:
        wait_until(lambda: served.ready.exists() or served.process.poll() is not None)
        assert served.process.poll() is None, served.log.read_text()
        ssh_keys.authorize(
            head / ssh_keys.AUTHORIZED, "lab-1", ssh_keys.public_key(edge), [f"127.0.0.1:{at}"]
        )
        client = subprocess.Popen(
            [
                *("ssh", "-F", "none", "-N", "-i", str(edge / "ssh.key"), "-p", str(served.port)),
                *("-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={edge / 'known'}"),
                *("-W", f"127.0.0.1:{at}", f"{_me()}@127.0.0.1"),
            ],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        service.settimeout(LIMIT_S)
        dialled, _ = service.accept()
        assert client.stdin is not None
        client.stdin.write(b"through")
        client.stdin.flush()
        assert dialled.recv(100) == b"through"
        assert served.end() == 0
        assert dialled.recv(100) == b"", "its connections end with it"
        client.wait(LIMIT_S)
        dialled.close()
        client.stdin.close()
        assert client.stderr is not None
        client.stderr.close()
    finally:
        served.process.kill()
        served.process.wait()


def test_a_port_that_is_somebody_elses_is_named(head: Path, service: socket.socket) -> None:
    taken = service.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "free_port", lambda: taken)
        served = Served(head, 1)
    assert served.process.wait(LIMIT_S) == 1
    assert f"is port {taken} somebody else's?" in served.log.read_text()
    assert not served.ready.exists()


def test_killed_it_takes_the_listener_along(head: Path) -> None:
    served = Served(head, 1)
    wait_until(lambda: served.ready.exists() or served.process.poll() is not None)
    assert served.process.poll() is None, served.log.read_text()
    served.process.send_signal(signal.SIGKILL)
    served.process.wait(LIMIT_S)

    def refused() -> bool:
        with closing(socket.socket()) as dialling:
            return dialling.connect_ex(("127.0.0.1", served.port)) != 0

    wait_until(refused)
