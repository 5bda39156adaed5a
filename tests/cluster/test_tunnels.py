"""From a manifest's tunnel to what the head offers and what robot hosts are given."""

import getpass
import json
from pathlib import Path

import pytest

from comms import admission, ssh_keys
from comms.tunnel import Endpoints
from user_system.cluster import tunnels
from user_system.cluster.manifest import SshEntry, TunnelEntry, WireguardEntry
from user_system.core.errors import ConfigError

NEAR = Endpoints(hub="127.0.0.1:1", replay="127.0.0.1:2", fresh="127.0.0.1:3", reader="127.0.0.1:4")


@pytest.fixture
def host_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(tunnels, "HOST_KEYS", tmp_path)
    key = ssh_keys.make_key(tmp_path / "key")
    (tmp_path / tunnels.HOST_KEY).write_text(f"{key} root@head\n")
    return key


def test_ssh_is_what_the_manifest_says_or_what_the_machine_is(
    host_key: str, tmp_path: Path
) -> None:
    entry = TunnelEntry(kind="ssh", host="head.example.org")
    me = getpass.getuser()
    plain = {"user": me, "host": "head.example.org", "port": 22}
    assert tunnels.offer(tmp_path, entry) == {**plain, "host_key": host_key}
    assert tunnels.settings(entry) == plain
    assert tunnels.seen(entry, NEAR) == NEAR, "sshd dials the services where they are"
    said = SshEntry(user="lab", host="192.0.2.1", port=2222, host_key=host_key)
    found = tunnels.offer(tmp_path, TunnelEntry(kind="ssh", host="head.example.org", ssh=said))
    assert found == {"user": "lab", "host": "192.0.2.1", "port": 2222, "host_key": host_key}


def test_an_own_sshd_has_a_key_of_the_run(tmp_path: Path) -> None:
    entry = TunnelEntry(kind="ssh", ssh=SshEntry(user="lab", port=7404, host_key="own"))
    found = tunnels.publish(tmp_path, entry, NEAR)
    assert found["host_key"] == ssh_keys.make_key(tmp_path / ssh_keys.HOST_KEY)
    text = (tmp_path / ssh_keys.SSHD_CONFIG).read_text()
    assert "ListenAddress 0.0.0.0\nPort 7404\n" in text
    assert "PermitOpen 127.0.0.1:1 127.0.0.1:3 127.0.0.1:2 127.0.0.1:4\n" in text
    assert "AllowUsers lab\n" in text


def test_a_head_without_a_host_key_says_which_key_of_the_manifest_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnels, "HOST_KEYS", tmp_path)
    with pytest.raises(ConfigError, match=r"^tunnel\.ssh\.host_key is not given"):
        tunnels.offer(tmp_path, TunnelEntry(kind="ssh"))


def test_wireguard_leads_to_the_inner_address(tmp_path: Path) -> None:
    entry = TunnelEntry(
        kind="wireguard", host="head.example.org", wireguard=WireguardEntry(network="10.9.0.0/24")
    )
    assert tunnels.offer(tmp_path, entry) == {
        "host": "head.example.org",
        "port": 51820,
        "network": "10.9.0.0/24",
        "interface": "us0",
    }
    assert tunnels.settings(entry) == {"interface": "us0"}
    assert tunnels.seen(entry, NEAR).replay == "10.9.0.1:2"


def test_direct_leads_to_the_host(tmp_path: Path) -> None:
    entry = TunnelEntry(host="head.example.org")
    assert tunnels.offer(tmp_path, entry) == tunnels.settings(entry) == {}
    assert tunnels.seen(entry, NEAR).fresh == "head.example.org:3"


@pytest.mark.parametrize("kind", ["direct", "ssh", "wireguard"])
def test_what_is_published_lets_hosts_in(host_key: str, tmp_path: Path, kind: str) -> None:
    head = tmp_path / "head"
    entry = TunnelEntry(kind=kind, host="head.example.org")  # type: ignore[arg-type]
    tunnels.publish(head, entry, NEAR)
    written = json.loads((head / admission.OFFER).read_text())
    assert written["endpoints"] == [f"127.0.0.1:{port}" for port in (1, 3, 2, 4)]
    way = admission.admit(head, "arm-1", admission.prepare(tmp_path / "edge"))
    assert admission.settle(tmp_path / "edge", way) == tunnels.settings(entry)


@pytest.mark.parametrize("listen", ["10.86.0.1", "0.0.0.0"])
def test_a_head_that_may_make_no_interface_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listen: str
) -> None:
    monkeypatch.setattr(tunnels.wireguard_link, "may_configure", lambda: False)
    pki = tmp_path / "lab" / "pki"
    entry = TunnelEntry(
        kind="wireguard", host="head.example.org", listen=listen,
        wireguard=WireguardEntry(interface="us9none"),
    )  # fmt: skip
    tunnels.publish(pki, entry, NEAR)
    if listen == "0.0.0.0":  # services can start, and robot hosts come when it is done
        assert f"wg-quick up {pki / 'us9none.conf'}" in tunnels.bring_up(pki, entry)
        return
    with pytest.raises(ConfigError, match="this machine has no such address") as caught:
        tunnels.bring_up(pki, entry)
    assert f"wg-quick up {pki / 'us9none.conf'}" in str(caught.value)
    assert str(caught.value).endswith(f"user-system up --resume {pki.parent}.")


def test_an_interface_that_is_up_may_be_of_an_earlier_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnels.wireguard_link, "is_up", lambda interface: True)
    monkeypatch.setattr(tunnels.wireguard_link, "may_configure", lambda: False)
    entry = TunnelEntry(kind="wireguard", host="head.example.org", listen="10.86.0.1")
    tunnels.publish(tmp_path, entry, NEAR)
    line = f"wg syncconf us0 <(wg-quick strip {tmp_path / 'us0.conf'})"
    assert line in tunnels.bring_up(tmp_path, entry)
    ran: list[tuple[tuple[str, ...], str]] = []

    def run(command: tuple[str, ...], what: str, conf: Path, given: str = "") -> str:
        ran.append((command, given))
        return "stripped"

    monkeypatch.setattr(tunnels.wireguard_link, "may_configure", lambda: True)
    monkeypatch.setattr(tunnels.wireguard_link, "_run", run)
    assert tunnels.bring_up(tmp_path, entry) == ""
    assert ran[-1] == (("wg", "syncconf", "us0", "/dev/stdin"), "stripped")
    assert tunnels.bring_up(tmp_path, TunnelEntry(host="head.example.org")) == ""
