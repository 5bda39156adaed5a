import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from comms.authority import Authority
from comms.credentials import AllowList, Credentials, Peer, Role, parse
from user_system.core.errors import SecurityError


def test_first_start_makes_everything_and_the_next_one_finds_it(tmp_path: Path) -> None:
    first = Authority.open(tmp_path / "pki").issue("hub", Role.SERVICE)
    again = Authority.open(tmp_path / "pki").issue("hub", Role.SERVICE)
    assert again == first
    assert Credentials.load(tmp_path / "pki", "hub") == first
    assert first.peer == Peer("hub", Role.SERVICE)
    assert first.hub_curve == first.curve_public


def test_secrets_are_readable_by_the_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        Authority.open(tmp_path / "pki").issue("host-1", Role.ROBOT)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "pki").stat().st_mode) == 0o700
    for name in ("ca.key", "host-1.pem", "host-1.curve"):
        assert stat.S_IMODE((tmp_path / "pki" / name).stat().st_mode) == 0o600, name


def test_secrets_that_others_can_read_are_refused(tmp_path: Path) -> None:
    Authority.open(tmp_path).issue("host-1", Role.ROBOT)
    (tmp_path / "host-1.pem").chmod(0o640)
    with pytest.raises(SecurityError, match=r"0o640.*0o600"):
        Credentials.load(tmp_path, "host-1")


def test_no_secret_in_repr(tmp_path: Path) -> None:
    made = Authority.open(tmp_path).issue("host-1", Role.ROBOT)
    assert b"PRIVATE KEY" in made.key
    assert "PRIVATE" not in repr(made)
    assert made.curve_secret.decode() not in repr(made)
    assert b"PRIVATE" not in made.certificate


def test_only_services_may_be_servers(tmp_path: Path) -> None:
    issuer = Authority.open(tmp_path)
    service = parse(issuer.issue("replay", Role.SERVICE, ("10.0.0.7", "head.lab")).certificate)
    robot = parse(issuer.issue("host-1", Role.ROBOT).certificate)
    uses = {type(e.value).__name__: e.value for e in service.extensions}
    assert {str(n.value) for n in uses["SubjectAlternativeName"]} == {"10.0.0.7", "head.lab"}
    assert "SubjectAlternativeName" not in {type(e.value).__name__ for e in robot.extensions}


def test_another_role_or_address_makes_a_new_certificate(tmp_path: Path) -> None:
    issuer = Authority.open(tmp_path)
    viewer = issuer.issue("ada", Role.VIEWER)
    operator = issuer.issue("ada", Role.OPERATOR)
    assert operator.peer.role is Role.OPERATOR
    assert operator.certificate != viewer.certificate
    assert AllowList(tmp_path).holds(Peer("ada", Role.OPERATOR))
    assert not AllowList(tmp_path).holds(Peer("ada", Role.VIEWER))
    one = issuer.issue("replay", Role.SERVICE)
    assert issuer.issue("replay", Role.SERVICE, ("10.0.0.7",)).certificate != one.certificate


def test_an_ageing_certificate_is_renewed(tmp_path: Path) -> None:
    old = Authority.open(tmp_path, 1000.0).issue("host-1", Role.ROBOT)
    assert Authority.open(tmp_path, 2900.0).issue("host-1", Role.ROBOT) == old
    new = Authority.open(tmp_path, 3100.0).issue("host-1", Role.ROBOT)
    assert parse(new.certificate).not_valid_after_utc > parse(old.certificate).not_valid_after_utc
    assert new.curve_public == old.curve_public


def test_a_host_whose_clock_is_an_hour_behind_believes_what_was_just_made(tmp_path: Path) -> None:
    made = parse(Authority.open(tmp_path).issue("host-1", Role.ROBOT).certificate)
    seen_there_s = time.time() - 3600
    assert made.not_valid_before_utc.timestamp() < seen_there_s - 600


def test_the_lifetime_that_was_asked_for_counts(tmp_path: Path) -> None:
    long = Authority.open(tmp_path).issue("host-1", Role.ROBOT)
    assert left_s(long) == pytest.approx(90 * 86400, abs=60)
    short = Authority.open(tmp_path, 7200.0).issue("host-1", Role.ROBOT)
    assert left_s(short) == pytest.approx(7200, abs=60)


def left_s(credentials: Credentials) -> float:
    return parse(credentials.certificate).not_valid_after_utc.timestamp() - time.time()


def test_an_expired_certificate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SecurityError, match="expired"):
        Authority.open(tmp_path, 0.0).issue("host-1", Role.ROBOT)


def test_a_certificate_of_another_authority_is_refused(tmp_path: Path) -> None:
    Authority.open(tmp_path / "ours").issue("host-1", Role.ROBOT)
    Authority.open(tmp_path / "theirs").issue("host-1", Role.ROBOT)
    (tmp_path / "theirs" / "host-1.pem").rename(tmp_path / "ours" / "host-1.pem")
    with pytest.raises(SecurityError, match="not signed by this authority"):
        Credentials.load(tmp_path / "ours", "host-1")


def test_somebody_elses_certificate_is_refused(tmp_path: Path) -> None:
    issuer = Authority.open(tmp_path)
    issuer.issue("host-1", Role.ROBOT)
    issuer.issue("host-2", Role.ROBOT)
    (tmp_path / "host-2.pem").rename(tmp_path / "host-1.pem")
    with pytest.raises(SecurityError, match="somebody else's"):
        Credentials.load(tmp_path, "host-1")


@pytest.mark.parametrize("name", ["", "../hub", "a/b", "ca", "allow", ".hidden", "x" * 64, "ü"])
def test_names_that_are_no_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(SecurityError, match="not a name"):
        Authority.open(tmp_path).issue(name, Role.ROBOT)


def test_allow_list_follows_the_file(tmp_path: Path) -> None:
    issuer = Authority.open(tmp_path)
    allow = AllowList(tmp_path)
    assert allow.lookup(b"x" * 40) is None
    made = issuer.issue("host-1", Role.ROBOT)
    assert allow.lookup(made.curve_public) == made.peer
    issuer.revoke("host-1")
    assert allow.lookup(made.curve_public) is None
    assert not allow.holds(made.peer)
    with pytest.raises(SecurityError, match="cannot read"):
        Credentials.load(tmp_path, "host-1")


def test_processes_that_issue_at_once_lose_nobody(tmp_path: Path) -> None:
    Authority.open(tmp_path)
    code = (
        "import sys; from pathlib import Path\n"
        "from comms.authority import Authority; from comms.credentials import Role\n"
        "a = Authority.open(Path(sys.argv[1]))\n"
        "for i in range(10): a.issue(f'{sys.argv[2]}-{i}', Role.ROBOT)\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in ("a", "b")
    ]
    assert [process.wait(60) for process in running] == [0, 0]
    allow = AllowList(tmp_path)
    for name in ("a", "b"):
        for i in range(10):
            assert allow.holds(Peer(f"{name}-{i}", Role.ROBOT))
