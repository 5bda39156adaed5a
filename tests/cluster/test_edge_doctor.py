"""What keeps a robot host from its head is named; what builds on it is not guessed at."""

import json
import socket
from pathlib import Path

import pytest

from comms.authority import Authority
from comms.credentials import AllowList, Credentials, Role
from comms.fresh_hub import FreshHub
from comms.hub_service import HubService
from comms.pb import hub_pb2
from comms.serving import serve
from user_system.cluster import edge_doctor
from user_system.cluster.configs import JoinFacts
from user_system.cluster.edge_home import EdgeFile, EdgeHome
from user_system.cluster.finding import Finding
from user_system.core.clock import WallClock
from user_system.core.errors import ConfigError
from user_system.core.versions import PROTOCOL
from user_system.hub.service import Hub, HubConfig


def home(tmp_path: Path, hub: int, fresh: int = 1) -> EdgeHome:
    """Return the directory of a host that joined a head at some ports."""
    made = EdgeHome(tmp_path / "lab-1")
    made.root.mkdir()
    pki = tmp_path / "head"
    Authority.open(pki).issue("lab-1", Role.ROBOT)
    made.pki.mkdir()
    for name in ("ca.crt", "hub.pub", "lab-1.pem", "lab-1.curve"):
        (made.pki / name).write_bytes((pki / name).read_bytes())
        (made.pki / name).chmod(0o600)
    where = [f"127.0.0.1:{port}" for port in (hub, hub, fresh, 1)]
    made.write(EdgeFile("lab-1", JoinFacts("lab", *where)))
    return made


def examined(made: EdgeHome) -> dict[str, Finding]:
    found = edge_doctor.examine(made.root)
    for finding in found:
        assert finding.ok or finding.todo, f"{finding.what} says what to do"
    return {finding.what.partition(" 127")[0]: finding for finding in found}


def closed() -> int:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        return int(gone.getsockname()[1])


@pytest.fixture
def head(tmp_path):
    pki = tmp_path / "head"
    me = Authority.open(pki).issue("hub", Role.SERVICE)
    hub = Hub(tmp_path / "hub", HubConfig(run="lab"), WallClock())
    hub.open()
    fresh = FreshHub(me, AllowList(pki))
    fresh.start()
    with serve([HubService(hub)], credentials=me, allow=AllowList(pki)) as server:
        yield server.port, fresh.port
    fresh.close()
    hub.close()


def test_nobody_joined_there(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no directory of a robot host"):
        edge_doctor.examine(tmp_path)


def test_a_way_that_works(tmp_path, head) -> None:
    found = examined(home(tmp_path, *head))
    bad = {what for what, finding in found.items() if not finding.ok}
    assert bad == {"setup", "process"}, "it has not run yet"
    assert "round trip" in found["hub"].found
    assert "valid for 89 days" in found["certificate"].found
    assert f"protocol {PROTOCOL}" in found["version"].found


def test_a_head_that_is_away(tmp_path) -> None:
    found = examined(home(tmp_path, closed(), closed()))
    for name in ("hub", "replay", "fresh"):
        assert "nobody listens" in found[name].found
    assert not {"clocks", "version", "fresh lane", "large messages to the head"} & found.keys()
    assert {"certificate", "spool", "process"} <= found.keys(), "what needs no head is looked at"


def test_a_host_that_was_revoked(tmp_path, head) -> None:
    made = home(tmp_path, *head)
    Authority.open(tmp_path / "head").revoke("lab-1")
    found = examined(made)
    assert "not enrolled" in found["hub"].found
    assert "refuses the CURVE key" in found["fresh lane"].found
    assert "clocks" not in found


def test_a_head_of_another_version(tmp_path, head, monkeypatch) -> None:
    def old(self: Hub, peer: object, query: hub_pb2.ProbeQuery) -> hub_pb2.ProbeReply:
        return hub_pb2.ProbeReply(
            payload=bytes(query.want), wall_s=1e9, protocol=PROTOCOL, version="0.0.9"
        )

    monkeypatch.setattr(Hub, "probe", old)
    found = examined(home(tmp_path, *head))
    assert "do not work together" in found["version"].found
    assert "On the head: pip install" in found["version"].todo
    assert not found["clocks"].ok
    assert "timedatectl" in found["clocks"].todo


def test_a_certificate_that_ends_soon(tmp_path) -> None:
    made = home(tmp_path, closed(), closed())
    Authority.open(tmp_path / "head", 5 * 86400.0).issue("lab-2", Role.ROBOT)
    for end in ("pem", "curve"):
        source = (tmp_path / "head" / f"lab-2.{end}").read_bytes()
        (made.pki / f"lab-2.{end}").write_bytes(source)
        (made.pki / f"lab-2.{end}").chmod(0o600)
    facts = json.loads(made.file.read_text()) | {"name": "lab-2"}
    made.file.write_text(json.dumps(facts))
    found = examined(made)["certificate"]
    assert (found.ok, "valid for 4 days" in found.found) == (False, True)
    assert Credentials.load(made.pki, "lab-2").peer.name == "lab-2"


def test_a_certificate_that_others_can_read(tmp_path) -> None:
    made = home(tmp_path, closed(), closed())
    (made.pki / "lab-1.pem").chmod(0o644)
    assert "others can read the secret" in examined(made)["certificate"].found


def test_a_setup_that_cannot_be_followed_any_more(tmp_path) -> None:
    made = home(tmp_path, closed(), closed())
    made.setup.write_text('{"protocol": 9, "version": "9.0.0"}')
    found = examined(made)["setup"]
    assert not found.ok
    assert "On this robot host" in found.todo
