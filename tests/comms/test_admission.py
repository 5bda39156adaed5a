"""How a tunnel comes about: what travels at a join, for every kind."""

import json
from pathlib import Path
from typing import Any

import pytest

from comms import admission, ssh_keys, wireguard, wireguard_link
from comms.ssh_client import KNOWN_HOSTS
from user_system.core.errors import ConfigError, SecurityError

ENDPOINTS = ["127.0.0.1:7400", "127.0.0.1:7401", "127.0.0.1:7402"]


def ssh_settings(folder: Path) -> dict[str, Any]:
    host_key = ssh_keys.make_key(folder / "host.key")
    return {"user": "lab", "host": "head.example.org", "port": 2222, "host_key": host_key}


WIREGUARD = {"host": "head.example.org", "port": 4500, "network": "10.9.0.0/24", "interface": "u7"}


@pytest.fixture
def head(tmp_path: Path) -> Path:
    return tmp_path / "head"


@pytest.fixture
def edge(tmp_path: Path) -> Path:
    return tmp_path / "edge"


def over_the_wire(value: Any) -> Any:
    """What travels is plain: it is as it was on the other side of JSON."""
    assert json.loads(json.dumps(value)) == value
    return json.loads(json.dumps(value))


def join(head: Path, edge: Path, name: str = "arm-1") -> tuple[dict[str, Any], dict[str, Any]]:
    keys = over_the_wire(admission.prepare(edge))
    assert set(keys) == {"ssh", "wireguard"}
    way = over_the_wire(admission.admit(head, name, keys))
    return way, admission.settle(edge, way)


def test_ssh(head: Path, edge: Path) -> None:
    settings = ssh_settings(head)
    admission.publish(head, "ssh", settings, ENDPOINTS)
    way, found = join(head, edge)
    assert way == {"kind": "ssh", **settings}
    assert found == {"user": "lab", "host": "head.example.org", "port": 2222}
    assert settings["host_key"] in (edge / KNOWN_HOSTS).read_text()
    line = (head / ssh_keys.AUTHORIZED).read_text()
    assert ssh_keys.public_key(edge) in line
    assert all(f'permitopen="{endpoint}"' in line for endpoint in ENDPOINTS)
    assert line.count("permitopen=") == 3
    secret = (edge / "ssh.key").read_text()
    assert join(head, edge) == (way, found), "joining again changes nothing"
    assert (edge / "ssh.key").read_text() == secret
    assert (head / ssh_keys.AUTHORIZED).read_text() == line
    admission.publish(head, "ssh", settings, ["127.0.0.1:9"])
    moved = (head / ssh_keys.AUTHORIZED).read_text()
    assert (
        moved
        == ssh_keys.authorized_line("arm-1", ssh_keys.public_key(edge), ["127.0.0.1:9"]) + "\n"
    )
    admission.dismiss(head, "arm-1")
    assert (head / ssh_keys.AUTHORIZED).read_text() == ""
    admission.dismiss(head, "arm-1")


def test_wireguard(head: Path, edge: Path, tmp_path: Path) -> None:
    admission.publish(head, "wireguard", WIREGUARD, [])
    way, found = join(head, edge)
    other, _ = join(head, tmp_path / "other", "arm-2")
    assert way == {
        "kind": "wireguard",
        "interface": "u7",
        "address": "10.9.0.2",
        "head": "10.9.0.1",
        "head_key": wireguard.make_key(head / wireguard.KEY),
        "endpoint": "head.example.org:4500",
    }
    assert other["address"] == "10.9.0.3"
    assert found == {"interface": "u7"}
    conf = (edge / "u7.conf").read_text()
    assert (edge / "u7.conf").stat().st_mode & 0o777 == 0o600
    assert (edge / wireguard.KEY).read_text().strip() in conf
    assert (edge / wireguard.KEY).read_text().strip() not in json.dumps(way)
    assert "arm-1" in (head / "u7.conf").read_text()
    # A new start of the head keeps who was let in.
    admission.publish(head, "wireguard", WIREGUARD, [])
    assert join(head, edge)[0] == way
    admission.dismiss(head, "arm-1")
    assert "arm-1" not in (head / "u7.conf").read_text()
    assert "arm-2" in (head / "u7.conf").read_text()


def test_direct_needs_nothing(head: Path, edge: Path) -> None:
    assert join(head, edge) == ({"kind": "direct"}, {})
    admission.publish(head, "direct", {}, ENDPOINTS)
    assert join(head, edge) == ({"kind": "direct"}, {})
    assert not (head / ssh_keys.AUTHORIZED).exists()


def test_the_interface_that_is_up_is_told(
    head: Path, edge: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(wireguard_link, "is_up", lambda name: name == "u7")
    monkeypatch.setattr(wireguard_link, "may_configure", lambda: True)
    monkeypatch.setattr(wireguard_link, "_run", lambda argv, *rest: ran.append(list(argv)))
    admission.publish(head, "wireguard", WIREGUARD, [])
    keys = admission.prepare(edge)
    admission.admit(head, "arm-1", keys)
    allowed = ["allowed-ips", "10.9.0.2/32"]
    assert ran == [["wg", "set", "u7", "peer", keys["wireguard"], *allowed]]
    (edge / wireguard.KEY).unlink()
    fresh = admission.prepare(edge)
    admission.admit(head, "arm-1", fresh)
    assert ran[1:] == [
        ["wg", "set", "u7", "peer", keys["wireguard"], "remove"],
        ["wg", "set", "u7", "peer", fresh["wireguard"], *allowed],
    ]
    admission.dismiss(head, "arm-1")
    assert ran[3:] == [["wg", "set", "u7", "peer", fresh["wireguard"], "remove"]]
    assert not caplog.records
    monkeypatch.setattr(wireguard_link, "may_configure", lambda: False)
    admission.admit(head, "arm-1", fresh)
    assert f"wg syncconf u7 <(wg-quick strip {head / 'u7.conf'})" in caplog.text


def test_who_brings_no_key_or_somebody_elses_is_refused(head: Path, edge: Path) -> None:
    admission.publish(head, "ssh", ssh_settings(head), ENDPOINTS)
    with pytest.raises(SecurityError, match="brings no key for a tunnel of kind ssh; got none"):
        admission.admit(head, "arm-1", {})
    with pytest.raises(SecurityError, match="not the public ssh key"):
        admission.admit(head, "arm-1", {"ssh": "x"})
    keys = admission.prepare(edge)
    with pytest.raises(SecurityError, match="not a name"):
        admission.admit(head, "../arm", keys)
    admission.admit(head, "arm-1", keys)
    with pytest.raises(SecurityError, match="another host's; got arm-1"):
        admission.admit(head, "arm-2", keys)
    admission.publish(head, "wireguard", WIREGUARD, [])
    admission.admit(head, "arm-1", keys)
    with pytest.raises(SecurityError, match="another host's; got arm-1"):
        admission.admit(head, "arm-2", keys)


@pytest.mark.parametrize(
    ("kind", "settings", "text"),
    [
        ("carrier pigeon", {}, "unknown kind of tunnel; got 'carrier pigeon'; allowed: direct"),
        ("ssh", {}, "a setting of the ssh tunnel is missing"),
        ("ssh", {"user": "a", "host": "b", "agent": 1}, r"no setting of an ssh tunnel.*agent"),
        ("ssh", {"user": "a", "host": "b", "host_key": "c"}, "host_key is no public host key"),
        ("wireguard", {}, "a setting of the wireguard tunnel is missing; allowed: host"),
        ("wireguard", {"host": "a", "mtu": 1}, "no setting of a wireguard tunnel"),
        ("wireguard", {"host": "a", "port": 0}, "port is out of range"),
    ],
)
def test_a_head_offers_nothing_half(
    head: Path, kind: str, settings: dict[str, Any], text: str
) -> None:
    with pytest.raises((ConfigError, SecurityError), match=text):
        admission.publish(head, kind, settings, ENDPOINTS)
    assert not (head / admission.OFFER).exists()


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"kind": "direkt"},
        {"kind": "ssh"},
        {"kind": "ssh", "user": "a", "host": "b"},
        {"kind": "ssh", "user": "-oProxyCommand=x", "host": "b", "host_key": "c"},
        {"kind": "wireguard"},
        {"kind": "wireguard", "interface": "u7", "address": "10.9.0.2", "head": "10.9.0.1",
         "head_key": "x", "endpoint": "h:1"},
    ],
)  # fmt: skip
def test_a_robot_host_takes_nothing_half(edge: Path, way: dict[str, Any]) -> None:
    admission.prepare(edge)
    before = {path: path.read_bytes() for path in edge.iterdir()}
    with pytest.raises((ConfigError, SecurityError)):
        admission.settle(edge, way)
    assert {path: path.read_bytes() for path in edge.iterdir()} == before


def test_a_damaged_offer_lets_nobody_in(head: Path, edge: Path) -> None:
    head.mkdir()
    (head / admission.OFFER).write_text("{")
    with pytest.raises(SecurityError, match="damaged"):
        admission.admit(head, "arm-1", admission.prepare(edge))
