"""What the doctor says about tunnels, on machines that lack something."""

import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from comms import admission, ssh_keys, wireguard_link
from user_system.cluster import tunnel_doctor
from user_system.cluster.finding import Finding


def found(pki: Path, kind: str, settings: dict[str, Any]) -> dict[str, Finding]:
    return {f.what: f for f in tunnel_doctor.robot_host(pki, kind, settings)}


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    pki = tmp_path / "pki"
    keys = admission.prepare(pki)
    ssh_keys.pin(pki, keys["ssh"])
    return pki


def test_a_direct_tunnel_needs_nothing(tmp_path: Path) -> None:
    assert found(tmp_path, "direct", {}) == {}


def test_a_machine_without_the_programs_says_what_to_install(
    joined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    at = {"host": "127.0.0.1", "port": 1}
    assert found(joined, "ssh", at)["ssh"].todo == "apt-get install openssh-client"
    looked = found(joined, "wireguard", {"interface": "us9none"})["tunnel: programs"]
    assert not looked.ok
    assert "wireguard-tools" in looked.todo
    assert all(finding.ok for finding in tunnel_doctor.programs()), "no fault until it is wanted"


def test_keys_that_are_missing_or_open_are_named(joined: Path, tmp_path: Path) -> None:
    at = {"host": "127.0.0.1", "port": 1}
    assert found(joined, "ssh", at)["tunnel: ssh.key"].ok
    (joined / "ssh.key").chmod(0o644)
    assert "chmod 600" in found(joined, "ssh", at)["tunnel: ssh.key"].todo
    (joined / "ssh.known_hosts").unlink()
    assert "edge join" in found(joined, "ssh", at)["tunnel: ssh.known_hosts"].todo


@pytest.mark.parametrize(
    ("said", "ok", "text"),
    [(b"SSH-2.0-OpenSSH_9.2\r\n", True, "OpenSSH_9.2"), (b"HTTP/1.1 400\r\n", False, "not ssh")],
)
def test_what_listens_there_is_named(joined: Path, said: bytes, ok: bool, text: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            with server.accept()[0] as caller:
                caller.sendall(said)

        thread = threading.Thread(target=answer)
        thread.start()
        looked = found(joined, "ssh", {"host": "127.0.0.1", "port": port})
        thread.join()
    finding = looked[f"tunnel: 127.0.0.1:{port}"]
    assert finding.ok is ok
    assert text in finding.found
    assert bool(finding.todo) is not ok


def test_a_closed_port_and_a_name_that_does_not_resolve_are_named(joined: Path) -> None:
    closed = found(joined, "ssh", {"host": "127.0.0.1", "port": 1})["tunnel: 127.0.0.1:1"]
    assert (closed.found, closed.todo) == ("nothing listens there", "Start sshd at the head.")
    name = found(joined, "ssh", {"host": "head.invalid", "port": 22})["tunnel: head.invalid:22"]
    assert "does not resolve" in name.found


def test_an_interface_is_up_down_or_unheard(joined: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = {"interface": "us9"}
    assert "edge join" in found(joined, "wireguard", at)["tunnel: us9.conf"].todo
    (joined / "us9.conf").write_text("")
    monkeypatch.setattr(wireguard_link, "may_configure", lambda: False)
    down = found(joined, "wireguard", at)["tunnel: us9"]
    assert (down.ok, down.found) == (False, "down")
    assert "Run as root:" in down.todo
    monkeypatch.setattr(wireguard_link, "is_up", lambda name: name == "us9")
    assert found(joined, "wireguard", at)["tunnel: us9"].ok
    for age_s, ok in ((10.0, True), (1000.0, False), (float("inf"), False)):
        monkeypatch.setattr(wireguard_link, "handshake_age_s", lambda name, age_s=age_s: age_s)
        assert found(joined, "wireguard", at)["tunnel: last handshake"].ok is ok
