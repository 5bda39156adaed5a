"""Invitations apart from any wire: the line, and who gets a certificate for it, how often."""

import json
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from comms import admission, deeds
from comms.authority import Authority
from comms.credentials import AllowList, Peer, Role, Shown, fingerprint, parse, subject
from comms.invitations import PREFIX, Invitation, Invitations, Request, parse_line
from comms.keys import make_key, make_request
from user_system.core.errors import ConfigError, DamageError, SecurityError, UserSystemError

HOUR = 3600.0


class Guest:
    """A host that wants to join, with keys of its own."""

    def __init__(self, name: str = "arm-1"):
        self.key, self.pem = make_key()
        self.public, self.secret = zmq.curve_keypair()
        self.name = name

    def request(self, invitation: Invitation, **other: bytes) -> Request:
        csr = make_request(self.key, Peer(self.name, Role.ROBOT))
        values = {"id": invitation.id, "secret": invitation.secret, "csr": csr}
        return Request(**{**values, "curve_public": self.public, **other})


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "pki")


@pytest.fixture
def invitations(authority: Authority) -> Invitations:
    return Invitations(authority, by="kim")


def invite(invitations: Invitations, name: str = "arm-1", **options: Any) -> Invitation:
    return invitations.create(name, Role.ROBOT, "head.lab", 8765, **options)


def shown(certificate: bytes) -> Shown:
    parsed = parse(certificate)
    until = parsed.not_valid_after_utc.timestamp()
    return Shown(subject(parsed), fingerprint(parsed), until)


# --- the line ----------------------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
LINES = st.builds(
    Invitation,
    host=st.text(min_size=1, max_size=60).filter(lambda host: len(host.encode()) < 256),
    port=st.integers(1, 65535),
    id=st.binary(min_size=8, max_size=8),
    pin=st.binary(min_size=16, max_size=16),
    expires=st.integers(0, 2**32 - 1),
    name=NAMES,
    secret=st.binary(min_size=16, max_size=16),
)


@given(LINES)
def test_a_line_says_what_it_was_made_of(invitation: Invitation) -> None:
    line = invitation.line()
    assert parse_line(f"  {line}\n") == invitation
    assert line.startswith(PREFIX)
    assert line.isprintable()
    assert " " not in line


@given(LINES, st.data())
def test_a_line_that_was_cut_or_changed_is_none(
    invitation: Invitation, data: st.DataObject
) -> None:
    line = invitation.line()
    cut = data.draw(st.integers(0, len(line) - 1))
    with pytest.raises(ConfigError):
        parse_line(line[:cut])
    at = data.draw(st.integers(0, len(line) - 1))
    other = data.draw(st.sampled_from("Aa0-_!é").filter(lambda letter: letter != line[at]))
    try:
        read = parse_line(line[:at] + other + line[at + 1 :])
    except ConfigError:
        return
    # Bits of the last character that stand for nothing.
    assert at == len(line) - 1
    assert read == invitation


@given(st.text(max_size=2000))
def test_no_text_is_worse_than_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_line(text)
    with pytest.raises(ConfigError):
        parse_line(PREFIX + text)


def test_a_line_is_short_and_its_secret_is_not_in_the_repr(invitations: Invitations) -> None:
    invitation = invite(invitations)
    assert len(invitation.line()) < 120
    assert repr(invitation.secret) not in repr(invitation)


# --- making them -------------------------------------------------------------------------------


def test_the_secret_is_not_on_disk_and_the_files_are_private(
    invitations: Invitations, authority: Authority
) -> None:
    invitation = invite(invitations)
    for path in authority.directory.iterdir():
        content = path.read_bytes()
        assert invitation.secret not in content
        assert invitation.secret.hex().encode() not in content
    for name in ("invitations.json", "allow.json", "deeds.jsonl"):
        if (path := authority.directory / name).exists():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, name


@pytest.mark.parametrize(
    ("name", "role", "life_s", "error"),
    [
        ("head", Role.SERVICE, HOUR, ConfigError),
        ("hub", Role.ROBOT, HOUR, ConfigError),
        ("../x", Role.ROBOT, HOUR, SecurityError),
        ("arm-1", Role.ROBOT, 59.0, ConfigError),
        ("arm-1", Role.ROBOT, 8 * 86400.0, ConfigError),
    ],
)
def test_invitations_that_make_no_sense(
    invitations: Invitations, name: str, role: Role, life_s: float, error: type[Exception]
) -> None:
    with pytest.raises(error):
        invitations.create(name, role, "head.lab", 8765, life_s)
    assert not invitations.open()


def test_a_name_that_is_enrolled_is_not_invited(
    invitations: Invitations, authority: Authority
) -> None:
    authority.issue("host-1", Role.ROBOT)
    with pytest.raises(SecurityError, match=r"enrolled already.*enrol revoke host-1"):
        invite(invitations, "host-1")


def test_a_new_invitation_ends_the_one_before(invitations: Invitations) -> None:
    first, second = invite(invitations), invite(invitations)
    guest = Guest()
    with pytest.raises(SecurityError, match="no such invitation"):
        invitations.redeem(guest.request(first))
    assert invitations.redeem(guest.request(second)).peer == Peer("arm-1", Role.ROBOT)


# --- using them --------------------------------------------------------------------------------


def test_a_guest_becomes_a_peer(invitations: Invitations, authority: Authority) -> None:
    invitation, guest = invite(invitations), Guest()
    signed = invitations.redeem(guest.request(invitation))
    allow = AllowList(authority.directory)
    assert signed.peer == Peer("arm-1", Role.ROBOT)
    assert not signed.again
    assert allow.admits(shown(signed.certificate))
    assert allow.lookup(guest.public) == signed.peer
    assert not invitations.open()
    parse(signed.certificate).verify_directly_issued_by(authority.certificate)


def test_the_role_is_the_invitations_whatever_the_request_says(invitations: Invitations) -> None:
    invitation, guest = invite(invitations), Guest()
    csr = make_request(guest.key, Peer("hub", Role.SERVICE))
    signed = invitations.redeem(guest.request(invitation, csr=csr))
    assert subject(parse(signed.certificate)) == Peer("arm-1", Role.ROBOT)


def test_a_lost_answer_is_repeated_to_the_same_keys_only(invitations: Invitations) -> None:
    invitation, guest, other = invite(invitations), Guest(), Guest()
    first = invitations.redeem(guest.request(invitation))
    second = invitations.redeem(guest.request(invitation))
    assert second.certificate == first.certificate
    assert second.again
    for thief in (other.request(invitation), guest.request(invitation, curve_public=other.public)):
        with pytest.raises(SecurityError, match="has been used"):
            invitations.redeem(thief)


def test_a_power_cut_between_the_two_files_is_mended_by_asking_again(
    invitations: Invitations, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    invitation, guest = invite(invitations), Guest()
    with monkeypatch.context() as patch:
        patch.setattr(Authority, "enrol", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            invitations.redeem(guest.request(invitation))
    assert not AllowList(authority.directory).lookup(guest.public)
    with pytest.raises(SecurityError, match="has been used"):
        invitations.redeem(Guest().request(invitation))
    signed = invitations.redeem(guest.request(invitation))
    assert AllowList(authority.directory).admits(shown(signed.certificate))


def test_nothing_changes_when_the_witness_objects(
    invitations: Invitations, authority: Authority
) -> None:
    invitation, guest = invite(invitations), Guest()

    def full(peer: Peer) -> None:
        raise SecurityError(f"{peer.name} cannot be written down")

    with pytest.raises(SecurityError, match="arm-1 cannot be written down"):
        invitations.redeem(guest.request(invitation), full)
    assert not AllowList(authority.directory).lookup(guest.public)
    assert invitations.redeem(Guest().request(invitation)).peer.name == "arm-1"


def test_an_invitation_expires_and_so_does_its_repetition(authority: Authority) -> None:
    now = time.time()
    invitations = Invitations(authority, wall_s=lambda: now)
    used, open_, guest = invite(invitations), invite(invitations, "arm-2"), Guest()
    invitations.redeem(guest.request(used))
    now += HOUR + 1
    for request in (guest.request(used), Guest("arm-2").request(open_)):
        with pytest.raises(SecurityError, match="has expired"):
            invitations.redeem(request)


@pytest.mark.parametrize("field", ["id", "secret", "csr", "curve_public"])
def test_wrong_parts_of_a_request(invitations: Invitations, field: str) -> None:
    invitation, guest = invite(invitations), Guest()
    for wrong in (b"", b"x" * 16, b"\xff" * 40):
        if field == "curve_public" and len(wrong) == 40:
            continue
        with pytest.raises(SecurityError):
            invitations.redeem(guest.request(invitation, **{field: wrong}))
    assert invitations.redeem(guest.request(invitation)).peer.name == "arm-1"


def test_a_curve_key_that_is_no_text_is_refused(invitations: Invitations) -> None:
    with pytest.raises(SecurityError, match="not a public CURVE key"):
        invitations.redeem(Guest().request(invite(invitations), curve_public=b"\xff" * 40))


def test_a_curve_key_of_somebody_else_is_refused(
    invitations: Invitations, authority: Authority
) -> None:
    hub = authority.issue("hub", Role.SERVICE)
    request = Guest().request(invite(invitations), curve_public=hub.curve_public)
    with pytest.raises(SecurityError, match="somebody else's"):
        invitations.redeem(request)
    assert AllowList(authority.directory).lookup(hub.curve_public) == hub.peer


def test_keys_of_other_kinds_are_refused(invitations: Invitations) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import Encoding

    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    weak: list[Any] = [
        rsa.generate_private_key(65537, 1024),
        ec.generate_private_key(ec.SECP192R1()),
    ]
    for key in weak:
        csr = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
        with pytest.raises(SecurityError):
            invitations.redeem(Guest().request(invite(invitations), csr=csr))


def test_of_many_that_race_for_one_invitation_one_gets_in(
    invitations: Invitations, authority: Authority
) -> None:
    invitation = invite(invitations)
    guests = [Guest() for _ in range(8)]
    got: list[Any] = [None] * len(guests)
    start = threading.Barrier(len(guests))

    def run(index: int) -> None:
        start.wait()
        try:
            got[index] = Invitations(authority).redeem(guests[index].request(invitation))
        except SecurityError as error:
            got[index] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(guests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lucky = [i for i, result in enumerate(got) if not isinstance(result, UserSystemError)]
    assert len(lucky) == 1
    assert all("has been used" in str(r) for i, r in enumerate(got) if i != lucky[0])
    allow = AllowList(authority.directory)
    assert [bool(allow.lookup(guest.public)) for guest in guests].count(True) == 1


def test_processes_that_race_for_one_invitation_agree_too(
    invitations: Invitations, authority: Authority
) -> None:
    invitation = invite(invitations)
    code = (
        "import sys; from pathlib import Path\n"
        "import zmq\n"
        "from comms.authority import Authority; from comms.credentials import Peer, Role\n"
        "from comms.invitations import Invitations, Request, parse_line\n"
        "from comms.keys import make_key, make_request\n"
        "from user_system.core.errors import SecurityError\n"
        "i = parse_line(sys.argv[2]); key, _ = make_key(); public, _ = zmq.curve_keypair()\n"
        "csr = make_request(key, Peer('arm-1', Role.ROBOT))\n"
        "invitations = Invitations(Authority.open(Path(sys.argv[1])))\n"
        "try: invitations.redeem(Request(i.id, i.secret, csr, public))\n"
        "except SecurityError: sys.exit(7)\n"
    )
    argv = [sys.executable, "-c", code, str(authority.directory), invitation.line()]
    running = [subprocess.Popen(argv) for _ in range(3)]
    assert sorted(process.wait(60) for process in running) == [0, 7, 7]


# --- revoking ----------------------------------------------------------------------------------


def test_revoking_ends_the_certificate_and_the_invitations(
    invitations: Invitations, authority: Authority
) -> None:
    invitation, guest = invite(invitations), Guest()
    signed = invitations.redeem(guest.request(invitation))
    invitations.revoke("arm-1")
    allow = AllowList(authority.directory)
    assert not allow.admits(shown(signed.certificate))
    assert not allow.lookup(guest.public)
    with pytest.raises(SecurityError):
        invitations.redeem(guest.request(invitation))
    open_ = invite(invitations)
    invitations.revoke("arm-1")
    with pytest.raises(SecurityError, match="no such invitation"):
        invitations.redeem(Guest().request(open_))
    with pytest.raises(SecurityError, match="nobody is called"):
        invitations.revoke("arm-1")


def test_what_was_before_a_revocation_stays_refused(
    invitations: Invitations, authority: Authority
) -> None:
    guest = Guest()
    old = invitations.redeem(guest.request(invite(invitations)))
    invitations.revoke("arm-1")
    again = invite(invitations)
    for reused in (guest.request(again), Guest().request(again, curve_public=guest.public)):
        with pytest.raises(SecurityError, match="was revoked"):
            invitations.redeem(reused)
    new = invitations.redeem(Guest().request(again))
    allow = AllowList(authority.directory)
    assert allow.admits(shown(new.certificate))
    assert not allow.admits(shown(old.certificate))
    assert not allow.keeps(shown(old.certificate))


def test_the_authoritys_own_way_of_revoking_cannot_be_undone_by_asking_again(
    invitations: Invitations, authority: Authority
) -> None:
    invitation, guest = invite(invitations), Guest()
    invitations.redeem(guest.request(invitation))
    authority.revoke("arm-1")
    with pytest.raises(SecurityError, match="was revoked"):
        invitations.redeem(guest.request(invitation))
    assert not AllowList(authority.directory).lookup(guest.public)


def test_a_revocation_that_was_cut_short_is_finished_by_the_next(
    invitations: Invitations, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a key for the tunnel would be left that no command takes away."""
    invitations.redeem(Guest().request(invite(invitations)))
    shut: list[str] = []

    def dismiss(pki: Path, name: str) -> None:
        shut.append(name)
        if len(shut) == 1:
            raise SecurityError("the power went")

    monkeypatch.setattr(admission, "dismiss", dismiss)
    with pytest.raises(SecurityError, match="the power went"):
        invitations.revoke("arm-1")
    with pytest.raises(SecurityError, match="nobody is called"):
        invitations.revoke("arm-1")
    assert shut == ["arm-1"] * 2
    with pytest.raises(SecurityError, match="nobody is called"):
        invitations.revoke("arm-2")
    assert len(shut) == 2


def test_the_head_itself_is_not_revoked(invitations: Invitations, authority: Authority) -> None:
    authority.issue("hub", Role.SERVICE)
    with pytest.raises(SecurityError, match="part of the head"):
        invitations.revoke("hub")
    assert AllowList(authority.directory).holds(Peer("hub", Role.SERVICE))


def test_a_revoked_name_is_not_issued_again_in_silence(authority: Authority) -> None:
    first = authority.issue("host-1", Role.ROBOT)
    authority.revoke("host-1")
    with pytest.raises(SecurityError, match=r"was revoked.*--here"):
        authority.issue("host-1", Role.ROBOT)
    authority.restore("host-1")
    second = authority.issue("host-1", Role.ROBOT)
    allow = AllowList(authority.directory)
    assert allow.admits(shown(second.certificate))
    assert not allow.admits(shown(first.certificate))
    assert not allow.lookup(first.curve_public)


def test_a_name_whose_keys_are_elsewhere_is_not_issued_here(
    invitations: Invitations, authority: Authority
) -> None:
    signed = invitations.redeem(Guest().request(invite(invitations)))
    with pytest.raises(SecurityError, match="another host"):
        authority.issue("arm-1", Role.ROBOT)
    assert AllowList(authority.directory).admits(shown(signed.certificate))


# --- deeds -------------------------------------------------------------------------------------


def test_deeds_wait_for_the_audit_log(invitations: Invitations, authority: Authority) -> None:
    assert not deeds.waiting(authority.directory)
    invite(invitations)
    invitations.revoke("arm-1")
    assert deeds.waiting(authority.directory)
    heard: list[tuple[str, str]] = []

    def write(action: str, who: str, **details: Any) -> None:
        assert details["name"] == "arm-1"
        heard.append((action, who))

    deeds.hand_over(authority.directory, write)
    assert heard == [("invite", "kim"), ("revoke", "kim")]
    assert not deeds.waiting(authority.directory)


def test_deeds_that_the_log_refuses_are_kept(
    invitations: Invitations, authority: Authority
) -> None:
    invite(invitations)

    def full(action: str, who: str, **details: Any) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        deeds.hand_over(authority.directory, full)
    assert deeds.waiting(authority.directory)
    (authority.directory / deeds.FILE).write_text("{}\n")
    with pytest.raises(DamageError):
        deeds.hand_over(authority.directory, full)


# --- renewing ----------------------------------------------------------------------------------


@pytest.fixture
def joined(invitations: Invitations) -> bytes:
    return invitations.redeem(Guest().request(invite(invitations))).certificate


def ignore(peer: Peer) -> None:
    del peer


def test_a_peer_renews_for_itself_only(authority: Authority, joined: bytes) -> None:
    key, _ = make_key()
    renewed = authority.renew(joined, make_request(key, Peer("arm-1", Role.ROBOT)), ignore)
    allow = AllowList(authority.directory)
    assert allow.admits(shown(renewed))
    assert allow.admits(shown(joined))
    for other in (
        Peer("arm-2", Role.ROBOT),
        Peer("arm-1", Role.ENGINEER),
        Peer("hub", Role.SERVICE),
    ):
        with pytest.raises(SecurityError, match="same name and role"):
            authority.renew(joined, make_request(key, other), ignore)


def test_a_services_addresses_are_those_it_had(authority: Authority) -> None:
    service = authority.issue("replay", Role.SERVICE, ("head.lab", "10.0.0.7"))
    key, _ = make_key()
    renewed = authority.renew(
        service.certificate, make_request(key, Peer("replay", Role.SERVICE)), ignore
    )
    names = {
        str(name.value)
        for extension in parse(renewed).extensions
        if extension.oid.dotted_string == "2.5.29.17"
        for name in extension.value
    }
    assert names == {"head.lab", "10.0.0.7"}


def test_who_was_revoked_does_not_renew(
    invitations: Invitations, authority: Authority, joined: bytes
) -> None:
    invitations.revoke("arm-1")
    key, _ = make_key()
    with pytest.raises(SecurityError, match="any more"):
        authority.renew(joined, make_request(key, Peer("arm-1", Role.ROBOT)), ignore)


def test_lost_renewals_do_not_add_up_nor_lock_anybody_out(
    authority: Authority, joined: bytes
) -> None:
    for _ in range(12):
        key, _ = make_key()
        newest = authority.renew(joined, make_request(key, Peer("arm-1", Role.ROBOT)), ignore)
    allow = AllowList(authority.directory)
    assert allow.admits(shown(joined))
    assert allow.admits(shown(newest))
    entry = json.loads((authority.directory / "allow.json").read_text())["arm-1"]
    assert len(entry["certificates"]) <= 5


def test_a_certificate_that_ran_out_opens_nothing_but_its_stream_may_stay(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path, lifetime_s=1.2)
    old = shown(authority.issue("host-1", Role.ROBOT).certificate)
    allow = AllowList(tmp_path)
    assert allow.admits(old)
    Authority.open(tmp_path).reissue("host-1")
    time.sleep(max(0.0, old.until - time.time()) + 0.05)
    assert not allow.admits(old)
    assert allow.keeps(old)


def test_a_stream_of_a_name_without_any_good_certificate_does_not_stay(tmp_path: Path) -> None:
    old = shown(Authority.open(tmp_path, lifetime_s=1.2).issue("host-1", Role.ROBOT).certificate)
    allow = AllowList(tmp_path)
    assert allow.keeps(old)
    time.sleep(max(0.0, old.until - time.time()) + 0.05)
    assert not allow.keeps(old)


def test_looking_at_the_list_costs_next_to_nothing(authority: Authority) -> None:
    one = shown(authority.issue("host-1", Role.ROBOT).certificate)
    allow = AllowList(authority.directory)
    allow.admits(one)
    started = time.perf_counter()
    for _ in range(1000):
        allow.admits(one)
    assert time.perf_counter() - started < 1.0  # 1 ms each would be thirty times what it takes
