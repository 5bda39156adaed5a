"""Who may join a run: what the command line does with its directory, and what ``up`` makes."""

import json
import sys
from pathlib import Path

import pytest

from comms import deeds
from comms.authority import EARLY, Authority
from comms.credentials import AllowList, Credentials, Peer, Role, parse
from comms.invitations import parse_line
from user_system import cli
from user_system.cluster import enrol, guests, plan
from user_system.cluster.compose import Composer
from user_system.cluster.layout import RunDir
from user_system.cluster.manifest import load_manifest
from user_system.cluster.ports import Ports
from user_system.core.errors import ConfigError, SecurityError

DEMO = Path(__file__).parents[2] / "deploy" / "demo.yaml"
PORTS = Ports(hub=7001, fresh=7002, replay=7003, page=7004, ray=7005, ray_client=7006, reader=7007)
LAB = ("teleop.host=0.0.0.0", "tunnel.host=head.lab", "teleop.names=[router.lab, 203.0.113.7]")


def make_run(root: Path, *settings: str) -> Composer:
    """Write down what ``up`` writes down, and start nothing."""
    run = RunDir(root, root / "short")
    run.make()
    manifest = load_manifest(DEMO, settings)
    enrol.make_pki(run.pki, manifest)
    made = Composer(manifest, run, PORTS, cores=(0, 1))
    plan.write_configs(made.processes())
    return made


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run(tmp_path / "lab", *LAB)
    return tmp_path / "lab"


def sans(root: Path, name: str) -> set[str]:
    certificate = parse(Credentials.load(root / "pki", name).certificate)
    found = [e.value for e in certificate.extensions if e.oid.dotted_string == "2.5.29.17"]
    return {str(san.value) for names in found for san in names}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["user-system", "enrol", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


# --- what up makes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "page"),
    [
        ((), "http://127.0.0.1:7004"),
        (("teleop.tls=always",), "https://127.0.0.1:7004"),
        (("teleop.host=10.0.0.7",), "https://10.0.0.7:7004"),
        (LAB, "https://router.lab:7004"),
        (("teleop.host='::1'",), "http://[::1]:7004"),
    ],
)
def test_the_page_uses_tls_whenever_others_reach_it(tmp_path: Path, settings, page) -> None:
    made = make_run(tmp_path / "lab", *settings)
    config = next(p.config for p in made.processes() if p.spec.name == "teleop")
    assert made.page == page
    assert config.tls is page.startswith("https")
    operator = next(p.config for p in made.processes() if p.spec.name == "operator-script")
    assert (operator.authority is not None) is config.tls


def test_certificates_name_what_their_listeners_are_called(run: Path) -> None:
    names = {"router.lab", "203.0.113.7", "head.lab", "localhost", "127.0.0.1"}
    assert sans(run, "teleop") == names
    for name in ("hub", "replay", "replay-reader"):
        assert sans(run, name) == {"head.lab", "localhost", "127.0.0.1"}


def test_the_lifetime_of_the_manifest_counts(tmp_path: Path) -> None:
    made = make_run(tmp_path / "lab", "security.lifetime=2h")
    certificate = parse(Credentials.load(tmp_path / "lab" / "pki", "local").certificate)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert (life - EARLY).total_seconds() == pytest.approx(2 * 3600, abs=5)  # the rest is past
    hub = next(p.config for p in made.processes() if p.spec.name == "hub")
    assert hub.lifetime_s == 7200


def test_up_does_not_take_a_revoked_host_back(run: Path) -> None:
    guests.revoke(run, "kim", "local")
    with pytest.raises(SecurityError, match=r"'local' was revoked.*enrol create local --here"):
        make_run(run, *LAB)
    guests.restore(run, "kim", "local", Role.ROBOT)
    make_run(run, *LAB)
    assert AllowList(run / "pki").holds(Peer("local", Role.ROBOT))


def test_learners_have_names_of_their_own_and_publish_their_own_policy(tmp_path: Path) -> None:
    """A learner of another's policy would act in its robots."""
    made = make_run(tmp_path / "lab", "learners.other.kind=rlpd", "actors.second.learner=other",
                    "robots.arm-2.actor=second")  # fmt: skip
    links = {p.spec.name: p.config.link.name for p in made.processes() if p.spec.argv[2:3]
             and p.spec.argv[2].endswith("learner_host")}  # fmt: skip
    assert links == {name: name for name in ("learner-rlpd", "learner-other")}
    for name in links:
        assert AllowList(tmp_path / "lab" / "pki").holds(Peer(name, Role.LEARNER))
    hub = next(p.config for p in made.processes() if p.spec.name == "hub")
    assert hub.publishers == {"rlpd": "learner-rlpd", "other": "learner-other"}


def test_the_name_that_all_learners_shared_counts_no_more(run: Path) -> None:
    authority = Authority.open(run / "pki")
    authority.issue("learner", Role.LEARNER)
    make_run(run, *LAB)
    allowed = AllowList(run / "pki")
    assert not allowed.holds(Peer("learner", Role.LEARNER))
    assert allowed.holds(Peer("learner-rlpd", Role.LEARNER))
    noted: list[tuple[str, str]] = []
    deeds.hand_over(run / "pki", lambda deed, who, **more: noted.append((deed, more["name"])))
    assert noted == [("revoke", "learner")]
    make_run(run, *LAB)
    assert not deeds.waiting(run / "pki"), "once"


# --- inviting ----------------------------------------------------------------------------------


def test_a_line_leads_to_the_page(run: Path) -> None:
    one = guests.invite(run, "kim", "lab-1", Role.ROBOT, 600.0)
    assert (one.host, one.port, one.name) == ("router.lab", 7004, "lab-1")
    two = guests.invite(run, "kim", "lab-1", Role.ROBOT, 600.0, at="203.0.113.7:443")
    assert (two.host, two.port) == ("203.0.113.7", 443)
    three = guests.invite(run, "kim", "lab-1", Role.ROBOT, 600.0, at="head.lab")
    assert (three.host, three.port) == ("head.lab", 7004)


@pytest.mark.parametrize("at", ["elsewhere.lab", "router.lab:https", ":443", "[::1]:443"])
def test_addresses_that_the_page_is_not_called_by(run: Path, at: str) -> None:
    with pytest.raises(ConfigError):
        guests.invite(run, "kim", "lab-1", Role.ROBOT, 600.0, at)


def test_nobody_is_invited_to_a_page_without_tls(tmp_path: Path) -> None:
    make_run(tmp_path / "lab")
    with pytest.raises(ConfigError, match=r"teleop.tls=always"):
        guests.invite(tmp_path / "lab", "kim", "lab-1", Role.ROBOT, 600.0)


@pytest.mark.parametrize(("text", "seconds"), [("1h", 3600.0), ("90s", 90.0), ("2d", 172800.0)])
def test_lifetimes_are_quantities(text: str, seconds: float) -> None:
    assert guests.lifetime(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "1y", "30s", "8d"])
def test_lifetimes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="lives"):
        guests.lifetime(text)


# --- listing, revoking, renewing ---------------------------------------------------------------


def test_everybody_is_listed_with_what_became_of_them(run: Path) -> None:
    guests.invite(run, "kim", "lab-1", Role.ROBOT, 600.0)
    guests.revoke(run, "kim", "local")
    found = {guest.name: guest for guest in guests.guests(run)}
    assert (found["lab-1"].state, found["lab-1"].role) == ("invited", "robot")
    assert found["lab-1"].left_s == pytest.approx(600, abs=30)
    assert found["local"].state == "revoked"
    assert found["hub"].state == "enrolled"
    assert found["hub"].left_s == pytest.approx(90 * 86400, abs=60)
    assert found["hub"].seen_s is None, "nobody is up that could know"


def test_renewing_at_the_head_renews_what_is_there(run: Path) -> None:
    before = {name: Credentials.load(run / "pki", name) for name in ("hub", "local")}
    assert set(guests.renew_all(run, "kim", ["local"])) == {"local"}
    assert Credentials.load(run / "pki", "hub") == before["hub"]
    assert Credentials.load(run / "pki", "local").key != before["local"].key
    assert "hub" in guests.renew_all(run, "kim", [])
    with pytest.raises(SecurityError, match="nobody"):
        guests.renew_all(run, "kim", ["nobody"])


def test_a_directory_without_an_authority_says_where_to_go(tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir()
    with pytest.raises(ConfigError, match="at the head"):
        guests.guests(tmp_path)
    with pytest.raises(ConfigError, match="not a run"):
        guests.find(tmp_path / "nothing")


def test_the_command_line_prints_one_line_and_lists_and_revokes(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ("--run", str(run))
    assert call(monkeypatch, "create", "lab-1", *there, "--lives", "10min") == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 1
    assert out.startswith("user-system edge join us1")
    assert parse_line(out.split()[-1]).name == "lab-1"
    assert call(monkeypatch, "list", *there, "--json") == 0
    listed = {guest["name"]: guest for guest in json.loads(capsys.readouterr().out)}
    assert listed["lab-1"]["state"] == "invited"
    assert call(monkeypatch, "list", *there) == 0
    assert "lab-1" in capsys.readouterr().out
    assert call(monkeypatch, "revoke", "lab-1", *there) == 0
    assert call(monkeypatch, "renew", "local", *there) == 0
    assert "local: good for 90 d" in capsys.readouterr().out
    for arguments in (
        ("revoke", "lab-1", *there),
        ("revoke", "hub", *there),
        ("create", "lab-1", "--role", "king", *there),
        ("create", "lab-1", "--role", "service", *there),
        ("create", "local", *there),
    ):
        assert call(monkeypatch, *arguments) == 2
        assert capsys.readouterr().err.startswith("error: ")
