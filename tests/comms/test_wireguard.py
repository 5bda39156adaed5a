"""WireGuard's keys, addresses and files, without an interface."""

import base64
import shutil
import subprocess
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comms import credentials, wireguard, wireguard_link
from comms.credentials import Credentials, Role
from comms.tunnel import Endpoints
from comms.tunnel_wireguard import open_wireguard
from comms.wireguard import Network, Peer, Way, with_peer
from user_system.core.errors import ConfigError, SecurityError

KEY = base64.b64encode(bytes(range(32))).decode()
ME = Credentials(credentials.Peer("arm-1", Role.ROBOT), b"", b"", b"", b"", b"", b"")
WAY = Way("us0", "10.86.0.2", "10.86.0.1", KEY, "head.example.org:51820")


def key(number: int) -> str:
    return base64.b64encode(number.to_bytes(32, "big")).decode()


def test_a_key_is_made_once_kept_secret_and_the_one_that_wg_derives(tmp_path: Path) -> None:
    path = tmp_path / "pki" / "wireguard.key"
    public = wireguard.make_key(path)
    assert wireguard.make_key(path) == public == wireguard.checked_key(public)
    assert path.stat().st_mode & 0o777 == 0o600
    if shutil.which("wg"):
        done = subprocess.run(
            ["wg", "pubkey"], input=path.read_text(), capture_output=True, text=True
        )
        assert done.stdout.strip() == public
    path.chmod(0o640)
    with pytest.raises(SecurityError, match="others can read"):
        wireguard.make_key(path)
    path.write_text("no key")
    path.chmod(0o600)
    with pytest.raises(SecurityError, match="no WireGuard key"):
        wireguard.make_key(path)


@pytest.mark.parametrize("text", ["", None, "x", KEY[:-4], KEY + "AAAA", f"{KEY}\n#", key(0)])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(SecurityError, match="not a public WireGuard key"):
        wireguard.checked_key(text)


def test_the_robot_host_lets_in_the_head_alone_and_keeps_the_nat_awake(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wireguard.shutil, "which", lambda name: None)
    assert wireguard.edge_file(WAY, "secret=") == (
        "# Made by user-system: the way of this robot host to its head.\n"
        "[Interface]\n"
        "PrivateKey = secret=\n"
        "Address = 10.86.0.2/32\n"
        "MTU = 1280\n"
        "\n"
        "[Peer]\n"
        f"PublicKey = {KEY}\n"
        "Endpoint = head.example.org:51820\n"
        "AllowedIPs = 10.86.0.1/32\n"
        "PersistentKeepalive = 25\n"
    )
    monkeypatch.setattr(wireguard.shutil, "which", lambda name: f"/sbin/{name}")
    text = wireguard.edge_file(WAY, "secret=")
    assert "PostUp = iptables -I INPUT -i %i -m conntrack --ctstate NEW,INVALID -j DROP" in text
    assert "PreDown = iptables -D INPUT -i %i -m conntrack --ctstate NEW,INVALID -j DROP" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("interface", "../x"),
        ("interface", "a" * 16),
        ("address", "10.0.0.1\nPostUp = sh"),
        ("address", "10.0.0"),
        ("head", "::1"),
        ("endpoint", "head"),
        ("endpoint", "head:0"),
        ("endpoint", "head:70000"),
        ("endpoint", "head:1\nPostUp = sh"),
        ("head_key", f"{KEY}\nPostUp = sh"),
    ],
)
def test_nothing_that_the_head_says_becomes_a_line_of_its_own(name: str, value: str) -> None:
    """``PostUp`` is a command that root runs: a head must not be able to write one."""
    with pytest.raises((ConfigError, SecurityError)):
        Way(**{**vars(WAY), name: value})


def test_the_head_has_every_robot_host_as_a_peer_with_one_address(tmp_path: Path) -> None:
    here = Network(network="10.9.0.0/29")
    wireguard.make_key(tmp_path / wireguard.KEY)
    peers = {"b": Peer(key(2), "10.9.0.3"), "a": Peer(key(1), "10.9.0.2")}
    wireguard.write_peers(tmp_path, here, peers)
    assert wireguard.read_peers(tmp_path) == peers
    path = tmp_path / "us0.conf"
    assert path.stat().st_mode & 0o777 == 0o600
    text = path.read_text()
    assert "Address = 10.9.0.1/29\nListenPort = 51820\nMTU = 1280\n" in text
    first, second = text.split("[Peer]")[1:]
    assert first.split("\n")[:3] == [
        "  # a",
        f"PublicKey = {key(1)}",
        "AllowedIPs = 10.9.0.2/32",
    ]
    assert "# b" in second
    (tmp_path / wireguard.PEERS).write_text('{"a": 1}')
    with pytest.raises(SecurityError, match="damaged"):
        wireguard.read_peers(tmp_path)


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["join", "leave"]), st.integers(0, 9), st.integers(1, 12)),
        max_size=40,
    )
)
def test_addresses_are_nobody_elses_and_stay(steps: list[tuple[str, int, int]]) -> None:
    """Against the plain rule: distinct, in the network, never the head's, kept by a name."""
    here = Network(network="10.9.0.0/29")  # room for five
    peers: dict[str, Peer] = {}
    for what, who, number in steps:
        name = f"arm-{who}"
        others = {other: peer for other, peer in peers.items() if other != name}
        if what == "leave":
            peers = others
            continue
        taken = any(peer.key == key(number) for peer in others.values())
        full = len(others) == 5
        if taken or full:
            with pytest.raises(SecurityError):
                with_peer(peers, here, name, key(number))
            continue
        before, peers = peers, with_peer(peers, here, name, key(number))
        addresses = [IPv4Address(peer.address) for peer in peers.values()]
        assert len(set(addresses)) == len(addresses) == len(others) + 1
        assert all(a in list(here.net.hosts()) and a != here.head for a in addresses)
        assert {other: peers[other] for other in others} == others
        assert peers[name].key == key(number)
        if name in before:
            assert peers[name].address == before[name].address


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"interface": "us0; reboot"}, "interface is no name"),
        ({"port": 0}, "port is out of range"),
        ({"port": "51820"}, "port is no number"),
        ({"network": "10.86.0.1/24"}, "network is none"),
        ({"network": "8.8.8.0/24"}, "network is not a private one"),
        ({"network": "10.0.0.0/30"}, "network is not a private one with room"),
    ],
)
def test_a_network_is_checked_as_a_whole(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Network(**wrong)  # type: ignore[arg-type]


def test_who_may_not_is_told_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    conf = tmp_path / "us9none.conf"
    conf.write_text("")
    monkeypatch.setattr(wireguard_link, "may_configure", lambda: False)
    opened = open_wireguard(Endpoints(), ME, {"interface": "us9none"}, tmp_path)
    assert opened.trouble() == ""
    opened._bring_up()
    opened._bring_up()
    assert "Run as root:" in opened.trouble()
    assert f"wg-quick up {conf}" in opened.trouble()
    assert len(caplog.records) == 1
    assert opened.stats() == {"wireguard_up": 0.0}
    opened.close()


def test_a_host_that_has_not_joined_is_told_to() -> None:
    with pytest.raises(ConfigError, match="edge join"):
        open_wireguard(Endpoints(), ME, {"interface": "us9none"}, Path("/nowhere"))
    with pytest.raises(ConfigError, match="interface is no name"):
        open_wireguard(Endpoints(), ME, {}, Path("/nowhere"))
