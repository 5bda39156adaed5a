"""Kind ssh against a real sshd on loopback: what passes, what does not, and what is said of it."""

import getpass
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from comms import admission, ssh_keys
from comms.credentials import AllowList, Credentials
from comms.hub_client import HubClient
from comms.hub_service import HubService
from comms.serving import serve
from comms.ssh_client import KEY, KNOWN_HOSTS, client_argv
from comms.tunnel import Endpoints, open_tunnel
from comms.tunnel_ssh import SshTunnel, destination
from user_system.core.errors import LinkError

GENEROUS_S = 60.0
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin")

pytestmark = [
    pytest.mark.skipif(
        SSHD is None or shutil.which("ssh") is None or shutil.which("setpriv") is None,
        reason="needs ssh, sshd and setpriv (Debian: openssh-client openssh-server)",
    ),
    pytest.mark.system,
]


class Answers:
    """A hub that only answers what the tests ask."""

    def status(self, peer: Any) -> Any:
        from comms.pb import hub_pb2 as pb

        return pb.SystemStatus(run="r")


class Head:
    """A hub and an sshd that leads to it, both on loopback."""

    def __init__(self, pki: Path, folder: Path):
        self.pki, self.folder = pki, folder
        self.server = serve(
            [HubService(Answers())],  # type: ignore[arg-type]
            credentials=Credentials.load(pki, "hub"),
            allow=AllowList(pki),
        )
        self.hub = f"127.0.0.1:{self.server.port}"
        self.port = free_port()
        self.endpoints = [self.hub]
        self.host_key = ssh_keys.make_key(folder / ssh_keys.HOST_KEY)
        self.sshd: subprocess.Popen[bytes] | None = None
        self.publish()
        self.start()

    def publish(self) -> None:
        settings = {
            "user": getpass.getuser(),
            "host": "127.0.0.1",
            "port": self.port,
            "host_key": self.host_key,
        }
        admission.publish(self.folder, "ssh", settings, self.endpoints)

    def start(self, **changes: Any) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        given = {"listen": "127.0.0.1", "port": self.port, **changes}
        endpoints = given.pop("endpoints", self.endpoints)
        text = ssh_keys.sshd_config(self.folder, getpass.getuser(), endpoints, **given)
        config = self.folder / ssh_keys.SSHD_CONFIG
        config.write_text(text)
        with (self.folder / "sshd.log").open("ab") as log:
            self.sshd = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(config)], stderr=log)
        wait_until(self.listens)

    def listens(self) -> bool:
        assert self.sshd is not None
        assert self.sshd.poll() is None, (self.folder / "sshd.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        """End the listener and the connections, as a reboot would."""
        assert self.sshd is not None
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.sshd.pid)], capture_output=True, text=True
        )
        for pid in (self.sshd.pid, *map(int, children.stdout.split())):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.sshd.wait()

    def close(self) -> None:
        self.stop()
        self.server.stop(0)


class Edge:
    """A robot host's folder of keys, and tunnels of it."""

    def __init__(self, head: Head, folder: Path, name: str = "host-1"):
        self.head, self.folder = head, folder
        way = admission.admit(head.folder, name, admission.prepare(folder))
        self.settings = admission.settle(folder, way)
        self.opened: list[SshTunnel] = []

    def tunnel(self, **settings: Any) -> SshTunnel:
        endpoints = Endpoints(hub=self.head.hub, fresh=self.head.hub, replay=self.head.hub)
        me = Credentials.load(self.head.pki, "host-1")
        found = open_tunnel("ssh", endpoints, me, {**self.settings, **settings}, self.folder)
        assert isinstance(found, SshTunnel)
        self.opened.append(found)
        return found

    def ssh(self, *more: str) -> "subprocess.CompletedProcess[str]":
        """Run the client with the robot host's key, for something it should not be let do."""
        argv = client_argv(destination(self.settings), self.folder, {}, "lowdelay")
        kept = [word for word in argv if word not in ("-N", "-T")]
        return subprocess.run(
            [*kept[:-2], *more], capture_output=True, text=True, timeout=GENEROUS_S
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + GENEROUS_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def answers(tunnel: SshTunnel) -> bool:
    try:
        return HubClient(tunnel).status().run == "r"
    except LinkError:
        return False


@pytest.fixture
def head(pki: Path, tmp_path: Path) -> Iterator[Head]:
    head = Head(pki, tmp_path / "head")
    yield head
    head.close()


@pytest.fixture
def edge(head: Head, tmp_path: Path) -> Iterator[Edge]:
    edge = Edge(head, tmp_path / "edge")
    yield edge
    for tunnel in edge.opened:
        tunnel.close()


def test_calls_go_through_and_nothing_is_left_behind(edge: Edge) -> None:
    tunnel = edge.tunnel()
    assert tunnel.trouble() == ""
    assert tunnel.stats()["ssh_urgent_starts"] == 0, "dialled before it was used"
    wait_until(lambda: answers(tunnel))
    assert tunnel.trouble() == ""
    assert tunnel.stats()["ssh_urgent_connected"] == 1
    assert tunnel.stats()["ssh_bulk_starts"] == 0
    folder, pid = tunnel._folder, tunnel._urgent.pid
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in folder.iterdir()} == {"hub", "fresh"}
    tunnel.close()
    tunnel.close()
    assert not folder.exists()
    assert not Path(f"/proc/{pid}").exists()


def test_who_asks_once_gets_an_answer(edge: Edge) -> None:
    """The first use waits for the way: a call fails at once where there is none yet."""
    assert HubClient(edge.tunnel()).status().run == "r"


def test_urgent_and_bulk_are_clients_of_their_own(edge: Edge) -> None:
    import grpc

    tunnel = edge.tunnel()
    wait_until(lambda: answers(tunnel))
    for service in ("weights", "replay", "reader"):
        tunnel.channel(service)  # type: ignore[arg-type]
    grpc.channel_ready_future(tunnel.channel("weights")).result(GENEROUS_S)
    urgent, bulk = tunnel._urgent.pid, tunnel._bulk.pid
    assert urgent != bulk
    assert Path(f"/proc/{urgent}/cmdline").read_bytes().count(b"IPQoS=lowdelay") == 1
    assert Path(f"/proc/{bulk}/cmdline").read_bytes().count(b"IPQoS=throughput") == 1
    os.kill(bulk, signal.SIGKILL)
    assert answers(tunnel)
    wait_until(lambda: tunnel._bulk.pid not in (0, bulk))
    assert tunnel._urgent.pid == urgent


@pytest.mark.parametrize("repetition", range(3))
def test_a_client_that_dies_and_a_head_that_restarts_are_dialled_again(
    head: Head, edge: Edge, repetition: int
) -> None:
    tunnel = edge.tunnel()
    wait_until(lambda: answers(tunnel))
    os.kill(tunnel._urgent.pid, signal.SIGKILL)
    wait_until(lambda: tunnel.stats()["ssh_urgent_starts"] == 2)
    wait_until(lambda: answers(tunnel))
    head.stop()
    wait_until(lambda: "nothing listens for ssh" in tunnel.trouble())
    assert not answers(tunnel)
    head.start()
    wait_until(lambda: answers(tunnel))
    assert tunnel.trouble() == ""


def test_it_ends_with_its_process_however_that_ends(edge: Edge) -> None:
    script = f"""
import sys, time
from pathlib import Path
from comms.credentials import Credentials
from comms.tunnel import Endpoints, open_tunnel
tunnel = open_tunnel("ssh", Endpoints(hub={edge.head.hub!r}, fresh={edge.head.hub!r}),
    Credentials.load(Path({str(edge.head.pki)!r}), "host-1"), {edge.settings!r},
    Path({str(edge.folder)!r}))
tunnel.channel("hub")
while not tunnel.stats()["ssh_urgent_connected"]:
    time.sleep(0.02)
print(tunnel._urgent.pid, tunnel._folder, flush=True)
time.sleep(100)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, folder = parent.stdout.readline().split()
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not alive(int(pid)))
    shutil.rmtree(folder)


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


# --- what is refused ---------------------------------------------------


@pytest.mark.parametrize("known", [True, False])
def test_another_head_is_not_believed(
    head: Head, edge: Edge, caplog: pytest.LogCaptureFixture, known: bool
) -> None:
    """Neither one with another key than the one pinned, nor one where none is pinned."""
    if not known:
        (edge.folder / KNOWN_HOSTS).write_text("")
    head.stop()
    (head.folder / ssh_keys.HOST_KEY).unlink()
    ssh_keys.make_key(head.folder / ssh_keys.HOST_KEY)
    head.start()
    tunnel = edge.tunnel()
    assert not answers(tunnel)
    wait_until(lambda: "host key is not the one that was pinned" in tunnel.trouble())
    assert "change nothing" in tunnel.trouble()
    wait_until(lambda: tunnel.stats()["ssh_urgent_starts"] >= 2)
    assert tunnel.stats()["ssh_urgent_connected"] == 0
    said = [r for r in caplog.records if r.levelno >= logging.WARNING and "pinned" in r.message]
    assert len(said) == 1, "a cause is said once, not once per attempt"


def test_a_host_that_was_dismissed_does_not_come_in_again(head: Head, edge: Edge) -> None:
    tunnel = edge.tunnel()
    wait_until(lambda: answers(tunnel))
    tunnel.close()
    admission.dismiss(head.folder, "host-1")
    again = edge.tunnel()
    assert not answers(again)
    wait_until(lambda: "does not know this host's key" in again.trouble())
    assert "enrol" in again.trouble()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"port": 1}, "nothing listens for ssh"),
        ({"host": "head.invalid"}, "name does not resolve"),
    ],
)
def test_what_is_wrong_is_named(edge: Edge, settings: dict[str, Any], text: str) -> None:
    tunnel = edge.tunnel(**settings)
    assert not answers(tunnel)
    wait_until(lambda: text in tunnel.trouble())


def test_a_port_where_something_else_listens_is_named(edge: Edge) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        tunnel = edge.tunnel(port=mute.getsockname()[1])
        assert not answers(tunnel)
        wait_until(lambda: "does not answer" in tunnel.trouble())


def test_a_key_that_others_can_read_is_named(edge: Edge) -> None:
    (edge.folder / KEY).chmod(0o644)
    tunnel = edge.tunnel()
    assert not answers(tunnel)
    wait_until(lambda: "own key cannot be used" in tunnel.trouble())


def test_a_head_that_lets_nothing_through_is_named(head: Head, edge: Edge) -> None:
    head.stop()
    head.start(endpoints=["127.0.0.1:9"])
    tunnel = edge.tunnel()
    assert not answers(tunnel)
    wait_until(lambda: "PermitOpen" in tunnel.trouble())


def test_a_key_opens_the_endpoints_and_nothing_else(head: Head, edge: Edge, tmp_path: Path) -> None:
    """No command, no shell, no other port, no socket of the head's, no way back to the robot."""
    mark = tmp_path / "mark"
    done = edge.ssh("--", "127.0.0.1", f"touch {mark}")
    assert done.returncode != 0
    assert not mark.exists()
    for more in (["-N", "-R", "0:127.0.0.1:9"], ["-N", "-R", f"{free_port()}:127.0.0.1:9"]):
        done = edge.ssh(*more, "--", "127.0.0.1")
        assert "remote port forwarding failed" in done.stderr, done.stderr
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = edge.ssh("-W", f"127.0.0.1:{other.getsockname()[1]}", "--", "127.0.0.1")
        assert "administratively prohibited" in done.stderr
    assert not reaches_socket(edge, tmp_path)


def reaches_socket(edge: Edge, folder: Path) -> bool:
    """Return whether the key leads to a unix socket of the head's."""
    path, local = folder / "s", folder / "l"
    argv = client_argv(destination(edge.settings), edge.folder, {}, "lowdelay")[:-2]
    with socket.socket(socket.AF_UNIX) as secret, socket.socket(socket.AF_UNIX) as caller:
        secret.bind(str(path))
        secret.listen()
        secret.settimeout(0.2)
        forward = subprocess.Popen(
            [*argv, "-L", f"{local}:{path}", "--", "127.0.0.1"], stderr=subprocess.PIPE
        )
        try:
            wait_until(local.exists)
            caller.connect(str(local))
            caller.settimeout(GENEROUS_S)
            # Refused, it is closed; let through, it would be greeted.
            with suppress(TimeoutError), secret.accept()[0] as reached:
                reached.sendall(b"!")
            return caller.recv(1) == b"!"
        finally:
            forward.terminate()
            forward.communicate()


def test_authorized_keys_alone_keep_a_key_to_the_endpoints(
    head: Head, edge: Edge, tmp_path: Path
) -> None:
    """Where the machine's own sshd is used, whose configuration may allow everything."""
    head.stop()
    config = head.folder / ssh_keys.SSHD_CONFIG
    given = {"listen": "127.0.0.1", "port": head.port}
    text = ssh_keys.sshd_config(head.folder, getpass.getuser(), head.endpoints, **given)
    config.write_text(text.replace(ssh_keys.rights(head.endpoints), ""))
    with (head.folder / "sshd.log").open("ab") as log:
        head.sshd = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(config)], stderr=log)
    wait_until(head.listens)
    done = edge.ssh("--", "127.0.0.1", "echo in")
    assert "in" not in done.stdout
    done = edge.ssh("-N", "-R", f"{free_port()}:127.0.0.1:9", "--", "127.0.0.1")
    assert "remote port forwarding failed" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = edge.ssh("-W", f"127.0.0.1:{other.getsockname()[1]}", "--", "127.0.0.1")
        assert "administratively prohibited" in done.stderr
    assert not reaches_socket(edge, tmp_path)
    tunnel = edge.tunnel()
    wait_until(lambda: answers(tunnel))
